//! Which paths a snapshot may have: those of a data directory, and none that leads out of it.
//!
//! A snapshot may come from anybody. Whoever writes its files may therefore rely on this: each entry lies in a
//! folder of the same snapshot, which is no link, and no file can be run as somebody else. Symbolic links may
//! lead anywhere, as in git, but nothing lies below one, and none stands where PostgreSQL or zenith writes.

use super::{Entry, Node};

/// The permission bits that an entry may have: none that lends a user or a group.
pub const PERMISSIONS: u32 = 0o777;
/// The longest path, bytes: PostgreSQL's `MAXPGPATH`, less the zero at its end.
pub const LONGEST_PATH: usize = 1023;
/// The longest name, bytes.
const LONGEST_NAME: usize = 255;
/// What zenith keeps for itself at the top of a lazy data directory begins so.
const RESERVED: &[u8] = b".zenith";

/// PostgreSQL's own folders: they and what is in them are folders and files.
const FOLDERS: [&str; 17] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];

/// Files at the top that a start, a stop or a restore writes.
const FILES: [&str; 12] = [
    "PG_VERSION",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "postgresql.auto.conf",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// Returns whether a path is one of PostgreSQL's own folders, lies in one, or is a file that it or zenith writes.
pub fn is_own(path: &[u8]) -> bool {
    is_own_folder(path) || FILES.iter().any(|file| file.as_bytes() == path)
}

/// Returns whether a path is one of PostgreSQL's own folders, or lies in one.
pub fn is_own_folder(path: &[u8]) -> bool {
    let top = path.split(|&byte| byte == b'/').next().unwrap_or_default();
    FOLDERS.iter().any(|folder| folder.as_bytes() == top)
}

/// Returns whether a name at the top is one that zenith keeps for itself.
pub fn is_reserved(path: &[u8]) -> bool {
    path.starts_with(RESERVED)
}

/// Checks an entry against those before it, which are checked already. Says what is wrong with it.
pub fn check(before: &[Entry], entry: &Entry) -> Result<(), &'static str> {
    let path = entry.path.as_slice();
    if path.contains(&0) || path.split(|&byte| byte == b'/').any(|name| matches!(name, b"" | b"." | b"..")) {
        return Err("a path that leaves the data directory");
    }
    if path.len() > LONGEST_PATH || path.split(|&byte| byte == b'/').any(|name| name.len() > LONGEST_NAME) {
        return Err("a path that is too long");
    }
    if is_reserved(path) {
        return Err("a name that zenith keeps for itself");
    }
    match before.last().map(|last| last.path.as_slice().cmp(path)) {
        Some(std::cmp::Ordering::Equal) => return Err("a path that is there twice"),
        Some(std::cmp::Ordering::Greater) => return Err("paths out of order"),
        _ => {}
    }
    if let Some(slash) = path.iter().rposition(|&byte| byte == b'/')
        && !is_folder(before, &path[..slash])
    {
        return Err("a path in what is not a folder of the snapshot");
    }
    if entry.mode > PERMISSIONS {
        return Err("impossible permission bits");
    }
    match &entry.node {
        Node::Symlink { target } if target.is_empty() || target.len() > LONGEST_PATH || target.contains(&0) => {
            Err("a symbolic link to nowhere")
        }
        Node::Symlink { .. } if is_own(path) => Err("a symbolic link where PostgreSQL or zenith writes"),
        _ => Ok(()),
    }
}

/// Returns whether `path` is a folder among the sorted `entries`.
fn is_folder(entries: &[Entry], path: &[u8]) -> bool {
    // Most entries lie in the folder of the one before.
    if let Some(last) = entries.last()
        && last.path.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/') && !rest[1..].contains(&b'/'))
    {
        return true;
    }
    let found = entries.binary_search_by(|entry| entry.path.as_slice().cmp(path));
    found.is_ok_and(|at| entries[at].node == Node::Dir)
}
