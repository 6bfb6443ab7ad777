//! Ends a server and closes its epoch.

use std::time::{Duration, Instant};

use super::settle::{Accepted, Settled, settle, settle_knowingly};
use super::{Error, Instance, PATIENCE, is_open, mount, read_only};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::pg::Lsn;
use crate::objects::refs::{RefName, Signature};
use crate::plumbing::datadir::wal_end;
use crate::plumbing::postgres::server::{self, Mode, Status};
use crate::progress::Progress;

/// How long a server may take at least, however long other commands were waited for.
const AT_LEAST: Duration = Duration::from_secs(1);

/// However long the user would wait: an instant much further ahead cannot be told.
const AT_MOST: Duration = Duration::from_hours(365 * 24);

/// Stops an instance, if its server runs, and closes its epoch; one that is read-only is forgotten. Does nothing if another
/// command has done that, and forgot the instance. Waits for other commands and
/// for the server no longer than `timeout` in all. Costs the WAL that is not sealed yet and the blocks that changed, or
/// reading all files of a data directory that is not lazy.
pub fn stop(
    repo: &Repo,
    instance: &Instance,
    mode: Mode,
    timeout: Duration,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    let stopped = stop_if(repo, instance, mode, timeout, signature, progress, |_| Ok(true))?;
    Ok(stopped.unwrap_or(Settled::Nothing))
}

/// Does so only if the instance `is_meant`, which is asked while nobody else can start or stop it: whoever was told
/// a moment ago that it runs may rely on that. Returns `None` if it was not.
pub fn stop_if(
    repo: &Repo,
    instance: &Instance,
    mode: Mode,
    timeout: Duration,
    signature: &Signature,
    progress: &dyn Progress,
    is_meant: impl FnOnce(&Instance) -> Result<bool, CommandError>,
) -> Result<Option<Settled>, CommandError> {
    let patience = Instant::now() + timeout.min(AT_MOST);
    let (held, mut instance) = match instance.hold_until(repo, patience, progress) {
        Err(Error::Unknown(_)) => return Ok(Some(Settled::Nothing)),
        held => held?,
    };
    if !is_meant(&instance)? {
        return Ok(None);
    }
    if let Some(timeline) = instance.timeline() {
        mount::wake_guardian(&repo.datadir(timeline));
        let timeout = patience.saturating_duration_since(Instant::now()).max(AT_LEAST);
        // One that shows the past recovers all its life.
        let writer = instance.timeline().filter(|_| !instance.is_read_only());
        let recovers = || writer.is_some_and(|timeline| wal_end::recovers(repo, timeline));
        server::stop(&instance.alive(repo), mode, timeout, recovers, &instance.log(repo), progress)?;
    }
    if instance.is_read_only() {
        read_only::discard(repo, instance, held)?;
        return Ok(Some(Settled::Discarded));
    }
    settle(repo, &mut instance, patience.max(Instant::now() + AT_LEAST), signature, progress).map(Some)
}

/// Closes the epoch of an instance whose server is gone, with `end` for the end of its WAL although there should be more
/// (INVARIANT 6). What is not believed goes to the trash.
pub fn accept_end(
    repo: &Repo,
    instance: &Instance,
    end: Lsn,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    let (_held, mut instance) = instance.hold(repo, progress)?;
    if instance.status(repo) != Status::Stopped {
        let name = &instance.name;
        return Err(CommandError::refused(format!("the server of '{name}' runs"))
            .hint(format!("stop it first: zenith stop {name}")));
    }
    if instance.timeline().is_none() {
        let current = repo.refs().read_branch(&RefName::branch(&instance.config.branch)?)?;
        // Closed by a stop that was killed before the WAL was gone.
        if repo.timelines().run(current)?.is_some() && !is_open(repo, current)? {
            instance.config.timeline = Some(current.to_string());
        }
    }
    let accepted = Accepted { end: Some(end), ..Accepted::default() };
    settle_knowingly(repo, &mut instance, accepted, Instant::now() + PATIENCE, signature, progress)
}
