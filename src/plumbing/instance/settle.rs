//! Closes an epoch whose server is gone, so that the branch has all of it without its data directory:
//!
//! 1. the end of its WAL is found, and believed (INVARIANT 6);
//! 2. what it wrote is taken back if that changes nothing, and none of it is sealed;
//! 3. else that is sealed, and the files become a snapshot, if the server was shut down cleanly; if not, the slots and the user's own files
//!    are put away with the timeline, and the data directory goes to the trash (INVARIANT 7).
//!
//! Every step can be repeated: after a crash amid them the next start or stop does them again.

use std::path::Path;
use std::time::Instant;

use super::unchanged::is_unchanged;
use super::{Instance, alive, maintain, mount, own_files, prefetch, slots, trash};
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::file_error::of_system;
use crate::objects::pg::Lsn;
use crate::objects::pg::control::State;
use crate::objects::refs::{RefName, Signature, Value};
use crate::objects::timeline::run::Run;
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::trash::Item;
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::WalFilesError;
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
    /// It committed nothing, and what it wrote is gone: the branch is as it was.
    Unchanged,
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
        let _ = remove_wal(repo, instance, None, (signature, progress));
        return Ok(Settled::Nothing);
    };
    let epoch = Epoch { repo, branch: instance.config.branch.clone(), id, signature, progress };
    if repo.timelines().is_gone(id) {
        // Dropped, or lost with its WAL: then nothing else has what is in the files.
        epoch.set_aside(true, "stop: its timeline is gone")?;
        return close(repo, instance).map(|()| Settled::Nothing);
    }
    // Before the server's lock, for which a snapshot that is under way waits at its end. Where there are no files
    // there is none.
    let lock = || super::snapshot::Lock::wait(repo, id, Some(patience), progress);
    let _lock = repo.has_datadir(id)?.then(lock).transpose()?;
    // Nobody is alive, and nobody starts meanwhile; the file system's process sees that its files are needed.
    let held = instance.alive(repo).take_after_others()?;
    let end = find_end(repo, &epoch.branch, (id, &held), accepted.end, (signature, progress))?;
    if let Some(end) = accepted.end {
        epoch.end_at(end)?;
        close(repo, instance)?;
        return Ok(Settled::Sealed { timeline: id, snapshot: None });
    }
    let files = show(repo, instance, id, accepted.hidden_files)?;
    let run = repo.timelines().run(id)?;
    if let Some((run, end)) = run.as_ref().zip(end).filter(|_| files == Files::InSight)
        && take_back(repo, id, run, end)?
    {
        close(repo, instance)?;
        return Ok(Settled::Unchanged);
    }
    seal_all(repo, id, end)?;
    let Some(run) = run else {
        epoch.clear_cut_off(files)?;
        close(repo, instance)?;
        return Ok(Settled::Unchanged);
    };
    let snapshot = epoch.keep_files(files, &run)?;
    close(repo, instance)?;
    epoch.keep_nameless()?;
    remove_wal(repo, instance, Some(held), (signature, progress))?;
    // What cannot be removed now goes the next time.
    let _ = trash::tidy(repo, signature.time_us);
    maintain::repack_if_due(repo, &instance.log(repo));
    Ok(Settled::Sealed { timeline: id, snapshot })
}

/// An epoch that is open, and with what it is closed.
struct Epoch<'a> {
    repo: &'a Repo,
    branch: String,
    id: TimelineId,
    signature: &'a Signature,
    progress: &'a dyn Progress,
}

impl Epoch<'_> {
    /// Moves its files to the trash; `commits` where nothing else may have what was committed in them.
    fn set_aside(&self, commits: bool, why: &str) -> CmdResult {
        mount::unmount(&self.repo.datadir(self.id))?;
        trash::keep_datadir(self.repo, &self.branch, self.id, commits, &self.signed(why))
    }

    fn signed(&self, why: &str) -> Signature {
        Signature { why: why.to_owned(), ..self.signature.clone() }
    }

    /// Ends it where the user says that its WAL does; its files, and the WAL behind, go to the trash.
    fn end_at(&self, end: Lsn) -> CmdResult {
        seal_all(self.repo, self.id, Some(end))?;
        let why = format!("stop: the end of the WAL at {end} was accepted");
        // Its files may have pages of what was committed behind the end.
        self.set_aside(true, &why)?;
        trash::keep_wal(self.repo, &self.branch, self.id, &self.signed(&why))
    }

    /// Sees to the files of one of which no run is noted: it was cut off before a server ran, or when all but this was done.
    fn clear_cut_off(&self, files: Files) -> CmdResult {
        let dir = self.repo.datadir(self.id);
        match files {
            Files::InSight if dir.join("data/postmaster.opts").try_exists()? => {
                self.set_aside(true, "stop: nobody knows of a run")
            }
            Files::Hidden => self.set_aside(false, "start: it was cut off"),
            Files::InSight | Files::Absent => Ok(mount::remove(self.repo.tmp()?, &dir)?),
        }
    }

    /// Keeps what its WAL, which is sealed, does not give back, and removes its files or moves them to the trash. Returns the snapshot
    /// of them, if its server was shut down cleanly.
    fn keep_files(&self, files: Files, run: &Run) -> Result<Option<ObjectId>, CommandError> {
        let Epoch { repo, branch, id, signature, progress } = self;
        if files == Files::Hidden {
            progress.warn(&format!(
                "the files of the last server of '{branch}' cannot be shown, or are a copy, and go to the trash: what was committed is \
                 there, but not its replication slots, nor what was set with ALTER SYSTEM or changed by hand; see zenith trash"
            ));
        }
        if files != Files::InSight {
            // What lies there may be a copy of files that changed meanwhile: neither a state of the cluster nor its slots.
            self.set_aside(false, "stop: its files cannot be shown")?;
            return Ok(None);
        }
        let (dir, timeline) = (repo.datadir(*id), repo.timelines().read(*id)?);
        let data = dir.join("data");
        slots::put_away(repo, &timeline, &data)?;
        let exact = snapshot_if_exact(repo, &timeline, run, &data, signature.time_us, *progress)?;
        if let Exact::Snapshot(made) = exact {
            own_files::forget(repo, *id)?;
            mount::remove(repo.tmp()?, &dir)?;
            return Ok(Some(made));
        }
        put_away_files(repo, &timeline, &data, *progress)?;
        mount::check_in_sight(&dir)?;
        match exact {
            // Nothing else may have what is in them.
            Exact::OnDamage => self.set_aside(true, "stop: the snapshot before is damaged")?,
            _ => self.set_aside(false, "stop: its server was not shut down")?,
        }
        Ok(None)
    }

    /// Has the trash refer to it if no ref leads to it any more, since its branch was deleted or moved while its server ran.
    fn keep_nameless(&self) -> CmdResult {
        let (repo, name) = (self.repo, RefName::branch(&self.branch)?);
        let (epoch, now) = (Value::Branch(self.id), repo.refs().read(&name)?);
        let is_kept = |item: &Item| item.entry.as_ref().is_some_and(|entry| entry.names(self.id));
        if now.as_ref() != Some(&epoch) && !repo.trash().list()?.iter().any(is_kept) {
            trash::keep_named(repo, &name, (&epoch, now.as_ref()), &self.signed("stop: its branch is gone"))?;
        }
        Ok(())
    }
}

/// Finds the end of an epoch's WAL, after what lies behind it, and will be overwritten, was copied to the trash; `None` where no
/// server ran. The lock proves that no server is alive on the timeline.
fn find_end(
    repo: &Repo,
    branch: &str,
    (id, _held): (TimelineId, &Held),
    accepted: Option<Lsn>,
    (signature, progress): (&Signature, &dyn Progress),
) -> Result<Option<Lsn>, CommandError> {
    let Some(end) = wal_end::find(repo, id, accepted)? else { return Ok(None) };
    let why = format!("WAL behind the end of timeline {id}");
    let signature = Signature { why, ..signature.clone() };
    if trash::keep_beyond(repo, branch, Position { timeline: id, lsn: end }, &signature)? {
        progress.warn(&format!(
            "behind {end}, where the WAL of '{branch}' ends, there is some that no whole record leads to: a crash leaves such, and \
             so does damage; it is kept, see zenith trash"
        ));
    }
    Ok(Some(end))
}

/// Does so and seals up to that end.
pub(super) fn secure_end(
    repo: &Repo,
    branch: &str,
    held: (TimelineId, &Held),
    with: (&Signature, &dyn Progress),
) -> CmdResult {
    let end = find_end(repo, branch, held, None, with)?;
    seal_all(repo, held.0, end)
}

/// Seals up to the end of an epoch's WAL, if it has any, and sees that this is so: what is sealed goes.
fn seal_all(repo: &Repo, timeline: TimelineId, end: Option<Lsn>) -> CmdResult {
    let Some(to) = end else { return Ok(()) };
    seal_upto(repo, timeline, to)?;
    let from = repo.timelines().read(timeline)?.tip().lsn;
    if from < to { Err(WalFilesError::Missing { timeline, from, to }.into()) } else { Ok(()) }
}

/// Removes the files and the WAL of a run that ended at `end`, if it changed nothing and none of it is sealed.
fn take_back(repo: &Repo, id: TimelineId, run: &Run, end: Lsn) -> Result<bool, CommandError> {
    // Nobody seals meanwhile.
    let log = repo.timelines().lock(id)?;
    let dir = repo.datadir(id);
    if !is_unchanged(repo, log.timeline(), run, end, &dir.join("data"))? {
        return Ok(false);
    }
    mount::check_in_sight(&dir)?;
    mount::remove(repo.tmp()?, &dir)?;
    repo.timelines().end_run(repo.tmp()?, id)?;
    Ok(true)
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
    if !mount::is_served(&dir)? {
        mount::unmount(&dir)?;
    }
    if !is_writer(repo, id)? {
        return Ok(if dir.try_exists()? { Files::Hidden } else { Files::Absent });
    }
    // Those that were restored lie beside the layer of a mount that was refused.
    if mount::is_in_sight(&dir)? {
        return Ok(Files::InSight);
    }
    if !layer.try_exists()? {
        return Ok(Files::Absent);
    }
    if !mount::is_prepared(&dir)? {
        return Ok(Files::Hidden);
    }
    let hide = |error: CommandError| {
        if is_accepted || error.class == Class::Corrupt {
            return Ok(Files::Hidden);
        }
        Err(error.hint(format!(
            "the files of its last server cannot be shown now; to go on without what was set in them: \
             zenith start {} --eager",
            instance.config.branch
        )))
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

/// Returns whether this clone writes to a timeline. What lies in a copy of the data directory of another one was copied file by file,
/// perhaps while its server wrote: it is no state of the cluster. The WAL is, up to its end.
pub(super) fn is_writer(repo: &Repo, id: TimelineId) -> Result<bool, CommandError> {
    Ok(repo.timelines().origin(id)?.writer == repo.clone_id()?)
}

/// Puts away what the user changed in the files of an epoch. What of it is damaged goes to the trash with them. For all else that
/// fails, such as a want of room or of descriptors, nothing goes: the user can do something about that.
fn put_away_files(repo: &Repo, timeline: &Timeline, data: &Path, progress: &dyn Progress) -> CmdResult {
    let (_, line) = repo.timelines().snapshot_before(timeline.tip())?;
    match own_files::put_away(repo, timeline, &repo.store().snapshot(&line.object)?, data) {
        Err(error) if is_damage(&error) => {
            progress.warn(&format!("what was set with ALTER SYSTEM goes to the trash: {}", error.text()));
            Ok(())
        }
        done => done,
    }
}

/// Returns whether something is damaged for good, also where a mount says so of what it shows.
fn is_damage(error: &CommandError) -> bool {
    error.class == Class::Corrupt
        || of_system(&*error.source).is_some_and(|said| said.raw_os_error() == Some(nix::libc::EIO))
}

/// Forgets the epoch. The branch and the log have all of it.
fn close(repo: &Repo, instance: &mut Instance) -> CmdResult {
    instance.config.closed = instance.config.timeline.take();
    instance.write(repo)
}

/// Removes the WAL of the epoch that was closed last, once all of it is sealed. Only then does it go, since an open epoch without the
/// segment that it writes to is in doubt. `held` is the lock of its server, if that is in hand.
fn remove_wal(repo: &Repo, instance: &Instance, held: Option<Held>, with: (&Signature, &dyn Progress)) -> CmdResult {
    let closed = instance.config.closed.as_ref().and_then(|id| id.parse().ok());
    let Some(id) = closed.filter(|id| !repo.timelines().is_gone(*id)) else { return Ok(()) };
    if repo.timelines().run(id)?.is_some() {
        // Another branch may have gone on with it.
        let held = held.map_or_else(|| alive(repo, id).take(), Ok)?;
        if !super::is_open(repo, id)? {
            secure_end(repo, &instance.config.branch, (id, &held), with)?;
            repo.timelines().end_run(repo.tmp()?, id)?;
        }
    }
    Ok(())
}

/// What became of the snapshot of an epoch's files. Where there is none the WAL has what was committed.
enum Exact {
    Snapshot(ObjectId),
    /// The server was not shut down cleanly, at the timeline's very tip.
    NotThere,
    /// What it would build on is damaged.
    OnDamage,
}

/// Writes a snapshot of a data directory whose server was shut down cleanly, at the timeline's very tip.
fn snapshot_if_exact(
    repo: &Repo,
    timeline: &Timeline,
    run: &Run,
    data: &Path,
    now_us: i64,
    progress: &dyn Progress,
) -> Result<Exact, CommandError> {
    let Ok(cluster) = inspect(data) else { return Ok(Exact::NotThere) };
    if cluster.control.state != State::ShutDown || data.join("backup_label").try_exists()? {
        return Ok(Exact::NotThere);
    }
    let tip = timeline.tip();
    if run.began == Some(tip.lsn) {
        // PostgreSQL never came to write: a snapshot there is what the run began with, not what the files are by now.
        return Ok(Exact::NotThere);
    }
    if let Some(line) = timeline.snapshots.before(tip.lsn).filter(|line| line.lsn == tip.lsn) {
        // It was made before a crash; unless nobody knows where the run began.
        return Ok(run.began.map_or(Exact::NotThere, |_| Exact::Snapshot(line.object)));
    }
    // What a lazy data directory knows is about the snapshot of its mark.
    let parent = match Control::of(data)? {
        Some(control) => control.mark()?,
        None => repo.timelines().snapshot_before(tip)?.1.object,
    };
    let options = Options { parent: Some(parent), timeline: Some(timeline.id), ..Options::default() };
    let outcome = match write_snapshot(repo, Source::Dir(data), &options, now_us, progress) {
        Err(error) if error.class == Class::Corrupt => {
            progress.warn(&format!("no snapshot was made, since what it builds on is damaged: {}", error.text()));
            return Ok(Exact::OnDamage);
        }
        outcome => outcome?,
    };
    prefetch::pass_on(repo, &parent, &outcome.snapshot, MOST_TOUCHED);
    Ok(Exact::Snapshot(outcome.snapshot))
}
