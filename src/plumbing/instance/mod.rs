//! Instances: a branch, a port, and while it runs the timeline that it goes on with, and a data directory.
//!
//! # Format
//! `instances/<name>/config` is TOML: `branch` (short name), `port`, `tcp`, and while an epoch is open
//! `timeline`. A read-only instance has `at`, the timeline and the LSN that it shows; its `branch` is the
//! revision as the user wrote it, and its `timeline` only names its data directory. One that the proxy started is
//! `on_demand`. A config that could not be read is kept as `config.damaged`. `instances/<name>/log` is the server's log. Whoever
//! starts, stops, renames or forgets an instance holds the lock on `instances/<name>/lock`. The lock of a server that writes is `timelines/<timeline>/alive`, that of one that shows
//! the past `instances/<name>/alive`: see [`alive`](crate::plumbing::postgres::alive).
//!
//! # Locks
//! Any number of commands run at once. They lock in one order: an instance, then its `snapshot.lock`, then its server's, then
//! `instances/lock`, which is held only while instances are named, numbered or taken up, then a timeline's log or the refs. Whoever
//! found an instance without a lock finds out in [`Instance::hold`] whether it is still that one, and looks again if it is not; whoever
//! lists puts up with what goes away meanwhile. Nobody waits for a lock
//! for ever, since whoever has it may be suspended; but a snapshot that a user asks for waits for the one before.
//!
//! An epoch is open from [`start`](start::start) until [`settle`](settle::settle), which a stop runs and,
//! after a crash, the next start.

mod beside;
pub mod find;
pub mod hold;
pub mod logs;
pub mod lost;
pub mod maintain;
pub mod mount;
pub mod own_files;
pub mod pid_lock;
pub mod prefetch;
pub mod read_only;
pub mod seal;
pub mod settle;
pub mod slots;
pub mod snapshot;
pub mod start;
pub mod stop;
pub mod superuser;
pub mod trash;
mod unchanged;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

pub use self::find::{hold_or_create, hold_stopped};
pub use self::hold::Held;
use crate::error::{Class, CommandError};
use crate::objects::file_error::{FileError, cannot};
use crate::objects::format::Shared;
use crate::objects::timeline::TimelineId;
use crate::objects::{Repo, bounded, durable, folder, repo};
use crate::plumbing::postgres::alive::Alive;
use crate::plumbing::postgres::process::Process;
use crate::plumbing::postgres::server::{self, Endpoint, Status};
use crate::plumbing::postgres::{self, settings};
use crate::progress::{Hidden, Interrupted};

/// The port that the first instance gets.
pub const FIRST_PORT: u16 = 5433;

/// The content of an instance's `config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub branch: String,
    pub port: u16,
    /// The loopback address that its server listens on.
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub tcp: Option<IpAddr>,
    /// The proxy started it, and stops it when nobody uses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_demand: bool,
    /// The timeline of the epoch that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<String>,
    /// That of the last one, which is closed: its WAL is sealed, and goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// What a read-only instance shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Reads an address; `true` was the usual one.
fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Tcp {
        Switch(bool),
        Address(IpAddr),
    }
    Ok(match Tcp::deserialize(deserializer)? {
        Tcp::Switch(on) => on.then_some(settings::LOOPBACK),
        Tcp::Address(address) => Some(address),
    })
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub config: Config,
}

/// An instance cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no instance '{0}'")]
    Unknown(String),
    #[error("'{}' is not a valid instance", .0.display())]
    Corrupt(PathBuf),
    #[error("another command is {doing}{}", holder(process))]
    Busy { doing: String, process: Option<Process> },
    #[error("'{0}' is not running")]
    NotRunning(String),
    #[error(transparent)]
    Repo(#[from] repo::Error),
    #[error(transparent)]
    Io(#[from] FileError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn holder(process: &Option<Process>) -> String {
    let Some(process) = process else { return String::new() };
    let command = process.command().map(|command| format!(" ({command})")).unwrap_or_default();
    format!(": process {}{command}", process.pid)
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        if let Error::Interrupted(error) = error {
            return error.into();
        }
        if let Error::Repo(error) = error {
            return error.into();
        }
        let hint = match &error {
            Error::Unknown(_) => Some("see what there is: zenith pg list".to_owned()),
            Error::Corrupt(_) => Some("see what it is about: zenith status".to_owned()),
            Error::NotRunning(_) => Some("a branch whose server was stopped has a snapshot: zenith log".to_owned()),
            Error::Busy { process: Some(process), .. } if process.is_suspended() => {
                Some(format!("it is suspended: kill -CONT {} lets it go on", process.pid))
            }
            Error::Busy { .. } => Some("wait for it, then look: zenith status".to_owned()),
            _ => None,
        };
        let error = CommandError::new(Class::Refused, error);
        hint.into_iter().fold(error, CommandError::hint)
    }
}

impl Instance {
    fn dir(repo: &Repo, name: &str) -> PathBuf {
        repo.dir().join("instances").join(name)
    }

    /// Returns the server's log.
    pub fn log(&self, repo: &Repo) -> PathBuf {
        Instance::dir(repo, &self.name).join("log")
    }

    /// Returns the timeline of the open epoch.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.config.timeline.as_ref()?.parse().ok()
    }

    /// Returns whether it shows a moment of the past.
    pub fn is_read_only(&self) -> bool {
        self.config.at.is_some()
    }

    /// Returns the branch whose settings count for it: its own, or that at which a revision begins (`main@{1 hour ago}`).
    pub fn base_branch(&self) -> &str {
        let name = &self.config.branch;
        if self.is_read_only() { name.split(['@', '~']).next().unwrap_or(name) } else { name }
    }

    /// Returns the data directory of the open epoch.
    pub fn data_dir(&self, repo: &Repo) -> Option<PathBuf> {
        self.timeline().map(|timeline| repo.datadir(timeline).join("data"))
    }

    /// Returns the lock that its server holds.
    pub fn alive(&self, repo: &Repo) -> Alive {
        match self.timeline() {
            Some(timeline) if !self.is_read_only() => alive(repo, timeline),
            _ => Alive::of(Instance::dir(repo, &self.name).join("alive"), self.data_dir(repo).unwrap_or_default()),
        }
    }

    /// Returns whether its server runs. Where that cannot be found out, somebody might be there. One that has lost its
    /// files, and that nobody guards, is ended first.
    pub fn status(&self, repo: &Repo) -> Status {
        let Some(timeline) = self.timeline() else { return Status::Stopped };
        let (alive, dir) = (self.alive(repo), repo.datadir(timeline));
        if !repo.is_foreign() {
            mount::wake_guardian(&dir);
        }
        let status = || alive.status().unwrap_or(Status::Held);
        match status() {
            // What is written there may be about any process.
            status if repo.is_foreign() => status,
            Status::Running(postmaster) if mount::is_forsaken(&dir) => {
                // What fails is tried again by whoever looks next.
                let _ = server::end_at_once(postmaster);
                clear_away(&alive, &dir);
                status()
            }
            Status::Stopped if mount::is_forsaken(&dir) && matches!(mount::is_mounted(&dir.join("data")), Ok(true)) => {
                clear_away(&alive, &dir);
                status()
            }
            status => status,
        }
    }

    /// Returns where its server is to be found.
    pub fn endpoint(&self, repo: &Repo) -> Result<Endpoint, postgres::Error> {
        let (superuser, major) = (repo.config().superuser().to_owned(), repo.config().postgres_major);
        Ok(Endpoint { socket_dir: socket_dir(repo)?, port: self.config.port, superuser, major })
    }

    /// Reads an instance.
    pub fn read(repo: &Repo, name: &str) -> Result<Instance, Error> {
        let path = Instance::dir(repo, name).join("config");
        let text = match bounded::read_to_string(&path, bounded::CONFIG) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Unknown(name.to_owned())),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) => {
                return Err(Error::Corrupt(path));
            }
            Err(error) => return Err(cannot::<Error>("read", &path)(error)),
        };
        let config = toml_edit::de::from_str(&text).map_err(|_| Error::Corrupt(path))?;
        Ok(Instance { name: name.to_owned(), config })
    }

    /// Writes the config, durably.
    pub fn write(&self, repo: &Repo) -> Result<(), CommandError> {
        let dir = Instance::dir(repo, &self.name);
        let path = dir.join("config");
        let text = toml_edit::ser::to_string_pretty(&self.config).expect("invariant: only simple fields");
        let tmp = repo.tmp()?;
        let written = durable::create_dir_all(&dir).and_then(|()| durable::replace(tmp, &path, text.as_bytes()));
        Ok(written.map_err(cannot::<Error>("write", &path))?)
    }

    /// Forgets an instance that does not run: all of it at once, so that nobody finds a part.
    pub fn remove(&self, repo: &Repo, _held: Held) -> Result<(), CommandError> {
        let dir = Instance::dir(repo, &self.name);
        let away = repo.tmp()?.join(format!("removed-{}", self.name));
        durable::publish_dir(&dir, &away).map_err(cannot::<Error>("remove", &dir))?;
        Ok(fs::remove_dir_all(&away).map_err(cannot::<Error>("remove", &away))?)
    }
}

/// Returns the lock of a server that writes to `timeline`.
pub fn alive(repo: &Repo, timeline: TimelineId) -> Alive {
    Alive::of(repo.timelines().alive_file(timeline), repo.datadir(timeline).join("data"))
}

/// Unmounts what nobody serves any more, in whose place who looks for files would find errors. Does nothing where somebody
/// else has the lock: that one does so.
fn clear_away(alive: &Alive, dir: &Path) {
    if let Ok(_held) = alive.take_from_the_dead() {
        let _ = mount::unmount(dir);
    }
}

/// Returns all instances, by number, but those whose config is [damaged](lost::damaged): they are in nobody's way.
pub fn list(repo: &Repo) -> Result<Vec<Instance>, Error> {
    Ok(read_all(repo)?.into_iter().filter_map(|(_, instance)| instance.ok()).collect())
}

/// The name of an instance, and what can be read of it.
type Read = (String, Result<Instance, Error>);

fn read_all(repo: &Repo) -> Result<Vec<Read>, Error> {
    let dir = repo.dir().join("instances");
    let names = folder::names(&dir).map_err(cannot::<Error>("list", &dir))?;
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    let known = names.filter(|name| dir.join(name).is_dir());
    let read = known.map(|name| (name.clone(), Instance::read(repo, &name)));
    // One may be made, or forgotten, this instant.
    let mut read: Vec<_> = read.filter(|(_, read)| !matches!(read, Err(Error::Unknown(_)))).collect();
    read.sort_by_key(|(name, _)| (name.len(), name.clone()));
    Ok(read)
}

/// Returns the instance of a branch, if it has one.
pub fn of_branch(repo: &Repo, branch: &str) -> Result<Option<Instance>, Error> {
    Ok(list(repo)?.into_iter().find(|instance| !instance.is_read_only() && instance.config.branch == branch))
}

/// Returns the instance whose epoch is open on `timeline`.
fn of_timeline(repo: &Repo, timeline: TimelineId) -> Result<Option<Instance>, Error> {
    Ok(list(repo)?.into_iter().find(|instance| instance.timeline() == Some(timeline)))
}

/// Returns whether an epoch is open on `timeline`.
pub fn is_open(repo: &Repo, timeline: TimelineId) -> Result<bool, Error> {
    Ok(of_timeline(repo, timeline)?.is_some() || repo.has_datadir(timeline)?)
}

/// Returns where the server is that writes to `timeline`, if one runs.
pub fn running(repo: &Repo, timeline: TimelineId) -> Result<Option<Endpoint>, CommandError> {
    let mut instance = of_timeline(repo, timeline)?;
    if instance.is_none() && !repo.is_foreign() && repo.has_datadir(timeline)? {
        lost::take_up(repo, &Hidden)?;
        instance = of_timeline(repo, timeline)?;
    }
    match instance {
        Some(instance) if matches!(instance.status(repo), Status::Running(_)) => Ok(Some(instance.endpoint(repo)?)),
        _ => Ok(None),
    }
}

/// How long a command waits for another one, or for a server that starts or shuts down, and between two looks.
const PATIENCE: Duration = Duration::from_secs(25);
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Asks the server that writes to `timeline`; `None` if none runs. One that starts or shuts down takes no connections: it
/// is waited for until it answers or is gone.
pub fn ask<T>(
    repo: &Repo,
    timeline: TimelineId,
    question: impl Fn(&Endpoint) -> Result<T, postgres::Error>,
) -> Result<Option<T>, CommandError> {
    let (patience, mut pause) = (Instant::now() + PATIENCE, PAUSE);
    loop {
        let Some(endpoint) = running(repo, timeline)? else { return Ok(None) };
        match question(&endpoint) {
            Err(error) if error.may_pass() && Instant::now() < patience => {
                sleep(pause);
                // The server logs each try.
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return Ok(Some(answer?)),
        }
    }
}

/// Returns the folder of the repository's sockets.
pub fn socket_dir(repo: &Repo) -> Result<PathBuf, postgres::Error> {
    let (mut dir, fallback) = (repo.dir().join("run"), std::env::temp_dir());
    // Whoever can enter it is superuser, so those who share a repository have one each.
    let is_anothers = || fs::symlink_metadata(&dir).is_ok_and(|metadata| !settings::is_ours(metadata.uid()));
    if repo.config().core.shared == Shared::Group && is_anothers() {
        dir.set_extension(geteuid().to_string());
    }
    settings::socket_dir(&dir, &fallback)
}

/// Makes an instance with the next name and a free port. To be called with the lock of all in hand.
fn create(repo: &Repo, branch: &str, at: Option<String>) -> Result<Instance, CommandError> {
    let port = free_port(repo, &list(repo)?)?;
    let branch = branch.to_owned();
    let config = Config { branch, port, tcp: None, on_demand: false, timeline: None, closed: None, at };
    let instance = Instance { name: free_name(repo)?, config };
    let path = Instance::dir(repo, &instance.name).join("config");
    if path.try_exists().map_err(cannot::<Error>("look for", &path))? {
        return Err(Error::Corrupt(path).into());
    }
    instance.write(repo)?;
    Ok(instance)
}

fn free_name(repo: &Repo) -> Result<String, Error> {
    let all = read_all(repo)?;
    let free = (1..).map(|number| format!("pg{number}")).find(|name| all.iter().all(|(taken, _)| taken != name));
    Ok(free.expect("invariant: numbers do not end"))
}

/// Returns a port that no instance has and nobody listens on.
fn free_port(repo: &Repo, all: &[Instance]) -> Result<u16, postgres::Error> {
    // The page server has a socket in the same folder.
    let proxy = repo.config().proxy.listen.port();
    let taken: Vec<u16> = all.iter().map(|instance| instance.config.port).chain([proxy]).collect();
    settings::free_port(FIRST_PORT, &taken, &socket_dir(repo)?)
}
