//! What there is to say of a repository and its servers: for people, for scripts, for the page.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::Addresses;
use super::metrics::{Branch as Label, Metrics};
use super::supervisor::Supervisor;
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::refs::{RefKind, Value};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::local;
use crate::plumbing::instance;
use crate::plumbing::postgres::server::Status as Server;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Status {
    pub repository: String,
    pub postgres: u32,
    pub pid: u32,
    pub listen: String,
    pub http: String,
    pub socket_dir: String,
    /// The branch of HEAD.
    pub head: String,
    /// What the objects take on disk, bytes.
    pub object_bytes: u64,
    /// Clients that are connected through the proxy.
    pub connections: i64,
    pub branches: Vec<Branch>,
    pub tags: Vec<Tag>,
    pub timelines: Vec<Epoch>,
    pub instances: Vec<Instance>,
}

#[derive(Debug, Serialize)]
pub struct Branch {
    pub name: String,
    pub timeline: String,
    pub lsn: String,
}

#[derive(Debug, Serialize)]
pub struct Tag {
    pub name: String,
    pub timeline: String,
    pub lsn: String,
}

/// A timeline.
#[derive(Debug, Serialize)]
pub struct Epoch {
    pub id: String,
    /// Where it forks from another one.
    pub parent: Option<String>,
    pub fork: Option<String>,
    pub tip: String,
    /// WAL of its own, bytes.
    pub wal_bytes: u64,
    /// LSNs of its snapshots.
    pub snapshots: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Instance {
    pub name: String,
    pub branch: String,
    pub port: u16,
    pub timeline: Option<String>,
    pub running: bool,
    pub read_only: bool,
    /// The proxy started it, and stops it when nobody uses it.
    pub on_demand: bool,
    /// Clients that are connected through the proxy.
    pub connections: usize,
    /// What was written over its snapshot, bytes on disk.
    pub local_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
}

/// Returns what the files below `path` take on disk, bytes.
fn disk(path: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    fs::read_dir(path).into_iter().flatten().flatten().map(size).sum()
}

fn instances(repo: &Repo, supervisor: &Supervisor) -> Result<Vec<Instance>, CommandError> {
    let used = supervisor.running();
    let row = |instance: instance::Instance| {
        let running = instance.status(repo) != Server::Stopped;
        let data = instance.data_dir(repo).filter(|_| running);
        let lazy = data.and_then(|data| Control::of(&data)?.status().ok());
        let local = instance.timeline().map(|timeline| local::dir(&repo.datadir(timeline)));
        let connections = used.iter().find(|(name, _)| *name == instance.name).map_or(0, |(_, count)| *count);
        Instance {
            running,
            connections,
            read_only: instance.is_read_only(),
            local_bytes: local.map_or(0, |local| disk(&local)),
            cache_hits: lazy.as_ref().map_or(0, |lazy| lazy.cache_hits),
            cache_misses: lazy.as_ref().map_or(0, |lazy| lazy.cache_misses),
            name: instance.name,
            branch: instance.config.branch,
            port: instance.config.port,
            timeline: instance.config.timeline,
            on_demand: instance.config.on_demand,
        }
    };
    Ok(instance::list(repo)?.into_iter().map(row).collect())
}

fn timelines(repo: &Repo) -> Result<Vec<Epoch>, CommandError> {
    let epoch = |id| {
        let timeline = repo.timelines().read(id)?;
        let parent = timeline.history.ancestors.last();
        let wal = timeline.log.wal.iter();
        Ok::<_, CommandError>(Epoch {
            id: id.to_string(),
            parent: parent.map(|parent| parent.timeline.to_string()),
            fork: parent.map(|parent| parent.fork.to_string()),
            tip: timeline.tip().lsn.to_string(),
            wal_bytes: wal.map(|interval| interval.end.since(interval.start)).sum(),
            snapshots: timeline.log.snapshots.iter().map(|snapshot| snapshot.lsn.to_string()).collect(),
        })
    };
    // One may be dropped this instant.
    Ok(repo.timelines().list()?.into_iter().filter_map(|id| epoch(id).ok()).collect())
}

/// Looks at everything. Costs a small file for each ref, timeline and instance, and the names of all objects.
pub fn status(supervisor: &Supervisor, addresses: &Addresses) -> Result<Status, CommandError> {
    let repo = supervisor.repo()?;
    let mut branches = Vec::new();
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let Ok(timeline) = repo.timelines().read(value.timeline()) else { continue };
        let (name, lsn) = (name.short().to_owned(), timeline.tip().lsn.to_string());
        branches.push(Branch { name, timeline: timeline.id.to_string(), lsn });
    }
    let mut tags = Vec::new();
    for (name, value) in repo.refs().list(RefKind::Tag)? {
        if let Value::Tag(tag) = value {
            let (timeline, lsn) = (tag.position.timeline.to_string(), tag.position.lsn.to_string());
            tags.push(Tag { name: name.short().to_owned(), timeline, lsn });
        }
    }
    Ok(Status {
        repository: repo.dir().display().to_string(),
        postgres: repo.config().postgres_major,
        pid: std::process::id(),
        listen: addresses.listen.to_string(),
        http: addresses.http.to_string(),
        socket_dir: addresses.socket_dir.display().to_string(),
        head: repo.refs().head()?.short().to_owned(),
        object_bytes: disk(&repo.dir().join("objects")),
        connections: supervisor.metrics.connections.get(),
        branches,
        tags,
        timelines: timelines(&repo)?,
        instances: instances(&repo, supervisor)?,
    })
}

/// Brings those metrics up to date that are looked up rather than counted.
pub fn measure(supervisor: &Supervisor) -> Result<(), CommandError> {
    let repo = supervisor.repo()?;
    let Metrics { instances: running, sealed, snapshot_time, cache_hits, cache_misses, .. } = &*supervisor.metrics;
    let label = |branch: &str| Label { branch: branch.to_owned() };
    // Branches that are gone leave no label.
    sealed.clear();
    snapshot_time.clear();
    cache_hits.clear();
    cache_misses.clear();
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let Ok(timeline) = repo.timelines().read(value.timeline()) else { continue };
        sealed.get_or_create(&label(name.short())).set(timeline.tip().lsn.0 as i64); // LSNs stay below 2^63
        if let Ok((_, line)) = repo.timelines().snapshot_before(timeline.tip())
            && let Ok(snapshot) = repo.store().snapshot(&line.object)
        {
            snapshot_time.get_or_create(&label(name.short())).set(snapshot.time_us as f64 / 1e6);
        }
    }
    let instances = instances(&repo, supervisor)?;
    running.set(instances.iter().filter(|instance| instance.running).count() as i64);
    for instance in instances.iter().filter(|instance| instance.running) {
        cache_hits.get_or_create(&label(&instance.branch)).set(instance.cache_hits as i64);
        cache_misses.get_or_create(&label(&instance.branch)).set(instance.cache_misses as i64);
    }
    Ok(())
}
