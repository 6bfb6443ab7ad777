//! `zenith show-wal`: lists the records of WAL.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::WalReader;
use crate::objects::refs::revision;
use crate::plumbing::datadir::WalFilesError;

/// List the records of a timeline's sealed WAL
///
/// Prints for each record its LSN, the LSN after it, the resource manager, its length in bytes, its
/// transaction, the LSN of the record before, and the blocks that it touches.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith show-wal main\n  zenith show-wal --commits main\n")]
pub struct Args {
    /// Begin with the first record at or after this LSN
    #[arg(long, value_name = "LSN")]
    start: Option<Lsn>,
    /// Only commits: LSN, the LSN after it, transaction and time
    #[arg(long)]
    commits: bool,
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let end = revision::resolve(&repo, &args.revision, &now)?.position;
    let timeline = repo.timelines().read(end.timeline)?;
    let wal = repo.sealed_wal(&timeline, Lsn(0))?;
    let Some(first) = wal.start() else { return Err(CommandError::refused("there is no WAL")) };
    let damaged = |source| CommandError::from(WalFilesError::of(timeline.id, source));
    let start = args.start.unwrap_or(first).max(first);
    let mut reader = WalReader::seek(wal, repo.expected_wal(), start).map_err(damaged)?;
    while reader.position_lsn() < end.lsn {
        let record = reader.read().map_err(damaged)?;
        if record.start >= end.lsn {
            break;
        }
        if args.commits {
            if let Some(commit) = record.commit() {
                let time = jiff::Timestamp::from_microsecond(commit.time_us).unwrap_or_default();
                writeln!(cx.out, "{} {} {} {time}", record.start, record.end, record.xid())?;
            }
            continue;
        }
        let (blocks, _) = record
            .body()
            .map_err(|error| CommandError::refused(format!("{error}, in the record at {}", record.start)))?;
        let (name, length) = (record.resource_manager_name(), record.length());
        write!(cx.out, "{} {} {name} {length} {} {}", record.start, record.end, record.xid(), record.prev())?;
        for block in blocks {
            const FORKS: [&str; 4] = ["main", "fsm", "vm", "init"];
            let fork = FORKS.get(usize::from(block.fork)).unwrap_or(&"unknown");
            let image = if block.has_image { " FPW" } else { "" };
            write!(
                cx.out,
                " {}/{}/{}:{fork}:{}{image}",
                block.tablespace, block.database, block.relation, block.block
            )?;
        }
        writeln!(cx.out)?;
    }
    Ok(())
}
