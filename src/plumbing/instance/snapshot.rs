//! Snapshots of a server that runs: on demand, and whenever enough WAL has gone by.

use std::fs::File;

use super::{Error, Instance, io_error, mount};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::timeline::TimelineId;
use crate::plumbing::datadir::control::Control;
use crate::plumbing::postgres::server::{self, Backup, Checkpoint, Status};
use crate::plumbing::seal_wal::seal_active;
use crate::plumbing::write_snapshot::{Options, Outcome, Source, write_snapshot};
use crate::progress::Progress;

/// Keeps others from taking a snapshot of the same data directory.
#[must_use = "others may take a snapshot when this is dropped"]
pub struct Lock(#[expect(dead_code, reason = "keeps the lock")] File);

fn open_lock(repo: &Repo, timeline: TimelineId) -> Result<File, Error> {
    let path = repo.datadir(timeline).join("snapshot.lock");
    File::options().create(true).truncate(false).write(true).open(&path).map_err(io_error("open", &path))
}

impl Lock {
    /// Waits until nobody else takes a snapshot of the data directory of `timeline`.
    pub fn wait(repo: &Repo, timeline: TimelineId) -> Result<Lock, Error> {
        let file = open_lock(repo, timeline)?;
        file.lock().map_err(io_error("lock", &repo.datadir(timeline)))?;
        Ok(Lock(file))
    }
}

/// Takes a snapshot of an instance that runs. Costs the blocks that changed since the last one, if
/// its data directory is a lazy one, else reading all of its files.
pub fn snapshot(
    repo: &Repo,
    instance: &Instance,
    checkpoint: Checkpoint,
    now_us: i64,
    progress: &dyn Progress,
) -> Result<Outcome, CommandError> {
    let not_running = || Error::NotRunning(instance.config.branch.clone());
    let running = instance.timeline().filter(|_| instance.status(repo) != Status::Stopped);
    let timeline = running.ok_or_else(not_running)?;
    let data = repo.datadir(timeline).join("data");
    let endpoint = instance.endpoint(repo)?;
    let lock = open_lock(repo, timeline)?;
    if lock.try_lock().is_err() {
        if checkpoint == Checkpoint::Spread {
            return Err(Error::Snapshotting(instance.config.branch.clone()).into());
        }
        // One in the background, most likely, which waits for its checkpoint: so hurry that.
        server::checkpoint(&endpoint)?;
        lock.lock()?;
    }
    let control = Control::of(&data);
    let parent = match control {
        Some(control) => {
            control.begin()?;
            control.mark()?
        }
        None => repo.timelines().snapshot_before(repo.timelines().read(timeline)?.tip())?.1.object,
    };
    let mut backup = Some(Backup::begin(&endpoint, checkpoint)?);
    let mut end_backup = || {
        let ended = backup.take().expect("invariant: called once").end()?;
        seal_active(repo, timeline)?;
        Ok(ended)
    };
    let options = Options { parent: Some(parent), timeline: Some(timeline) };
    let outcome = write_snapshot(repo, Source::Live(&data, &mut end_backup), &options, now_us, progress)?;
    if let Some(control) = control {
        control.end(&outcome.snapshot)?;
    }
    Ok(outcome)
}

/// Has a snapshot taken in the background if so much WAL of a running timeline has gone by since the
/// last one as the config says, and nobody takes one already.
pub fn snapshot_if_due(repo: &Repo, timeline: TimelineId) -> Result<(), CommandError> {
    let threshold = repo.config().snapshot.wal_threshold;
    let instance = super::list(repo)?.into_iter().find(|instance| instance.timeline() == Some(timeline));
    let Some(instance) = instance.filter(|_| threshold > 0) else { return Ok(()) };
    let tip = repo.timelines().read(timeline)?.tip();
    let (_, last) = repo.timelines().snapshot_before(tip)?;
    if tip.lsn.since(last.lsn) < threshold || open_lock(repo, timeline)?.try_lock().is_err() {
        return Ok(());
    }
    let mut command = mount::background(repo, &instance.log(repo))?;
    command.args(["--quiet", "snapshot", "--background", "--"]).arg(&instance.config.branch);
    command.spawn()?;
    Ok(())
}
