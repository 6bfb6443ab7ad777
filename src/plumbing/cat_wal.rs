//! `zenith cat-wal`: prints WAL, byte for byte.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::WalSource;
use crate::objects::refs::revision;

/// Print the WAL of a timeline, byte for byte
///
/// Prints the sealed WAL from --start up to the revision, along the timeline's ancestors.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith cat-wal --start 0/1000000 main@0/15ECF68 > wal\n")]
pub struct Args {
    /// The first LSN; otherwise where the history begins
    #[arg(long, value_name = "LSN")]
    start: Option<Lsn>,
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let end = revision::resolve(&repo, &args.revision, &now)?.position;
    let timeline = repo.timelines().read(end.timeline)?;
    let mut wal = repo.sealed_wal(&timeline, args.start.unwrap_or(Lsn(0)))?;
    let mut at = match (args.start, wal.start()) {
        (Some(start), Some(first)) if start >= first => start,
        (None, Some(first)) => first,
        _ => return Err(CommandError::refused("there is no WAL from there on")),
    };
    let mut buffer = vec![0; 1 << 20];
    cx.print_bytes();
    while at < end.lsn {
        let wanted = buffer.len().min(usize::try_from(end.lsn.since(at)).unwrap_or(usize::MAX));
        let read = wal.read(at, &mut buffer[..wanted])?;
        if read == 0 {
            return Err(CommandError::refused(format!("there is no WAL at {at}")));
        }
        cx.out.write_all(&buffer[..read])?;
        at = at.plus(read as u64);
    }
    Ok(())
}
