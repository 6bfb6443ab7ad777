//! Instances whose config is damaged, and epochs that no instance knows of, since somebody removed it.
//!
//! Neither is in the way of others. Both are taken up again from what proves itself: an epoch is open where its files are, a
//! branch names its timeline, and a server notes its port in its pid file. So a server among them is told by
//! the lock that it holds, like any other, and what follows is up to whoever starts or stops it.

use std::path::PathBuf;

use super::hold::{Held, hold_all};
use super::pid_lock::PidLock;
use super::{Config, Error, Instance, free_name, free_port, list, read_all};
use crate::error::CommandError;
use crate::objects::file_error::cannot;
use crate::objects::refs::{RefKind, Value};
use crate::objects::timeline::TimelineId;
use crate::objects::{Repo, bounded, durable, folder};
use crate::plumbing::postgres::server;
use crate::progress::Progress;

/// An instance whose config cannot be read.
#[derive(Debug)]
pub struct Damaged {
    pub name: String,
    pub error: Error,
}

/// Returns the instances whose config cannot be read.
pub fn damaged(repo: &Repo) -> Result<Vec<Damaged>, Error> {
    let all = read_all(repo)?.into_iter();
    Ok(all.filter_map(|(name, read)| read.err().map(|error| Damaged { name, error })).collect())
}

/// Returns the timelines whose files are there although no instance names them.
pub fn unknown(repo: &Repo) -> Result<Vec<TimelineId>, Error> {
    let dir = repo.dir().join("datadirs");
    let names = folder::names(&dir).map_err(cannot::<Error>("list", &dir))?;
    let mut open: Vec<TimelineId> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    if open.is_empty() {
        return Ok(open);
    }
    // In this order: an epoch is noted before its files are made, and its files go before it is forgotten.
    let known: Vec<TimelineId> = list(repo)?.iter().filter_map(Instance::timeline).collect();
    open.retain(|id| !known.contains(id) && repo.has_datadir(*id).unwrap_or(true));
    Ok(open)
}

/// Makes an instance for each epoch that none knows of, and puts the configs away that are damaged. Returns the names of instances
/// that were damaged, and are no more.
pub fn take_up(repo: &Repo, progress: &dyn Progress) -> Result<Vec<String>, CommandError> {
    if damaged(repo)?.is_empty() && unknown(repo)?.is_empty() {
        return Ok(Vec::new());
    }
    take_up_with(repo, &hold_all(repo, progress)?)
}

/// Does so with the lock of all instances in hand.
pub(super) fn take_up_with(repo: &Repo, _held: &Held) -> Result<Vec<String>, CommandError> {
    let (mut free, mut may_be_named) = (Vec::new(), false);
    for Damaged { name, error } in damaged(repo)? {
        match error {
            Error::Corrupt(path) => free.extend(put_away(name, path)?),
            // It may name what would be taken for unknown.
            _ => may_be_named = true,
        }
    }
    for id in if may_be_named { Vec::new() } else { unknown(repo)? } {
        // A text that is damaged may still name its timeline; if there is one epoch and one text, they belong together.
        let at = free.iter().position(|(_, text): &(_, String)| text.contains(&id.to_string()));
        let name = match at.or((free.len() == 1).then_some(0)) {
            Some(at) => free.remove(at).0,
            None => free_name(repo)?,
        };
        instance_of(repo, name, id)?.write(repo)?;
    }
    Ok(free.into_iter().map(|(name, _)| name).collect())
}

/// Makes a damaged config one that nobody reads, and returns it with the instance's name; `None` if a command works on it.
fn put_away(name: String, path: PathBuf) -> Result<Option<(String, String)>, CommandError> {
    let lock = PidLock::open(&path.with_file_name("lock")).map_err(cannot::<Error>("open", &path))?;
    if !lock.try_take() {
        return Ok(None);
    }
    // What is no file at all has none.
    let text = bounded::read(&path, bounded::CONFIG).unwrap_or_default();
    let names = std::iter::once("damaged".to_owned()).chain((2..).map(|number| format!("damaged-{number}")));
    let mut targets = names.map(|name| path.with_extension(name));
    let free = targets.find(|target| target.symlink_metadata().is_err()).expect("invariant: numbers do not end");
    durable::replace_by(&path, &free).map_err(cannot::<Error>("put away", &path))?;
    Ok(Some((name, String::from_utf8_lossy(&text).into_owned())))
}

/// Returns an instance with that name for the epoch that is open on the timeline `id`.
fn instance_of(repo: &Repo, name: String, id: TimelineId) -> Result<Instance, CommandError> {
    let branches = repo.refs().list(RefKind::Branch)?;
    let branch = branches.into_iter().find(|(_, value)| *value == Value::Branch(id));
    // A moment has no timeline of its own, but WAL beside its files; what it showed nobody knows.
    let is_moment = repo.timelines().is_gone(id) && repo.datadir(id).join("wal").try_exists()?;
    let at = is_moment.then(|| id.to_string());
    let listens = server::listens(&repo.datadir(id).join("data"));
    let port = match listens {
        Some((port, _)) => port,
        None => free_port(repo, &list(repo)?)?,
    };
    let config = Config {
        branch: branch.map_or_else(|| id.to_string(), |(name, _)| name.short().to_owned()),
        port,
        tcp: listens.and_then(|(_, tcp)| tcp),
        on_demand: false,
        timeline: Some(id.to_string()),
        closed: None,
        at,
    };
    Ok(Instance { name, config })
}
