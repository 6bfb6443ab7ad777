//! `zenith cat-timeline`: prints where a timeline comes from, its log and its snapshots.

use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::refs::revision;
use crate::objects::timeline::snapshots::{Line, Snapshots};

/// Print a timeline's ancestors, WAL intervals and snapshots
///
/// Prints "timeline <id>", "ancestor <id> <fork LSN>" lines, the oldest first, "writer <clone>", "time <microseconds since
/// 1970>", and the lines of its log and of its snapshots as they are in the repository, but those that others took back.
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
    let ancestors = repo.timelines().ancestry(timeline.tip()).skip(1).collect::<Result<Vec<_>, _>>()?;
    for ancestor in ancestors.iter().rev() {
        writeln!(cx.out, "ancestor {} {}", ancestor.timeline, ancestor.lsn)?;
    }
    writeln!(cx.out, "writer {}\ntime {}", timeline.origin.writer, timeline.origin.time_us)?;
    timeline.log.wal.iter().try_for_each(|interval| writeln!(cx.out, "{interval}"))?;
    let Snapshots { listed, dropped } = timeline.snapshots;
    let listed = listed.into_iter().map(Line::Snapshot);
    let mut lines = listed.chain(dropped.into_iter().map(|(start, end)| Line::Dropped { start, end }));
    Ok(lines.try_for_each(|line| writeln!(cx.out, "{line}"))?)
}
