//! Files in a data directory that are its user's, not PostgreSQL's: configuration, keys, whatever else lies outside of
//! PostgreSQL's own folders. No WAL tells of them, so what changed in them belongs to a snapshot; where a server was
//! not shut down and there is none, it is put away with the timeline, and the next start that goes on from there
//! takes it up again. Where nothing can be seen of the files, what their server began with counts. A fork makes a
//! timeline of its own, which has the files of the snapshot.
//!
//! # Format
//! `timelines/<id>/files/` holds the files that are others than those of the timeline's last snapshot, `written/<path>`,
//! with the folders that it lacks, empty ones too, the paths of those that are gone, `removed`, each with a zero byte
//! behind it. A snapshot of a later LSN than that of [`beside`] has all of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::{beside, mount};
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::frame::BLOCK_SIZE;
use crate::objects::snapshot::paths::{PERMISSIONS, is_own_folder};
use crate::objects::snapshot::{Entry, Node, Snapshot};
use crate::objects::store::file::{READ_BLOCKS, StoredFile};
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::{Repo, copy, durable, regular};
use crate::plumbing::datadir::exclude::is_excluded;
use crate::plumbing::datadir::rights::may_follow;

/// Files outside of PostgreSQL's own folders that a run writes by itself: the list of `contrib/pg_prewarm`.
const WRITTEN_BY_RUNS: [&[u8]; 3] = [b"PG_VERSION", b"autoprewarm.blocks", b"autoprewarm.blocks.tmp"];
/// How much of two files is compared at a time, bytes.
const PART: usize = 64 << 10;

/// In what such files differ from those of a snapshot: paths, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    folders: Vec<Vec<u8>>,
    written: Vec<Vec<u8>>,
    removed: Vec<Vec<u8>>,
}

fn dir(repo: &Repo, timeline: TimelineId) -> PathBuf {
    repo.timelines().dir(timeline).join("files")
}

/// Returns whether the server of `data` left others of these files than it began with, from `snapshot` and what was
/// put away with `timeline`, or than can be known. Costs a read of those files.
pub fn changed(repo: &Repo, timeline: &Timeline, snapshot: &Snapshot, data: &Path) -> Result<bool, CommandError> {
    let now = changes(repo, snapshot, data)?;
    let kept = match kept(repo, timeline) {
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(true),
        kept => kept?,
    };
    let written = dir(repo, timeline.id).join("written");
    if now != kept {
        return Ok(true);
    }
    for path in &now.written {
        if !is_same(&full(data, path), &full(&written, path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts what changed in these files since `snapshot` away with the timeline, in place of what was put away before.
/// Durable when it returns. Can be repeated after a crash, as long as the data directory is there.
pub fn put_away(repo: &Repo, timeline: &Timeline, snapshot: &Snapshot, data: &Path) -> CmdResult {
    let changes = changes(repo, snapshot, data)?;
    if changes == Changes::default() {
        return forget(repo, timeline.id);
    }
    publish(repo, timeline.tip(), data, &changes)
}

/// Puts away copies of the files that were written, which lie in `from`, and the names of those that were removed.
fn publish(repo: &Repo, tip: Position, from: &Path, changes: &Changes) -> CmdResult {
    let fill = |made: &Path| {
        let written = made.join("written");
        fs::create_dir(&written)?;
        changes.folders.iter().try_for_each(|path| fs::create_dir_all(full(&written, path)))?;
        for path in &changes.written {
            let target = full(&written, path);
            fs::create_dir_all(target.parent().unwrap_or(&written))?;
            copy::file(&full(from, path), &target)?;
        }
        let removed: Vec<u8> = changes.removed.iter().flat_map(|path| [path, &b"\0"[..]].concat()).collect();
        regular::write(&made.join("removed"), removed)?;
        durable::sync_tree(made)
    };
    Ok(beside::replace(repo, &dir(repo, tip.timeline), tip.lsn, fill)?)
}

/// Puts away what was put away with a timeline with another one too, on which its branch goes on from its tip: at `start`.
pub fn pass_on(repo: &Repo, timeline: &Timeline, start: Position) -> CmdResult {
    let changes = kept(repo, timeline)?;
    if changes == Changes::default() {
        return Ok(());
    }
    publish(repo, start, &dir(repo, timeline.id).join("written"), &changes)
}

/// Forgets what was put away with the timeline: a snapshot has it.
pub fn forget(repo: &Repo, timeline: TimelineId) -> CmdResult {
    let target = dir(repo, timeline);
    if target.try_exists()? { Ok(durable::discard_dir(repo.tmp()?, &target)?) } else { Ok(()) }
}

/// Makes the files of a data directory, whose server is not started yet, those that were put away with the timeline
/// from which it goes on. Durable when it returns.
pub fn take_up(repo: &Repo, timeline: &Timeline, data: &Path) -> CmdResult {
    let Changes { folders, written, removed } = kept(repo, timeline)?;
    for path in &removed {
        durable::remove(&full(data, path))?;
    }
    folders.iter().try_for_each(|path| durable::create_dir_all(&full(data, path)))?;
    for path in &written {
        let target = full(data, path);
        durable::create_dir_all(target.parent().unwrap_or(data))?;
        // One that may not be written can be replaced, and so can a folder: what was in it is gone.
        if fs::symlink_metadata(&target).is_ok_and(|there| there.is_dir()) {
            fs::remove_dir_all(&target)?;
        }
        durable::remove(&target)?;
        copy::file(&full(&dir(repo, timeline.id).join("written"), path), &target)?;
        durable::sync_file(&target)?;
        durable::sync_dir(target.parent().unwrap_or(data))?;
    }
    Ok(())
}

/// Checks what was put away with a timeline, if anything was.
pub fn check(repo: &Repo, timeline: TimelineId) -> io::Result<()> {
    beside::as_of(&dir(repo, timeline)).map(drop)
}

/// Returns what was put away with a timeline, unless a snapshot of a later moment has it.
fn kept(repo: &Repo, timeline: &Timeline) -> io::Result<Changes> {
    let dir = dir(repo, timeline.id);
    let newest = timeline.snapshots.before(timeline.tip().lsn);
    if beside::as_of(&dir)?.zip(newest).is_some_and(|(at, newest)| newest.lsn > at) {
        return Ok(Changes::default());
    }
    let removed = match regular::read(&dir.join("removed")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Changes::default()),
        removed => removed?,
    };
    let removed = removed.split(|byte| *byte == 0).filter(|path| is_inside(path) && is_other(path));
    let (removed, written) = (removed.map(<[u8]>::to_vec).collect(), dir.join("written"));
    let mut changes = Changes { removed, ..Changes::default() };
    if written.try_exists()? {
        find(&written, &[], &mut changes)?;
        changes.written.retain(|path| !full(&written, path).is_symlink());
    }
    Ok(changes)
}

/// Returns in what the files of `data` differ from those of the snapshot.
fn changes(repo: &Repo, snapshot: &Snapshot, data: &Path) -> Result<Changes, CommandError> {
    let stored = snapshot.entries.iter().filter(|entry| is_other(&entry.path));
    let stored: BTreeMap<&[u8], &Entry> = stored.map(|entry| (entry.path.as_slice(), entry)).collect();
    let mut changes = Changes::default();
    find(data, &[], &mut changes)?;
    let is = |path: &[u8], node: fn(&Node) -> bool| stored.get(path).is_some_and(|entry| node(&entry.node));
    changes.folders.retain(|path| !is(path, |node| *node == Node::Dir));
    // A link that leads to a folder or nowhere is in no snapshot.
    let is_link = |path: &[u8]| is(path, |node| matches!(node, Node::Symlink { .. }));
    for path in std::mem::take(&mut changes.written) {
        let is_there = match fs::metadata(full(data, &path)) {
            Ok(metadata) => metadata.is_file(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            // What cannot be looked at is not gone.
            Err(error) => return Err(error.into()),
        };
        if is_there || is_link(&path) {
            changes.written.push(path);
        }
    }
    let files = stored.iter().filter(|(_, entry)| entry.node != Node::Dir).map(|(path, _)| path.to_vec());
    changes.removed = files.filter(|path| changes.written.binary_search(path).is_err()).collect();
    for path in std::mem::take(&mut changes.written) {
        let is_known = match stored.get(path.as_slice()) {
            Some(entry) => is_stored(repo, entry, &full(data, &path))?,
            None => false,
        };
        if !is_known {
            changes.written.push(path);
        }
    }
    // Out of sight, it looks as if all had been removed.
    mount::check_in_sight(data.parent().unwrap_or(data))?;
    Ok(changes)
}

/// Returns whether a path is of a file that only its user writes.
fn is_other(path: &[u8]) -> bool {
    !path.is_empty() && !is_own_folder(path) && !is_excluded(path) && !WRITTEN_BY_RUNS.contains(&path)
}

/// Returns whether a path leads nowhere but into the folder that it is about.
fn is_inside(path: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(path)).components().all(|part| matches!(part, Component::Normal(_)))
}

fn full(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}

/// Adds such files, links and folders in the folder `below` of `dir`, and those in them, in order.
fn find(dir: &Path, below: &[u8], found: &mut Changes) -> io::Result<()> {
    for entry in fs::read_dir(full(dir, below))? {
        let entry = entry?;
        let name = entry.file_name();
        let path = if below.is_empty() { name.as_bytes().to_vec() } else { [below, b"/", name.as_bytes()].concat() };
        let kind = entry.file_type()?;
        if !is_other(&path) || kind.is_symlink() && !may_follow(&entry.path()) {
            continue;
        }
        if kind.is_dir() {
            find(dir, &path, found)?;
            found.folders.push(path);
        } else if kind.is_file() || kind.is_symlink() {
            found.written.push(path);
        }
    }
    found.folders.sort_unstable();
    found.written.sort_unstable();
    Ok(())
}

/// Returns whether the file or link at `path` is as in the snapshot; not of one that cannot be known any more.
fn is_stored(repo: &Repo, entry: &Entry, path: &Path) -> Result<bool, CommandError> {
    match is_as_stored(repo, entry, path) {
        Err(error) if error.class == Class::Corrupt => Ok(false),
        is_stored => is_stored,
    }
}

fn is_as_stored(repo: &Repo, entry: &Entry, path: &Path) -> Result<bool, CommandError> {
    if let Node::Symlink { target } = &entry.node {
        let link = fs::read_link(path).ok();
        return Ok(link.is_some_and(|link| link.as_os_str().as_bytes() == target));
    }
    let Some(stored) = StoredFile::of_entry(repo.store(), entry)? else { return Ok(false) };
    let metadata = fs::metadata(path)?;
    if metadata.len() != stored.length() || metadata.mode() & PERMISSIONS != entry.mode & PERMISSIONS {
        return Ok(false);
    }
    let file = regular::open(path)?;
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

/// Returns whether two files have the same content and permission bits.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (regular::open(one)?, regular::open(other)?);
    let seen = |file: &File| file.metadata().map(|metadata| (metadata.len(), metadata.mode() & PERMISSIONS));
    let (length, _) = seen(&one)?;
    if seen(&one)? != seen(&other)? {
        return Ok(false);
    }
    let mut parts = [vec![0; PART], vec![0; PART]];
    for at in (0..length).step_by(PART) {
        let part = (length - at).min(PART as u64) as usize; // at most PART
        one.read_exact_at(&mut parts[0][..part], at)?;
        other.read_exact_at(&mut parts[1][..part], at)?;
        if parts[0][..part] != parts[1][..part] {
            return Ok(false);
        }
    }
    Ok(true)
}
