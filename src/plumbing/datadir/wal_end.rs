//! Where active WAL ends (INVARIANT 6).
//!
//! PostgreSQL takes whatever is no valid record for the end of the WAL. A missing segment, a flipped bit and a page
//! that never reached the disk look the same, so that is not enough to throw files away by. The end is believed once
//! all that lies in the folder is durable, no segment before others is missing, and `pg_control`, where the data
//! directory is at hand, does not know of WAL beyond it. That no server is alive is for the caller to know.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::mounts::device_at;
use super::vfs::number_of;
use super::{Doubt, Error, WalFilesError, local};
use crate::objects::file_error::{cannot, is_want};
use crate::objects::pg::control::{ControlFile, PATH as CONTROL, State};
use crate::objects::pg::wal::{PAGE, WalReader, is_header_of};
use crate::objects::pg::{Lsn, segment};
use crate::objects::timeline::TimelineId;
use crate::objects::timeline::wal::{KEPT, TimelineWal};
use crate::objects::{Repo, bounded, durable, folder, regular};

/// The segment files in a folder: first LSN, PostgreSQL's timeline id, path, length in bytes.
struct Files(BTreeMap<Lsn, (u32, PathBuf, u64)>);

impl Files {
    /// Lists those in `dir`, and of the others that were there those that are kept.
    fn list(dir: &Path, segment_size: u32) -> Result<Files, Error> {
        let mut files = Files(BTreeMap::new());
        for folder in [&dir.join(KEPT), dir] {
            files.add(folder, segment_size)?;
        }
        Ok(files)
    }

    fn add(&mut self, dir: &Path, segment_size: u32) -> Result<(), Error> {
        for (timeline, start, name) in segments_in(dir, segment_size)? {
            let path = dir.join(name);
            let length = fs::symlink_metadata(&path).map_err(cannot::<Error>("read", &path))?.len();
            self.0.insert(start, (timeline, path, length));
        }
        Ok(())
    }
}

/// Returns the segment files in `dir` by their names: PostgreSQL's timeline id, first LSN, name.
fn segments_in(dir: &Path, segment_size: u32) -> Result<impl Iterator<Item = (u32, Lsn, OsString)> + use<>, Error> {
    let names = folder::names(dir).map_err(cannot::<Error>("list", dir))?;
    Ok(names.into_iter().filter_map(move |name| {
        let (timeline, start) = segment::parse_file_name(name.to_str()?, segment_size)?;
        Some((timeline, start, name))
    }))
}

/// Returns PostgreSQL's number of the timeline that the active WAL is of, if there is any. Looks at names alone: a server that runs
/// renames its segments at any time.
pub fn active_timeline(repo: &Repo, timeline: TimelineId) -> Result<Option<u32>, Error> {
    let (dir, size) = (repo.timelines().wal_dir(timeline), repo.config().wal_segment_size);
    let mut segments = segments_in(&dir, size)?.chain(segments_in(&dir.join(KEPT), size)?);
    Ok(segments.next().map(|(postgres_timeline, ..)| postgres_timeline))
}

/// Finds the end of the active WAL of `timeline`, of which no server is alive, which is where its last whole record
/// ends, and makes all of it durable. `None` where the folder has no segment, and no server ran on it. `accepted`
/// is an end that the user knows to be shorter than it should be: that one is believed. Costs a read of what is not
/// sealed.
pub fn find(repo: &Repo, timeline: TimelineId, accepted: Option<Lsn>) -> Result<Option<Lsn>, WalFilesError> {
    let (dir, size) = (repo.timelines().wal_dir(timeline), repo.config().wal_segment_size);
    let files = Files::list(&dir, size)?;
    if !files.0.is_empty() {
        // What a killed server left in the kernel's memory may be gone after a power cut.
        match durable::sync_tree(&dir) {
            // All of it was sealed meanwhile, and the folder emptied.
            Err(error) if error.kind() == ErrorKind::NotFound => return find(repo, timeline, accepted),
            synced => synced.map_err(cannot::<Error>("sync", &dir))?,
        }
    }
    let read = repo.timelines().read(timeline)?;
    let mut end = read.tip().lsn;
    // Before a run begins, its segments are being laid out, and some may be missing.
    let mut has_run = repo.timelines().run(timeline)?.is_some();
    // Until it ends, its folder has the segment that is written to.
    let mut doubt = has_run.then(|| Doubt::Missing { file: segment::file_name(1, end, size) });
    if let Some((postgres_timeline, _, _)) = files.0.values().next() {
        let active = repo.active_segments(timeline, *postgres_timeline);
        let source = TimelineWal::open(repo.store(), repo.timelines(), &read, end.segment_start(size), Some(active))?;
        let mut reader = WalReader::new(source, repo.expected_wal(), end);
        let error = loop {
            if let Err(error) = reader.read() {
                break error;
            }
        };
        if !error.may_be_end() {
            return Err(WalFilesError::of(timeline, error));
        }
        end = reader.position_lsn();
        has_run |= end > read.sealed();
        doubt = missing(&files, *postgres_timeline, size, end, error.noticed_at()).filter(|_| has_run);
    }
    // An end that is accepted needs no proof.
    if doubt.is_none() && accepted != Some(end) {
        doubt = match control(repo, timeline) {
            Ok(None) => None,
            // Before, a crash may have left any part of the file.
            Err(_) if !has_run => None,
            Ok(Some(control)) => {
                let upto = control.min_recovery_point.max(control.checkpoint.plus(1));
                (upto > end).then_some(Doubt::Control { upto })
            }
            // That says nothing of the file, and passes.
            Err(error) if is_want(&error) => return Err(error.into()),
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                Some(Doubt::ControlUnreadable { why: format!("{error}{cause}") })
            }
        };
    }
    if let Some(doubt) = doubt.filter(|_| accepted != Some(end)) {
        return Err(WalFilesError::EndInDoubt { timeline, end, doubt });
    }
    Ok(Some(end).filter(|_| !files.0.is_empty()))
}

/// Returns what is wrong if the WAL ends because a segment is not there: one that holds what was read before, or one
/// before others. `noticed` is where reading failed.
fn missing(files: &Files, timeline: u32, size: u32, end: Lsn, noticed: Lsn) -> Option<Doubt> {
    let start = noticed.segment_start(size);
    let is_whole = files.0.get(&start).is_some_and(|(_, _, length)| *length == u64::from(size));
    let is_needed = end > start || files.0.contains_key(&start) || files.0.range(start..).next().is_some();
    (!is_whole && is_needed).then(|| Doubt::Missing { file: segment::file_name(timeline, start, size) })
}

/// Returns the segment files that have WAL of their own place behind `end`, which cannot be read on to, each with the
/// first byte of that. A crash leaves such pages where PostgreSQL wrote and had not flushed; so does a flipped bit.
/// Recycled segments have WAL of another place, and new ones zeroes.
pub fn beyond(repo: &Repo, timeline: TimelineId, end: Lsn) -> Result<Vec<(PathBuf, u64)>, WalFilesError> {
    let (size, expected) = (repo.config().wal_segment_size, repo.expected_wal());
    let files = Files::list(&repo.timelines().wal_dir(timeline), size)?;
    let mut found = Vec::new();
    for (start, (_, path, length)) in files.0.range(end.segment_start(size)..) {
        let from = if end > *start { end.since(*start) } else { 0 };
        let file = regular::open(path).map_err(cannot::<Error>("open", path))?;
        let mut page = vec![0; PAGE];
        let mut at = from - from % PAGE as u64;
        while at + PAGE as u64 <= *length {
            file.read_exact_at(&mut page, at).map_err(cannot::<Error>("read", path))?;
            let unread = &page[from.saturating_sub(at).min(PAGE as u64) as usize..]; // at most a page
            if is_header_of(&page, &expected, start.plus(at)) && unread.iter().any(|byte| *byte != 0) {
                found.push((path.clone(), from));
                break;
            }
            at += PAGE as u64;
        }
    }
    Ok(found)
}

/// Returns whether the server on the data directory of `timeline` recovers, as far as its `pg_control` says.
pub fn recovers(repo: &Repo, timeline: TimelineId) -> bool {
    let state = control(repo, timeline).ok().flatten().map(|control| control.state);
    matches!(state, Some(State::StartingUp | State::InCrashRecovery | State::InArchiveRecovery))
}

/// Returns `pg_control` of the data directory of `timeline`, if that is at hand. Of a lazy one it is read from the
/// local layer, never through the mount.
fn control(repo: &Repo, timeline: TimelineId) -> Result<Option<ControlFile>, Error> {
    let dir = repo.datadir(timeline);
    let (layer, data) = (local::dir(&dir), dir.join("data"));
    let path = match local::snapshot_below(&layer)? {
        Some(id) => {
            let snapshot = repo.store().snapshot(&id)?;
            let Some(number) = number_of(&snapshot, CONTROL.as_bytes()) else { return Ok(None) };
            local::content_path(&layer, number)
        }
        // A lazy one that lost its journal. Through its mount nothing is read here.
        None if layer.try_exists().map_err(cannot::<Error>("look for", &layer))? => return Ok(None),
        None if device_at(&data).map_err(cannot::<Error>("look at", &data))?.is_some() => return Ok(None),
        None => data.join(CONTROL),
    };
    let bytes = match bounded::read(&path, bounded::OF_CLUSTER) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(cannot::<Error>("read", &path))?,
    };
    // The first write to it did not reach the disk.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let parsed = ControlFile::parse(&bytes, repo.expected_wal().version);
    let unreadable = |error| cannot::<Error>("read", &path)(std::io::Error::new(ErrorKind::InvalidData, error));
    parsed.map(Some).map_err(unreadable)
}
