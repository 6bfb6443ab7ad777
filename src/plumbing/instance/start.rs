//! Opens an epoch: forks a timeline at the branch's tip, restores its files, starts a server on them.

use std::fs;
use std::path::{Path, PathBuf};

use super::mount::{self, Wanted};
use super::prefetch::Plan;
use super::{Instance, settle::settle, socket_dir};
use crate::error::CommandError;
use crate::objects::pg::record::Record;
use crate::objects::refs::{Expect, RefName, Signature, Value};
use crate::objects::snapshot::Snapshot;
use crate::objects::timeline::{Position, TimelineId};
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::reflink::restore_or_clone;
use crate::plumbing::datadir::wal::lay_out;
use crate::plumbing::fork_timeline::fork_timeline_as;
use crate::plumbing::postgres::find::Binaries;
use crate::plumbing::postgres::recovery::{self, Readable};
use crate::plumbing::postgres::server::{self, Status};
use crate::plumbing::postgres::settings::{Role, Settings, shell_command};
use crate::plumbing::postgres::{self, account::Account};
use crate::progress::Progress;

/// With what a server is started.
pub struct Context<'a> {
    pub repo: &'a Repo,
    pub binaries: &'a Binaries,
    pub account: &'a Account,
    pub progress: &'a dyn Progress,
    /// For the reflog.
    pub signature: &'a Signature,
}

/// How it is to be started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// Listen on the loopback address too.
    pub tcp: bool,
    /// Restore all files first.
    pub eager: bool,
    /// Make all blocks local in the background.
    pub hydrate: bool,
}

/// A server that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub instance: Instance,
    /// It ran before.
    pub already: bool,
    /// What it was started from.
    pub from: Position,
    pub snapshot: Option<ObjectId>,
    /// WAL that was replayed, bytes.
    pub replayed: u64,
    /// It went on after a crash, on the files that it had.
    pub resumed: bool,
    /// Why all files were restored, where that was not asked for.
    pub refused: Option<String>,
}

/// Starts the server of an instance, unless it runs. Costs the replay of the WAL since the newest
/// snapshot, and where lazy data directories are not to be had the restore of the cluster's files.
/// After a crash the server goes on with the files that it had.
pub fn start(cx: &Context, name: &str, wish: Wish) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    let _held = Instance::hold(repo, name)?;
    let mut instance = Instance::read(repo, name)?;
    let branch = RefName::branch(&instance.config.branch)?;
    if let (Some(timeline), Status::Running { .. }) = (instance.timeline(), instance.status(repo)) {
        let from = repo.timelines().read(timeline)?.tip();
        let (snapshot, replayed, resumed, refused) = (None, 0, false, None);
        return Ok(Outcome { instance, already: true, from, snapshot, replayed, resumed, refused });
    }
    if let Some(outcome) = resume(cx, &mut instance, &branch, wish)? {
        return Ok(outcome);
    }
    // What a crash left open.
    settle(repo, &mut instance, cx.signature, cx.progress)?;
    let parent = super::super::update_ref::read_branch(repo, &branch)?;
    super::super::seal_wal::seal_active(repo, parent)?;
    let from = repo.timelines().read(parent)?.tip();
    let timeline = TimelineId::random();
    let mut epoch = Epoch { cx, branch: &branch, parent, timeline, instance: &mut instance, kept: false };
    let prepared = epoch.prepare(from, wish)?;
    epoch.run(wish.tcp)?;
    epoch.kept = true;
    drop(epoch);
    let Prepared { snapshot, replayed, refused } = prepared;
    Ok(Outcome { instance, already: false, from, snapshot: Some(snapshot), replayed, resumed: false, refused })
}

/// Starts the server of an epoch that a crash left open, on the lazy data directory that it had:
/// PostgreSQL recovers by itself. Returns `None` where that is not possible, since the directory was
/// not ready, is damaged or gone: the WAL has all that was committed.
fn resume(
    cx: &Context,
    instance: &mut Instance,
    branch: &RefName,
    wish: Wish,
) -> Result<Option<Outcome>, CommandError> {
    let Context { repo, .. } = cx;
    let Some(timeline) = instance.timeline() else { return Ok(None) };
    let dir = repo.datadir(timeline);
    server::end_orphans(&dir.join("data"));
    mount::unmount(&dir)?;
    let is_ours = repo.refs().read(branch)? == Some(Value::Branch(timeline));
    if !is_ours || wish.eager || !mount::is_prepared(&dir) {
        return Ok(None);
    }
    let Ok(Some(snapshot)) = local::snapshot_below(&local::dir(&dir)) else { return Ok(None) };
    let log = instance.log(repo);
    let wanted = Wanted { snapshot: &snapshot, hydrate: wish.hydrate, log: &log };
    if mount::mount(repo, &dir, &wanted).is_err() {
        return Ok(None);
    }
    let from = repo.timelines().read(timeline)?.tip();
    match run_server(cx, instance, timeline, wish.tcp) {
        Ok(()) => {}
        // Files that PostgreSQL does not accept: without them, then.
        Err(postgres::Error::DidNotStart { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    instance.write(repo)?;
    let instance = instance.clone();
    let (snapshot, refused) = (Some(snapshot), None);
    Ok(Some(Outcome { instance, already: false, from, snapshot, replayed: 0, resumed: true, refused }))
}

/// Starts the server of an instance on the data directory of `timeline`.
pub(super) fn run_server(
    cx: &Context,
    instance: &mut Instance,
    timeline: TimelineId,
    tcp: bool,
) -> Result<(), postgres::Error> {
    let Context { repo, binaries, account, progress, .. } = cx;
    instance.config.tcp = tcp;
    let settings = Settings {
        port: instance.config.port,
        socket_dir: socket_dir(repo)?,
        tcp,
        name: instance.config.branch.clone(),
        role: match instance.is_read_only() {
            true => Role::Standby,
            false => Role::Primary { archive_command: archive_command(repo, timeline)? },
        },
    };
    let (data, log) = (repo.datadir(timeline).join("data"), instance.log(repo));
    if let Account::Postgres = account {
        account.own(repo.dir())?;
    }
    server::start(binaries, account, &data, &log, &settings, *progress)?.keep();
    Ok(())
}

/// Mounts the snapshot's files at `dir/data`, or restores them there. Returns why they were restored, if that was
/// not wished.
pub(super) fn show_files(
    cx: &Context,
    log: &Path,
    id: &ObjectId,
    snapshot: &Snapshot,
    dir: &Path,
    wish: Wish,
) -> Result<Option<String>, CommandError> {
    let Context { repo, account, progress, .. } = cx;
    let restore = || {
        let copies = repo.dir().join("datadirs/copies");
        let data = dir.join("data");
        // Left by the mount that failed.
        let _ = fs::remove_dir(&data);
        restore_or_clone(repo.store(), (id, snapshot), &data, &copies, *progress)
    };
    if wish.eager {
        restore()?;
        return Ok(None);
    }
    // A mount is its owner's alone.
    let mounted = if **account == Account::Postgres {
        Err("PostgreSQL has to run as the user postgres here, who cannot see the mount".to_owned())
    } else {
        let wanted = Wanted { snapshot: id, hydrate: wish.hydrate, log };
        mount::mount(repo, dir, &wanted).map_err(|error| CommandError::from(error).text())
    };
    let Err(why) = mounted else { return Ok(None) };
    restore()?;
    Ok(Some(why))
}

/// Has what the start will read read, while it goes on.
pub(super) fn fetch(repo: &Repo, mut plan: Plan, snapshot: &ObjectId, data: PathBuf) {
    plan.add_noted(repo, snapshot);
    std::thread::spawn(move || plan.fetch(&data));
}

/// What an epoch begins with.
struct Prepared {
    snapshot: ObjectId,
    /// WAL to replay, bytes.
    replayed: u64,
    /// Why the files were restored.
    refused: Option<String>,
}

/// An epoch that is being opened. Dropping it undoes all of that, unless it is kept: the branch
/// goes back, the timeline and the data directory go away.
struct Epoch<'a> {
    cx: &'a Context<'a>,
    branch: &'a RefName,
    parent: TimelineId,
    timeline: TimelineId,
    instance: &'a mut Instance,
    kept: bool,
}

impl Epoch<'_> {
    /// Forks the timeline, and lays out files and WAL for a start at `from`.
    fn prepare(&mut self, from: Position, wish: Wish) -> Result<Prepared, CommandError> {
        let Context { repo, account, .. } = self.cx;
        // Noted first: what a crash leaves from here on, the next start finds and removes.
        self.instance.config.timeline = Some(self.timeline.to_string());
        self.instance.write(repo)?;
        fork_timeline_as(repo, self.timeline, from)?;
        let (_, line) = repo.timelines().snapshot_before(from)?;
        let snapshot = repo.store().snapshot(&line.object)?;
        let wal_dir = repo.timelines().wal_dir(self.timeline);
        let mut plan = Plan::default();
        let mut visit = |record: &Record| plan.add_record(&snapshot, record);
        lay_out(repo, snapshot.start, from, snapshot.postgres_timeline, &wal_dir, &mut visit)?;
        let dir = repo.datadir(self.timeline);
        fs::create_dir_all(&dir)?;
        let refused = show_files(self.cx, &self.instance.log(repo), &line.object, &snapshot, &dir, wish)?;
        let data = dir.join("data");
        recovery::link_wal(&data, &wal_dir)?;
        // Where there is nothing to replay, PostgreSQL goes on as after any other shutdown.
        if !recovery::is_exact(&snapshot) || snapshot.consistent != from.lsn {
            recovery::write_backup_label(&data, &snapshot, Readable::AtTheEnd)?;
        }
        if mount::is_mounted(&data) {
            mount::set_prepared(&dir)?;
            fetch(repo, plan, &line.object, data);
        }
        account.own(repo.dir())?;
        Ok(Prepared { snapshot: line.object, replayed: from.lsn.since(snapshot.start), refused })
    }

    /// Moves the branch to the epoch's timeline and starts the server.
    fn run(&mut self, tcp: bool) -> Result<(), CommandError> {
        let Context { repo, signature, .. } = self.cx;
        let (old, new) = (Value::Branch(self.parent), Value::Branch(self.timeline));
        let signature = Signature { why: format!("start: {}", self.instance.name), ..(*signature).clone() };
        repo.refs().update(repo.tmp()?, self.branch, &Expect::Exactly(old), Some(&new), &signature)?;
        run_server(self.cx, self.instance, self.timeline, tcp)?;
        self.instance.write(repo)
    }
}

impl Drop for Epoch<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Context { repo, signature, .. } = self.cx;
        // Nobody could connect yet, so nothing is lost. What fails here, the next start settles.
        let (old, new) = (Value::Branch(self.timeline), Value::Branch(self.parent));
        let signature = Signature { why: "start: failed".to_owned(), ..(*signature).clone() };
        let Ok(tmp) = repo.tmp() else { return };
        let _ = repo.refs().update(tmp, self.branch, &Expect::Exactly(old), Some(&new), &signature);
        self.instance.config.timeline = None;
        if self.instance.write(repo).is_ok() {
            let _ = mount::remove(&repo.datadir(self.timeline));
            let _ = repo.timelines().remove(tmp, self.timeline);
        }
    }
}

/// Returns the command with which PostgreSQL hands over a completed segment.
fn archive_command(repo: &Repo, timeline: TimelineId) -> Result<String, postgres::Error> {
    let program = std::env::current_exe();
    let program = program.map_err(|source| postgres::Error::Io { verb: "find", path: "zenith".into(), source })?;
    let timeline = timeline.to_string();
    let words =
        [program.as_os_str(), "--repo".as_ref(), repo.dir().as_os_str(), "seal-wal".as_ref(), timeline.as_ref()];
    Ok(shell_command(&words, "--segment %f"))
}
