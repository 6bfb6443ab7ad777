//! `zenith seal-wal`: stores the active WAL of a timeline. PostgreSQL's `archive_command` is this.

use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::instance::seal::{seal_active, seal_segment};
use crate::plumbing::instance::snapshot::snapshot_if_due;

/// Seal the active WAL of a timeline
///
/// Checks the WAL that PostgreSQL has flushed, record by record, stores it as objects and notes
/// them in the timeline's log. Prints where the sealed WAL ends. With --segment, seals the WAL to
/// the end of that segment, which PostgreSQL has completed; this is what zenith sets as
/// PostgreSQL's archive_command.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith seal-wal main\n  zenith seal-wal --segment 000000010000000000000003 76cf99\n"
)]
pub struct Args {
    /// The timeline: a branch, or a timeline id
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    revision: String,
    /// The name of a completed segment file
    #[arg(long, value_name = "FILE")]
    segment: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let timeline = crate::objects::refs::revision::resolve(&repo, &args.revision, &now)?.position.timeline;
    let sealed = match &args.segment {
        Some(file) => {
            let sealed = seal_segment(&repo, timeline, file)?;
            // What goes wrong there must not keep PostgreSQL from going on.
            if let Err(error) = snapshot_if_due(&repo, timeline, now.timestamp().as_microsecond()) {
                cx.ui.warning(error.text());
            }
            sealed
        }
        None => seal_active(&repo, timeline)?,
    };
    let sealed = sealed.map_or_else(
        || repo.timelines().read(timeline).map(|timeline| timeline.sealed()),
        |sealed| Ok(sealed.sealed),
    )?;
    if args.segment.is_none() {
        writeln!(cx.out, "{sealed}")?;
    }
    Ok(())
}
