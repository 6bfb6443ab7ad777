//! `zenith cat-timeline`: prints a timeline's history and log.

use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::refs::revision;
use crate::objects::timeline::log::Line;

/// Print a timeline's ancestors, WAL intervals and snapshots
///
/// Prints "timeline <id>", "ancestor <id> <fork LSN>" lines, the oldest first, and the lines of its
/// log as they are in the repository.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith cat-timeline main\n  zenith cat-timeline 76cf99e0\n")]
pub struct Args {
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let position = revision::resolve(&repo, &args.revision, &now)?.position;
    let timeline = repo.timelines().read(position.timeline)?;
    writeln!(cx.out, "timeline {}", timeline.id)?;
    for ancestor in &timeline.history.ancestors {
        writeln!(cx.out, "ancestor {} {}", ancestor.timeline, ancestor.fork)?;
    }
    timeline.log.wal.iter().try_for_each(|interval| writeln!(cx.out, "{}", Line::Wal(*interval)))?;
    timeline.log.snapshots.iter().try_for_each(|snapshot| writeln!(cx.out, "{}", Line::Snapshot(*snapshot)))?;
    Ok(())
}
