//! Between a timeline's sealed WAL and PostgreSQL's segment files.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Error, WalFilesError};
use crate::objects::file_error::cannot;
use crate::objects::lock::Mode;
use crate::objects::pg::record::Record;
use crate::objects::pg::wal::{self as pages, PAGE, WalError, WalReader, WalSource, What};
use crate::objects::pg::{Lsn, segment};
use crate::objects::repo::Repo;
use crate::objects::snapshot::Snapshot;
use crate::objects::timeline::log::WalInterval;
use crate::objects::timeline::wal::{KEPT, Segments, TimelineWal};
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::{Kind, copy, regular, wal};

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
    /// The end of the last record at or before the page in which that one begins, if it is known.
    pub before_page: Option<Lsn>,
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
    let mut add = |start, end, whole, commit_us| {
        let object = store(repo, &mut bytes, start, end, id)?;
        log.append(WalInterval { start, end, object, whole, commit_us })?;
        intervals += 1;
        Ok::<_, WalFilesError>(())
    };
    // A server will be started at that record.
    if let Some(Root { first, record, before_page: Some(before) }) = root.filter(|root| root.first == sealed)
        && record.page_start().since(first) >= LONG
    {
        sealed = record.page_start();
        add(first, sealed, before, None)?;
    }
    loop {
        // One interval at a time: to the end of the segment, or to the last whole record.
        let boundary = sealed.segment_start(size).plus(u64::from(size));
        let mut scan = Scan::new(sealed, whole);
        let mut ended = None;
        while scan.whole < limit.min(boundary) {
            match reader.peek() {
                Ok(record) if record.end > limit.min(boundary) => break,
                Ok(record) => {
                    scan.add(&record);
                    reader.advance();
                }
                Err(error) => {
                    ended = Some(error);
                    break;
                }
            }
        }
        whole = scan.whole;
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
                return Err(WalFilesError::of(id, error));
            }
        }
        if end <= sealed {
            break;
        }
        for (start, end, whole, commit_us) in scan.intervals(sealed, end, boundary) {
            add(start, end, whole, commit_us)?;
        }
        sealed = end;
        if sealed >= limit || (end_of_segment.is_none() && end != boundary) {
            break;
        }
    }
    Ok(Sealed { sealed, tip: whole, intervals })
}

/// WAL that ends amid a segment, and is longer than this, is sealed as two intervals, of which the second one is the
/// page of the last record: a server that is started there waits for that one only. Bytes.
const LONG: u64 = 256 << 10;

/// The records of an interval that is being sealed.
struct Scan {
    /// End of the last one.
    whole: Lsn,
    /// Time of the latest commit.
    commit_us: Option<i64>,
    /// The same before the last one.
    before: (Lsn, Option<i64>),
    last_us: Option<i64>,
    /// The page in which the last one begins; what had ended up to there, and the latest commit since.
    page: Lsn,
    upto_page: (Lsn, Option<i64>),
    since_page_us: Option<i64>,
}

impl Scan {
    /// Begins at `start`, where the last whole record ended at `whole`.
    fn new(start: Lsn, whole: Lsn) -> Scan {
        let nothing = (whole, None);
        let (commit_us, last_us, since_page_us) = (None, None, None);
        Scan { whole, commit_us, before: nothing, last_us, page: start, upto_page: nothing, since_page_us }
    }

    fn add(&mut self, record: &Record) {
        let page = record.start.page_start();
        let all = (self.whole, self.commit_us);
        if page > self.page {
            // The record before may have ended in this page already; the one before that has not.
            let ended = self.whole <= page;
            (self.upto_page, self.since_page_us) = if ended { (all, None) } else { (self.before, self.last_us) };
            self.page = page;
        }
        self.before = all;
        self.last_us = record.commit().map(|commit| commit.time_us);
        self.since_page_us = self.since_page_us.max(self.last_us);
        (self.whole, self.commit_us) = (record.end, self.commit_us.max(self.last_us));
    }

    /// Returns start, end, last whole record and latest commit of each interval to seal from `start` to `end`, in
    /// the segment that ends at `boundary`.
    fn intervals(&self, start: Lsn, end: Lsn, boundary: Lsn) -> Vec<(Lsn, Lsn, Lsn, Option<i64>)> {
        if end == boundary || self.page.since(start) < LONG {
            return vec![(start, end, self.whole, self.commit_us)];
        }
        let (whole, commit_us) = self.upto_page;
        if whole > self.page {
            // Where the reading began is all that is known.
            return vec![(start, end, self.whole, self.commit_us)];
        }
        vec![(start, self.page, whole, commit_us), (self.page, end, self.whole, self.since_page_us)]
    }
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
    let io = |what| WalFilesError::of(timeline, WalError { lsn: start, what });
    let read = source.read(start, &mut buffer).map_err(|error| io(What::Io(error)))?;
    if read < buffer.len() {
        return Err(io(What::End));
    }
    let content = wal::encode(start, &buffer).map_err(|_| io(What::Unused))?;
    Ok(repo.store().write_loose(repo.tmp()?, Kind::Wal, &content, repo.config().core.compression_level)?)
}

/// How much of a segment is in hand at a time, bytes.
const PART: u64 = 256 << 10;

/// Sealed WAL to copy from.
struct Source<'a> {
    wal: TimelineWal<'a>,
    timeline: Timeline,
}

impl Source<'_> {
    fn open(repo: &Repo, timeline: TimelineId, from: Lsn) -> Result<Source<'_>, WalFilesError> {
        let timeline = repo.timelines().read(timeline)?;
        Ok(Source { wal: TimelineWal::open(repo.store(), repo.timelines(), &timeline, from, None)?, timeline })
    }

    /// Writes the WAL from `from` to `to`, where `file` stands.
    fn copy(&mut self, from: Lsn, to: Lsn, file: &mut File, path: &Path) -> Result<(), WalFilesError> {
        let (mut at, mut buffer) = (from, vec![0; to.since(from).min(PART) as usize]);
        while at < to {
            let part = &mut buffer[..to.since(at).min(PART) as usize];
            let damaged = |what| WalFilesError::of(self.timeline.id, WalError { lsn: at, what });
            if self.wal.read(at, part).map_err(|error| damaged(What::Io(error)))? < part.len() {
                return Err(damaged(What::End));
            }
            file.write_all(part).map_err(cannot::<Error>("write", path))?;
            at = at.plus(part.len() as u64);
        }
        Ok(())
    }
}

/// Lays out the WAL from `snapshot`'s start to `upto` as segment files in `dir`, not durable yet; what
/// lies behind `upto` in the last one is zeroes, which end PostgreSQL's recovery; all of it, if the WAL ends with a
/// segment. Checks every record as it lies there, and shows it to `visit`. A tablespace that the WAL makes in a
/// folder elsewhere becomes one in the data directory: another server may use that folder.
///
/// The first segment begins with its header and then zeroes, up to the page of the first record, until
/// [`complete`] is called: PostgreSQL reads nothing there. So this costs the WAL to replay, and the interval in which
/// that begins.
pub fn lay_out(
    repo: &Repo,
    snapshot: &Snapshot,
    upto: Position,
    dir: &Path,
    visit: &mut dyn FnMut(&Record),
) -> Result<(), WalFilesError> {
    let size = repo.config().wal_segment_size;
    let first = snapshot.start.segment_start(size);
    let mut source = Source::open(repo, upto.timeline, first)?;
    let timeline = source.timeline.id;
    if source.wal.start().is_none_or(|start| start > first) || source.timeline.sealed() < upto.lsn {
        return Err(WalFilesError::Missing { timeline, from: first, to: upto.lsn });
    }
    let mut start = first;
    while start <= upto.lsn {
        let at = start.max(snapshot.start.page_start());
        let path = dir.join(segment::file_name(snapshot.postgres_timeline, start, size));
        let mut file = regular::create(&path).map_err(cannot::<Error>("create", &path))?;
        file.set_len(u64::from(size)).map_err(cannot::<Error>("write", &path))?;
        if at > start {
            let header = pages::segment_header(&repo.expected_wal(), start, snapshot.postgres_timeline);
            file.write_all(&header).map_err(cannot::<Error>("write", &path))?;
            file.seek(SeekFrom::Start(at.since(start))).map_err(cannot::<Error>("write", &path))?;
        }
        let next = start.plus(u64::from(size));
        source.copy(at, upto.lsn.min(next), &mut file, &path)?;
        start = next;
    }
    let segments = Segments::new(dir.to_owned(), snapshot.postgres_timeline, size);
    let mut reader = WalReader::new(segments, repo.expected_wal(), snapshot.start);
    let mut moved = Vec::new();
    while reader.position_lsn() < upto.lsn {
        let record = reader.read().map_err(|source| WalFilesError::of(timeline, source))?;
        if let Some(changes) = record.tablespace_in_place() {
            let place = |at| pages::position_in_record(record.start, at, size);
            moved.extend(changes.into_iter().map(|(at, bytes)| (place(at), bytes)));
        }
        visit(&record);
    }
    // Only the copy changes: from the store the WAL comes as it was written.
    for (lsn, byte) in moved.into_iter().flat_map(|(lsn, bytes)| (lsn.0..).map(Lsn).zip(bytes)) {
        let path = dir.join(segment::file_name(snapshot.postgres_timeline, lsn, size));
        let file = regular::open_with(File::options().write(true), &path).map_err(cannot::<Error>("open", &path))?;
        let offset = u64::from(lsn.segment_offset(size));
        file.write_all_at(&[byte], offset).map_err(cannot::<Error>("write", &path))?;
    }
    Ok(())
}

/// Lays out in `dir` the whole segments from that of `from` to the one in which the replay from `snapshot` begins:
/// for who still reads there. Not durable. What is not in the chain of `timeline` any more is left out.
pub fn lay_out_before(
    repo: &Repo,
    snapshot: &Snapshot,
    timeline: TimelineId,
    from: Lsn,
    dir: &Path,
) -> Result<(), WalFilesError> {
    let size = repo.config().wal_segment_size;
    let end = snapshot.start.segment_start(size);
    let mut at = from.segment_start(size);
    while at < end {
        let mut source = Source::open(repo, timeline, at)?;
        let next = at.plus(u64::from(size));
        if source.wal.start().is_some_and(|start| start <= at) {
            let path = dir.join(segment::file_name(snapshot.postgres_timeline, at, size));
            let mut file = regular::create(&path).map_err(cannot::<Error>("create", &path))?;
            source.copy(at, next, &mut file, &path)?;
        }
        at = next;
    }
    Ok(())
}

/// Copies a segment from the page of byte `from` on; pages of zeroes become holes.
pub fn copy_pages(path: &Path, from: u64, copy: &File) -> io::Result<()> {
    copy::content(&regular::open(path)?, from - from % PAGE as u64, copy)
}

/// Returns whether `copy` has the same from there on; what is not there has nothing.
pub fn has_pages(copy: &Path, path: &Path, from: u64) -> io::Result<bool> {
    let copied = match regular::open(copy) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let source = regular::open(path)?;
    let length = source.metadata()?.len();
    if copied.metadata()?.len() != length {
        return Ok(false);
    }
    let (mut at, mut pages) = (from - from % PAGE as u64, [[0; PAGE]; 2]);
    while at < length {
        let size = (length - at).min(PAGE as u64) as usize; // at most a page
        let [theirs, ours] = pages.each_mut().map(|page| &mut page[..size]);
        copied.read_exact_at(theirs, at)?;
        source.read_exact_at(ours, at)?;
        if theirs != ours {
            return Ok(false);
        }
        at += size as u64;
    }
    Ok(true)
}

/// Returns the segment file in `dir` in which the replay from `snapshot` begins, and its first LSN.
fn first_segment(repo: &Repo, snapshot: &Snapshot, dir: &Path) -> (PathBuf, Lsn) {
    let size = repo.config().wal_segment_size;
    let first = snapshot.start.segment_start(size);
    (dir.join(segment::file_name(snapshot.postgres_timeline, first, size)), first)
}

/// Fills in the beginning of the first segment that was laid out in `dir`, from the WAL of `timeline`; not durable yet.
/// No server may run on it, or [`complete_below`] is to be called. Costs the intervals that lie there.
pub fn complete(repo: &Repo, snapshot: &Snapshot, timeline: TimelineId, dir: &Path) -> Result<(), WalFilesError> {
    let (path, first) = first_segment(repo, snapshot, dir);
    let page = snapshot.start.page_start();
    if first == page {
        return Ok(());
    }
    let mut file = regular::open_with(File::options().write(true), &path).map_err(cannot::<Error>("open", &path))?;
    Source::open(repo, timeline, first)?.copy(first, page, &mut file, &path)
}

/// The same below a server that runs on `timeline`, unless that segment is sealed or kept already: then PostgreSQL may make
/// another one of its file.
pub fn complete_below(repo: &Repo, snapshot: &Snapshot, timeline: TimelineId) -> Result<(), WalFilesError> {
    let dir = repo.timelines().wal_dir(timeline);
    let (path, first) = first_segment(repo, snapshot, &dir);
    if !path.try_exists().map_err(cannot::<Error>("look for", &path))? {
        // It was recycled.
        return Ok(());
    }
    let _held = hold(repo, &path)?;
    let kept = dir.join(KEPT).join(path.file_name().unwrap_or_default());
    let is_sealed = repo.timelines().read(timeline)?.sealed() >= first.plus(u64::from(repo.config().wal_segment_size));
    if is_sealed || kept.try_exists().map_err(cannot::<Error>("look for", &kept))? {
        return Ok(());
    }
    complete(repo, snapshot, timeline, &dir)
}

/// Keeps a segment from being sealed, or completed, by others as long as the result lives.
pub fn hold(repo: &Repo, segment: &Path) -> Result<File, WalFilesError> {
    let file = regular::open(segment).map_err(cannot::<Error>("open", segment))?;
    repo.patience().lock(&file, segment, Mode::Exclusive)?;
    Ok(file)
}
