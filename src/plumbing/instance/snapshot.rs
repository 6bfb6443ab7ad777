//! Snapshots of a server that runs: on demand, and whenever enough WAL has gone by.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Instant, UNIX_EPOCH};

use super::hold::take;
use super::pid_lock::PidLock;
use super::{Error, Instance, maintain, mount};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::file_error::cannot;
use crate::objects::timeline::TimelineId;
use crate::plumbing::datadir::control::Control;
use crate::plumbing::instance::seal::seal_active;
use crate::plumbing::postgres::server::{Backup, Status};
use crate::plumbing::write_snapshot::{Options, Outcome, Source, write_snapshot};
use crate::progress::Progress;

/// Snapshots do not come by themselves more often than that, microseconds: each begins with a checkpoint, after
/// which pages go into the WAL as a whole when they change, so that more snapshots would make more WAL.
const SPACING_US: i64 = 60_000_000;

/// Keeps others from taking a snapshot of the same data directory.
#[must_use = "others may take a snapshot when this is dropped"]
pub struct Lock(#[expect(dead_code, reason = "keeps the lock")] Option<PidLock>);

fn lock_file(repo: &Repo, timeline: TimelineId) -> PathBuf {
    repo.datadir(timeline).join("snapshot.lock")
}

impl Lock {
    /// Waits until nobody else takes a snapshot of the data directory of `timeline`: until `patience`, else however long
    /// that takes, unless who does so is suspended.
    pub fn wait(
        repo: &Repo,
        timeline: TimelineId,
        patience: Option<Instant>,
        progress: &dyn Progress,
    ) -> Result<Lock, Error> {
        let (path, doing) = (lock_file(repo, timeline), || format!("taking a snapshot of timeline {timeline}"));
        loop {
            let lock = match take(&path, doing, patience, progress) {
                // On a disk that nobody can write to any more: nor does anybody take one there.
                Err(Error::Io(error)) if error.source.kind() == ErrorKind::NotFound => return Ok(Lock(None)),
                lock => lock?,
            };
            // A server that was started since has other files, with another lock.
            if lock.is_at(&path).map_err(cannot::<Error>("read", &path))? == Some(true) {
                return Ok(Lock(Some(lock)));
            }
        }
    }
}

/// Takes a snapshot of an instance that runs. Costs the blocks that changed since the last one, if
/// its data directory is a lazy one, else reading all of its files.
pub fn snapshot(
    repo: &Repo,
    instance: &Instance,
    now_us: i64,
    progress: &dyn Progress,
) -> Result<Outcome, CommandError> {
    let not_running = || Error::NotRunning(instance.config.branch.clone());
    let running =
        |instance: &Instance| instance.timeline().filter(|_| matches!(instance.status(repo), Status::Running(_)));
    let timeline = match running(instance) {
        Some(timeline) => timeline,
        // Somebody may start it at this moment.
        None => match instance.hold(repo, progress) {
            Err(Error::Unknown(_)) => None,
            held => running(&held?.1),
        }
        .ok_or_else(not_running)?,
    };
    let data = repo.datadir(timeline).join("data");
    let _lock = Lock::wait(repo, timeline, None, progress)?;
    let control = Control::of(&data)?;
    let parent = match control {
        Some(control) => {
            control.begin()?;
            control.mark()?
        }
        None => repo.timelines().snapshot_before(repo.timelines().read(timeline)?.tip())?.1.object,
    };
    let mut backup =
        Some(super::ask(repo, timeline, |endpoint| Backup::begin(endpoint, progress))?.ok_or_else(not_running)?);
    let mut end_backup = || {
        let ended = backup.take().expect("invariant: called once").end(progress)?;
        seal_active(repo, timeline)?;
        Ok(ended)
    };
    let options = Options { parent: Some(parent), timeline: Some(timeline), ..Options::default() };
    let outcome = write_snapshot(repo, Source::Live(&data, &mut end_backup), &options, now_us, progress)?;
    if let Some(control) = control {
        control.end(&outcome.snapshot)?;
    }
    maintain::repack_if_due(repo, &instance.log(repo));
    Ok(outcome)
}

/// Has a snapshot taken in the background if so much WAL of a running timeline has gone by since the
/// last one as the config says, that was not just now, and nobody takes one already.
pub fn snapshot_if_due(repo: &Repo, timeline: TimelineId, now_us: i64) -> Result<(), CommandError> {
    let threshold = repo.config().snapshot.wal_threshold;
    let instance = super::list(repo)?.into_iter().find(|instance| instance.timeline() == Some(timeline));
    let Some(instance) = instance.filter(|_| threshold > 0) else { return Ok(()) };
    let tip = repo.timelines().read(timeline)?.tip();
    let (_, last) = repo.timelines().snapshot_before(tip)?;
    if tip.lsn.since(last.lsn) < threshold || PidLock::is_held(&lock_file(repo, timeline))? == Some(true) {
        return Ok(());
    }
    // The last one, or the last attempt, whose lock was written to.
    let tried = fs::metadata(lock_file(repo, timeline)).and_then(|metadata| metadata.modified());
    let tried_us =
        tried.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_micros() as i64);
    let made_us = repo.store().snapshot(&last.object)?.time_us;
    if [made_us, tried_us].iter().any(|time_us| (0..SPACING_US).contains(&(now_us - time_us))) {
        return Ok(());
    }
    let mut command = mount::background(repo, &instance.log(repo))?;
    command.args(["--quiet", "snapshot", "--"]).arg(&instance.config.branch);
    command.spawn()?;
    Ok(())
}
