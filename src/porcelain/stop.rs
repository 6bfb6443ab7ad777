//! `zenith stop`: ends a branch's server and keeps what it did.

use std::io::Write;
use std::time::Duration;

use super::{branch_or_head, find_instance};
use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::instance::settle::{Settled, settle};
use crate::plumbing::instance::{self, Instance, read_only};
use crate::plumbing::postgres::server::{self, Mode, Status};

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
    /// Stop all branches that run
    #[arg(long, conflicts_with = "branch")]
    all: bool,
    /// The branch, or the revision of a read-only server; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::branch))]
    branch: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ModeArg {
    Smart,
    Fast,
    Immediate,
}

/// Stops an instance and closes its epoch. Costs the WAL that is not sealed yet, and reading the
/// cluster's files.
pub fn stop_instance(cx: &Cx, repo: &Repo, name: &str, mode: Mode, timeout: Duration) -> Result<Settled, CommandError> {
    let _held = Instance::hold(repo, name)?;
    let mut instance = Instance::read(repo, name)?;
    if let Some(data) = instance.data_dir(repo) {
        server::stop(&data, mode, timeout, &instance.log(repo), &cx.ui)?;
    }
    settle(repo, &mut instance, &cx.sign("stop"), &cx.ui)
}

/// Stops an instance, and prints what became of it.
pub fn stop_and_report(cx: &mut Cx, repo: &Repo, instance: &Instance, mode: Mode, timeout: Duration) -> CmdResult {
    let branch = &instance.config.branch;
    if instance.is_read_only() {
        let _held = Instance::hold(repo, &instance.name)?;
        if let Some(data) = instance.data_dir(repo) {
            server::stop(&data, mode, timeout, &instance.log(repo), &cx.ui)?;
        }
        read_only::discard(repo, instance.clone())?;
        return Ok(writeln!(cx.out, "{}: {branch} stopped", instance.name)?);
    }
    match stop_instance(cx, repo, &instance.name, mode, timeout)? {
        Settled::Nothing => writeln!(cx.out, "{}: {branch} was not running", instance.name)?,
        Settled::Dropped => writeln!(cx.out, "{}: {branch} stopped, nothing was committed", instance.name)?,
        Settled::Sealed { timeline, .. } => {
            let tip = repo.timelines().read(timeline)?.tip().lsn;
            writeln!(cx.out, "{}: {branch} stopped at {tip}", instance.name)?;
        }
    }
    Ok(())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let mode = match args.mode {
        ModeArg::Smart => Mode::Smart,
        ModeArg::Fast => Mode::Fast,
        ModeArg::Immediate => Mode::Immediate,
    };
    let timeout = Duration::from_secs(args.timeout);
    if args.all {
        let open = |instance: &Instance| instance.timeline().is_some() || instance.status(&repo) != Status::Stopped;
        let instances = instance::list(&repo)?;
        return instances
            .iter()
            .filter(|instance| open(instance))
            .try_for_each(|instance| stop_and_report(cx, &repo, instance, mode, timeout));
    }
    match find_instance(&repo, args.branch.as_deref())? {
        Some(instance) => stop_and_report(cx, &repo, &instance, mode, timeout),
        None => {
            let branch = branch_or_head(&repo, args.branch.as_deref())?;
            Err(CommandError::refused(format!("'{}' is not running", branch.short())))
        }
    }
}
