//! Replication slots: they belong to one run of a branch and the next, never to a copy, so they are no part of
//! snapshots. What lies in `pg_replslot` when a server has stopped is put away with its timeline, and the next start
//! that goes on from there takes it up again. A fork makes a timeline of its own, which has none.
//!
//! # Format
//! `timelines/<id>/slots/` holds `replslot/<slot>/state`, as PostgreSQL wrote it (`src/backend/replication/slot.c`),
//! and what PostgreSQL had in `pg_logical/snapshots`, `snapshots/`: without it a logical slot could begin too late and
//! pass over transactions in silence. Once the timeline ends elsewhere than at the LSN of [`beside`], they are those of an
//! earlier run, for which later ones need not have kept what they need.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::beside;
use crate::objects::pg::Lsn;
use crate::objects::pg::crc::crc32c;
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::{Repo, durable, folder, regular};

/// Of a slot's file: what the checksum is not about, and where fields lie. The same in PostgreSQL 14 to 18.
const MAGIC: u32 = 0x0105_1CA1;
const CHECKSUM_AT: usize = 4;
const CHECKED_FROM: usize = 8;
const RESTART_AT: usize = 96;
/// A file of a slot is shorter, bytes.
const LONGEST: u64 = 64 << 10;
/// What PostgreSQL calls itself while it makes or drops a slot.
const UNFINISHED: &str = ".tmp";

/// A slot that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    /// From where on it needs the WAL; 0/0 where it needs none yet.
    pub restart: Lsn,
    /// Its file.
    state: Vec<u8>,
}

impl Slot {
    /// Returns how much WAL it keeps from being removed, where that ends at `end`, bytes.
    pub fn keeps(&self, end: Lsn) -> u64 {
        if self.restart == Lsn(0) || self.restart > end { 0 } else { end.since(self.restart) }
    }
}

fn dir(repo: &Repo, timeline: TimelineId) -> PathBuf {
    repo.timelines().dir(timeline).join("slots")
}

/// Returns the slots in a folder as `pg_replslot`; those whose files are damaged are not among them: PostgreSQL
/// would not start with them.
fn slots_in(dir: &Path) -> io::Result<Vec<Slot>> {
    let mut slots = Vec::new();
    for entry in folder::entries(dir)? {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(bytes) = read(&entry.path().join("state"))? else { continue };
        let restart = restart_of(&bytes).filter(|_| !name.ends_with(UNFINISHED));
        slots.extend(restart.map(|restart| Slot { name, restart, state: bytes }));
    }
    slots.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(slots)
}

/// Reads from where on a slot needs the WAL out of its file, if that is whole.
fn restart_of(bytes: &[u8]) -> Option<Lsn> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let restart = u64::from_le_bytes(bytes.get(RESTART_AT..RESTART_AT + 8)?.try_into().ok()?);
    let is_whole = u32_at(0)? == MAGIC && u32_at(CHECKSUM_AT)? == crc32c(&[bytes.get(CHECKED_FROM..)?]);
    is_whole.then_some(Lsn(restart))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= LONGEST => Ok(Some(regular::read(path)?)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(None),
    }
}

/// Returns the slots that were put away with a timeline, where it ends.
pub fn kept(repo: &Repo, timeline: &Timeline) -> io::Result<Vec<Slot>> {
    let dir = dir(repo, timeline.id);
    let is_of_now = beside::as_of(&dir)?.is_none_or(|at| at == timeline.tip().lsn);
    if is_of_now { slots_in(&dir.join("replslot")) } else { Ok(Vec::new()) }
}

/// Returns the slots of the server of `data`, as they are on disk.
pub fn of_server(data: &Path) -> io::Result<Vec<Slot>> {
    slots_in(&data.join("pg_replslot"))
}

/// Returns whether the server of `data` left other slots than those that it began with, from `timeline`, or than can be known.
pub fn changed(repo: &Repo, timeline: &Timeline, data: &Path) -> io::Result<bool> {
    let now = of_server(data)?;
    match kept(repo, timeline) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(true),
        kept => Ok(now != kept?),
    }
}

/// Puts the slots of a data directory, whose server is gone, away with its timeline, in place of those that were put
/// away before: the server may have gone on since. Durable when it returns. Where the directory is not to be seen,
/// what was put away stays; one that never had slots costs nothing. Can be repeated after a crash, as long as the
/// data directory is there.
pub fn put_away(repo: &Repo, timeline: &Timeline, data: &Path) -> io::Result<()> {
    let source = data.join("pg_replslot");
    let slots = slots_in(&source)?;
    if !source.try_exists()? || slots.is_empty() && !dir(repo, timeline.id).try_exists()? {
        return Ok(());
    }
    publish(repo, timeline.tip(), &slots, (&source, &data.join("pg_logical/snapshots")))
}

/// Puts away what was put away with a timeline with another one too, on which its branch goes on from its tip: at `start`.
pub fn pass_on(repo: &Repo, timeline: &Timeline, start: Position) -> io::Result<()> {
    let (slots, dir) = (kept(repo, timeline)?, dir(repo, timeline.id));
    if slots.is_empty() {
        return Ok(());
    }
    publish(repo, start, &slots, (&dir.join("replslot"), &dir.join("snapshots")))
}

/// Puts away slots, which lie in the first folder, and what logical ones need, from the second one.
fn publish(repo: &Repo, tip: Position, slots: &[Slot], (source, snapshots): (&Path, &Path)) -> io::Result<()> {
    beside::replace(repo, &dir(repo, tip.timeline), tip.lsn, |made| {
        for slot in slots {
            copy(&source.join(&slot.name), &made.join("replslot").join(&slot.name))?;
        }
        copy(snapshots, &made.join("snapshots"))
    })
}

/// Gives a data directory, whose server is not started yet, the slots that were put away with the timeline from which
/// it goes on. Those that need WAL from behind its end are not among them: that WAL is another one now.
pub fn take_up(repo: &Repo, timeline: &Timeline, data: &Path) -> io::Result<()> {
    let (source, tip) = (dir(repo, timeline.id), timeline.tip().lsn);
    for slot in kept(repo, timeline)?.into_iter().filter(|slot| slot.restart <= tip) {
        copy(&source.join("replslot").join(&slot.name), &data.join("pg_replslot").join(&slot.name))?;
    }
    copy(&source.join("snapshots"), &data.join("pg_logical/snapshots"))
}

/// Returns the first LSN that the slots of a timeline need, if there are any that need WAL before its end.
pub fn needs_from(repo: &Repo, timeline: &Timeline) -> io::Result<Option<Lsn>> {
    let tip = timeline.tip().lsn;
    let needed = kept(repo, timeline)?.into_iter().map(|slot| slot.restart);
    Ok(needed.filter(|restart| *restart > Lsn(0) && *restart <= tip).min())
}

/// Copies the files of a folder, those that are not there yet.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    durable::create_dir_all(to)?;
    for entry in folder::entries(from)? {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_file() && !target.exists() {
            let bytes = regular::read(&entry.path())?;
            durable::write_in_place(&target, |file| file.write_all(&bytes))?;
        }
    }
    durable::sync_dir(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_slot_is_none() {
        let mut bytes = vec![0; 200];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[RESTART_AT..RESTART_AT + 8].copy_from_slice(&77_u64.to_le_bytes());
        let checksum = crc32c(&[&bytes[CHECKED_FROM..]]);
        bytes[CHECKSUM_AT..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(restart_of(&bytes), Some(Lsn(77)));
        for at in [0, 5, 20, 100, 199] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(restart_of(&damaged), None, "byte {at}");
        }
        assert_eq!(restart_of(&bytes[..90]), None);
    }
}
