//! Whether a run changed anything (INVARIANT 7): by its WAL, and by the files that PostgreSQL writes no WAL of.

use std::path::Path;

use super::{own_files, slots};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::pg::wal::WalReader;
use crate::objects::pg::{Lsn, control};
use crate::objects::timeline::run::Run;
use crate::objects::timeline::wal::TimelineWal;
use crate::objects::timeline::{Timeline, TimelineId};
use crate::plumbing::datadir::WalFilesError;
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::exclude::is_excluded;
use crate::plumbing::datadir::wal_end::active_timeline;

/// A run that committed nothing is kept, for its snapshot, if starting without that means to replay more WAL, bytes.
const REPLAY: u64 = 16 << 20;

/// Returns whether the run whose WAL ends at `end` changed nothing: none of that is sealed, nobody may have received any, all of its
/// records are of those that every server writes, and its files in `data`, which have to be in sight, differ in nothing else.
pub(super) fn is_unchanged(
    repo: &Repo,
    timeline: &Timeline,
    run: &Run,
    end: Lsn,
    data: &Path,
) -> Result<bool, CommandError> {
    let Some(began) = run.began else { return Ok(false) };
    // Who reads from a slot has been told of an LSN in it, and asks for what comes behind.
    let may_be_elsewhere = || Ok::<_, CommandError>(!run.alone || !slots::of_server(data)?.is_empty());
    if timeline.sealed() != began || !only_noise(repo, timeline, (began, end))? || began < end && may_be_elsewhere()? {
        return Ok(false);
    }
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    let replayed = began.since(line.lsn);
    if replayed > REPLAY
        || own_files::changed(repo, timeline, &repo.store().snapshot(&line.object)?, data)?
        || replayed == 0 && relations_changed(data)?
    {
        return Ok(false);
    }
    // Made, dropped or moved on: PostgreSQL writes no WAL of that.
    Ok(!slots::changed(repo, timeline, data)?)
}

/// How much WAL that changes nothing is kept unsealed, bytes: it is read again with each segment.
const DEFERRED: u64 = 64 << 20;

/// Returns whether nothing of a run that may be taken back counts, up to `end`, where PostgreSQL has completed a segment.
pub(super) fn is_all_noise(repo: &Repo, id: TimelineId, end: Lsn) -> Result<bool, CommandError> {
    let began = repo.timelines().run(id)?.filter(|run| run.alone).and_then(|run| run.began);
    let Some(began) = began.filter(|began| *began < end && end.since(*began) <= DEFERRED) else { return Ok(false) };
    let timeline = repo.timelines().read(id)?;
    Ok(timeline.sealed() == began && only_noise(repo, &timeline, (began, end))?)
}

/// Returns whether all records of the active WAL that begin from `began` to `end` are ones that change nothing.
fn only_noise(repo: &Repo, timeline: &Timeline, (began, end): (Lsn, Lsn)) -> Result<bool, CommandError> {
    let active = active_timeline(repo, timeline.id)?.map(|number| repo.active_segments(timeline.id, number));
    let from = began.segment_start(repo.config().wal_segment_size);
    let source = TimelineWal::open(repo.store(), repo.timelines(), timeline, from, active)?;
    let mut reader = WalReader::new(source, repo.expected_wal(), began);
    while reader.position_lsn() < end {
        match reader.read() {
            Ok(record) if record.start < end && !record.changes_nothing() => return Ok(false),
            Ok(_) => {}
            // Behind a switch of segments the rest of one is empty.
            Err(error) if error.may_be_end() && error.noticed_at() >= end => break,
            Err(source) => return Err(WalFilesError::of(timeline.id, source).into()),
        }
    }
    Ok(true)
}

/// Returns whether files of databases were written that no record tells of: hint bits, in a cluster without checksums.
/// Only a lazy data directory knows.
fn relations_changed(data: &Path) -> Result<bool, CommandError> {
    let Some(control) = Control::of(data)? else { return Ok(false) };
    let is_of_databases = |path: &[u8]| {
        let within = [&b"base/"[..], b"global/", b"pg_tblspc/"].iter().any(|folder| path.starts_with(folder));
        within && path != control::PATH.as_bytes() && !is_excluded(path)
    };
    Ok(control.changes()?.paths().any(is_of_databases))
}
