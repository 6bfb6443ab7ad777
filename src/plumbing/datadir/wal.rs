//! Between a timeline's sealed WAL and PostgreSQL's segment files.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::Error;
use crate::objects::pg::record::Record;
use crate::objects::pg::wal::{WalError, WalReader, WalSource, What};
use crate::objects::pg::{Lsn, segment};
use crate::objects::repo::{self, Repo};
use crate::objects::timeline::log::{Line, WalInterval};
use crate::objects::timeline::wal::{Segments, TimelineWal};
use crate::objects::timeline::{self, Position, TimelineId};
use crate::objects::{Kind, wal};

/// WAL cannot be sealed or laid out.
#[derive(Debug, thiserror::Error)]
pub enum WalFilesError {
    #[error("the WAL of timeline {timeline} is damaged")]
    Damaged { timeline: TimelineId, source: WalError },
    #[error("timeline {timeline} has no WAL from {from} to {to}")]
    Missing { timeline: TimelineId, from: Lsn, to: Lsn },
    #[error("the WAL to replay makes tablespace {oid} in '{path}', which another server may use")]
    Tablespace { oid: u32, path: String },
    #[error(transparent)]
    Timeline(#[from] timeline::Error),
    #[error(transparent)]
    Store(#[from] crate::objects::store::Error),
    #[error(transparent)]
    Repo(#[from] repo::Error),
    #[error(transparent)]
    Files(#[from] Error),
}

/// Where a sealing ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upto {
    /// With the last whole record at or before this LSN, which PostgreSQL has flushed.
    Record(Lsn),
    /// With the segment that begins here, which PostgreSQL has completed.
    Segment(Lsn),
}

/// What a root timeline begins with: its first byte, and a record boundary in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    pub first: Lsn,
    pub record: Lsn,
}

/// What has been sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// End of the sealed WAL, perhaps amid a record.
    pub sealed: Lsn,
    /// End of the last whole record in it.
    pub tip: Lsn,
    /// Intervals that were new.
    pub intervals: usize,
}

/// Seals the WAL of a timeline that lies in `active`: checks it record by record, stores it
/// interval by interval, and appends each to the timeline's log once it is durable. What is sealed
/// already is not sealed again. `root` is for a timeline without ancestors and without WAL.
pub fn seal(
    repo: &Repo,
    id: TimelineId,
    active: Segments,
    root: Option<Root>,
    upto: Upto,
) -> Result<Sealed, WalFilesError> {
    let mut log = repo.timelines().lock(id)?;
    let timeline = repo.timelines().read(id)?;
    let size = repo.config().wal_segment_size;
    let (mut sealed, mut whole) = match (root, timeline.log.sealed()) {
        (Some(root), None) => (root.first, root.record),
        _ => (timeline.sealed(), timeline.tip().lsn),
    };
    let (limit, end_of_segment) = match upto {
        Upto::Record(lsn) => (lsn, None),
        Upto::Segment(start) => (start.plus(u64::from(size)), Some(start.plus(u64::from(size)))),
    };
    let nothing = Sealed { sealed, tip: whole, intervals: 0 };
    if sealed >= limit {
        return Ok(nothing);
    }
    let open = |active| TimelineWal::open(repo.store(), repo.timelines(), &timeline, whole.segment_start(size), active);
    let copies = Segments::clone_of(&active);
    let mut reader = WalReader::new(open(Some(active))?, repo.expected_wal(), whole);
    let mut bytes = open(Some(copies))?;
    let mut intervals = 0;
    loop {
        // One interval at a time: to the end of the segment, or to the last whole record.
        let boundary = sealed.segment_start(size).plus(u64::from(size));
        let (mut commit_us, mut ended) = (None, None);
        loop {
            if whole >= limit.min(boundary) {
                break;
            }
            match reader.peek() {
                Ok(record) if record.end > limit.min(boundary) => break,
                Ok(record) => {
                    whole = record.end;
                    commit_us = commit_us.max(record.commit().map(|commit| commit.time_us));
                    reader.advance();
                }
                Err(error) => {
                    ended = Some(error);
                    break;
                }
            }
        }
        // A record goes on beyond the boundary, or the WAL ends before it.
        let crosses = ended.is_none();
        let end = match end_of_segment {
            Some(_) => boundary,
            None if crosses && boundary <= limit => boundary,
            None => whole,
        };
        if let Some(error) = ended.take() {
            let damaged = match end_of_segment {
                Some(_) => !ends_beyond(&error, boundary),
                None => !error.may_be_end(),
            };
            if damaged {
                return Err(WalFilesError::Damaged { timeline: id, source: error });
            }
        }
        if end <= sealed {
            break;
        }
        let interval =
            WalInterval { start: sealed, end, object: store(repo, &mut bytes, sealed, end, id)?, whole, commit_us };
        log.append(Line::Wal(interval))?;
        intervals += 1;
        sealed = end;
        if sealed >= limit || (end_of_segment.is_none() && end != boundary) {
            break;
        }
    }
    Ok(Sealed { sealed, tip: whole, intervals })
}

/// Returns whether a record could not be read only because it goes on beyond `boundary`, where
/// PostgreSQL may not have flushed it yet.
fn ends_beyond(error: &WalError, boundary: Lsn) -> bool {
    match error.what {
        What::Io(_) => false,
        What::Checksum { length } => {
            let headers = u64::from(length) / 4096 * 24 + 80; // at least those of its pages
            error.lsn.plus(u64::from(length) + headers) >= boundary
        }
        _ => error.noticed_at() >= boundary,
    }
}

fn store(
    repo: &Repo,
    source: &mut TimelineWal,
    start: Lsn,
    end: Lsn,
    timeline: TimelineId,
) -> Result<crate::objects::ObjectId, WalFilesError> {
    let mut buffer = vec![0; end.since(start) as usize]; // at most a segment
    let io = |what| WalFilesError::Damaged { timeline, source: WalError { lsn: start, what } };
    let read = source.read(start, &mut buffer).map_err(|error| io(What::Io(error)))?;
    if read < buffer.len() {
        return Err(io(What::End));
    }
    let level = repo.config().core.compression_level;
    Ok(repo.store().write_loose(repo.tmp()?, Kind::Wal, &wal::encode(start, &buffer), level)?)
}

/// How much of a segment is in hand at a time, bytes.
const PART: usize = 256 << 10;

/// Lays out the WAL from the segment of `from` to `upto` as segment files in `dir`, not durable yet; what
/// lies behind `upto` in the last one is zeroes, which end PostgreSQL's recovery. Checks every
/// record as it lies there, shows it to `visit`, and refuses those that would touch another server's tablespace.
pub fn lay_out(
    repo: &Repo,
    from: Lsn,
    upto: Position,
    postgres_timeline: u32,
    dir: &Path,
    visit: &mut dyn FnMut(&Record),
) -> Result<(), WalFilesError> {
    let timeline = repo.timelines().read(upto.timeline)?;
    let size = repo.config().wal_segment_size;
    let first = from.segment_start(size);
    let mut source = TimelineWal::open(repo.store(), repo.timelines(), &timeline, first, None)?;
    if source.start().is_none_or(|start| start > first) || timeline.sealed() < upto.lsn {
        return Err(WalFilesError::Missing { timeline: timeline.id, from: first, to: upto.lsn });
    }
    let (mut start, mut buffer) = (first, vec![0; PART]);
    while start < upto.lsn {
        let path = dir.join(segment::file_name(postgres_timeline, start, size));
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        let (mut at, end) = (start, upto.lsn.min(start.plus(u64::from(size))));
        while at < end {
            let part = &mut buffer[..end.since(at).min(PART as u64) as usize];
            let damaged = |what| WalFilesError::Damaged { timeline: timeline.id, source: WalError { lsn: at, what } };
            if source.read(at, part).map_err(|error| damaged(What::Io(error)))? < part.len() {
                return Err(damaged(What::End));
            }
            file.write_all(part).map_err(Error::io("write", &path))?;
            at = at.plus(part.len() as u64);
        }
        file.set_len(u64::from(size)).map_err(Error::io("write", &path))?;
        start = start.plus(u64::from(size));
    }
    drop(source);
    let segments = Segments::new(dir.to_owned(), postgres_timeline, size);
    let mut reader = WalReader::new(segments, repo.expected_wal(), from);
    while reader.position_lsn() < upto.lsn {
        let record = reader.read().map_err(|source| WalFilesError::Damaged { timeline: timeline.id, source })?;
        if let Some((oid, path)) = record.tablespace_create().filter(|(_, path)| !path.is_empty()) {
            return Err(WalFilesError::Tablespace { oid, path });
        }
        visit(&record);
    }
    Ok(())
}
