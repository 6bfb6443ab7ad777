//! Timelines: lines of WAL, append-only, each forking from an ancestor at an LSN.
//!
//! ```text
//! timelines/<id>/history   see `history`
//! timelines/<id>/log       see `log`
//! timelines/<id>/wal/      the active WAL, in PostgreSQL's own format: the running server's pg_wal
//! ```

pub mod history;
pub mod id;
pub mod log;
pub mod wal;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use history::{Ancestor, History, Position, merge_base};
pub use id::TimelineId;
use log::{Line, Log, SnapshotLine, WalInterval};

use super::lock::{self, Mode, Patience};
use super::pg::{Lsn, segment};
use super::{bounded, durable};
use crate::objects::file_error::{FileError, cannot};

/// Digits that an abbreviated id has at least.
pub const SHORTEST_PREFIX: usize = 4;

/// A timeline cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no timeline {0}")]
    Unknown(TimelineId),
    #[error("'{prefix}' is ambiguous: it could be timeline {}", list(candidates))]
    Ambiguous { prefix: String, candidates: Vec<TimelineId> },
    /// A file says what it cannot.
    #[error("'{}' is corrupt: line {line}: {what}", path.display())]
    Corrupt { path: PathBuf, line: usize, what: &'static str },
    /// An interval was to be added that the log cannot take.
    #[error("cannot add to timeline {timeline}: {what}: {line}")]
    Refused { timeline: TimelineId, what: &'static str, line: String },
    #[error("timeline {timeline} has no WAL at {lsn}: it holds {start} to {end}")]
    OutOfRange { timeline: TimelineId, lsn: Lsn, start: Lsn, end: Lsn },
    #[error("timeline {timeline} has no snapshot at or before {lsn}")]
    NoSnapshot { timeline: TimelineId, lsn: Lsn },
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Io(#[from] FileError),
}

fn list(ids: &[TimelineId]) -> String {
    ids.iter().map(TimelineId::short).collect::<Vec<_>>().join(", ")
}

/// A timeline, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    pub id: TimelineId,
    pub history: History,
    pub log: Log,
}

impl Timeline {
    /// Returns where the timeline's own WAL begins, if it has any or has an ancestor.
    pub fn start(&self) -> Option<Lsn> {
        self.history.start().or_else(|| self.log.wal.first().map(|interval| interval.start))
    }

    /// Returns where its sealed WAL ends; that of a timeline without any is where it forks.
    pub fn sealed(&self) -> Lsn {
        self.log.sealed().or_else(|| self.history.start()).unwrap_or(Lsn::INVALID)
    }

    /// Returns the end of its last whole sealed record: its tip.
    pub fn tip(&self) -> Position {
        let lsn = self.log.tip().or_else(|| self.history.start()).unwrap_or(Lsn::INVALID);
        Position { timeline: self.id, lsn }
    }
}

/// The timelines of a repository.
#[derive(Debug, Clone)]
pub struct Timelines {
    dir: PathBuf,
    patience: Patience,
}

impl Timelines {
    /// Opens `dir`, the repository's `timelines/`.
    pub fn open(dir: &Path) -> Timelines {
        Timelines { dir: dir.to_owned(), patience: Patience::default() }
    }

    /// Returns them for somebody who waits for locks with `patience`.
    pub fn with_patience(self, patience: Patience) -> Timelines {
        Timelines { patience, ..self }
    }

    /// Returns the folder of a timeline.
    pub fn dir(&self, id: TimelineId) -> PathBuf {
        self.path(id)
    }

    fn path(&self, id: TimelineId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Returns the file whose lock the server of a timeline holds.
    pub fn alive_file(&self, id: TimelineId) -> PathBuf {
        self.path(id).join("alive")
    }

    /// Returns the folder of a timeline's active WAL.
    pub fn wal_dir(&self, id: TimelineId) -> PathBuf {
        self.path(id).join("wal")
    }

    /// Returns whether there is such a timeline.
    pub fn exists(&self, id: TimelineId) -> bool {
        self.path(id).is_dir()
    }

    /// Keeps timelines from being removed as long as the result lives. Whoever is about to refer to one, by a ref or
    /// as a fork of it, holds this from before it looks at it until after the reference is there. Any number may.
    pub fn keep(&self) -> Result<Kept, Error> {
        Ok(Kept(self.patience.open(&self.dir.join("lock"), Mode::Shared)?))
    }

    /// Creates a timeline, durably; prepared in `tmp`.
    pub fn create(&self, tmp: &Path, id: TimelineId, history: &History) -> Result<(), Error> {
        let path = self.path(id);
        let create = || {
            let dir = tempfile::Builder::new().prefix("timeline-").tempdir_in(tmp)?;
            durable::create_dir_all(&dir.path().join("wal/archive_status"))?;
            durable::replace(tmp, &dir.path().join("history"), history.format().as_bytes())?;
            durable::replace(tmp, &dir.path().join("log"), b"")?;
            durable::create_dir_all(&self.dir)?;
            let prepared = dir.keep();
            durable::publish_dir(&prepared, &path).inspect_err(|_| drop(fs::remove_dir_all(&prepared)))
        };
        create().map_err(cannot::<Error>("create", &path))
    }

    /// Removes a timeline if `is_unneeded` says so, which may also take back the last reference to it: nobody begins
    /// to refer to a timeline meanwhile. Returns whether it is gone.
    pub fn remove<E: From<Error>>(
        &self,
        tmp: &Path,
        id: TimelineId,
        is_unneeded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let _lock = self.patience.open(&self.dir.join("lock"), Mode::Exclusive).map_err(Error::Lock)?;
        if !is_unneeded()? {
            return Ok(false);
        }
        let path = self.path(id);
        durable::discard_dir(tmp, &path).map_err(cannot::<Error>("remove", &path))?;
        Ok(true)
    }

    /// Empties the folder of the active WAL, of which everything is sealed or kept elsewhere, at once: a crash leaves
    /// all of it or nothing, never some segments.
    pub fn empty_wal(&self, tmp: &Path, id: TimelineId) -> Result<(), Error> {
        let path = self.wal_dir(id);
        durable::discard_dir(tmp, &path).map_err(cannot::<Error>("remove", &path))?;
        durable::create_dir_all(&path.join("archive_status")).map_err(cannot::<Error>("create", &path))
    }

    /// Reads a timeline's history alone.
    pub fn history(&self, id: TimelineId) -> Result<History, Error> {
        let path = self.path(id).join("history");
        let text = match bounded::read_to_string(&path, bounded::HISTORY) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.exists(id) => {
                return Err(Error::Unknown(id));
            }
            Err(error) => return Err(cannot::<Error>("read", &path)(error)),
        };
        let corrupt = |(line, what)| Error::Corrupt { path: path.clone(), line, what };
        let history = History::parse(&text).map_err(corrupt)?;
        match history.ancestors.iter().position(|ancestor| ancestor.timeline == id) {
            Some(number) => Err(corrupt((number + 1, "its own ancestor"))),
            None => Ok(history),
        }
    }

    /// Reads a timeline.
    pub fn read(&self, id: TimelineId) -> Result<Timeline, Error> {
        let history = self.history(id)?;
        let path = self.path(id).join("log");
        let text = self.read_log(id, &path)?;
        let (log, _) = Log::parse(&text).map_err(|(line, what)| Error::Corrupt { path, line, what })?;
        // An empty file says so, too. What is cut off at an end of lines cannot be told from what was never there, else.
        let begins_amid = |interval: &WalInterval| interval.start.segment_start(segment::SMALLEST) != interval.start;
        if history.ancestors.is_empty() && log.wal.first().is_some_and(begins_amid) {
            let path = self.path(id).join("history");
            return Err(Error::Corrupt { path, line: 1, what: "no ancestor, although the WAL begins amid a segment" });
        }
        Ok(Timeline { id, history, log })
    }

    /// Returns the text of the log at `path`, of a timeline that may be removed this instant.
    fn read_log(&self, id: TimelineId, path: &Path) -> Result<Vec<u8>, Error> {
        fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if !self.exists(id) => Error::Unknown(id),
            _ => cannot::<Error>("read", path)(error),
        })
    }

    /// Reads a timeline that something is about to rely on, and makes all of it durable: whoever made it or wrote its
    /// last line may have been killed before that was.
    pub fn secure(&self, id: TimelineId) -> Result<Timeline, Error> {
        let log = self.lock(id)?.log;
        durable::sync_dir(&self.dir).map_err(cannot::<Error>("sync", &self.dir))?;
        Ok(Timeline { id, history: self.history(id)?, log })
    }

    /// Returns the ids of all timelines, sorted.
    pub fn list(&self) -> Result<Vec<TimelineId>, Error> {
        let names = match fs::read_dir(&self.dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(cannot::<Error>("list", &self.dir)(error)),
        };
        let mut ids: Vec<TimelineId> = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Returns the timeline whose id begins with `prefix`, at least four hexadecimal digits; `None`
    /// where there is none.
    pub fn resolve_prefix(&self, prefix: &str) -> Result<Option<TimelineId>, Error> {
        let prefix = prefix.to_ascii_lowercase();
        if !(SHORTEST_PREFIX..=32).contains(&prefix.len()) || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        if let Ok(id) = prefix.parse() {
            return Ok(Some(id).filter(|id| self.exists(*id)));
        }
        let candidates: Vec<TimelineId> =
            self.list()?.into_iter().filter(|id| id.to_string().starts_with(&prefix)).collect();
        match candidates.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(Error::Ambiguous { prefix, candidates }),
        }
    }

    /// Locks a timeline's log, waiting for whoever has it, and makes it durable. The lock goes with the guard, or
    /// with the process: nothing stale is left by a crash.
    pub fn lock(&self, id: TimelineId) -> Result<LockedLog, Error> {
        let path = self.path(id).join("log");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Unknown(id),
            _ => cannot::<Error>("open", &path)(error),
        })?;
        self.patience.lock(&file, &path, Mode::Exclusive)?;
        let text = self.read_log(id, &path)?;
        let (log, length) =
            Log::parse(&text).map_err(|(line, what)| Error::Corrupt { path: path.clone(), line, what })?;
        if length < text.len() {
            // What a crash left of an append that nobody was told of.
            file.set_len(length as u64).map_err(cannot::<Error>("truncate", &path))?;
        }
        // Whoever wrote the last line may have been killed before its sync, or that failed, and here it is believed.
        // Those before were made durable like this when the next one was appended.
        let last = text[..length.saturating_sub(1)].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        durable::write_at(&file, last as u64, &text[last..length]).map_err(cannot::<Error>("write", &path))?;
        Ok(LockedLog { id, start: self.history(id)?.start(), log, file, length: length as u64, path })
    }

    /// Returns the intervals, along the chain of `timeline`, that hold any WAL of [from, to), in order.
    pub fn wal(&self, timeline: &Timeline, from: Lsn, to: Lsn) -> Result<Vec<(TimelineId, WalInterval)>, Error> {
        let mut found = Vec::new();
        for (timeline, upto) in self.chain(timeline)? {
            let upto = to.min(upto);
            let own = timeline.log.wal.iter().filter(|interval| interval.end > from && interval.start < upto);
            found.extend(own.map(|interval| (timeline.id, interval.before(upto))));
            if upto == to {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the ancestors of `timeline` and itself, the oldest first, each with the LSN at which
    /// the chain leaves it.
    pub fn chain(&self, timeline: &Timeline) -> Result<Vec<(Timeline, Lsn)>, Error> {
        let ancestors = timeline.history.ancestors.iter();
        let mut chain = ancestors
            .map(|ancestor| Ok((self.read(ancestor.timeline)?, ancestor.fork)))
            .collect::<Result<Vec<_>, Error>>()?;
        chain.push((timeline.clone(), Lsn::MAX));
        Ok(chain)
    }

    /// Returns the newest snapshot, along the chain of a position's timeline, that can be used at its LSN.
    pub fn snapshot_before(&self, position: Position) -> Result<(TimelineId, SnapshotLine), Error> {
        let timeline = self.read(position.timeline)?;
        let mut upto = position.lsn;
        if let Some(snapshot) = timeline.log.snapshot_before(upto) {
            return Ok((timeline.id, snapshot));
        }
        for ancestor in timeline.history.ancestors.iter().rev() {
            upto = upto.min(ancestor.fork);
            if let Some(snapshot) = self.read(ancestor.timeline)?.log.snapshot_before(upto) {
                return Ok((ancestor.timeline, snapshot));
            }
        }
        Err(Error::NoSnapshot { timeline: position.timeline, lsn: position.lsn })
    }
}

/// As long as this lives, no timeline is removed.
#[must_use = "timelines may be removed again when this is dropped"]
#[derive(Debug)]
pub struct Kept(#[expect(dead_code, reason = "keeps the lock")] File);

/// A timeline's log, locked for appending.
#[must_use = "the log is unlocked again when this is dropped"]
pub struct LockedLog {
    id: TimelineId,
    start: Option<Lsn>,
    log: Log,
    file: File,
    /// Of its whole lines, bytes.
    length: u64,
    path: PathBuf,
}

impl LockedLog {
    /// Returns the log as it is now.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Appends a line, durably; after an error it is not there. The objects that it names must be durable already
    /// (INVARIANT 1).
    pub fn append(&mut self, line: Line) -> Result<(), Error> {
        let refuse = |what| Error::Refused { timeline: self.id, what, line: line.to_string() };
        if let (Line::Wal(interval), Some(fork)) = (line, self.start.filter(|_| self.log.wal.is_empty()))
            && interval.start != fork
        {
            return Err(refuse("the first interval does not begin where the timeline forks"));
        }
        if let Line::Snapshot(snapshot) = line {
            if self.log.snapshots.contains(&snapshot) {
                return Ok(());
            }
            if snapshot.lsn > self.log.sealed().or(self.start).unwrap_or(Lsn::INVALID) {
                return Err(refuse("the snapshot lies beyond the sealed WAL"));
            }
        }
        let mut log = self.log.clone();
        log.push(line).map_err(refuse)?;
        let text = format!("{line}\n");
        durable::append_to(&self.file, self.length, text.as_bytes()).map_err(cannot::<Error>("write", &self.path))?;
        self.length += text.len() as u64;
        self.log = log;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::objects::ObjectId;

    fn wal(start: u64, end: u64) -> Line {
        let object = ObjectId([1; 32]);
        Line::Wal(WalInterval { start: Lsn(start), end: Lsn(end), object, whole: Lsn(end), commit_us: None })
    }

    #[test]
    fn nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let timelines = Timelines::open(&dir.path().join("timelines")).with_patience(Patience::of_tests());
        let id = TimelineId::random();
        timelines.create(dir.path(), id, &History::default()).unwrap();
        let remove = || timelines.remove(dir.path(), id, || Ok::<_, Error>(true));
        let is_busy = |error: &Error| matches!(error, Error::Lock(lock::Error::Busy { .. }));

        let held = timelines.lock(id).unwrap();
        assert!(timelines.lock(id).is_err_and(|error| is_busy(&error)));
        assert!(timelines.secure(id).is_err_and(|error| is_busy(&error)));
        drop(held);
        let kept = timelines.keep().unwrap();
        drop(timelines.keep().unwrap());
        assert!(remove().is_err_and(|error| is_busy(&error)));
        drop(kept);
        let held = File::open(dir.path().join("timelines/lock")).unwrap();
        held.lock().unwrap();
        assert!(timelines.keep().is_err_and(|error| is_busy(&error)));
        drop(held);
        assert!(remove().unwrap());
    }

    #[test]
    fn a_line_that_was_not_synced_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, id) = (Timelines::open(&dir.path().join("timelines")), TimelineId::random());
        timelines.create(dir.path(), id, &History::default()).unwrap();
        timelines.lock(id).unwrap().append(wal(0, 16)).unwrap();
        let path = timelines.dir(id).join("log");
        let before = fs::read(&path).unwrap();

        let mut log = timelines.lock(id).unwrap();
        durable::faults::fail_next_sync();
        assert!(matches!(log.append(wal(16, 24)), Err(Error::Io(_))));
        // Else it would be found there, and a sync that succeeds would prove nothing.
        assert_eq!(fs::read(&path).unwrap(), before);
        log.append(wal(16, 20)).unwrap();
        drop(log);
        assert_eq!(timelines.read(id).unwrap().log.sealed(), Some(Lsn(20)));

        // Of one that was killed before it could cut the line off.
        let file = File::options().write(true).open(&path).unwrap();
        let lock = || drop(timelines.lock(id).unwrap());
        let secure = || drop(timelines.secure(id).unwrap());
        for believe in [&lock as &dyn Fn(), &secure] {
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            believe();
            assert_ne!(file.metadata().unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH, "is it written again?");
        }
        assert_eq!(timelines.read(id).unwrap().log.sealed(), Some(Lsn(20)));
    }
}
