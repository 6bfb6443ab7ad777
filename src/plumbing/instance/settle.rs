//! Closes an epoch whose server is gone: seals its WAL, snapshots its files if they are exact, and
//! drops the epoch again if it committed nothing. Every step can be repeated, so a crash amid it
//! only means that the next start or stop does it again.

use std::fs;
use std::path::Path;

use super::{Instance, mount, prefetch, slots};
use crate::error::CommandError;
use crate::objects::pg::Lsn;
use crate::objects::pg::control::State;
use crate::objects::pg::wal::WalReader;
use crate::objects::refs::{Expect, RefKind, RefName, Signature, Value};
use crate::objects::snapshot::Snapshot;
use crate::objects::store::file::{READ_BLOCKS, StoredFile};
use crate::objects::timeline::{self, Timeline, TimelineId};
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::vfs::base::MOST_TOUCHED;
use crate::plumbing::datadir::wal::WalFilesError;
use crate::plumbing::seal_wal::seal_stopped;
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
    let Some(id) = instance.timeline() else { return Ok(Settled::Nothing) };
    if !repo.timelines().exists(id) {
        return close(repo, instance, id).map(|()| Settled::Nothing);
    }
    let data = repo.datadir(id).join("data");
    // Nobody is alive, and nobody starts meanwhile; the file system's process sees that its files are needed.
    let held = instance.alive(repo).take_from_the_dead()?;
    seal_stopped(repo, id, &held)?;
    show(repo, instance, id);
    let timeline = repo.timelines().read(id)?;
    if let Some(parent) = droppable(repo, instance, &timeline, &data)? {
        let branch = RefName::branch(&instance.config.branch)?;
        let (old, new) = (Value::Branch(id), Value::Branch(parent));
        let signature = Signature { why: "stop: nothing was committed".to_owned(), ..signature.clone() };
        if repo.refs().read(&branch)? == Some(old.clone()) {
            repo.refs().update(repo.tmp()?, &branch, &Expect::Exactly(old), Some(&new), &signature)?;
        }
        close(repo, instance, id)?;
        repo.timelines().remove(repo.tmp()?, id)?;
        return Ok(Settled::Dropped);
    }
    slots::put_away(repo, id, &data)?;
    let _lock = super::snapshot::Lock::wait(repo, id);
    let snapshot = snapshot_if_exact(repo, &timeline, &data, signature.time_us, progress)?;
    close(repo, instance, id)?;
    empty_wal(&repo.timelines().wal_dir(id))?;
    Ok(Settled::Sealed { timeline: id, snapshot })
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

/// Forgets the epoch and removes its data directory. The branch and the log have all of it.
fn close(repo: &Repo, instance: &mut Instance, id: TimelineId) -> Result<(), CommandError> {
    mount::remove(&repo.datadir(id))?;
    instance.config.timeline = None;
    instance.write(repo)
}

/// Removes segments whose every whole record is sealed.
fn empty_wal(dir: &Path) -> Result<(), CommandError> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::read_dir(&path)?.flatten().try_for_each(|entry| fs::remove_file(entry.path()))?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Returns the parent to go back to, if the epoch can be dropped: it committed nothing, changed no
/// configuration, and nothing refers to it.
fn droppable(
    repo: &Repo,
    instance: &Instance,
    timeline: &Timeline,
    data: &Path,
) -> Result<Option<TimelineId>, CommandError> {
    let Some(parent) = timeline.history.ancestors.last() else { return Ok(None) };
    if timeline.log.wal.iter().any(|interval| interval.commit_us.is_some()) || prepares(repo, timeline, parent.fork)? {
        return Ok(None);
    }
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    if parent.fork.since(line.lsn) > REPLAY
        || data.join("PG_VERSION").exists() && configuration_changed(repo, &repo.store().snapshot(&line.object)?, data)?
    {
        return Ok(None);
    }
    // Made, dropped or moved on: PostgreSQL writes no WAL of that.
    if slots::changed(repo, parent.timeline, data)? {
        return Ok(None);
    }
    // The branch goes back only to where it came from: a tip, not a point amid other WAL.
    let back = repo.timelines().read(parent.timeline)?;
    if back.tip().lsn != parent.fork {
        return Ok(None);
    }
    for kind in [RefKind::Branch, RefKind::Tag, RefKind::Remote] {
        let others = repo.refs().list(kind)?;
        let own = |name: &RefName| kind == RefKind::Branch && name.short() == instance.config.branch;
        if others.iter().any(|(name, value)| value.timeline() == timeline.id && !own(name)) {
            return Ok(None);
        }
    }
    for other in repo.timelines().list()? {
        // Other commands drop theirs at the same time.
        let history = match repo.timelines().history(other) {
            Err(timeline::Error::Unknown(_)) => continue,
            history => history?,
        };
        if history.ancestors.iter().any(|ancestor| ancestor.timeline == timeline.id) {
            return Ok(None);
        }
    }
    Ok(Some(parent.timeline))
}

/// Returns whether a transaction was prepared: it has not committed, but its owner was told that it is safe.
fn prepares(repo: &Repo, timeline: &Timeline, fork: Lsn) -> Result<bool, CommandError> {
    let source = repo.sealed_wal(timeline, fork.segment_start(repo.config().wal_segment_size))?;
    let mut reader = WalReader::new(source, repo.expected_wal(), fork);
    while reader.position_lsn() < timeline.tip().lsn {
        let record = reader.read().map_err(|source| WalFilesError::Damaged { timeline: timeline.id, source })?;
        if record.prepares() {
            return Ok(true);
        }
    }
    Ok(false)
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
