//! Which servers run, for whom: starts one when somebody connects, stops it when nobody uses it.
//!
//! What is started here is noted in the instance's config (`on_demand`), so that another daemon goes on where this one
//! ended. What people start by hand is never stopped.
//!
//! The owner's servers and those of other users are apart: others have limits of their own, which never take anything
//! from the owner's, and who has not authenticated keeps no server running.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use super::log::Logged;
use super::message::{CANNOT_CONNECT_NOW, Refusal, SYSTEM_ERROR, TOO_MANY_CONNECTIONS, UNKNOWN_BRANCH};
use super::metrics::Metrics;
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::format::{Config, DefaultBranch, Others};
use crate::objects::lock;
use crate::objects::refs::{RefKind, RefName, Signature, Value, revision};
use crate::objects::timeline::Position;
use crate::plumbing::instance::start::{Context, Outcome, Wish, start};
use crate::plumbing::instance::{self, Instance, mount, read_only, stop};
use crate::plumbing::postgres;
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::find::Binaries;
use crate::plumbing::postgres::server::{self, Endpoint, Mode, Status};
use crate::plumbing::postgres::settings::own_loopback;
use crate::plumbing::rev_parse::resolve_now;

/// How long a server may take to stop.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// Connections that have not authenticated cause no more than one start, or look-up of a revision, in that time.
const ANONYMOUS_PAUSE: Duration = Duration::from_secs(1);
/// A moment such as main@{1 hour ago} stays the same for so long, so that the connections of a pool see the same.
const MOMENT: Duration = Duration::from_secs(60);
/// Who comes so soon after a failed start is told of that one.
const FAILURE: Duration = Duration::from_secs(2);

/// A revision other than a branch, as it was found.
struct Moment {
    found: Instant,
    position: Position,
    /// What the ref was by which it begins.
    base: Option<Value>,
}
/// How long a client waits for others to make room, and between two looks.
const ROOM_WAIT: Duration = Duration::from_millis(500);
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How long a client waits for whoever starts or stops its server. Recovery may take longer; the client is told to try again.
const TURN_WAIT: Duration = Duration::from_secs(300);
/// Names that an error lists.
const NEAR: usize = 3;

/// What a client connects to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Branch(String),
    /// A moment of the past, and what the client called it.
    At(String, Position),
}

impl Target {
    pub fn name(&self) -> &str {
        match self {
            Target::Branch(name) | Target::At(name, _) => name,
        }
    }
}

/// A target that was found for a client.
struct Found {
    target: Target,
    /// The client may have its server started.
    is_admitted: bool,
}

/// What is known of a target's server.
#[derive(Debug, Default)]
enum State {
    #[default]
    Stopped,
    Failed(Instant, Refusal),
    Running(Instance, Endpoint),
}

/// For whom a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The owner, who has used it at least once.
    Owner,
    /// Others, of whom at least one has authenticated.
    Other,
    /// Somebody who has not authenticated.
    Unproven,
}

/// A target, and who uses it.
#[derive(Debug)]
pub struct Slot {
    pub target: Target,
    /// Sessions of the owner, and of others who have authenticated.
    pub connections: AtomicUsize,
    /// Sessions of others who have not: they keep nothing running.
    unproven: AtomicUsize,
    standing: Mutex<Standing>,
    /// When the last of the counted connections ended.
    used: Mutex<Instant>,
    /// Held by whoever starts, stops or looks.
    state: Arc<AsyncMutex<State>>,
}

impl Slot {
    fn new(target: Target) -> Slot {
        Slot {
            target,
            connections: AtomicUsize::new(0),
            unproven: AtomicUsize::new(0),
            standing: Mutex::new(Standing::Owner),
            used: Mutex::new(Instant::now()),
            state: Arc::default(),
        }
    }

    /// Returns whether nobody who counts uses it.
    fn is_unused(&self) -> bool {
        self.connections.load(Ordering::Relaxed) == 0
    }

    /// Returns whether nobody who counts has used it for its time.
    fn is_idle(&self, config: &Config) -> bool {
        if !self.is_unused() {
            return false;
        }
        if *lock(&self.standing) == Standing::Unproven {
            return self.unproven.load(Ordering::Relaxed) == 0;
        }
        let patience = config.idle_timeout(self.target.name());
        patience.is_some_and(|patience| lock(&self.used).elapsed() >= patience)
    }
}

/// The right to use a server, which is not stopped as long as this lives and its client has authenticated.
#[must_use = "the server may be stopped when this is dropped"]
#[derive(Debug)]
pub struct Lease {
    slot: Arc<Slot>,
    instance: Instance,
    pub endpoint: Endpoint,
    /// The loopback address that it listens on.
    pub tcp: Option<IpAddr>,
    is_proven: AtomicBool,
    look: Arc<Notify>,
}

impl Lease {
    pub fn target(&self) -> &Target {
        &self.slot.target
    }

    /// Notes that the client has authenticated.
    pub fn prove(&self) {
        if self.is_proven.swap(true, Ordering::Relaxed) {
            return;
        }
        self.slot.connections.fetch_add(1, Ordering::Relaxed);
        self.slot.unproven.fetch_sub(1, Ordering::Relaxed);
        let mut standing = lock(&self.slot.standing);
        if *standing == Standing::Unproven {
            *standing = Standing::Other;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_proven.load(Ordering::Relaxed) {
            *lock(&self.slot.used) = Instant::now();
            self.slot.connections.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.slot.unproven.fetch_sub(1, Ordering::Relaxed);
            self.look.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts and stops the servers of a repository.
pub struct Supervisor {
    dir: PathBuf,
    binaries: Binaries,
    account: Account,
    who: String,
    slots: Mutex<HashMap<Target, Arc<Slot>>>,
    /// By name, and whether the owner asked.
    moments: Mutex<HashMap<(String, bool), Moment>>,
    last_anonymous: Mutex<Option<Instant>>,
    /// Held by whoever looks for room for one more server: the owner's, and one of others.
    own_room: AsyncMutex<()>,
    room: AsyncMutex<()>,
    /// Something may be there to stop.
    pub look: Arc<Notify>,
    pub metrics: Arc<Metrics>,
}

fn broken(error: JoinError) -> Refusal {
    Refusal::new(SYSTEM_ERROR, format!("the page server failed: {error}"))
}

impl Supervisor {
    /// Returns the supervisor of a repository, which knows of the servers that run already.
    pub fn new(
        repo: &Repo,
        binaries: Binaries,
        account: Account,
        who: String,
        metrics: Arc<Metrics>,
    ) -> Result<Supervisor, CommandError> {
        let supervisor = Supervisor {
            dir: repo.dir().to_owned(),
            binaries,
            account,
            who,
            slots: Mutex::default(),
            moments: Mutex::default(),
            last_anonymous: Mutex::default(),
            own_room: AsyncMutex::default(),
            room: AsyncMutex::default(),
            look: Arc::default(),
            metrics,
        };
        for instance in instance::list(repo)? {
            if !matches!(instance.status(repo), Status::Running(_)) {
                continue;
            }
            let name = instance.config.branch.clone();
            let target = match instance.config.at.as_ref().map(|at| at.parse()) {
                Some(Ok(position)) => Target::At(name, position),
                Some(Err(_)) => continue,
                None => Target::Branch(name),
            };
            if let Ok(mut state) = supervisor.slot(&target).state.try_lock() {
                let endpoint = instance.endpoint(repo)?;
                *state = State::Running(instance, endpoint);
            }
        }
        Ok(supervisor)
    }

    /// Opens the repository as it is now: others write to it too.
    pub fn repo(&self) -> Result<Repo, CommandError> {
        Ok(Repo::open(&self.dir)?)
    }

    /// Returns the repository's config as it is now.
    pub fn config(&self) -> Result<Config, CommandError> {
        Ok(Repo::read_config(&self.dir)?)
    }

    fn slot(&self, target: &Target) -> Arc<Slot> {
        let slot = || Arc::new(Slot::new(target.clone()));
        lock(&self.slots).entry(target.clone()).or_insert_with(slot).clone()
    }

    /// Returns all targets that were used.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Returns a lease of the server of the branch or revision `name`, otherwise of HEAD. Starts it if it does not
    /// run, and waits for whoever starts or stops it, but not for ever; a connection that has not authenticated waits for no
    /// second start.
    pub async fn lease(self: &Arc<Supervisor>, name: Option<String>, is_owner: bool) -> Result<Lease, Refusal> {
        let this = self.clone();
        let found = spawn_blocking(move || this.find(name, is_owner)).await.map_err(broken)??;
        let Found { target, is_admitted } = found;
        let slot = self.slot(&target);
        let turn = timeout(TURN_WAIT, slot.state.clone().lock_owned()).await;
        let mut state = turn.map_err(|_| still_busy(&target))?;
        if let State::Running(instance, _) = &*state
            && !self.is_current(instance.clone()).await?
        {
            // Somebody stopped it by hand: its name and its port may be another branch's by now.
            *state = State::Stopped;
        }
        let state = match &*state {
            State::Running(..) => state,
            State::Failed(when, refusal) if when.elapsed() < FAILURE => return Err(refusal.clone()),
            State::Stopped | State::Failed(..) => {
                if !is_admitted {
                    self.admit_anonymous()?;
                }
                let standing = if is_owner { Standing::Owner } else { Standing::Unproven };
                *lock(&slot.standing) = standing;
                self.start(target, is_owner, state).await?
            }
        };
        let State::Running(instance, endpoint) = &*state else {
            return Err(Refusal::new(SYSTEM_ERROR, "the server is gone again"));
        };
        // What runs by hand is the owner's, too.
        if is_owner || !instance.config.on_demand {
            *lock(&slot.standing) = Standing::Owner;
        }
        let count = if is_owner { &slot.connections } else { &slot.unproven };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Lease {
            instance: instance.clone(),
            endpoint: endpoint.clone(),
            tcp: instance.config.tcp,
            is_proven: AtomicBool::new(is_owner),
            look: self.look.clone(),
            slot: slot.clone(),
        })
    }

    /// Returns whether the server of an instance still is what it was: of the same branch or moment, on the same timeline and
    /// port, and alive. Both before somebody connects to it and after it has answered, that proves who did.
    async fn is_current(self: &Arc<Supervisor>, instance: Instance) -> Result<bool, Refusal> {
        let this = self.clone();
        let look = move || {
            let repo = this.repo()?;
            let now = Instance::read(&repo, &instance.name);
            Ok(now.is_ok_and(|now| is_same(&now, &instance) && matches!(now.status(&repo), Status::Running(_))))
        };
        spawn_blocking(look).await.map_err(broken)?.map_err(refusal)
    }

    /// Returns whether the server that was leased is the one that has answered.
    pub async fn has_answered(self: &Arc<Supervisor>, lease: &Lease) -> Result<bool, Refusal> {
        self.is_current(lease.instance.clone()).await
    }

    /// Notes that a server does not answer: the next lease looks again, and starts it if need be. Whoever starts or stops
    /// it just now knows better.
    pub fn doubt(&self, lease: Lease) {
        if let Ok(mut state) = lease.slot.state.try_lock() {
            *state = State::Stopped;
        }
    }

    /// Returns whether a server that lets nobody in has lost its files, and its guardian with them.
    pub fn is_forsaken(&self, lease: &Lease) -> bool {
        let timeline = match lease.slot.state.try_lock().as_deref() {
            Ok(State::Running(instance, _)) => instance.timeline(),
            _ => None,
        };
        timeline.zip(self.repo().ok()).is_some_and(|(timeline, repo)| mount::is_forsaken(&repo.datadir(timeline)))
    }

    fn admit_anonymous(&self) -> Result<(), Refusal> {
        let mut last = lock(&self.last_anonymous);
        if last.is_some_and(|last| last.elapsed() < ANONYMOUS_PAUSE) {
            self.metrics.anonymous_refused.inc();
            let message = "too much was looked up or started for connections that have not authenticated";
            return Err(Refusal::new(CANNOT_CONNECT_NOW, message).hint("Try again in a second."));
        }
        *last = Some(Instant::now());
        self.metrics.anonymous_starts.inc();
        Ok(())
    }

    /// Finds what a client means. Names and moments that others asked for are at hand; to find another revision may
    /// mean to read WAL.
    fn find(&self, name: Option<String>, is_owner: bool) -> Result<Found, Refusal> {
        let repo = self.repo().map_err(refusal)?;
        let found = |target| Ok(Found { target, is_admitted: is_owner });
        let is_default = name.is_none();
        let Some(name) = name.filter(|name| name != "HEAD") else {
            let head = repo.refs().head().map_err(|error| refusal(error.into()))?;
            if is_default && repo.config().proxy.default == DefaultBranch::None {
                return Err(unnamed(if is_owner { head.short() } else { "BRANCH" }));
            }
            return found(Target::Branch(head.short().to_owned()));
        };
        if let Ok(branch) = RefName::branch(&name)
            && let Ok(Some(Value::Branch(_))) = repo.refs().read(&branch)
        {
            return found(Target::Branch(name));
        }
        let now = jiff::Zoned::now();
        // A tag that was moved is another place. A branch goes on, and its past does not change.
        let base = revision::base_value(&repo, &name, &now).filter(|value| matches!(value, Value::Tag(_)));
        if let Some(moment) = lock(&self.moments).get(&(name.clone(), is_owner))
            && moment.found.elapsed() < MOMENT
            && moment.base == base
            && !repo.timelines().is_gone(moment.position.timeline)
        {
            return found(Target::At(name.clone(), moment.position));
        }
        if !is_owner {
            self.admit_anonymous()?;
        }
        match resolve_now(&repo, &name, &now) {
            Ok(resolved) => {
                let mut moments = lock(&self.moments);
                moments.retain(|_, moment| moment.found.elapsed() < MOMENT);
                let moment = Moment { found: Instant::now(), position: resolved.position, base };
                moments.insert((name.clone(), is_owner), moment);
                Ok(Found { target: Target::At(name, resolved.position), is_admitted: true })
            }
            Err(error) => Err(unknown(&repo, &name, &error)),
        }
    }

    /// Starts the server of `target`; goes on with that even if the client leaves. Returns the state, which is
    /// that of a running server.
    async fn start(
        self: &Arc<Supervisor>,
        target: Target,
        is_owner: bool,
        mut state: OwnedMutexGuard<State>,
    ) -> Result<OwnedMutexGuard<State>, Refusal> {
        let this = self.clone();
        let started = tokio::spawn(async move {
            let result = match this.make_room(&target, is_owner).await {
                Ok(()) => {
                    let (this, target) = (this.clone(), target.clone());
                    spawn_blocking(move || this.start_blocking(&target)).await.map_err(broken).flatten()
                }
                Err(refusal) => Err(refusal),
            };
            match result {
                Ok((instance, endpoint)) => {
                    *state = State::Running(instance, endpoint);
                    Ok(state)
                }
                Err(refusal) => {
                    tracing::warn!(branch = target.name(), "{}", refusal.message);
                    // Only failures of the server itself; others may pass at once.
                    let is_own = refusal.sqlstate != TOO_MANY_CONNECTIONS;
                    *state = if is_own { State::Failed(Instant::now(), refusal.clone()) } else { State::Stopped };
                    Err(refusal)
                }
            }
        });
        started.await.map_err(broken)?
    }

    fn start_blocking(&self, target: &Target) -> Result<(Instance, Endpoint), Refusal> {
        let begun = Instant::now();
        let (outcome, endpoint) = self.run_server(target).map_err(refusal)?;
        let took = begun.elapsed();
        if !outcome.already {
            self.metrics.cold_start.observe(took.as_secs_f64());
            let (branch, instance) = (target.name(), &outcome.instance.name);
            tracing::info!(branch, %instance, milliseconds = took.as_millis() as u64, "started"); // an hour at most
        }
        Ok((outcome.instance, endpoint))
    }

    fn run_server(&self, target: &Target) -> Result<(Outcome, Endpoint), CommandError> {
        let repo = self.repo()?;
        let signature = self.sign("start");
        let Supervisor { binaries, account, .. } = self;
        let cx = Context { repo: &repo, binaries, account, progress: &Logged, signature: &signature };
        let wish = Wish { on_demand: true, ..Wish::default() };
        let start = |tcp| match target {
            Target::Branch(name) => start(&cx, name, Wish { tcp, ..wish }),
            Target::At(name, position) => read_only::start(&cx, name, *position, Wish { tcp, ..wish }),
        };
        let tcp = (repo.config().proxy.others == Others::Scram).then(|| own_loopback(&self.dir));
        let outcome = match start(tcp) {
            // Another user of this machine may have taken the port there: that keeps nobody but others out.
            Err(error) if tcp.is_some() && is_taken(&error) => {
                tracing::warn!(branch = target.name(), "takes no connections of other users: {}", error.text());
                start(None)?
            }
            outcome => outcome?,
        };
        let endpoint = outcome.instance.endpoint(&repo)?;
        Ok((outcome, endpoint))
    }

    fn sign(&self, why: &str) -> Signature {
        Signature { who: self.who.clone(), time_us: jiff::Timestamp::now().as_microsecond(), why: why.to_owned() }
    }

    /// Stops the server that nobody has used for the longest time, if as many run as may: of the owner's, or of
    /// those that others started.
    async fn make_room(self: &Arc<Supervisor>, wanted: &Target, is_owner: bool) -> Result<(), Refusal> {
        let config = self.config().map_err(refusal)?.proxy;
        let (most, room) = match is_owner {
            true if config.max_instances == 0 => return Ok(()),
            true => (config.max_instances, &self.own_room),
            false => (config.others_instances, &self.room),
        };
        let _alone = timeout(TURN_WAIT, room.lock()).await.map_err(|_| no_turn())?;
        let (begun, mut tried) = (Instant::now(), HashSet::new());
        loop {
            let (running, idle) = self.running_and_idle(wanted, is_owner);
            if running < most {
                return Ok(());
            }
            if let Some(slot) = idle.into_iter().find(|slot| tried.insert(slot.target.clone())) {
                self.stop_unused(&slot).await;
            } else if begun.elapsed() < ROOM_WAIT {
                // Whoever closes one connection and opens the next is a little faster than we notice.
                tokio::time::sleep(ROOM_PAUSE).await;
                tried.clear();
            } else {
                let setting = if is_owner { "proxy.max_instances" } else { "proxy.others_instances" };
                let message = format!("{running} servers run and are in use, and no more may ({setting})");
                let hint = format!("Close connections to another branch, or allow more: zenith config {setting} N");
                return Err(Refusal::new(TOO_MANY_CONNECTIONS, message).hint(hint));
            }
        }
    }

    /// Returns how many servers run, of the owner's or of those that others started, and which of them nobody uses, the one
    /// first that was used least recently. Holds none of them: their clients may come meanwhile.
    fn running_and_idle(&self, wanted: &Target, is_owner: bool) -> (usize, Vec<Arc<Slot>>) {
        let (mut running, mut idle) = (0, Vec::new());
        let is_ours = |slot: &Arc<Slot>| (*lock(&slot.standing) == Standing::Owner) == is_owner;
        for slot in self.slots().into_iter().filter(is_ours) {
            // Whoever holds it starts or stops it: counted as one that runs.
            match slot.state.try_lock().as_deref() {
                Ok(State::Running(..)) if slot.is_unused() => idle.push(slot.clone()),
                Ok(State::Running(..)) => {}
                Ok(_) => continue,
                Err(_) if slot.target == *wanted => continue,
                Err(_) => {}
            }
            running += 1;
        }
        idle.sort_by_key(|slot| *lock(&slot.used));
        (running, idle)
    }

    /// Stops a server, unless somebody has come to it meanwhile.
    async fn stop_unused(self: &Arc<Supervisor>, slot: &Arc<Slot>) {
        if let Ok(state) = slot.state.clone().try_lock_owned()
            && slot.is_unused()
        {
            self.stop(slot, state).await;
        }
    }

    /// Stops what nobody has used for the time that its branch's config says. To be called every now and then.
    pub async fn stop_idle(self: &Arc<Supervisor>) {
        let config = match self.config() {
            Ok(config) => config,
            Err(error) => return tracing::warn!("{}", error.text()),
        };
        for slot in self.slots() {
            // With the state in hand nobody can come.
            let Ok(state) = slot.state.clone().try_lock_owned() else { continue };
            match &*state {
                State::Running(..) if slot.is_idle(&config) => {
                    let this = self.clone();
                    tokio::spawn(async move { this.stop(&slot, state).await });
                }
                State::Running(..) => {}
                State::Failed(when, _) if when.elapsed() < FAILURE => {}
                State::Stopped | State::Failed(..) => self.forget(&slot),
            }
        }
    }

    /// Forgets a target without a server: moments of the past would pile up.
    fn forget(&self, slot: &Arc<Slot>) {
        let mut slots = lock(&self.slots);
        // Here and in the map: nobody else has it, or can get it now.
        if Arc::strong_count(slot) == 2 {
            slots.remove(&slot.target);
        }
    }

    /// Stops a server, if that is ours to do and nobody is connected to it directly.
    async fn stop(self: &Arc<Supervisor>, slot: &Arc<Slot>, mut state: OwnedMutexGuard<State>) {
        let State::Running(instance, _) = &*state else { return };
        let (this, meant, branch) = (self.clone(), instance.clone(), slot.target.name().to_owned());
        let stopped = spawn_blocking(move || this.stop_blocking(&meant)).await;
        match stopped.map_err(|error| error.to_string()).and_then(|stopped| stopped.map_err(|error| error.text())) {
            Ok(true) => {
                tracing::info!(branch, "stopped");
                *state = State::Stopped;
            }
            Ok(false) => {
                // Somebody is connected directly, and was let in.
                let mut standing = lock(&slot.standing);
                if *standing == Standing::Unproven {
                    *standing = Standing::Other;
                }
                *lock(&slot.used) = Instant::now();
            }
            Err(error) => {
                tracing::warn!(branch, "cannot stop: {error}");
                *lock(&slot.used) = Instant::now();
                // Perhaps it stopped and what comes after failed: the next start finds out.
                *state = State::Stopped;
            }
        }
    }

    fn stop_blocking(&self, meant: &Instance) -> Result<bool, CommandError> {
        let repo = self.repo()?;
        let instance = match Instance::read(&repo, &meant.name) {
            // Somebody else stopped it.
            Err(instance::Error::Unknown(_)) => return Ok(true),
            Ok(now) if !is_same(&now, meant) => return Ok(true),
            instance => instance?,
        };
        let is_idle = |instance: &Instance| {
            // One that takes no more clients, or does not answer, may be in use.
            let is_unused =
                || Ok::<_, CommandError>(server::clients(&instance.endpoint(&repo)?).is_ok_and(|count| count == 0));
            Ok(instance.status(&repo) == Status::Stopped || instance.config.on_demand && is_unused()?)
        };
        let begun = Instant::now();
        let stopped = stop::stop_if(&repo, &instance, Mode::Fast, STOP_WAIT, &self.sign("stop"), &Logged, is_idle)?;
        if stopped.is_some() {
            self.metrics.stop.observe(begun.elapsed().as_secs_f64());
        }
        Ok(stopped.is_some())
    }

    /// Returns the instances that run, and how many are connected to each through this daemon.
    pub fn running(&self) -> Vec<(String, usize)> {
        let name = |slot: &Arc<Slot>| match &*slot.state.try_lock().ok()? {
            State::Running(instance, _) => Some((instance.name.clone(), slot.connections.load(Ordering::Relaxed))),
            _ => None,
        };
        self.slots().iter().filter_map(name).collect()
    }
}

/// Returns whether two looks at an instance saw the same server. Names, branches and ports are used again, timelines are not.
fn is_same(now: &Instance, then: &Instance) -> bool {
    let server = |instance: &Instance| {
        let instance::Config { branch, at, timeline, port, .. } = &instance.config;
        (branch.clone(), at.clone(), timeline.clone(), *port)
    };
    server(now) == server(then)
}

/// Returns whether a start failed since somebody else has its port.
fn is_taken(error: &CommandError) -> bool {
    matches!(error.source.downcast_ref(), Some(postgres::Error::PortTaken { .. }))
}

/// Returns what a client is told of a start that failed: the server's last words, if it has spoken.
fn refusal(error: CommandError) -> Refusal {
    let sqlstate = match error.source.downcast_ref() {
        Some(postgres::Error::DidNotStart { .. } | postgres::Error::DidNotStop { .. }) => CANNOT_CONNECT_NOW,
        _ if matches!(error.source.downcast_ref(), Some(instance::Error::Busy { .. })) => CANNOT_CONNECT_NOW,
        _ if matches!(error.source.downcast_ref(), Some(lock::Error::Busy { .. })) => CANNOT_CONNECT_NOW,
        _ => SYSTEM_ERROR,
    };
    let refusal = Refusal::new(sqlstate, error.text()).private();
    error.hints.into_iter().next().map_or(refusal.clone(), |hint| refusal.hint(hint))
}

/// Returns what a client is told that has waited long enough for its server.
fn still_busy(target: &Target) -> Refusal {
    let message = format!("the server of '{}' is still being started or stopped", target.name());
    Refusal::new(CANNOT_CONNECT_NOW, message).private().hint("Try again later. The server's log says what it does.")
}

/// Returns what a client is told that has waited long enough for its turn to make room.
fn no_turn() -> Refusal {
    let message = "other clients are still waiting for servers to stop that make room for theirs";
    Refusal::new(CANNOT_CONNECT_NOW, message).hint("Try again later.")
}

/// Returns what a client is told that names no branch where it has to.
fn unnamed(example: &str) -> Refusal {
    let message = "the connection names no branch, and there is no default (proxy.default is none)";
    let hint =
        format!("Name it with the user: postgres@{example}. See zenith-clients(7) for other ways, and zenith url.");
    Refusal::new(UNKNOWN_BRANCH, message).hint(hint)
}

/// Returns what a client is told whose revision leads nowhere: what it may have meant, if there is no such name.
fn unknown(repo: &Repo, name: &str, error: &CommandError) -> Refusal {
    let refusal = Refusal::new(UNKNOWN_BRANCH, error.text()).private();
    if !matches!(error.source.downcast_ref(), Some(revision::Error::Unknown { .. })) {
        return error.hints.first().map_or(refusal.clone(), |hint| refusal.hint(hint));
    }
    let kinds = [RefKind::Branch, RefKind::Tag];
    let names = kinds.into_iter().flat_map(|kind| repo.refs().list(kind).unwrap_or_default());
    let mut names: Vec<String> = names.map(|(name, _)| name.short().to_owned()).collect();
    let near = |known: &String| -strsim::jaro_winkler(known, name);
    names.sort_by(|a, b| near(a).total_cmp(&near(b)));
    names.truncate(NEAR);
    refusal.hint(format!("The nearest names are: {}.", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::format::FORMAT_VERSION;

    fn supervisor(dir: &std::path::Path) -> Arc<Supervisor> {
        let cluster = "postgres_major = 15\nwal_segment_size = 16777216\nsystem_identifier = '1'";
        let config = format!("format_version = {FORMAT_VERSION}\n{cluster}\nproxy.idle_timeout = 'never'");
        let repo = Repo::create(dir, &Config::parse(&config).unwrap()).unwrap();
        let binaries = Binaries { dir: PathBuf::new(), major: 0 };
        Arc::new(Supervisor::new(&repo, binaries, Account::Own, "me".into(), Arc::default()).unwrap())
    }

    #[tokio::test]
    async fn what_does_not_run_is_forgotten_though_nothing_is_ever_idle() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = supervisor(dir.path());
        let slots = ["stopped", "failed", "fresh", "wanted"].map(|name| supervisor.slot(&Target::Branch(name.into())));
        let failed = |age| State::Failed(Instant::now() - age, Refusal::new(SYSTEM_ERROR, "no"));
        *slots[1].state.try_lock().unwrap() = failed(FAILURE);
        *slots[2].state.try_lock().unwrap() = failed(Duration::ZERO);
        // Its client is about to start it.
        let _wanted = slots[3].clone();
        drop(slots);
        supervisor.stop_idle().await;
        let mut left: Vec<_> = supervisor.slots().iter().map(|slot| slot.target.name().to_owned()).collect();
        left.sort();
        assert_eq!(left, ["fresh", "wanted"]);
    }
}
