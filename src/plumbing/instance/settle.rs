//! Closes an epoch whose server is gone, so that the branch has all of it without its data directory:
//!
//! 1. its WAL is sealed, up to an end that is believed (INVARIANT 6);
//! 2. an epoch that changed nothing is removed, and the branch goes back to where it was;
//! 3. else the files become a snapshot, if the server was shut down cleanly; if not, the slots and the user's own files
//!    are put away with the timeline, and the data directory goes to the trash (INVARIANT 7).
//!
//! Every step can be repeated: after a crash amid them the next start or stop does them again.

use std::path::Path;
use std::time::Instant;

use super::unchanged::unchanged;
use super::{Instance, maintain, mount, own_files, prefetch, slots, trash};
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::pg::control::State;
use crate::objects::refs::{Expect, RefName, Signature, Value};
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::trash::Item;
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::vfs::base::MOST_TOUCHED;
use crate::plumbing::datadir::wal_end;
use crate::plumbing::instance::seal::seal_upto;
use crate::plumbing::postgres::alive::Held;
use crate::plumbing::write_snapshot::{Options, Source, inspect, write_snapshot};
use crate::progress::Progress;

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

/// Closes the open epoch of an instance, whose server does not run. Waits for a snapshot that is being taken until
/// `patience`.
pub fn settle(
    repo: &Repo,
    instance: &mut Instance,
    patience: Instant,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    settle_knowingly(repo, instance, Accepted::default(), patience, signature, progress)
}

/// What the user accepts that is lost otherwise only where it is certain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accepted {
    /// The WAL ends here, although it should go on: then the files go to the trash as they are.
    pub end: Option<Lsn>,
    /// Files that cannot be shown now go to the trash.
    pub hidden_files: bool,
}

/// The same, with what the user accepts.
pub fn settle_knowingly(
    repo: &Repo,
    instance: &mut Instance,
    accepted: Accepted,
    patience: Instant,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<Settled, CommandError> {
    let Some(id) = instance.timeline() else {
        // What cannot be removed now goes the next time.
        let _ = remove_wal(repo, instance);
        return Ok(Settled::Nothing);
    };
    let branch = instance.config.branch.clone();
    let set_aside = |commits: bool, why: &str| {
        mount::unmount(&repo.datadir(id))?;
        trash::keep_datadir(repo, &branch, id, commits, &Signature { why: why.to_owned(), ..signature.clone() })
    };
    if !repo.timelines().exists(id) {
        // Dropped, or lost with its WAL: then nothing else has what is in the files.
        set_aside(true, "stop: its timeline is gone")?;
        return close(repo, instance).map(|()| Settled::Nothing);
    }
    let data = repo.datadir(id).join("data");
    // Before the server's lock, for which a snapshot that is under way waits at its end. Where there are no files
    // there is none.
    let lock = || super::snapshot::Lock::wait(repo, id, Some(patience), progress);
    let _lock = repo.datadir(id).exists().then(lock).transpose()?;
    // Nobody is alive, and nobody starts meanwhile; the file system's process sees that its files are needed.
    let held = instance.alive(repo).take_after_others()?;
    secure_end(repo, &branch, (id, &held), accepted.end, signature)?;
    if let Some(end) = accepted.end {
        own_files::pass_on(repo, &repo.timelines().read(id)?)?;
        let why = format!("stop: the end of the WAL at {end} was accepted");
        // Its files may have pages of what was committed behind the end.
        set_aside(true, &why)?;
        trash::keep_wal(repo, &branch, id, &Signature { why, ..signature.clone() })?;
        close(repo, instance)?;
        return Ok(Settled::Sealed { timeline: id, snapshot: None });
    }
    let dir = repo.datadir(id);
    let files = show(repo, instance, id, accepted.hidden_files)?;
    let clear = || match files {
        Files::Absent => Ok(mount::remove(repo.tmp()?, &dir)?),
        Files::InSight | Files::Hidden => set_aside(false, "start: it was cut off"),
    };
    if files != Files::InSight && drop_if_unnamed(repo, id, clear)? {
        close(repo, instance)?;
        return Ok(Settled::Dropped);
    }
    if files == Files::Hidden {
        progress.warn(&format!(
            "the files of the last server of '{branch}' cannot be shown, and go to the trash: what was committed is there, \
             but not its replication slots, nor what was set with ALTER SYSTEM or changed by hand; see zenith trash"
        ));
    }
    if files == Files::InSight && drop_if_unchanged(repo, instance, id, &data, signature)? {
        mount::remove(repo.tmp()?, &dir)?;
        close(repo, instance)?;
        return Ok(Settled::Dropped);
    }
    slots::put_away(repo, id, &data)?;
    let timeline = repo.timelines().read(id)?;
    let snapshot = snapshot_if_exact(repo, &timeline, &data, signature.time_us, progress)?;
    match snapshot {
        Some(_) => {
            own_files::forget(repo, id)?;
            mount::remove(repo.tmp()?, &dir)?;
        }
        None if files == Files::InSight => {
            put_away_files(repo, &timeline, &data, progress)?;
            mount::check_in_sight(&dir)?;
            set_aside(false, "stop: its server was not shut down")?;
        }
        None => {
            own_files::pass_on(repo, &timeline)?;
            set_aside(false, "stop: its files cannot be shown")?;
        }
    }
    close(repo, instance)?;
    keep_nameless(repo, &branch, id, signature)?;
    remove_wal(repo, instance)?;
    // What cannot be removed now goes the next time.
    let _ = trash::tidy(repo, signature.time_us);
    maintain::repack_if_due(repo, &instance.log(repo));
    Ok(Settled::Sealed { timeline: id, snapshot })
}

/// Has the trash refer to an epoch that no ref leads to any more, since its branch was deleted or moved while its server ran.
fn keep_nameless(repo: &Repo, branch: &str, id: TimelineId, signature: &Signature) -> CmdResult {
    let name = RefName::branch(branch)?;
    let (epoch, now) = (Value::Branch(id), repo.refs().read(&name)?);
    let is_kept = |item: &Item| item.entry.as_ref().is_some_and(|entry| entry.names(id));
    if now.as_ref() != Some(&epoch) && !repo.trash().list()?.iter().any(is_kept) {
        let signature = Signature { why: "stop: its branch is gone".to_owned(), ..signature.clone() };
        trash::keep_named(repo, &name, (&epoch, now.as_ref()), &signature)?;
    }
    Ok(())
}

/// Finds the end of an epoch's WAL and seals up to it, after what lies behind it, and will be overwritten, was copied
/// to the trash. The lock proves that no server is alive on the timeline.
pub(super) fn secure_end(
    repo: &Repo,
    branch: &str,
    (id, _held): (TimelineId, &Held),
    accepted: Option<Lsn>,
    signature: &Signature,
) -> CmdResult {
    let Some(end) = wal_end::find(repo, id, accepted)? else {
        // Once something is sealed, the folder of an open epoch has the segment that is written to.
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

/// What is to be seen of the files of an epoch. Only of those in sight can be said that nothing changed. Without the others
/// the epoch is settled all the same: the WAL has what was committed, but not what else changed, such as settings and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    InSight,
    /// They are there, and cannot be shown: they are kept.
    Hidden,
    /// No server has run on any, or they were removed: by a stop that ended before it was done, or by hand.
    Absent,
}

/// Mounts the data directory of an epoch again, if it is a lazy one whose process has ended. What may be possible later is an
/// error, unless it was accepted: for a want of memory no settings are given up.
fn show(repo: &Repo, instance: &Instance, id: TimelineId, is_accepted: bool) -> Result<Files, CommandError> {
    let dir = repo.datadir(id);
    let layer = local::dir(&dir);
    if !mount::is_served(&dir) {
        mount::unmount(&dir)?;
    }
    // Those that were restored lie beside the layer of a mount that was refused.
    if mount::is_in_sight(&dir)? {
        // Restored ones are whole and durable before the WAL is laid out, and only then a server runs on them, which leaves its
        // options there: that the WAL is gone proves nothing.
        let is_whole =
            layer.try_exists()? || wal_end::is_laid_out(repo, id)? || dir.join("data/postmaster.opts").try_exists()?;
        return Ok(if is_whole { Files::InSight } else { Files::Absent });
    }
    if !layer.try_exists()? {
        return Ok(Files::Absent);
    }
    if !mount::is_prepared(&dir) {
        return Ok(Files::Hidden);
    }
    let hide = |error: CommandError| {
        match error.class {
        Class::Corrupt => Ok(Files::Hidden),
        _ if is_accepted => Ok(Files::Hidden),
        _ => Err(error.hint(format!(
            "the files of its last server cannot be shown now; to go on without what was set in them: zenith start {} --eager",
            instance.config.branch
        ))),
    }
    };
    let snapshot = match local::snapshot_below(&layer) {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => return Ok(Files::Hidden),
        Err(error) => return hide(error.into()),
    };
    let (log, alive) = (instance.log(repo), instance.alive(repo));
    let wanted = mount::Wanted { snapshot: &snapshot, hydrate: false, log: &log, alive: alive.path() };
    match mount::mount(repo, &dir, &wanted) {
        Ok(()) => Ok(Files::InSight),
        Err(mount::Error::Failed { is_damaged: true, .. }) => Ok(Files::Hidden),
        Err(error) => hide(error.into()),
    }
}

/// Puts away what the user changed in the files of an epoch. What of it cannot be read goes to the trash with them. Where there is no room for it nothing goes: the user makes some.
fn put_away_files(repo: &Repo, timeline: &Timeline, data: &Path, progress: &dyn Progress) -> CmdResult {
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    match own_files::put_away(repo, timeline.id, &repo.store().snapshot(&line.object)?, data) {
        Err(error) if lacks_room(&error) => Err(error),
        Err(error) => {
            progress.warn(&format!("what was set with ALTER SYSTEM goes to the trash: {}", error.text()));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Returns whether something failed for want of what the user can give.
fn lacks_room(error: &CommandError) -> bool {
    use std::io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let Some(error) = error.source.downcast_ref::<std::io::Error>() else { return false };
    let has_too_many_open = matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE));
    let kinds = [FileTooLarge, OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull];
    has_too_many_open || kinds.contains(&error.kind())
}

/// Forgets the epoch. The branch and the log have all of it.
fn close(repo: &Repo, instance: &mut Instance) -> CmdResult {
    instance.config.closed = instance.config.timeline.take();
    instance.write(repo)
}

/// Removes the WAL of the epoch that was closed last: all of it is sealed. Only then does it go, since an open epoch without the
/// segment that it writes to is in doubt.
fn remove_wal(repo: &Repo, instance: &Instance) -> CmdResult {
    let closed = instance.config.closed.as_ref().and_then(|id| id.parse().ok());
    match closed.filter(|id| repo.timelines().exists(*id)) {
        Some(id) if wal_end::is_laid_out(repo, id)? && !super::is_open(repo, id)? => {
            Ok(repo.timelines().empty_wal(repo.tmp()?, id)?)
        }
        _ => Ok(()),
    }
}

/// Moves the branch back and removes the timeline, if the epoch changed nothing and nothing refers to it. Nobody can
/// begin to refer to it meanwhile.
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
        mount::check_in_sight(&repo.datadir(id))?;
        let (old, new) = (Value::Branch(id), Value::Branch(parent));
        let signature = Signature { why: "stop: nothing was committed".to_owned(), ..signature.clone() };
        if repo.refs().read(&branch)? == Some(old.clone()) {
            repo.refs().update(repo.tmp()?, &branch, &Expect::Exactly(old), Some(&new), &signature)?;
        }
        Ok(true)
    })
}

/// Removes the timeline of an epoch without WAL that no ref names: the branch moves there before a server starts. What
/// there is of its files is set aside first.
fn drop_if_unnamed(repo: &Repo, id: TimelineId, set_aside: impl FnOnce() -> CmdResult) -> Result<bool, CommandError> {
    repo.timelines().remove(repo.tmp()?, id, || {
        let is_empty = repo.timelines().read(id)?.log.wal.is_empty();
        // What cannot be read may refer to it.
        if !is_empty || trash::is_referenced(repo, id, &|_| false).unwrap_or(true) {
            return Ok(false);
        }
        set_aside().map(|()| true)
    })
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
    if let Some(line) = timeline.snapshots.before(tip.lsn).filter(|line| line.lsn == tip.lsn) {
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
