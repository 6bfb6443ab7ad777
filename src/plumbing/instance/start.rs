//! Opens an epoch: forks a timeline at the branch's tip, restores its files, starts a server on them.

use std::fs;

use super::{Instance, settle::settle, socket_dir};
use crate::error::CommandError;
use crate::objects::refs::{Expect, RefName, Signature, Value};
use crate::objects::timeline::{Position, TimelineId};
use crate::objects::{ObjectId, Repo};
use crate::plumbing::datadir::restore::restore;
use crate::plumbing::datadir::wal::lay_out;
use crate::plumbing::fork_timeline::fork_timeline_as;
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::find::Binaries;
use crate::plumbing::postgres::server::{self, Status};
use crate::plumbing::postgres::settings::{Settings, shell_command};
use crate::plumbing::postgres::{self, recovery};
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
}

/// Starts the server of an instance, unless it runs. Costs the restore of the cluster's files and
/// the replay of the WAL since the newest snapshot.
pub fn start(cx: &Context, name: &str, tcp: bool) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    let _held = Instance::hold(repo, name)?;
    let mut instance = Instance::read(repo, name)?;
    let branch = RefName::branch(&instance.config.branch)?;
    if let (Some(timeline), Status::Running { .. }) = (instance.timeline(), instance.status(repo)) {
        let from = repo.timelines().read(timeline)?.tip();
        return Ok(Outcome { instance, already: true, from, snapshot: None, replayed: 0 });
    }
    // What a crash left open.
    settle(repo, &mut instance, cx.signature, cx.progress)?;
    let parent = super::super::update_ref::read_branch(repo, &branch)?;
    super::super::seal_wal::seal_active(repo, parent)?;
    let from = repo.timelines().read(parent)?.tip();
    let timeline = TimelineId::random();
    let mut epoch = Epoch { cx, branch: &branch, parent, timeline, instance: &mut instance, kept: false };
    let (snapshot, replayed) = epoch.prepare(from)?;
    epoch.run(tcp)?;
    epoch.kept = true;
    drop(epoch);
    Ok(Outcome { instance, already: false, from, snapshot: Some(snapshot), replayed })
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
    fn prepare(&mut self, from: Position) -> Result<(ObjectId, u64), CommandError> {
        let Context { repo, account, progress, .. } = self.cx;
        // Noted first: what a crash leaves from here on, the next start finds and removes.
        self.instance.config.timeline = Some(self.timeline.to_string());
        self.instance.write(repo)?;
        fork_timeline_as(repo, self.timeline, from)?;
        let (_, line) = repo.timelines().snapshot_before(from)?;
        let snapshot = repo.store().snapshot(&line.object)?;
        let wal_dir = repo.timelines().wal_dir(self.timeline);
        lay_out(repo, snapshot.start, from, snapshot.postgres_timeline, &wal_dir)?;
        let datadir = repo.datadir(self.timeline);
        fs::create_dir_all(&datadir)?;
        let data = datadir.join("data");
        restore(repo.store(), &snapshot, &data, *progress)?;
        recovery::link_wal(&data, &wal_dir)?;
        recovery::write_backup_label(&data, &snapshot)?;
        account.own(repo.dir())?;
        Ok((line.object, from.lsn.since(snapshot.start)))
    }

    /// Moves the branch to the epoch's timeline and starts the server.
    fn run(&mut self, tcp: bool) -> Result<(), CommandError> {
        let Context { repo, binaries, account, progress, signature } = self.cx;
        let settings = Settings {
            port: self.instance.config.port,
            socket_dir: socket_dir(repo)?,
            tcp,
            name: self.instance.config.branch.clone(),
            archive_command: archive_command(repo, self.timeline)?,
        };
        self.instance.config.tcp = tcp;
        self.instance.write(repo)?;
        let (old, new) = (Value::Branch(self.parent), Value::Branch(self.timeline));
        let signature = Signature { why: format!("start: {}", self.instance.name), ..(*signature).clone() };
        repo.refs().update(repo.tmp()?, self.branch, &Expect::Exactly(old), Some(&new), &signature)?;
        let data = repo.datadir(self.timeline).join("data");
        let log = self.instance.log(repo);
        if let Account::Postgres = account {
            account.own(repo.dir())?;
        }
        server::start(binaries, account, &data, &log, &settings, *progress)?.keep();
        Ok(())
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
            let _ = fs::remove_dir_all(repo.datadir(self.timeline));
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
