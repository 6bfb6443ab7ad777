//! Whether an epoch changed anything (INVARIANT 7): by its WAL, and by the files that PostgreSQL writes no WAL of.

use std::path::Path;

use super::{own_files, slots};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::WalReader;
use crate::objects::timeline::{Timeline, TimelineId};
use crate::plumbing::datadir::WalFilesError;
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::exclude::is_excluded;

/// An epoch that committed nothing is kept, for its snapshot, if starting without that means to
/// replay more WAL, bytes.
const REPLAY: u64 = 16 << 20;

/// Returns the parent to go back to, if the epoch changed nothing: all of its records are of those that every server
/// writes, and its files, which have to be in sight, differ in nothing else.
pub(super) fn unchanged(repo: &Repo, timeline: &Timeline, data: &Path) -> Result<Option<TimelineId>, CommandError> {
    let Some(parent) = timeline.origin.parent() else { return Ok(None) };
    // With a snapshot of its own, by a stop that did not come to its end, there is nothing that tells what it began with.
    if !timeline.snapshots.listed.is_empty() || !only_noise(repo, timeline, parent.lsn)? {
        return Ok(None);
    }
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    let replayed = parent.lsn.since(line.lsn);
    if replayed > REPLAY
        || own_files::changed(repo, parent.timeline, &repo.store().snapshot(&line.object)?, data)?
        || replayed == 0 && relations_changed(data)?
    {
        return Ok(None);
    }
    // Made, dropped or moved on: PostgreSQL writes no WAL of that.
    if slots::changed(repo, parent.timeline, data)? {
        return Ok(None);
    }
    // The branch goes back only to where it came from: a tip, not a point amid other WAL.
    let back = repo.timelines().read(parent.timeline)?;
    Ok(Some(parent.timeline).filter(|_| back.tip().lsn == parent.lsn))
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
