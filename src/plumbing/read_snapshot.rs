//! `zenith read-snapshot`: writes the files of a snapshot into a folder.

use std::path::PathBuf;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::datadir::restore::restore;

/// Write the files of a snapshot into an empty folder
///
/// Gives every file back bit for bit, and nothing else: no WAL and no backup_label, so that a server
/// cannot be started on it as it is. For that see restore.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith read-snapshot main /tmp/files\n")]
pub struct Args {
    /// A snapshot's id, or a revision: its newest snapshot
    #[arg(value_name = "SNAPSHOT", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    snapshot: String,
    /// The folder; it must be empty or not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let (_, snapshot) = super::ls_snapshot::find_snapshot(&repo, &args.snapshot, &now)?;
    let dir = cx.folder.join(args.dir);
    repo.refuse_within(&dir)?;
    Ok(restore(repo.store(), &snapshot, &dir, &cx.ui)?)
}
