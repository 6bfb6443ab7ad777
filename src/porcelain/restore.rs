//! `zenith restore`: gives a version back as a plain data directory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::size;
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::file_error::cannot;
use crate::objects::snapshot::Snapshot;
use crate::objects::timeline::Position;
use crate::objects::{Repo, durable, regular};
use crate::plumbing::datadir::wal::{complete, lay_out};
use crate::plumbing::datadir::{
    self,
    restore::{finish, restore_unfinished},
};
use crate::plumbing::postgres::recovery::write_backup_label;
use crate::plumbing::rev_parse::with_position;
use crate::progress::Progress;

/// Write a version into a plain data directory
///
/// Any PostgreSQL of the same major version starts on it, without zenith: it replays the WAL that is
/// in its pg_wal up to the revision, and goes on from there. None starts on it before all is there and durable: only then
/// global/pg_control gets its name.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith restore before-delete /tmp/old\n  zenith restore 'main@{1 hour ago}' /tmp/hour\n"
)]
pub struct Args {
    /// What to restore
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
    /// The folder; it must be empty or not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes a data directory as of `position`, durably. Costs the cluster's files and the WAL since the
/// newest snapshot. Returns the snapshot that it began with.
pub fn restore(repo: &Repo, position: Position, dir: &Path, progress: &dyn Progress) -> Result<Snapshot, CommandError> {
    let (_, line) = repo.timelines().snapshot_before(position)?;
    let snapshot = repo.store().snapshot(&line.object)?;
    repo.refuse_within(dir)?;
    durable::create_dir_all(dir).map_err(cannot::<datadir::Error>("create", dir))?;
    restore_unfinished(repo.store(), &snapshot, dir, progress)?;
    let wal = dir.join("pg_wal");
    fs::create_dir_all(wal.join("archive_status")).map_err(cannot::<datadir::Error>("create", &wal))?;
    lay_out(repo, &snapshot, position, &wal, &mut |_| {})?;
    complete(repo, &snapshot, position.timeline, &wal)?;
    write_backup_label(dir, &snapshot)?;
    let has_tablespaces = snapshot.entries.iter().any(|entry| entry.path.starts_with(b"pg_tblspc/"));
    if has_tablespaces {
        // They are folders in pg_tblspc now, which PostgreSQL accepts only with this.
        let path = dir.join("postgresql.auto.conf");
        let mut file =
            regular::open_with(fs::File::options().append(true).create(true), &path)
                .map_err(cannot::<datadir::Error>("open", &path))?;
        writeln!(file, "allow_in_place_tablespaces = on").map_err(cannot::<datadir::Error>("write", &path))?;
    }
    durable::sync_tree(dir).map_err(cannot::<datadir::Error>("sync", dir))?;
    finish(dir)?;
    Ok(snapshot)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let dir = cx.folder.join(&args.dir);
    let (position, snapshot) = with_position(&repo, &args.revision, &now, |resolved| {
        Ok((resolved.position, restore(&repo, resolved.position, &dir, &cx.ui)?))
    })?;
    let replay = position.lsn.since(snapshot.start);
    cx.say(format_args!("restored {} to {}", position, args.dir.display()))?;
    cx.ui.status(format!(
        "PostgreSQL {} will replay {} of WAL at its first start",
        snapshot.postgres_major,
        size(replay)
    ));
    Ok(())
}
