//! Opens an epoch: restores the files of a branch's end, and starts a server on them, which goes on with its timeline. Where
//! that is another clone's, or cannot be gone on with, it forks.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::hold::hold_all;
use super::mount::{self, Wanted};
use super::prefetch::{self, Plan};
use super::seal::seal_active;
use super::settle::{Accepted, is_writer, secure_end, settle, settle_knowingly};
use super::{
    Config, Instance, PATIENCE, alive, free_port, hold_or_create, list, logs, of_timeline, own_files, slots,
    socket_dir, trash,
};
use crate::error::{CmdResult, CommandError};
use crate::objects::file_error::cannot;
use crate::objects::format::Shared;
use crate::objects::pg::control::Sizes;
use crate::objects::pg::record::Record;
use crate::objects::pg::segment;
use crate::objects::refs::{self, Expect, RefName, Signature, Value};
use crate::objects::snapshot::Snapshot;
use crate::objects::timeline::{Position, Timeline, TimelineId, run};
use crate::objects::{ObjectId, Repo, bounded, durable};
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::reflink::restore_or_clone;
use crate::plumbing::datadir::wal::{complete, lay_out, lay_out_before};
use crate::plumbing::datadir::wal_end::active_timeline;
use crate::plumbing::fork_timeline::fork_timeline;
use crate::plumbing::postgres::alive::Held;
use crate::plumbing::postgres::find::Binaries;
use crate::plumbing::postgres::process::own_program;
use crate::plumbing::postgres::recovery;
use crate::plumbing::postgres::server::{self, Status};
use crate::plumbing::postgres::settings::{self, Role, Settings, shell_command};
use crate::plumbing::postgres::{self, account::Account};
use crate::progress::{Hidden, Progress};

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
pub struct Wish<'a> {
    /// The port, rather than the instance's last one.
    pub port: Option<u16>,
    /// The loopback address to listen on too.
    pub tcp: Option<IpAddr>,
    /// Restore all files first.
    pub eager: bool,
    /// Make all blocks local in the background.
    pub hydrate: bool,
    /// It may be stopped when nobody uses it.
    pub on_demand: bool,
    /// What its `postgresql.conf` is to be from now on: the server does not start with the one that it has.
    pub config_file: Option<&'a Path>,
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

impl Outcome {
    /// Returns that of a start at `from`.
    pub(super) fn fresh(instance: Instance, from: Position, laid_out: LaidOut) -> Outcome {
        let LaidOut { id, replayed, refused, .. } = laid_out;
        Outcome { instance, already: false, from, snapshot: Some(id), replayed, resumed: false, refused }
    }
}

/// Starts the server of a branch, unless it runs. Costs the replay of the WAL since the newest
/// snapshot, and where lazy data directories are not to be had the restore of the cluster's files.
/// After a crash the server goes on with the files that it had.
pub fn start(cx: &Context, branch: &str, wish: Wish) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    let (held, mut instance) = hold_or_create(repo, branch, cx.progress)?;
    let branch = RefName::branch(branch)?;
    if let (Some(timeline), true) = (instance.timeline(), runs_already(cx, &instance)?) {
        if wish.config_file.is_some() {
            let refused = format!("{} is running, with the configuration that it has", branch.short());
            return Err(CommandError::refused(refused).hint(format!("stop it first: zenith stop {}", branch.short())));
        }
        instance.claim(repo, wish)?;
        let from = repo.timelines().read(timeline)?.tip();
        let (snapshot, replayed, resumed, refused) = (None, 0, false, None);
        return Ok(Outcome { instance, already: true, from, snapshot, replayed, resumed, refused });
    }
    if repo.refs().read(&branch)?.is_none() && instance.timeline().is_none() {
        // The branch was deleted meanwhile.
        instance.remove(repo, held)?;
        return Err(refs::Error::Unknown(branch).into());
    }
    // What cannot be put away grows on.
    let log = instance.log(repo);
    let _ = logs::put_away_if_large(&log);
    logs::make(&log).map_err(cannot::<postgres::Error>("open", &log))?;
    let Config { port, tcp, on_demand, .. } = instance.config.clone();
    instance.choose_port(repo, wish, cx.progress)?;
    let started = start_stopped(cx, &mut instance, &branch, wish);
    if started.is_err() && !matches!(instance.status(repo), Status::Running(_)) {
        // What was refused is not kept: a server that cannot be seen, in another container, may listen on the last one.
        (instance.config.port, instance.config.tcp, instance.config.on_demand) = (port, tcp, on_demand);
        // The error says more than what could go wrong here.
        let _ = instance.write(repo);
    }
    started
}

/// Starts the server of an instance that does not run.
fn start_stopped(cx: &Context, instance: &mut Instance, branch: &RefName, wish: Wish) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    if let Some(outcome) = resume(cx, instance, branch, wish)? {
        return Ok(outcome);
    }
    // What a crash left open.
    let accepted = Accepted { hidden_files: wish.eager, ..Accepted::default() };
    settle_knowingly(repo, instance, accepted, Instant::now() + PATIENCE, cx.signature, cx.progress)?;
    let current = repo.refs().read_branch(branch)?;
    seal_active(repo, current)?;
    let timeline = repo.timelines().read(current)?;
    repo.timelines().check_end(&timeline)?;
    let (timeline, held) = match go_on(repo, &timeline)? {
        Some(goes_on) => goes_on,
        None => fork(cx, branch, &timeline)?,
    };
    let from = timeline.tip();
    let mut run = Run { cx, timeline, instance, kept: false };
    // What has to be settled is so without it.
    let held = held;
    let laid_out = run.prepare(&held, wish)?;
    run.begin(&held, wish, laid_out.sizes)?;
    drop(run);
    Ok(Outcome::fresh(instance.clone(), from, laid_out))
}

/// Returns the lock of the server that is to go on with a timeline, and that as it is by then; `None` if none of this clone may. A timeline has one writer,
/// and one server at a time. Where sealed bytes go on behind its last whole record, a server would write others there.
fn go_on(repo: &Repo, timeline: &Timeline) -> Result<Option<(Timeline, Held)>, CommandError> {
    let is_at_rest = |timeline: &Timeline| timeline.tip().lsn == timeline.sealed();
    if !is_writer(repo, timeline.id)? || !is_at_rest(timeline) {
        return Ok(None);
    }
    let held = alive(repo, timeline.id).take_after_others();
    // Others note theirs while they have the lock.
    match of_timeline(repo, timeline.id)? {
        Some(other) if is_of_another_branch(repo, &other, timeline.id)? => Ok(None),
        None if !repo.has_datadir(timeline.id)? => {
            let held = held?;
            // The other branch may have gone on with it until now.
            let now = repo.timelines().read(timeline.id)?;
            Ok(is_at_rest(&now).then_some((now, held)))
        }
        _ => {
            let refused =
                format!("another server has begun on timeline {}, of which the branch knows nothing", timeline.id);
            Err(CommandError::refused(refused).hint("end it, and keep what it did: zenith stop --all"))
        }
    }
}

/// Returns whether an instance is that of a branch which has that timeline: two may have one since before that was refused.
fn is_of_another_branch(repo: &Repo, other: &Instance, timeline: TimelineId) -> Result<bool, CommandError> {
    let name = RefName::branch(&other.config.branch)?;
    Ok(!other.is_read_only() && repo.refs().read(&name)? == Some(Value::Branch(timeline)))
}

/// Has a branch go on, from the end of `timeline`, on a timeline of its own.
fn fork(cx: &Context, branch: &RefName, timeline: &Timeline) -> Result<(Timeline, Held), CommandError> {
    let Context { repo, signature, .. } = cx;
    let id = fork_timeline(repo, timeline.tip(), signature.time_us)?;
    let start = Position { timeline: id, ..timeline.tip() };
    let signature = Signature { why: format!("start: forked at {}", timeline.tip().lsn), ..(*signature).clone() };
    let go_on = || {
        own_files::pass_on(repo, timeline, start)?;
        slots::pass_on(repo, timeline, start)?;
        let expect = Expect::Exactly(Value::Branch(timeline.id));
        Ok(repo.refs().update(repo.tmp()?, branch, &expect, Some(&Value::Branch(id)), &signature)?)
    };
    if let Err(error) = go_on() {
        // The error says more than what could go wrong here.
        let _ = trash::remove_unneeded(repo, id);
        return Err(error);
    }
    Ok((repo.timelines().read(id)?, alive(repo, id).take()?))
}

/// Returns whether the server of an instance runs, once it takes connections. One that is dying is waited for.
pub(super) fn runs_already(cx: &Context, instance: &Instance) -> Result<bool, CommandError> {
    let Status::Running(_) = instance.status(cx.repo) else { return Ok(false) };
    let (status, data) = (|| instance.status(cx.repo), instance.data_dir(cx.repo).unwrap_or_default());
    Ok(server::wait_until_it_answers(status, &data, &instance.endpoint(cx.repo)?, cx.progress)?)
}

impl Instance {
    /// Notes where the server of an instance, which does not run, is about to listen: on the port that was asked for, else on
    /// its last one, or on another one where a server of this repository has that. Before it does so: whoever looks for a
    /// server where it is not may find that of another branch.
    pub(super) fn choose_port(&mut self, repo: &Repo, wish: Wish, progress: &dyn Progress) -> Result<(), CommandError> {
        let last = self.config.clone();
        (self.config.tcp, self.config.on_demand) = (wish.tcp, wish.on_demand);
        let mut held = None;
        if let Some(port) = wish.port {
            self.config.port = port;
        } else if !settings::is_free(self.config.port, &socket_dir(repo)?, None) {
            held = Some(hold_all(repo, progress)?);
            self.config.port = free_port(repo, &list(repo)?)?;
        }
        if self.config != last {
            self.write(repo)?;
        }
        drop(held);
        Ok(())
    }

    /// Notes that a server that runs was asked for by hand: then it stays.
    pub(super) fn claim(&mut self, repo: &Repo, wish: Wish) -> CmdResult {
        if self.config.on_demand && !wish.on_demand {
            self.config.on_demand = false;
            self.write(repo)?;
        }
        Ok(())
    }
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
    if repo.timelines().is_gone(timeline) {
        return Ok(None);
    }
    let held = instance.alive(repo).take_after_others()?;
    mount::unmount(&dir)?;
    // PostgreSQL overwrites what lies behind the end that it finds.
    secure_end(repo, &instance.config.branch, (timeline, &held), (cx.signature, cx.progress))?;
    let is_ours = repo.refs().read(branch)? == Some(Value::Branch(timeline));
    let Some(run) = repo.timelines().run(timeline)? else { return Ok(None) };
    if !is_ours || !is_writer(repo, timeline)? || wish.eager || !mount::is_prepared(&dir)? {
        return Ok(None);
    }
    if run.alone && repo.config().is_replicated(branch.short()) {
        // From now on somebody may receive its WAL, also what was written before.
        repo.timelines().begin_run(repo.tmp()?, timeline, run::Run { alone: false, ..run })?;
    }
    let Ok(Some(snapshot)) = local::snapshot_below(&local::dir(&dir)) else { return Ok(None) };
    let log = instance.log(repo);
    let alive = instance.alive(repo);
    let wanted = Wanted { snapshot: &snapshot, hydrate: wish.hydrate, log: &log, alive: alive.path() };
    if mount::mount(repo, &dir, &wanted).is_err() || recovery::has_tablespaces_elsewhere(&dir.join("data")) {
        return Ok(None);
    }
    // Earlier versions made an absolute one, which in a copy of the repository leads to the original's WAL.
    recovery::link_wal(&dir.join("data"), &repo.timelines().wal_dir(timeline))?;
    let from = repo.timelines().read(timeline)?.tip();
    match run_server(cx, instance, timeline, &held, wish, Sizes::default()) {
        Ok(()) => {}
        // Files that PostgreSQL does not accept: without them, then.
        Err(postgres::Error::DidNotStart { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let instance = instance.clone();
    let (snapshot, refused) = (Some(snapshot), None);
    Ok(Some(Outcome { instance, already: false, from, snapshot, replayed: 0, resumed: true, refused }))
}

/// Starts the server of an instance on the data directory of `timeline`, with the lock of [`Instance::alive`]. What it
/// replays was written with the sizes `replayed`, where its `pg_control` does not know of them.
pub(super) fn run_server(
    cx: &Context,
    instance: &Instance,
    timeline: TimelineId,
    held: &Held,
    wish: Wish,
    replayed: Sizes,
) -> Result<(), postgres::Error> {
    let Context { repo, binaries, account, progress, .. } = cx;
    let role = match instance.is_read_only() {
        true => Role::Standby,
        false => Role::Primary { archive_command: archive_command(timeline)? },
    };
    let settings = Settings { replayed, ..settings_of(repo, instance, role)? };
    let (data, log) = (repo.datadir(timeline).join("data"), instance.log(repo));
    if repo.config().core.shared == Shared::Group {
        // PostgreSQL lets its group read its files then, as far as it ever does.
        let mode = fs::Permissions::from_mode(0o750);
        fs::set_permissions(&data, mode).map_err(cannot::<postgres::Error>("change the mode of", &data))?;
    }
    account.check()?;
    let former = wish.config_file.map(|file| configure(&data, file)).transpose()?.flatten();
    let started = server::start(binaries, account, &data, &log, &settings, held, *progress);
    if let (Err(_), Some(former)) = (&started, former) {
        // What PostgreSQL refuses is not kept.
        write_conf(&data, &former)?;
    }
    started?.keep();
    Ok(())
}

/// Makes what `file` says the configuration of the cluster in `data`, durably. Returns what that was, if it can be read.
#[expect(clippy::disallowed_methods, reason = "the user may name a pipe")]
fn configure(data: &Path, file: &Path) -> Result<Option<Vec<u8>>, postgres::Error> {
    let text = fs::File::open(file).and_then(|source| bounded::read_from(source, bounded::CONFIG));
    let text = text.map_err(cannot::<postgres::Error>("read", file))?;
    let former = bounded::read(&data.join(CONF), bounded::CONFIG).ok();
    write_conf(data, &text).map(|()| former)
}

/// The configuration of a cluster, in its data directory, and what PostgreSQL takes for a new one that was not finished.
const CONF: &str = "postgresql.conf";
const UNFINISHED: &str = "postgresql.auto.conf.tmp";

/// Puts another configuration in the place of that of the cluster in `data`: a crash leaves one of the two.
fn write_conf(data: &Path, text: &[u8]) -> Result<(), postgres::Error> {
    let (path, new) = (data.join(CONF), data.join(UNFINISHED));
    let written = durable::write_in_place(&new, |file| file.write_all(text));
    written.and_then(|()| durable::replace_by(&new, &path)).map_err(cannot::<postgres::Error>("write", &path))
}

/// Returns what zenith sets for the server of an instance.
pub(super) fn settings_of(repo: &Repo, instance: &Instance, role: Role) -> Result<Settings, postgres::Error> {
    let branch = instance.base_branch();
    Ok(Settings {
        port: instance.config.port,
        socket_dir: socket_dir(repo)?,
        tcp: instance.config.tcp,
        name: instance.config.branch.clone(),
        hba_file: settings::write_hba_file(&repo.dir().join("instances"), repo.config().is_replicated(branch))?,
        own: repo.config().settings_of(branch),
        // A moment is a copy, whatever its branch is.
        is_live: !instance.is_read_only() && repo.config().is_live(branch),
        replayed: Sizes::default(),
        role,
    })
}

/// Returns the settings of the cluster that do not count for a branch that runs, since it is a copy.
pub fn dropped(repo: &Repo, instance: &Instance) -> Result<Vec<&'static str>, postgres::Error> {
    let Some(timeline) = instance.timeline() else { return Ok(Vec::new()) };
    let data = repo.datadir(timeline).join("data");
    let role = Role::Primary { archive_command: String::new() };
    Ok(settings_of(repo, instance, role)?.dropped(repo.config().postgres_major, &data))
}

/// The files and the WAL of a server that is to start.
pub(super) struct LaidOut {
    pub snapshot: Snapshot,
    pub id: ObjectId,
    /// WAL to replay, bytes.
    pub replayed: u64,
    /// Why the files were restored.
    pub refused: Option<String>,
    /// What that WAL was written with, as far as it says.
    pub sizes: Sizes,
    plan: Plan,
}

/// Lays out in `dir/data` the files of the newest snapshot before `upto`, and in `wal_dir` the WAL from there on;
/// both at the same time.
pub(super) fn lay_out_all(
    cx: &Context,
    instance: &Instance,
    upto: Position,
    (dir, wal_dir): (&Path, &Path),
    wish: Wish,
) -> Result<LaidOut, CommandError> {
    let repo = cx.repo;
    if let Ok(program) = cx.binaries.program("postgres") {
        prefetch::fetch_file(&program);
    }
    let (_, line) = repo.timelines().snapshot_before(upto)?;
    let snapshot = repo.store().snapshot(&line.object)?;
    fs::create_dir_all(dir)?;
    fs::create_dir_all(wal_dir)?;
    let (refused, (plan, sizes)) = std::thread::scope(|scope| {
        let wal = scope.spawn(|| {
            let (mut plan, mut sizes) = (Plan::default(), Sizes::default());
            let mut visit = |record: &Record| {
                plan.add_record(&snapshot, record);
                record.sizes().iter().for_each(|told| sizes.raise(told));
            };
            lay_out(repo, &snapshot, upto, wal_dir, &mut visit)?;
            Ok::<_, CommandError>((plan, sizes))
        });
        let refused = show_files(cx, instance, &line.object, &snapshot, dir, wish);
        let laid_out = wal.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, CommandError>((refused?, laid_out))
    })?;
    recovery::link_wal(&dir.join("data"), wal_dir)?;
    let replayed = upto.lsn.since(snapshot.start);
    Ok(LaidOut { snapshot, id: line.object, replayed, refused, sizes, plan })
}

/// Mounts the snapshot's files at `dir/data`, or restores them there. Returns why they were restored, if that was
/// not wished.
fn show_files(
    cx: &Context,
    instance: &Instance,
    id: &ObjectId,
    snapshot: &Snapshot,
    dir: &Path,
    wish: Wish,
) -> Result<Option<String>, CommandError> {
    let Context { repo, account, progress, .. } = cx;
    let restore = || {
        let copies = repo.dir().join("datadirs/copies");
        let data = dir.join("data");
        // Left by the mount that failed: with a layer, nobody would take what is restored for the cluster's files.
        let _ = fs::remove_dir(&data);
        durable::discard_dir(repo.tmp()?, &local::dir(dir))?;
        restore_or_clone(repo.store(), (id, snapshot), &data, &copies, *progress)?;
        // PostgreSQL takes the files of a clean shutdown for durable. A moment does not outlive a crash.
        if !instance.is_read_only() {
            durable::sync_tree(&data).and_then(|()| durable::sync_dir(dir))?;
        }
        Ok::<_, CommandError>(())
    };
    if wish.eager {
        restore()?;
        return Ok(None);
    }
    // A mount is its owner's alone.
    let mounted = if **account == Account::Postgres {
        Err("PostgreSQL has to run as the user postgres here, who cannot see the mount".to_owned())
    } else {
        let (log, alive) = (instance.log(repo), instance.alive(repo));
        let wanted = Wanted { snapshot: id, hydrate: wish.hydrate, log: &log, alive: alive.path() };
        mount::mount(repo, dir, &wanted).map_err(|error| CommandError::from(error).text())
    };
    let Err(why) = mounted else { return Ok(None) };
    restore()?;
    Ok(Some(why))
}

impl LaidOut {
    /// Has what the start will read fetched, while it goes on.
    pub fn fetch(&mut self, repo: &Repo, data: PathBuf) {
        let mut plan = std::mem::take(&mut self.plan);
        plan.add_noted(repo, &self.id);
        std::thread::spawn(move || plan.fetch(&data));
    }
}

/// A run that is about to begin. Dropping it settles it, unless it is kept: what its server wrote is taken back if that is nothing
/// of note.
struct Run<'a> {
    cx: &'a Context<'a>,
    timeline: Timeline,
    instance: &'a mut Instance,
    kept: bool,
}

impl Run<'_> {
    /// Lays out files and WAL for a start at the end of the timeline.
    fn prepare(&mut self, held: &Held, wish: Wish) -> Result<LaidOut, CommandError> {
        let Context { repo, account, signature, .. } = self.cx;
        let (timeline, from) = (&self.timeline, self.timeline.tip());
        account.check()?;
        // Noted first: what a crash leaves from here on, the next start finds and removes.
        self.instance.config.timeline = Some(timeline.id.to_string());
        self.instance.write(repo)?;
        let (dir, wal_dir) = (repo.datadir(timeline.id), repo.timelines().wal_dir(timeline.id));
        if repo.timelines().run(timeline.id)?.is_some() || active_timeline(repo, timeline.id)?.is_some() {
            // Left by a stop that did not come to its end.
            secure_end(repo, &self.instance.config.branch, (timeline.id, held), (signature, self.cx.progress))?;
            repo.timelines().end_run(repo.tmp()?, timeline.id)?;
        }
        let mut laid_out = lay_out_all(self.cx, self.instance, from, (&dir, &wal_dir), wish)?;
        let (data, snapshot) = (dir.join("data"), &laid_out.snapshot);
        // Where there is nothing to replay, PostgreSQL goes on as after any other shutdown.
        if !recovery::is_exact(snapshot) || snapshot.consistent != from.lsn {
            recovery::write_backup_label(&data, snapshot)?;
        }
        own_files::take_up(repo, timeline, &data)?;
        slots::take_up(repo, timeline, &data)?;
        if let Some(restart) = slots::needs_from(repo, timeline)? {
            // Who reads from a slot may ask for that at once.
            lay_out_before(repo, snapshot, timeline.id, restart, &wal_dir)?;
            complete(repo, snapshot, timeline.id, &wal_dir)?;
        }
        if mount::is_mounted(&data)? {
            laid_out.fetch(repo, data);
        } else {
            // Where it is mounted, the file system's process does so meanwhile.
            complete(repo, snapshot, timeline.id, &wal_dir)?;
        }
        sync_last(repo, &laid_out.snapshot, from, &wal_dir)?;
        Ok(laid_out)
    }

    /// Notes that the run begins, and starts the server.
    fn begin(&mut self, held: &Held, wish: Wish, replayed: Sizes) -> Result<(), CommandError> {
        let (repo, from) = (self.cx.repo, self.timeline.tip());
        let alone = !repo.config().is_replicated(self.instance.base_branch());
        repo.timelines().begin_run(repo.tmp()?, from.timeline, run::Run { began: Some(from.lsn), alone })?;
        run_server(self.cx, self.instance, from.timeline, held, wish, replayed)?;
        // Clients may have come already.
        self.kept = true;
        Ok(())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Context { repo, signature, .. } = self.cx;
        // A client may have committed between the server's readiness and our next look: what the server wrote decides
        // what is taken back. What fails here, the next start settles.
        let signature = Signature { why: "start: failed".to_owned(), ..(*signature).clone() };
        let _ = settle(repo, self.instance, Instant::now() + PATIENCE, &signature, &Hidden);
    }
}

/// Makes the segment that the server goes on in durable: where it is noted that a run began, and that segment is not there,
/// somebody took it away. PostgreSQL syncs the segment that it writes to, but not its name.
fn sync_last(repo: &Repo, snapshot: &Snapshot, end: Position, wal_dir: &Path) -> CmdResult {
    let size = repo.config().wal_segment_size;
    let last = segment::file_name(snapshot.postgres_timeline, end.lsn.segment_start(size), size);
    durable::sync_file(&wal_dir.join(last))?;
    Ok(durable::sync_dir(wal_dir)?)
}

/// Returns the command with which PostgreSQL hands over a completed segment. The shell becomes it, so that nothing is left that
/// holds the server's lock.
fn archive_command(timeline: TimelineId) -> Result<String, postgres::Error> {
    let program = own_program();
    let program = program.map_err(cannot::<postgres::Error>("find", Path::new("zenith")))?;
    let timeline = timeline.to_string();
    // Seen from the data directory, in which the server runs it: the repository may be moved meanwhile, and another one may
    // come in its place, which must not take this one's WAL.
    let words = [program.as_os_str(), "--repo".as_ref(), "../../..".as_ref(), "seal-wal".as_ref(), timeline.as_ref()];
    Ok(format!("exec {}", shell_command(&words, "--segment %f")?))
}
