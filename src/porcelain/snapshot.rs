//! `zenith snapshot`: takes a snapshot of a branch while its server runs.

use std::io::Write;

use super::{branch_or_head, size};
use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::instance;
use crate::plumbing::instance::snapshot::snapshot;

/// Take a snapshot of a running branch
///
/// Stores the blocks that changed since the last snapshot, while PostgreSQL goes on, so that a start
/// at a later point has less WAL to replay. Prints the id of the snapshot. A running branch gets one
/// by itself whenever snapshot.wal_threshold of WAL has gone by (64 MiB unless the config says
/// otherwise), though not more than one a minute, and a last one when it is stopped.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith snapshot\n  zenith snapshot try --json\n")]
pub struct Args {
    /// Print one line of JSON: snapshot, timeline, lsn, stored_bytes and statistics
    #[arg(long)]
    json: bool,
    /// The branch; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    branch: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let branch = branch_or_head(&repo, args.branch.as_deref())?;
    let unknown = || instance::Error::NotRunning(branch.short().to_owned());
    let instance = instance::of_branch(&repo, branch.short())?.ok_or_else(unknown)?;
    let outcome = snapshot(&repo, &instance, cx.now.timestamp().as_microsecond(), &cx.ui)?;
    if args.json {
        return cx.json(&outcome);
    }
    writeln!(cx.out, "{}", outcome.snapshot)?;
    cx.ui.status(format!("at {}, {} stored", outcome.lsn, size(outcome.stored_bytes)));
    Ok(())
}
