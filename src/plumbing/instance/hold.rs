//! Who works on an instance keeps others from it. Who is kept waits for a while, and not if the user does not want to
//! any more; then it is told for whom it waited.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use super::pid_lock::PidLock;
use super::{Error, Instance, PATIENCE, PAUSE};
use crate::objects::file_error::cannot;
use crate::objects::{Repo, durable};
use crate::plumbing::postgres::process::Process;
use crate::progress::Progress;

/// Holds an instance against other commands that would start, stop or forget it.
#[must_use = "the instance is unlocked again when this is dropped"]
pub struct Held(#[expect(dead_code, reason = "keeps the lock")] PidLock);

/// Takes the lock on the file `path` once whoever is `doing` something has done it; [busy](Error::Busy) if that is not so at
/// `patience`, or without one if who has it is suspended.
pub(super) fn take(
    path: &Path,
    doing: impl FnOnce() -> String,
    patience: Option<Instant>,
    progress: &dyn Progress,
) -> Result<PidLock, Error> {
    let mut lock = PidLock::open(path).map_err(cannot::<Error>("open", path))?;
    let until = patience.unwrap_or_else(|| Instant::now() + PATIENCE);
    while !lock.try_take() {
        progress.check()?;
        if Instant::now() >= until {
            let process = lock.noted(path);
            if patience.is_some() || process.as_ref().is_some_and(Process::is_suspended) {
                return Err(Error::Busy { doing: doing(), process });
            }
        }
        sleep(PAUSE);
    }
    // On a full disk others are told less.
    let _ = lock.note();
    Ok(lock)
}

impl Instance {
    /// Waits until nobody else starts, stops or forgets the instance, and keeps others waiting. Returns it as it is then.
    /// It is [unknown](Error::Unknown) if it was forgotten meanwhile, even if its name is another's by now.
    pub fn hold(&self, repo: &Repo, progress: &dyn Progress) -> Result<(Held, Instance), Error> {
        self.hold_until(repo, Instant::now() + PATIENCE, progress)
    }

    /// Does so for no longer than until `patience`.
    pub fn hold_until(
        &self,
        repo: &Repo,
        patience: Instant,
        progress: &dyn Progress,
    ) -> Result<(Held, Instance), Error> {
        repo.check_own()?;
        let unknown = || Error::Unknown(self.name.clone());
        let path = Instance::dir(repo, &self.name).join("lock");
        let doing = || format!("starting or stopping '{}'", self.config.branch);
        let lock = match take(&path, doing, Some(patience), progress) {
            Err(Error::Io(error)) if error.source.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            lock => lock?,
        };
        if lock.is_at(&path).map_err(cannot::<Error>("read", &path))? != Some(true) {
            return Err(unknown());
        }
        let now = Instance::read(repo, &self.name)?;
        let is_same = (&now.config.branch, &now.config.at) == (&self.config.branch, &self.config.at);
        if is_same { Ok((Held(lock), now)) } else { Err(unknown()) }
    }
}

/// Keeps others from making instances.
pub(super) fn hold_all(repo: &Repo, progress: &dyn Progress) -> Result<Held, Error> {
    repo.check_own()?;
    let dir = repo.dir().join("instances");
    // A repository has one from its beginning.
    if !dir.is_dir() {
        durable::create_dir_all(&dir).map_err(cannot::<Error>("create", &dir))?;
    }
    let path = dir.join("lock");
    take(&path, || "making an instance".to_owned(), Some(Instant::now() + PATIENCE), progress).map(Held)
}
