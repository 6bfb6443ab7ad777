//! `zenith stop`: ends a branch's server and keeps what it did.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Failed, branch_or_head, find_instance};
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::instance::find::hold_or_create;
use crate::plumbing::instance::settle::Settled;
use crate::plumbing::instance::stop::{accept_end, stop};
use crate::plumbing::instance::{self, Instance, lost};
use crate::plumbing::postgres::server::{Mode, Status};
use crate::progress::Quietly;

/// Stop the server of a branch
///
/// Shuts PostgreSQL down, seals its WAL and stores a snapshot of what changed. What was committed is
/// safe long before: a server that is killed loses nothing, and the next start finds all of it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith stop try\n  zenith stop --all --mode immediate\n")]
pub struct Args {
    /// How: wait for clients, end their transactions, or as in a crash
    #[arg(short, long, value_enum, default_value = "fast")]
    mode: ModeArg,
    /// Give up after so many seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "60")]
    timeout: u64,
    /// Take this LSN for the end of the WAL, although there should be more: what lies behind it, and the data
    /// directory, go to the trash
    #[arg(long, value_name = "LSN", conflicts_with = "all")]
    accept_end: Option<String>,
    /// Stop all branches that run
    #[arg(long, conflicts_with = "branch")]
    all: bool,
    /// The branch, or the revision of a read-only server; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    branch: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ModeArg {
    Smart,
    Fast,
    Immediate,
}

/// Stops an instance, and prints what became of it.
pub fn stop_and_report(cx: &mut Cx, repo: &Repo, instance: &Instance, mode: Mode, timeout: Duration) -> CmdResult {
    let settled = stop(repo, instance, mode, timeout, &cx.sign("stop"), &cx.ui)?;
    report(cx, repo, instance, settled)
}

fn report(cx: &mut Cx, repo: &Repo, instance: &Instance, settled: Settled) -> CmdResult {
    let (name, branch) = (&instance.name, &instance.config.branch);
    match settled {
        Settled::Nothing => cx.say(format_args!("{name}: {branch} was not running")),
        Settled::Discarded => cx.say(format_args!("{name}: {branch} stopped")),
        Settled::Unchanged => cx.say(format_args!("{name}: {branch} stopped, nothing was committed")),
        Settled::Sealed { timeline, .. } => {
            let tip = repo.timelines().read(timeline)?.tip().lsn;
            cx.say(format_args!("{name}: {branch} stopped at {tip}"))
        }
    }
}

/// Stops that run at once: each waits for its server most of the time.
const SIDE_BY_SIDE: usize = 8;

/// Stops instances side by side, and prints what became of them in their order. One that does not stop keeps no other
/// one running.
fn stop_all(cx: &mut Cx, repo: &Repo, instances: &[Instance], mode: Mode, timeout: Duration) -> CmdResult {
    let (signature, next) = (cx.sign("stop"), AtomicUsize::new(0));
    let progress = Quietly(&cx.ui);
    let work = || {
        let mine = std::iter::from_fn(|| instances.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.map(|instance| (&instance.name, stop(repo, instance, mode, timeout, &signature, &progress)))
            .collect::<Vec<_>>()
    };
    let mut settled: HashMap<&String, Result<Settled, CommandError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SIDE_BY_SIDE.min(instances.len())).map(|_| scope.spawn(work)).collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        done.flatten().collect()
    });
    let mut failed = Failed::default();
    for instance in instances {
        let settled = settled.remove(&instance.name).expect("invariant: each is stopped by one thread");
        let told = settled.and_then(|settled| report(cx, repo, instance, settled));
        failed.note(told)?;
    }
    failed.end(|count| format!("{count} of {} servers did not stop", instances.len()))
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let mode = match args.mode {
        ModeArg::Smart => Mode::Smart,
        ModeArg::Fast => Mode::Fast,
        ModeArg::Immediate => Mode::Immediate,
    };
    let timeout = Duration::from_secs(args.timeout);
    let patience = repo.patience().clone().within(timeout);
    let repo = repo.with_patience(patience);
    let forgotten = lost::take_up(&repo, &cx.ui)?;
    if let Some(name) = args.branch.as_ref().filter(|name| forgotten.contains(name)) {
        return cx.say(format_args!("{name}: was damaged and is forgotten, nothing of it ran"));
    }
    if args.all {
        let open = |instance: &Instance| instance.timeline().is_some() || instance.status(&repo) != Status::Stopped;
        let instances: Vec<Instance> = instance::list(&repo)?.into_iter().filter(open).collect();
        return stop_all(cx, &repo, &instances, mode, timeout);
    }
    let branch = || branch_or_head(&repo, args.branch.as_deref());
    let mut found = find_instance(&repo, args.branch.as_deref())?;
    if found.is_none() && args.accept_end.is_some() {
        // Its last stop may have been killed before all was done, and its instance lost since.
        let branch = branch()?;
        repo.refs().read_branch(&branch)?;
        found = Some(hold_or_create(&repo, branch.short(), &cx.ui)?.1);
    }
    match found {
        Some(instance) if args.accept_end.is_some() => {
            let end = args.accept_end.unwrap_or_default();
            let end = end.parse().map_err(|error| CommandError::usage(format!("'{end}' is not an LSN: {error}")))?;
            let settled = accept_end(&repo, &instance, end, &cx.sign("stop"), &cx.ui)?;
            report(cx, &repo, &instance, settled)
        }
        Some(instance) => stop_and_report(cx, &repo, &instance, mode, timeout),
        None => Err(CommandError::refused(format!("'{}' is not running", branch()?.short()))),
    }
}
