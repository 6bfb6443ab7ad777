//! `zenith fork-timeline`: begins a timeline at a position of another one.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::revision;
use crate::objects::timeline::{Position, TimelineId};

/// Begin a timeline at a revision
///
/// Prints the id of the new timeline, which has no WAL of its own yet. Give it a name with update-ref.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith update-ref refs/branches/try $(zenith fork-timeline main@0/15ECF68)\n"
)]
pub struct Args {
    /// Where to fork
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
}

/// Creates a timeline that forks at `position`, whose WAL must be sealed (INVARIANT 1).
pub fn fork_timeline(repo: &Repo, position: Position, now_us: i64) -> Result<TimelineId, CommandError> {
    let _kept = repo.timelines().keep()?;
    let parent = repo.timelines().secure(position.timeline)?;
    if position.lsn > parent.sealed() {
        let (lsn, end) = (position.lsn, parent.sealed());
        return Err(revision::Error::BeyondEnd { revision: position.to_string(), lsn, timeline: parent.id, end }.into());
    }
    let origin = repo.timelines().fork(position, repo.clone_id()?, now_us)?;
    let id = TimelineId::random();
    repo.timelines().create(repo.tmp()?, id, &origin)?;
    Ok(id)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let position = revision::resolve(&repo, &args.revision, &now)?.position;
    let id = fork_timeline(&repo, position, now.timestamp().as_microsecond())?;
    Ok(writeln!(cx.out, "{id}")?)
}
