//! What will stop the servers if nobody acts: WAL that cannot be sealed or recycled, and a disk that is nearly full.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::statvfs;

use super::instance::lost::{self, Damaged};
use super::instance::slots::{self, Slot};
use super::instance::{self, Instance};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::pg::{Lsn, segment};
use crate::objects::refs::{RefName, Value};

/// PostgreSQL hands over a completed segment at once. One that waits for longer could not be sealed.
const LATE: Duration = Duration::from_secs(60);
/// A disk with less room is nearly full: a twentieth of it, but no more than this, bytes.
const ROOM: u64 = 5 << 30;

/// A replication slot that keeps more WAL than this waits for a reader who may never come, bytes.
const KEPT: u64 = 4 << 30;

/// How the repository is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// What is free on the repository's disk, and all of it, bytes.
    pub free_bytes: u64,
    pub disk_bytes: u64,
    pub trash_bytes: u64,
    /// Branches with completed segments that are not sealed.
    pub unsealed: Vec<Unsealed>,
    /// Replication slots that keep much WAL.
    pub slots: Vec<Keeping>,
    /// What to act upon, for people.
    pub warnings: Vec<String>,
}

/// Completed segments of a branch that wait to be sealed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unsealed {
    pub branch: String,
    /// Where its server says why.
    pub log: PathBuf,
    pub segments: u64,
    /// How long the oldest one has waited.
    pub seconds: u64,
}

impl Unsealed {
    fn is_late(&self) -> bool {
        self.seconds > LATE.as_secs()
    }
}

/// A replication slot that keeps WAL from being removed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Keeping {
    pub branch: String,
    pub slot: String,
    pub bytes: u64,
}

/// Looks at the disk, at what PostgreSQL has handed over, and at the trash. Costs the names of the active
/// segments and a small file for each entry of the trash.
pub fn health(repo: &Repo) -> Result<Health, CommandError> {
    let disk = statvfs(repo.dir()).map_err(std::io::Error::from)?;
    let mut health = Health {
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        trash_bytes: repo.trash().bytes()?,
        ..Health::default()
    };
    for instance in instance::list(repo)?.into_iter().filter(|instance| !instance.is_read_only()) {
        // A branch or a server that is damaged hides nothing else.
        health.slots.extend(keeping(repo, &instance).unwrap_or_default());
        let Some(timeline) = instance.timeline() else { continue };
        let dir = repo.timelines().wal_dir(timeline).join("archive_status");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let ready = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "ready"));
        let since: Vec<SystemTime> = ready.filter_map(|entry| entry.metadata().ok()?.modified().ok()).collect();
        let Some(oldest) = since.iter().min() else { continue };
        let seconds = oldest.elapsed().unwrap_or_default().as_secs();
        let (log, segments) = (instance.log(repo), since.len() as u64);
        health.unsealed.push(Unsealed { branch: instance.config.branch, log, segments, seconds });
    }
    health.warnings = warnings(&health, repo.config().gc.trash_limit);
    for Damaged { name, error } in lost::damaged(repo)? {
        health.warnings.push(format!("{error}; to end its server and keep what it did: zenith stop {name}"));
    }
    for timeline in lost::unknown(repo)? {
        health.warnings.push(format!(
            "no instance knows of the files of timeline {timeline}; to end their server and keep what it did: zenith stop --all"
        ));
    }
    Ok(health)
}

/// Returns the slots of a branch that keep much WAL. Asks the files of a server only if there is that much.
fn keeping(repo: &Repo, instance: &Instance) -> Result<Vec<Keeping>, CommandError> {
    let branch = &instance.config.branch;
    let (slots, end) = match (instance.timeline(), repo.refs().read(&RefName::branch(branch)?)?) {
        (Some(open), _) => {
            let size = repo.config().wal_segment_size;
            let names = fs::read_dir(repo.timelines().wal_dir(open)).into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let starts: Vec<Lsn> = names.filter_map(|name| Some(segment::parse_file_name(&name, size)?.1)).collect();
            let (Some(first), Some(last)) = (starts.iter().min(), starts.iter().max()) else { return Ok(Vec::new()) };
            if last.since(*first) < KEPT {
                return Ok(Vec::new());
            }
            (slots::of_server(&repo.datadir(open).join("data"))?, *last)
        }
        (None, Some(Value::Branch(timeline))) => {
            let timeline = repo.timelines().read(timeline)?;
            (slots::kept(repo, &timeline)?, timeline.tip().lsn)
        }
        (None, _) => return Ok(Vec::new()),
    };
    let keeping = |slot: Slot| Keeping { branch: branch.clone(), bytes: slot.keeps(end), slot: slot.name };
    Ok(slots.into_iter().map(keeping).filter(|keeping| keeping.bytes >= KEPT).collect())
}

fn warnings(health: &Health, trash_limit: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    for late in health.unsealed.iter().filter(|unsealed| unsealed.is_late()) {
        let Unsealed { branch, log, segments, seconds } = late;
        warnings.push(format!(
            "the WAL of '{branch}' cannot be sealed: {segments} segments wait, the oldest for {seconds} s, and take more and \
             more of the disk; '{}' says why",
            log.display()
        ));
    }
    let megabytes = |bytes: u64| bytes >> 20;
    for Keeping { branch, slot, bytes } in &health.slots {
        warnings.push(format!(
            "the replication slot '{slot}' of '{branch}' keeps {} MiB of WAL for a reader that does not come; drop it: \
             select pg_drop_replication_slot('{slot}'), or bound it: \
             zenith config branch.{branch}.postgres.max_slot_wal_keep_size 4GB",
            megabytes(*bytes)
        ));
    }
    if health.free_bytes < ROOM.min(health.disk_bytes / 20) {
        let (free, total) = (megabytes(health.free_bytes), megabytes(health.disk_bytes));
        let trash = match megabytes(health.trash_bytes) {
            0 => String::new(),
            held => format!("; the trash holds {held} MiB: zenith trash empty"),
        };
        warnings.push(format!(
            "the disk is nearly full: {free} MiB of {total} MiB are free, and servers stop when none are{trash}"
        ));
    }
    if health.trash_bytes > trash_limit {
        let (bytes, limit) = (megabytes(health.trash_bytes), megabytes(trash_limit));
        warnings.push(format!(
            "the trash holds {bytes} MiB, more than its {limit} MiB, and commits in all of it: zenith trash"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_nearly_full_at_a_twentieth_or_five_gibibytes() {
        let told = |free_bytes, disk_bytes| {
            !warnings(&Health { free_bytes, disk_bytes, ..Health::default() }, u64::MAX).is_empty()
        };
        assert!(told(4 << 30, 100 << 30));
        assert!(!told(6 << 30, 100 << 30));
        assert!(told(4 << 30, 10 << 40));
        assert!(!told(6 << 30, 10 << 40));
    }

    #[test]
    fn a_trash_that_holds_more_than_it_may_is_told_of() {
        let told = |trash_bytes| warnings(&Health { trash_bytes, ..Health::default() }, 1 << 30);
        assert_eq!(told(1 << 30), Vec::<String>::new());
        assert!(
            told(3 << 30)[0]
                .ends_with("holds 3072 MiB, more than its 1024 MiB, and commits in all of it: zenith trash")
        );
        let full = Health { trash_bytes: 5 << 20, free_bytes: 1, disk_bytes: 1 << 40, ..Health::default() };
        assert!(warnings(&full, u64::MAX)[0].ends_with("the trash holds 5 MiB: zenith trash empty"));
    }

    #[test]
    fn a_segment_that_was_just_completed_is_not_late() {
        let told = |seconds| {
            let unsealed = vec![Unsealed { branch: "main".into(), log: "log".into(), segments: 1, seconds }];
            !warnings(&Health { unsealed, ..Health::default() }, u64::MAX).is_empty()
        };
        assert!(!told(5));
        assert!(told(61));
    }
}
