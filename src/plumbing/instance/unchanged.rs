//! Whether an epoch changed anything (INVARIANT 7): by its WAL, and by the files that PostgreSQL writes no WAL of.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::slots;
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::frame::BLOCK_SIZE;
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::WalReader;
use crate::objects::snapshot::paths::{PERMISSIONS, is_own_folder};
use crate::objects::snapshot::{Entry, Node, Snapshot};
use crate::objects::store::file::{READ_BLOCKS, StoredFile};
use crate::objects::timeline::{Timeline, TimelineId};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::exclude::is_excluded;
use crate::plumbing::datadir::wal::WalFilesError;

/// An epoch that committed nothing is kept, for its snapshot, if starting without that means to
/// replay more WAL, bytes.
const REPLAY: u64 = 16 << 20;

/// Files outside of PostgreSQL's own folders that a run writes by itself: the list of `contrib/pg_prewarm`.
const WRITTEN_BY_RUNS: [&[u8]; 2] = [b"autoprewarm.blocks", b"autoprewarm.blocks.tmp"];

/// Returns the parent to go back to, if the epoch changed nothing: all of its records are of those that every server
/// writes, and its files, if it has any, differ in nothing else. They have to be in sight.
pub(super) fn unchanged(repo: &Repo, timeline: &Timeline, data: &Path) -> Result<Option<TimelineId>, CommandError> {
    let Some(parent) = timeline.history.ancestors.last() else { return Ok(None) };
    if !only_noise(repo, timeline, parent.fork)? {
        return Ok(None);
    }
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    let replayed = parent.fork.since(line.lsn);
    if replayed > REPLAY
        || data.join("PG_VERSION").try_exists()?
            && (others_changed(repo, &repo.store().snapshot(&line.object)?, data)?
                || replayed == 0 && relations_changed(data)?)
    {
        return Ok(None);
    }
    // Made, dropped or moved on: PostgreSQL writes no WAL of that.
    if slots::changed(repo, parent.timeline, data)? {
        return Ok(None);
    }
    // The branch goes back only to where it came from: a tip, not a point amid other WAL.
    let back = repo.timelines().read(parent.timeline)?;
    Ok(Some(parent.timeline).filter(|_| back.tip().lsn == parent.fork))
}

/// Returns whether all records since the fork are ones that change nothing.
fn only_noise(repo: &Repo, timeline: &Timeline, fork: Lsn) -> Result<bool, CommandError> {
    if timeline.log.wal.iter().any(|interval| interval.commit_us.is_some()) {
        return Ok(false);
    }
    let source = repo.sealed_wal(timeline, fork.segment_start(repo.config().wal_segment_size))?;
    let mut reader = WalReader::new(source, repo.expected_wal(), fork);
    while reader.position_lsn() < timeline.tip().lsn {
        let record = reader.read().map_err(|source| WalFilesError::Damaged { timeline: timeline.id, source })?;
        if !record.changes_nothing() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether files of databases were written that no record tells of: hint bits, in a cluster without checksums.
/// Only a lazy data directory knows.
fn relations_changed(data: &Path) -> Result<bool, CommandError> {
    let Some(control) = Control::of(data) else { return Ok(false) };
    let is_of_databases = |path: &[u8]| {
        let within = [&b"base/"[..], b"global/", b"pg_tblspc/"].iter().any(|folder| path.starts_with(folder));
        within && path != b"global/pg_control" && !is_excluded(path)
    };
    Ok(control.changes()?.paths().any(is_of_databases))
}

/// Returns whether the files outside of PostgreSQL's own folders are others than those of the snapshot: its
/// configuration, keys, whatever somebody put there. Costs a read of those files.
fn others_changed(repo: &Repo, snapshot: &Snapshot, data: &Path) -> Result<bool, CommandError> {
    let stored = snapshot.entries.iter().filter(|entry| is_other(&entry.path) && entry.node != Node::Dir);
    let stored: BTreeMap<&[u8], &Entry> = stored.map(|entry| (entry.path.as_slice(), entry)).collect();
    let mut found = Vec::new();
    find_others(data, &[], &mut found)?;
    // A link that leads to a folder or nowhere is in no snapshot.
    found.retain(|path| stored.contains_key(path.as_slice()) || full(data, path).is_file());
    if found.len() != stored.len() {
        return Ok(true);
    }
    for path in &found {
        let Some(entry) = stored.get(path.as_slice()) else { return Ok(true) };
        if !is_equal(repo, entry, &full(data, path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether a path is of a file that only its user writes.
fn is_other(path: &[u8]) -> bool {
    !is_own_folder(path) && !is_excluded(path) && !WRITTEN_BY_RUNS.contains(&path)
}

fn full(data: &Path, path: &[u8]) -> PathBuf {
    data.join(OsStr::from_bytes(path))
}

/// Lists such files and links in the folder `below` and those in it.
fn find_others(data: &Path, below: &[u8], found: &mut Vec<Vec<u8>>) -> io::Result<()> {
    for entry in fs::read_dir(full(data, below))? {
        let entry = entry?;
        let name = entry.file_name();
        let path = if below.is_empty() { name.as_bytes().to_vec() } else { [below, b"/", name.as_bytes()].concat() };
        let kind = entry.file_type()?;
        if !is_other(&path) {
            continue;
        }
        if kind.is_dir() {
            find_others(data, &path, found)?;
        } else if kind.is_file() || kind.is_symlink() {
            found.push(path);
        }
    }
    Ok(())
}

/// Returns whether the file or link at `path` is as in the snapshot.
fn is_equal(repo: &Repo, entry: &Entry, path: &Path) -> Result<bool, CommandError> {
    if let Node::Symlink { target } = &entry.node {
        let link = fs::read_link(path).ok();
        return Ok(link.is_some_and(|link| link.as_os_str().as_bytes() == target));
    }
    let Some(stored) = StoredFile::of_entry(repo.store(), entry)? else { return Ok(false) };
    let metadata = fs::metadata(path)?;
    if metadata.len() != stored.length() || metadata.mode() & PERMISSIONS != entry.mode & PERMISSIONS {
        return Ok(false);
    }
    let file = File::open(path)?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < stored.length() {
        theirs.clear();
        stored.read(repo.store(), (at / BLOCK_SIZE as u64) as u32, READ_BLOCKS, &mut theirs)?; // a file has at most 2^32 blocks
        ours.resize(theirs.len(), 0); // as long as what was read
        file.read_exact_at(&mut ours, at)?;
        if theirs.is_empty() || ours != theirs {
            return Ok(false);
        }
        at += theirs.len() as u64;
    }
    Ok(true)
}
