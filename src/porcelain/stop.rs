//! `zenith stop`: ends a branch's server and keeps what it did.

use std::io::Write;
use std::time::Duration;

use super::{branch_or_head, find_instance};
use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::instance::settle::Settled;
use crate::plumbing::instance::stop::stop;
use crate::plumbing::instance::{self, Instance};
use crate::plumbing::postgres::server::{Mode, Status};

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

/// Stops an instance, and prints what became of it.
pub fn stop_and_report(cx: &mut Cx, repo: &Repo, instance: &Instance, mode: Mode, timeout: Duration) -> CmdResult {
    let (name, branch) = (&instance.name, &instance.config.branch);
    match stop(repo, name, mode, timeout, &cx.sign("stop"), &cx.ui)? {
        Settled::Nothing => writeln!(cx.out, "{name}: {branch} was not running")?,
        Settled::Discarded => writeln!(cx.out, "{name}: {branch} stopped")?,
        Settled::Dropped => writeln!(cx.out, "{name}: {branch} stopped, nothing was committed")?,
        Settled::Sealed { timeline, .. } => {
            let tip = repo.timelines().read(timeline)?.tip().lsn;
            writeln!(cx.out, "{name}: {branch} stopped at {tip}")?;
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
