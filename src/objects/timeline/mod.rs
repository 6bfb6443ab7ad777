//! Timelines: lines of WAL, append-only, each forking from an ancestor at an LSN.
//!
//! ```text
//! timelines/<id>/origin      see `origin`
//! timelines/<id>/log         see `log`
//! timelines/<id>/snapshots   see `snapshots`
//! timelines/<id>/run         see `run`
//! timelines/<id>/wal/        the active WAL, in PostgreSQL's own format: the running server's pg_wal
//! ```

pub mod ancestry;
pub mod id;
mod lines;
mod locked;
pub mod log;
pub mod origin;
pub mod run;
pub mod snapshots;
pub mod wal;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use id::TimelineId;
pub use locked::LockedLog;
use log::Log;
pub use origin::{CloneId, Origin, Position};
use snapshots::Snapshots;

use super::lock::{self, Mode, Patience};
use super::pg::Lsn;
use super::{bounded, durable, folder, regular};
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
    /// Clones may have less of a timeline than its log says.
    #[error("the WAL of timeline {timeline} at {lsn} is not kept here")]
    Dropped { timeline: TimelineId, lsn: Lsn },
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
    pub origin: Origin,
    pub log: Log,
    pub snapshots: Snapshots,
}

impl Timeline {
    /// Returns where the timeline's own WAL begins, if it has any or has an ancestor.
    pub fn start(&self) -> Option<Lsn> {
        self.origin.start().or_else(|| self.log.wal.first().map(|interval| interval.start))
    }

    /// Returns where its sealed WAL ends; that of a timeline without any is where it forks.
    pub fn sealed(&self) -> Lsn {
        self.log.sealed().or_else(|| self.origin.start()).unwrap_or(Lsn::INVALID)
    }

    /// Returns the end of its last whole sealed record: its tip.
    pub fn tip(&self) -> Position {
        let lsn = self.log.tip().or_else(|| self.origin.start()).unwrap_or(Lsn::INVALID);
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

    /// Returns whether there is certainly no such timeline: one that cannot be looked at is there.
    pub fn is_gone(&self, id: TimelineId) -> bool {
        fs::symlink_metadata(self.path(id)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Keeps timelines from being removed as long as the result lives. Whoever is about to refer to one, by a ref or
    /// as a fork of it, holds this from before it looks at it until after the reference is there. Any number may.
    pub fn keep(&self) -> Result<Kept, Error> {
        Ok(Kept(self.patience.open(&self.dir.join("lock"), Mode::Shared)?))
    }

    /// Creates a timeline, durably; prepared in `tmp`.
    pub fn create(&self, tmp: &Path, id: TimelineId, origin: &Origin) -> Result<(), Error> {
        let path = self.path(id);
        let create = || {
            let dir = tempfile::Builder::new().prefix("timeline-").tempdir_in(tmp)?;
            durable::create_dir_all(&dir.path().join("wal/archive_status"))?;
            durable::replace(tmp, &dir.path().join("origin"), origin.format().as_bytes())?;
            durable::replace(tmp, &dir.path().join("log"), b"")?;
            durable::replace(tmp, &dir.path().join("snapshots"), b"")?;
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

    /// Reads a timeline's origin alone.
    pub fn origin(&self, id: TimelineId) -> Result<Origin, Error> {
        let path = self.path(id).join("origin");
        let text = match bounded::read_to_string(&path, bounded::ORIGIN) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_gone(id) => {
                return Err(Error::Unknown(id));
            }
            Err(error) => return Err(cannot::<Error>("read", &path)(error)),
        };
        Origin::parse(&text).map_err(|(line, what)| Error::Corrupt { path, line, what })
    }

    /// Reads a timeline.
    pub fn read(&self, id: TimelineId) -> Result<Timeline, Error> {
        let origin = self.origin(id)?;
        let (log_path, snapshots) = (self.path(id).join("log"), self.path(id).join("snapshots"));
        // In this order: a snapshot is listed when the WAL up to it is in the log.
        let listed = self.read_lines(id, &snapshots)?;
        let text = self.read_lines(id, &log_path)?;
        let corrupt = |(line, what)| Error::Corrupt { path: log_path.clone(), line, what };
        let log = Log::parse(&text).map_err(corrupt)?;
        let corrupt = |(line, what)| Error::Corrupt { path: snapshots, line, what };
        Ok(Timeline { id, origin, log, snapshots: Snapshots::parse(&listed).map_err(corrupt)? })
    }

    /// Refuses a timeline, for who relies on its end, whose log lost that: a snapshot is listed when the WAL up to it is in the log.
    /// Gone on with, it would get another history at the LSN of a snapshot that is not of that. What lies before is as good as ever.
    pub fn check_end(&self, timeline: &Timeline) -> Result<(), Error> {
        if timeline.snapshots.listed.iter().all(|snapshot| snapshot.lsn <= timeline.sealed()) {
            return Ok(());
        }
        let what = "the WAL ends here, although there is a snapshot of a later LSN: the lines that follow are lost";
        Err(Error::Corrupt { path: self.path(timeline.id).join("log"), line: timeline.log.wal.len(), what })
    }

    /// Returns the text of a file of lines at `path`, of a timeline that may be removed this instant.
    fn read_lines(&self, id: TimelineId, path: &Path) -> Result<Vec<u8>, Error> {
        regular::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if self.is_gone(id) => Error::Unknown(id),
            _ => cannot::<Error>("read", path)(error),
        })
    }

    /// Reads a timeline that something is about to rely on, and makes all of it durable: whoever made it or wrote its
    /// last line may have been killed before that was.
    pub fn secure(&self, id: TimelineId) -> Result<Timeline, Error> {
        let timeline = self.lock(id)?.into_timeline();
        durable::sync_dir(&self.dir).map_err(cannot::<Error>("sync", &self.dir))?;
        Ok(timeline)
    }

    /// Returns the ids of all timelines, sorted.
    pub fn list(&self) -> Result<Vec<TimelineId>, Error> {
        let names = folder::names(&self.dir).map_err(cannot::<Error>("list", &self.dir))?;
        let mut ids: Vec<TimelineId> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
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
            return Ok(Some(id).filter(|id| !self.is_gone(*id)));
        }
        let candidates: Vec<TimelineId> =
            self.list()?.into_iter().filter(|id| id.to_string().starts_with(&prefix)).collect();
        match candidates.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(Error::Ambiguous { prefix, candidates }),
        }
    }
}

/// As long as this lives, no timeline is removed.
#[must_use = "timelines may be removed again when this is dropped"]
#[derive(Debug)]
pub struct Kept(#[expect(dead_code, reason = "keeps the lock")] File);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::log::WalInterval;
    use super::*;
    use crate::objects::ObjectId;

    fn wal(start: u64, end: u64) -> WalInterval {
        let object = ObjectId([1; 32]);
        WalInterval { start: Lsn(start), end: Lsn(end), object, whole: Lsn(end), commit_us: None }
    }

    fn root() -> Origin {
        Origin::root(TimelineId::from_bytes([9; 16]), 0)
    }

    #[test]
    fn nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let timelines = Timelines::open(&dir.path().join("timelines")).with_patience(Patience::of_tests());
        let id = TimelineId::random();
        timelines.create(dir.path(), id, &root()).unwrap();
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
        timelines.create(dir.path(), id, &root()).unwrap();
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
