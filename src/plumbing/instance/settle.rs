//! Closes an epoch whose server is gone: seals its WAL to an end that is believed (INVARIANT 6), snapshots its files
//! if they are exact, and drops the epoch again if it changed nothing. What else is dropped goes to the trash
//! (INVARIANT 7). Every step can be repeated, so a crash amid it only means that the next start or stop does it again.

use std::fs;
use std::path::Path;

use super::{Instance, mount, prefetch, slots};
use crate::error::{CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::pg::control::State;
use crate::objects::pg::wal::WalReader;
use crate::objects::refs::{Expect, RefName, Signature, Value};
use crate::objects::snapshot::Snapshot;
use crate::objects::store::file::{READ_BLOCKS, StoredFile};
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::vfs::base::MOST_TOUCHED;
use crate::plumbing::datadir::wal::WalFilesError;
use crate::plumbing::datadir::wal_end;
use crate::plumbing::postgres::alive::Held;
use crate::plumbing::seal_wal::seal_upto;
use crate::plumbing::trash;
use crate::plumbing::write_snapshot::{Options, Source, inspect, write_snapshot};
use crate::progress::Progress;

/// Files that change what a cluster is although no transaction commits.
const CONFIGURATION: [&str; 4] = ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"];

/// An epoch that committed nothing is kept, for its snapshot, if starting without that means to
/// replay more WAL, bytes.
const REPLAY: u64 = 16 << 20;

/// What became of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// There was none.
    Nothing,
    /// It committed nothing and is gone; the branch is back where it was.
    Dropped,
    /// It showed the past, and is forgotten.
    Discarded,
    /// It is sealed to its end, with a snapshot there if its server was shut down cleanly.
    Sealed { timeline: TimelineId, snapshot: Option<ObjectId> },
}

/// Closes the open epoch of an instance, whose server does not run.
pub fn settle(
    repo: &Repo,
    instance: &mut Instance,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    settle_at(repo, instance, None, signature, progress)
}

/// The same, where the user may know that the WAL ends at `accepted`, although it should go on: then its files go to
/// the trash as they are.
pub fn settle_at(
    repo: &Repo,
    instance: &mut Instance,
    accepted: Option<Lsn>,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    let Some(id) = instance.timeline() else { return Ok(Settled::Nothing) };
    if !repo.timelines().exists(id) {
        mount::remove(&repo.datadir(id))?;
        return close(repo, instance).map(|()| Settled::Nothing);
    }
    let branch = instance.config.branch.clone();
    let data = repo.datadir(id).join("data");
    // Before the server's lock, for which a snapshot that is under way waits at its end. Where it cannot be taken there are no
    // files to take one of.
    let _lock = super::snapshot::Lock::wait(repo, id);
    // Nobody is alive, and nobody starts meanwhile; the file system's process sees that its files are needed.
    let held = instance.alive(repo).take_after_others()?;
    secure_end(repo, &branch, (id, &held), accepted, signature)?;
    let set_aside = |why: &str| {
        mount::unmount(&repo.datadir(id))?;
        trash::keep_datadir(repo, &branch, id, &Signature { why: why.to_owned(), ..signature.clone() })
    };
    if let Some(end) = accepted {
        let why = format!("stop: the end of the WAL at {end} was accepted");
        set_aside(&why)?;
        trash::keep_wal(repo, &branch, id, &Signature { why, ..signature.clone() })?;
        close(repo, instance)?;
        return Ok(Settled::Sealed { timeline: id, snapshot: None });
    }
    show(repo, instance, id);
    if drop_if_unchanged(repo, instance, id, &data, signature)? {
        mount::remove(&repo.datadir(id))?;
        close(repo, instance)?;
        return Ok(Settled::Dropped);
    }
    slots::put_away(repo, id, &data)?;
    let timeline = repo.timelines().read(id)?;
    let snapshot = snapshot_if_exact(repo, &timeline, &data, signature.time_us, progress)?;
    match snapshot {
        Some(_) => mount::remove(&repo.datadir(id))?,
        None => set_aside("stop: its server was not shut down")?,
    }
    close(repo, instance)?;
    repo.timelines().empty_wal(repo.tmp()?, id)?;
    // What cannot be removed now goes the next time.
    let _ = trash::tidy(repo, signature.time_us);
    Ok(Settled::Sealed { timeline: id, snapshot })
}

/// Finds the end of an epoch's WAL and seals up to it, after what lies behind it, and will be overwritten, was copied to
/// the trash. The lock proves that no server is alive on the timeline.
pub(super) fn secure_end(
    repo: &Repo,
    branch: &str,
    (id, _held): (TimelineId, &Held),
    accepted: Option<Lsn>,
    signature: &Signature,
) -> CmdResult {
    let Some(end) = wal_end::find(repo, id, accepted)? else {
        // As long as an epoch is open, its folder has the segment that is written to.
        let timeline = repo.timelines().read(id)?;
        if timeline.log.wal.is_empty() || accepted.is_some() {
            return Ok(());
        }
        return Err(wal_end::gone(repo, &timeline).into());
    };
    let why = format!("WAL behind the end of timeline {id}");
    trash::keep_beyond(repo, branch, Position { timeline: id, lsn: end }, &Signature { why, ..signature.clone() })?;
    seal_upto(repo, id, end)?;
    Ok(())
}

/// Mounts the data directory of an epoch again, if it is a lazy one whose process has ended. Where that
/// fails, the epoch is settled without its files: the WAL has what they hold.
fn show(repo: &Repo, instance: &Instance, id: TimelineId) {
    let dir = repo.datadir(id);
    if mount::is_served(&dir) || !mount::is_prepared(&dir) || mount::unmount(&dir).is_err() {
        return;
    }
    if let Ok(Some(snapshot)) = local::snapshot_below(&local::dir(&dir)) {
        let (log, alive) = (instance.log(repo), instance.alive(repo));
        let wanted = mount::Wanted { snapshot: &snapshot, hydrate: false, log: &log, alive: alive.path() };
        let _ = mount::mount(repo, &dir, &wanted);
    }
}

/// Forgets the epoch. The branch and the log have all of it.
fn close(repo: &Repo, instance: &mut Instance) -> CmdResult {
    instance.config.timeline = None;
    instance.write(repo)
}

/// Moves the branch back and removes the timeline, if the epoch changed nothing and nothing refers to it. Nobody can begin
/// to refer to it meanwhile.
fn drop_if_unchanged(
    repo: &Repo,
    instance: &Instance,
    id: TimelineId,
    data: &Path,
    signature: &Signature,
) -> Result<bool, CommandError> {
    let timeline = repo.timelines().read(id)?;
    let Some(parent) = unchanged(repo, &timeline, data)? else { return Ok(false) };
    let branch = RefName::branch(&instance.config.branch)?;
    repo.timelines().remove(repo.tmp()?, id, || {
        if trash::is_referenced(repo, id, &|name| *name == branch)? {
            return Ok(false);
        }
        let (old, new) = (Value::Branch(id), Value::Branch(parent));
        let signature = Signature { why: "stop: nothing was committed".to_owned(), ..signature.clone() };
        if repo.refs().read(&branch)? == Some(old.clone()) {
            repo.refs().update(repo.tmp()?, &branch, &Expect::Exactly(old), Some(&new), &signature)?;
        }
        Ok(true)
    })
}

/// Returns the parent to go back to, if the epoch changed nothing: all of its records are of those that every server
/// writes, and its files differ in nothing else.
fn unchanged(repo: &Repo, timeline: &Timeline, data: &Path) -> Result<Option<TimelineId>, CommandError> {
    let Some(parent) = timeline.history.ancestors.last() else { return Ok(None) };
    if !only_noise(repo, timeline, parent.fork)? {
        return Ok(None);
    }
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    let replayed = parent.fork.since(line.lsn);
    if replayed > REPLAY
        || data.join("PG_VERSION").exists()
            && (configuration_changed(repo, &repo.store().snapshot(&line.object)?, data)?
                || replayed == 0 && relations_changed(data)?)
    {
        return Ok(None);
    }
    // Made, dropped or moved on: PostgreSQL writes no WAL of that.
    if slots::changed(repo, parent.timeline, data)? {
        return Ok(None);
    }
    // The branch goes back only to where it came from: a tip, not a point amid other WAL.
    let back = repo.timelines().read(parent.timeline)?;
    Ok(Some(parent.timeline).filter(|_| back.tip().lsn == parent.fork))
}

/// Returns whether all records since the fork are ones that change nothing.
fn only_noise(repo: &Repo, timeline: &Timeline, fork: Lsn) -> Result<bool, CommandError> {
    if timeline.log.wal.iter().any(|interval| interval.commit_us.is_some()) {
        return Ok(false);
    }
    let source = repo.sealed_wal(timeline, fork.segment_start(repo.config().wal_segment_size))?;
    let mut reader = WalReader::new(source, repo.expected_wal(), fork);
    while reader.position_lsn() < timeline.tip().lsn {
        let record = reader.read().map_err(|source| WalFilesError::Damaged { timeline: timeline.id, source })?;
        if !record.changes_nothing() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether blocks of a relation were written that no record tells of: hint bits, in a cluster without checksums.
/// Only a lazy data directory knows.
fn relations_changed(data: &Path) -> Result<bool, CommandError> {
    let Some(control) = Control::of(data) else { return Ok(false) };
    let is_relation = |path: &[u8]| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let within = [&b"base/"[..], b"global/", b"pg_tblspc/"].iter().any(|folder| path.starts_with(folder));
        within && name.first().is_some_and(u8::is_ascii_digit)
    };
    Ok(control.changes()?.paths().any(is_relation))
}

fn configuration_changed(repo: &Repo, snapshot: &Snapshot, data: &Path) -> Result<bool, CommandError> {
    for name in CONFIGURATION {
        let mut stored = Vec::new();
        if let Some(entry) = snapshot.entry(name.as_bytes())
            && let Some(file) = StoredFile::of_entry(repo.store(), entry)?
        {
            file.read(repo.store(), 0, READ_BLOCKS, &mut stored)?;
        }
        if fs::read(data.join(name)).unwrap_or_default() != stored {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a snapshot of a data directory whose server was shut down cleanly, at the timeline's very tip.
fn snapshot_if_exact(
    repo: &Repo,
    timeline: &Timeline,
    data: &Path,
    now_us: i64,
    progress: &dyn Progress,
) -> Result<Option<ObjectId>, CommandError> {
    let Ok(cluster) = inspect(data) else { return Ok(None) };
    if cluster.control.state != State::ShutDown || data.join("backup_label").exists() {
        return Ok(None);
    }
    let tip = timeline.tip();
    if let Some(line) = timeline.log.snapshot_before(tip.lsn).filter(|line| line.lsn == tip.lsn) {
        return Ok(Some(line.object));
    }
    // What a lazy data directory knows is about the snapshot of its mark.
    let parent = match Control::of(data) {
        Some(control) => control.mark()?,
        None => repo.timelines().snapshot_before(tip)?.1.object,
    };
    let options = Options { parent: Some(parent), timeline: Some(timeline.id), ..Options::default() };
    let outcome = write_snapshot(repo, Source::Dir(data), &options, now_us, progress)?;
    prefetch::pass_on(repo, &parent, &outcome.snapshot, MOST_TOUCHED);
    Ok(Some(outcome.snapshot))
}
