//! What a snapshot leaves out: what `pg_basebackup` does (`src/backend/backup/basebackup.c`),
//! since it is of no use to another server or gets made anew at its start.

use std::collections::HashSet;

use crate::objects::snapshot::Entry;
use crate::objects::snapshot::paths::is_reserved;

/// Folders whose content is left out; they stay, empty.
const EMPTIED: [&str; 8] =
    ["pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];

/// Files at the top that are left out. Those from the backup's on belong to a start from a backup or to a standby, which
/// zenith prepares itself: with a signal file of another place the server would wait for a primary, or for an archive.
const TOP_FILES: [&str; 15] = [
    "postmaster.pid",
    "postmaster.opts",
    "current_logfiles",
    "postgresql.auto.conf.tmp",
    "backup_manifest",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest.tmp",
    "standby.signal",
    "recovery.signal",
    "recovery.conf",
    "promote",
    "logrotate",
];

/// Returns whether a path below the data directory is left out because of its name.
pub fn is_excluded(path: &[u8]) -> bool {
    let mut names = path.split(|&byte| byte == b'/');
    let top = names.next().unwrap_or_default();
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let below = names.next().is_some();
    if below && EMPTIED.iter().any(|folder| folder.as_bytes() == top) {
        return true;
    }
    is_reserved(path)
        || (!below && TOP_FILES.iter().any(|file| file.as_bytes() == top))
        || path.split(|&byte| byte == b'/').any(|name| name.starts_with(b"pgsql_tmp"))
        || name.starts_with(b"pg_internal.init")
        || is_temporary_relation(name)
}

/// Returns whether a file is of a temporary relation: `t`, the backend's number, `_`, the relation.
fn is_temporary_relation(name: &[u8]) -> bool {
    let Some((backend, relation)) = name.strip_prefix(b"t").and_then(|rest| split_once(rest, b'_')) else {
        return false;
    };
    is_number(backend) && relation_number(relation).is_some()
}

/// The unlogged relations of a cluster, known by their init forks. PostgreSQL makes all their
/// other forks anew from those, but only when it recovers: not when it goes on after a clean shutdown.
#[derive(Debug, Default)]
pub struct Unlogged {
    /// Folder and number of each.
    relations: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Unlogged {
    /// Finds the init forks among `paths`.
    pub fn among<'a>(paths: impl Iterator<Item = &'a [u8]>) -> Unlogged {
        let init = |path: &[u8]| {
            let (folder, name) = split_path(path);
            let number = relation_number(name)?;
            (&name[number.len()..] == b"_init").then(|| (folder.to_vec(), number.to_vec()))
        };
        Unlogged { relations: paths.filter_map(init).collect() }
    }

    /// Leaves of each unlogged relation what recovery would: the init fork, and a main fork that is equal to it, so
    /// that it is there, and empty, however the server starts. Costs no storage.
    pub fn reset(entries: &mut Vec<Entry>) {
        let unlogged = Unlogged::among(entries.iter().map(|entry| entry.path.as_slice()));
        if unlogged.relations.is_empty() {
            return;
        }
        entries.retain(|entry| !unlogged.is_excluded(&entry.path));
        let main = |init: &Entry| {
            let path = init.path.strip_suffix(b"_init").filter(|path| unlogged.is_excluded(path))?;
            Some(Entry { path: path.to_vec(), ..init.clone() })
        };
        let mains: Vec<Entry> = entries.iter().filter_map(main).collect();
        entries.extend(mains);
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    }

    /// Returns whether a file is a fork of an unlogged relation other than its init fork.
    pub fn is_excluded(&self, path: &[u8]) -> bool {
        if self.relations.is_empty() {
            return false;
        }
        let (folder, name) = split_path(path);
        relation_number(name).is_some_and(|number| {
            !name[number.len()..].starts_with(b"_init") && self.relations.contains(&(folder.to_vec(), number.to_vec()))
        })
    }
}

/// Returns the digits that a relation's file name begins with: `16384` of `16384_fsm.1`.
fn relation_number(name: &[u8]) -> Option<&[u8]> {
    let end = name.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(name.len());
    (end > 0 && matches!(name.get(end), None | Some(b'_' | b'.'))).then(|| &name[..end])
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|&byte| byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_what_pg_basebackup_does() {
        for path in [
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x",
            "pg_replslot/s/state",
            "postmaster.pid",
            "base/pgsql_tmp/x",
            "base/5/pg_internal.init",
            "global/pg_internal.init.77",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            "backup_label",
            ".zenith.mark",
            ".zenith/config",
            "standby.signal",
        ] {
            assert!(is_excluded(path.as_bytes()), "{path}");
        }
        for path in [
            "pg_wal",
            "base/5/16384",
            "base/5/16384_init",
            "global/pg_control",
            "base/5/postmaster.pid",
            "tx_1",
            "pg_xact/0000",
            "postgresql.conf",
        ] {
            assert!(!is_excluded(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn leaves_out_unlogged_relations_but_their_init_forks() {
        let unlogged = Unlogged::among([&b"base/5/70_init"[..], b"base/5/71", b"base/5/72_initial"].into_iter());
        for (path, out) in [
            ("base/5/70", true),
            ("base/5/70.1", true),
            ("base/5/70_fsm", true),
            ("base/5/70_init", false),
            ("base/5/71", false),
            ("base/6/70", false),
            ("base/5/700", false),
        ] {
            assert_eq!(unlogged.is_excluded(path.as_bytes()), out, "{path}");
        }
    }
}
