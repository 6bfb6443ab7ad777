//! A timeline that is locked for appending.
//!
//! The lock is on its `log`, which is never replaced, and covers `snapshots` too.

use std::fs::File;
use std::io;
use std::path::Path;

use super::lines::Lines;
use super::log::{Log, WalInterval};
use super::snapshots::{Line, Snapshots};
use super::{Error, Mode, Timeline, TimelineId, Timelines};
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::regular;

impl Timelines {
    /// Locks a timeline's log, waiting for whoever has it, and makes it durable. The lock goes with the guard, or
    /// with the process: nothing stale is left by a crash.
    pub fn lock(&self, id: TimelineId) -> Result<LockedLog, Error> {
        let log_path = self.path(id).join("log");
        let open = |path: &Path| {
            regular::open_with(File::options().read(true).write(true), path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound if self.is_gone(id) => Error::Unknown(id),
                _ => cannot::<Error>("open", path)(error),
            })
        };
        let file = open(&log_path)?;
        self.patience.lock(&file, &log_path, Mode::Exclusive)?;
        let snapshots_path = self.path(id).join("snapshots");
        let (log_text, snapshots_text) = (self.read_lines(id, &log_path)?, self.read_lines(id, &snapshots_path)?);
        let corrupt = |path| move |(line, what)| Error::Corrupt { path, line, what };
        let log = Log::parse(&log_text).map_err(corrupt(log_path.clone()))?;
        let snapshots = Snapshots::parse(&snapshots_text).map_err(corrupt(snapshots_path.clone()))?;
        let timeline = Timeline { id, origin: self.origin(id)?, log, snapshots };
        self.check_end(&timeline)?;
        Ok(LockedLog {
            timeline,
            log: Lines::secure(file, &log_text, log_path)?,
            snapshots: Lines::secure(open(&snapshots_path)?, &snapshots_text, snapshots_path)?,
        })
    }
}

/// A timeline, locked for appending.
#[must_use = "the log is unlocked again when this is dropped"]
pub struct LockedLog {
    timeline: Timeline,
    log: Lines,
    snapshots: Lines,
}

impl LockedLog {
    /// Returns the timeline as it is now.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Unlocks it, and returns it as it was.
    pub fn into_timeline(self) -> Timeline {
        self.timeline
    }

    /// Appends an interval to the log, durably; after an error it is not there. The object that it names must be durable
    /// already (INVARIANT 1).
    pub fn append(&mut self, interval: WalInterval) -> Result<(), Error> {
        let Timeline { id, origin, log, .. } = &self.timeline;
        let refuse = |what| Error::Refused { timeline: *id, what, line: interval.to_string() };
        if origin.start().is_some_and(|fork| log.wal.is_empty() && interval.start != fork) {
            return Err(refuse("the first interval does not begin where the timeline forks"));
        }
        let mut log = log.clone();
        log.push(interval).map_err(refuse)?;
        self.log.append(&interval.to_string())?;
        self.timeline.log = log;
        Ok(())
    }

    /// Notes something about the timeline's snapshots, durably; after an error it is not there. A snapshot must be durable
    /// already, and the WAL up to it sealed (INVARIANT 1).
    pub fn note(&mut self, line: Line) -> Result<(), Error> {
        let refuse = |what| Error::Refused { timeline: self.timeline.id, what, line: line.to_string() };
        if let Line::Snapshot(snapshot) = line {
            if self.timeline.snapshots.listed.contains(&snapshot) {
                return Ok(());
            }
            let sealed = self.timeline.log.sealed().or(self.timeline.origin.start());
            if snapshot.lsn > sealed.unwrap_or(Lsn::INVALID) {
                return Err(refuse("the snapshot lies beyond the sealed WAL"));
            }
        }
        let mut snapshots = self.timeline.snapshots.clone();
        snapshots.push(line).map_err(refuse)?;
        self.snapshots.append(&line.to_string())?;
        self.timeline.snapshots = snapshots;
        Ok(())
    }
}
