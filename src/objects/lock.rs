//! The locks of a repository's files (flock(2)), which commands have for moments. Nobody waits for one for ever: whoever
//! has it may be suspended, or wait for a disk that hangs. The kernel's lock goes with the process that has it, so a crash
//! leaves nothing stale.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::objects::file_error::{FileError, cannot};
use crate::objects::regular;
use crate::progress::{Interrupted, StopFlag};

/// How long a lock is waited for: any number of commands may work at once on a busy machine.
const MOST: Duration = Duration::from_secs(25);
/// However little patience the user has.
const LEAST: Duration = Duration::from_secs(5);
/// Between two looks, at first and after a while.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("waited {} seconds for another command that has locked '{}'", limit.as_secs(), path.display())]
    Busy { path: PathBuf, limit: Duration },
    #[error(transparent)]
    Io(#[from] FileError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Who else may have a lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whoever takes it shared too.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Locks the file `path`, made if it is not there, against everybody else; `None` where somebody has it.
pub fn try_open(path: &Path) -> Result<Option<File>, Error> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(cannot("lock", path)(error)),
    }
}

fn open(path: &Path) -> Result<File, Error> {
    regular::open_with(File::options().create(true).truncate(false).write(true), path).map_err(cannot("lock", path))
}

/// How long locks are waited for, and what ends that.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    stop: Option<Arc<StopFlag>>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { limit: MOST, stop: None }
    }
}

impl Patience {
    /// Returns one that ends too once the user asks to stop, which sets `stop`.
    pub fn heeding(self, stop: Arc<StopFlag>) -> Patience {
        Patience { stop: Some(stop), ..self }
    }

    /// Returns one for a user who waits no longer than `limit`; what others do in the usual course of things is waited for
    /// nevertheless.
    pub fn within(self, limit: Duration) -> Patience {
        Patience { limit: limit.clamp(LEAST, MOST), ..self }
    }

    #[cfg(test)]
    pub(super) fn of_tests() -> Patience {
        Patience { limit: Duration::from_millis(50), stop: None }
    }

    fn is_over(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Locks `file`, which is at `path`, once nobody is in the way. Who has it and writes to it makes progress, as one that
    /// seals many segments does: then the time begins anew.
    pub fn lock(&self, file: &File, path: &Path, mode: Mode) -> Result<(), Error> {
        let length = || file.metadata().map_or(0, |metadata| metadata.len());
        let (mut begun, mut seen) = (Instant::now(), length());
        // Who clears away after that must not be kept from it.
        let was_over = self.is_over();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let tried = match mode {
                Mode::Shared => file.try_lock_shared(),
                Mode::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(cannot("lock", path)(error)),
            }
            if self.is_over() && !was_over {
                return Err(Interrupted.into());
            }
            if seen != length() {
                (begun, seen) = (Instant::now(), length());
            }
            if begun.elapsed() >= self.limit {
                return Err(Error::Busy { path: path.to_owned(), limit: self.limit });
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Locks the file `path`, made if it is not there, against everybody else; or shared.
    pub fn open(&self, path: &Path, mode: Mode) -> Result<File, Error> {
        let file = open(path)?;
        self.lock(&file, path, mode)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_gives_up_after_a_while_or_when_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (patience, stop) = (Patience::of_tests(), Arc::new(StopFlag::new(false)));
        let shared = patience.open(&path, Mode::Shared).unwrap();
        let also = patience.open(&path, Mode::Shared).unwrap();
        assert!(matches!(patience.open(&path, Mode::Exclusive), Err(Error::Busy { path: at, .. }) if at == path));

        let long = Patience::default().heeding(stop.clone());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| long.open(&path, Mode::Exclusive));
            sleep(Duration::from_millis(100));
            assert!(!waits.is_finished());
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(waits.join().unwrap(), Err(Error::Interrupted(_))));
            // Who clears away afterwards waits.
            let waits = scope.spawn(|| long.open(&path, Mode::Exclusive));
            sleep(Duration::from_millis(100));
            assert!(!waits.is_finished());
            drop((shared, also));
            waits.join().unwrap().unwrap();
        });
        // Who writes to it makes progress.
        let held = patience.open(&path, Mode::Exclusive).unwrap();
        let patience = Patience { limit: Duration::from_millis(800), stop: None };
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| patience.open(&path, Mode::Exclusive));
            for length in 1..20 {
                held.set_len(length).unwrap();
                sleep(Duration::from_millis(50));
            }
            assert!(!waits.is_finished());
            drop(held);
            waits.join().unwrap().unwrap();
        });
        let limit = |seconds| Patience::default().within(Duration::from_secs(seconds)).limit;
        assert_eq!([1, 7, 60].map(limit), [LEAST, Duration::from_secs(7), MOST]);
    }
}
