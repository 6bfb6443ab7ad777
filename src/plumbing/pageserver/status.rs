//! What there is to say of a repository and its servers: for people, for scripts, for the page.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::Addresses;
use super::lineage::Lineage;
use super::metrics::{Branch as Label, Metrics};
use super::supervisor::Supervisor;
use crate::error::CommandError;
use crate::objects::refs::{RefKind, Value};
use crate::objects::timeline::snapshots::Listed;
use crate::objects::timeline::{Position, Timeline};
use crate::objects::{ObjectId, Repo, folder};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::local;
use crate::plumbing::health::{Health, health};
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
    pub health: Health,
}

#[derive(Debug, Serialize)]
pub struct Branch {
    pub name: String,
    pub timeline: String,
    pub lsn: String,
    /// The branch from which this one was made, and where.
    pub parent: Option<String>,
    pub fork: Option<String>,
    /// When the latest commit was made, microseconds since 1970.
    pub changed_us: Option<i64>,
    /// What its files had together when they were last stored, bytes.
    pub size_bytes: u64,
    /// WAL that it wrote since it was made, bytes.
    pub wal_bytes: u64,
    /// How clients reach it.
    pub url: String,
}

#[derive(Debug, Serialize)]
pub struct Tag {
    pub name: String,
    pub timeline: String,
    pub lsn: String,
    /// When it was made, microseconds since 1970.
    pub time_us: i64,
    /// How clients reach it.
    pub url: String,
}

/// A timeline.
#[derive(Debug, Serialize)]
pub struct Epoch {
    pub id: String,
    /// The branch to which it belongs.
    pub branch: Option<String>,
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
    /// How clients reach it.
    pub url: Option<String>,
}

/// What there is to tell of a snapshot.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What its files have together, bytes.
    bytes: u64,
    /// When it was taken, microseconds since 1970.
    time_us: i64,
}

/// Snapshots that were looked at before: to read one takes a look at each file's entry.
#[derive(Debug, Default)]
pub struct Snapshots(Mutex<HashMap<ObjectId, Seen>>);

impl Snapshots {
    /// Looks at the newest snapshot at or before `tip`; `None` where that cannot be read.
    fn newest(&self, repo: &Repo, tip: Position) -> Option<Seen> {
        let (_, Listed { object, .. }) = repo.timelines().snapshot_before(tip).ok()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = known.get(&object) {
            return Some(*seen);
        }
        let snapshot = repo.store().snapshot(&object).ok()?;
        let seen = Seen { bytes: snapshot.total_bytes(), time_us: snapshot.time_us };
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(object, seen);
        Some(seen)
    }
}

/// So many snapshots are kept in mind.
const MOST_KNOWN: usize = 10_000;

fn instances(repo: &Repo, supervisor: &Supervisor) -> Result<Vec<Instance>, CommandError> {
    let used = supervisor.running();
    let row = |instance: instance::Instance| {
        let running = instance.status(repo) != Server::Stopped;
        let data = instance.data_dir(repo).filter(|_| running);
        let lazy = data.and_then(|data| Control::of(&data).ok()??.status().ok());
        let local = instance.timeline().map(|timeline| local::dir(&repo.datadir(timeline)));
        let connections = used.iter().find(|(name, _)| *name == instance.name).map_or(0, |(_, count)| *count);
        Instance {
            running,
            connections,
            read_only: instance.is_read_only(),
            local_bytes: local.map_or(0, |local| folder::disk_bytes(&local)),
            cache_hits: lazy.as_ref().map_or(0, |lazy| lazy.cache_hits),
            cache_misses: lazy.as_ref().map_or(0, |lazy| lazy.cache_misses),
            name: instance.name,
            branch: instance.config.branch,
            port: instance.config.port,
            timeline: instance.config.timeline,
            on_demand: instance.config.on_demand,
            url: None,
        }
    };
    Ok(instance::list(repo)?.into_iter().map(row).collect())
}

/// Returns the length of the WAL that a timeline has of its own, bytes.
fn wal_bytes(timeline: &Timeline) -> u64 {
    timeline.log.wal.iter().map(|interval| interval.end.since(interval.start)).sum()
}

fn epoch(lineage: &Lineage, timeline: &Timeline) -> Epoch {
    let parent = lineage.parent(timeline.id);
    Epoch {
        id: timeline.id.to_string(),
        branch: lineage.owner(timeline.id).map(str::to_owned),
        parent: parent.map(|parent| parent.timeline.to_string()),
        fork: parent.map(|parent| parent.lsn.to_string()),
        tip: timeline.tip().lsn.to_string(),
        wal_bytes: wal_bytes(timeline),
        snapshots: timeline.snapshots.listed.iter().map(|snapshot| snapshot.lsn.to_string()).collect(),
    }
}

fn reached(mut instances: Vec<Instance>, addresses: &Addresses) -> Vec<Instance> {
    instances.iter_mut().for_each(|instance| instance.url = Some(addresses.url(&instance.branch)));
    instances
}

/// Looks at everything. Costs a small file for each ref, timeline and instance, and the names of all objects.
pub fn status(supervisor: &Supervisor, addresses: &Addresses, snapshots: &Snapshots) -> Result<Status, CommandError> {
    let repo = supervisor.repo()?;
    let lineage = Lineage::read(&repo)?;
    let mut branches = Vec::new();
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let Ok(timeline) = repo.timelines().read(value.timeline()) else { continue };
        let (own, fork) = lineage.own(timeline.id);
        branches.push(Branch {
            name: name.short().to_owned(),
            timeline: timeline.id.to_string(),
            lsn: timeline.tip().lsn.to_string(),
            parent: fork.and_then(|fork| lineage.owner(fork.timeline).map(str::to_owned)),
            fork: fork.map(|fork| fork.lsn.to_string()),
            changed_us: lineage.changed_us(timeline.id),
            size_bytes: snapshots.newest(&repo, timeline.tip()).map_or(0, |seen| seen.bytes),
            wal_bytes: own.into_iter().map(wal_bytes).sum(),
            url: addresses.url(name.short()),
        });
    }
    let mut tags = Vec::new();
    for (name, value) in repo.refs().list(RefKind::Tag)? {
        if let Value::Tag(tag) = value {
            let (timeline, lsn) = (tag.position.timeline.to_string(), tag.position.lsn.to_string());
            let url = addresses.url(name.short());
            tags.push(Tag { name: name.short().to_owned(), timeline, lsn, time_us: tag.time_us, url });
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
        object_bytes: folder::disk_bytes(&repo.dir().join("objects")),
        connections: supervisor.metrics.connections.get(),
        branches,
        tags,
        timelines: lineage.timelines().into_iter().map(|timeline| epoch(&lineage, timeline)).collect(),
        instances: reached(instances(&repo, supervisor)?, addresses),
        health: health(&repo)?,
    })
}

/// Brings those metrics up to date that are looked up rather than counted.
pub fn measure(supervisor: &Supervisor, snapshots: &Snapshots) -> Result<(), CommandError> {
    let repo = supervisor.repo()?;
    let Metrics { instances: running, sealed, snapshot_time, cache_hits, cache_misses, .. } = &*supervisor.metrics;
    let label = |branch: &str| Label { branch: branch.to_owned() };
    // Branches that are gone leave no label.
    sealed.clear();
    snapshot_time.clear();
    cache_hits.clear();
    cache_misses.clear();
    let health = health(&repo)?;
    supervisor.metrics.disk_free.set(i64::try_from(health.free_bytes).unwrap_or(i64::MAX));
    supervisor.metrics.unsealed.clear();
    for unsealed in &health.unsealed {
        let segments = i64::try_from(unsealed.segments).unwrap_or(i64::MAX);
        supervisor.metrics.unsealed.get_or_create(&label(&unsealed.branch)).set(segments);
    }
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let Ok(timeline) = repo.timelines().read(value.timeline()) else { continue };
        sealed.get_or_create(&label(name.short())).set(timeline.tip().lsn.0 as i64); // LSNs stay below 2^63
        if let Some(Seen { time_us, .. }) = snapshots.newest(&repo, timeline.tip()) {
            snapshot_time.get_or_create(&label(name.short())).set(time_us as f64 / 1e6);
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
