//! Prepares a data directory with the files of a snapshot so that PostgreSQL replays the WAL from there.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use super::Error;
use crate::objects::file_error::cannot;
use crate::objects::pg::control::{self, ControlFile, State};
use crate::objects::pg::segment;
use crate::objects::pg::version::Version;
use crate::objects::snapshot::Snapshot;
use crate::objects::{bounded, durable, folder, regular};

/// Returns whether the files of a snapshot are those of a server that was shut down, rather than
/// a backup of one that ran: only a shutdown checkpoint is its own redo point.
pub fn is_exact(snapshot: &Snapshot) -> bool {
    snapshot.start == snapshot.checkpoint
}

/// Writes `backup_label` into a data directory with the files of `snapshot`.
///
/// With it PostgreSQL replays from the snapshot's checkpoint on to the end of the WAL in `pg_wal`.
/// Without it a cleanly shut down `pg_control` would make PostgreSQL skip the replay and overwrite the
/// WAL.
///
/// The method is `streamed` for every backup of a running server: its files are consistent only
/// behind the record that ends the backup, and up to there PostgreSQL puts up with records about pages of
/// relations that were dropped before they were copied (`src/backend/access/transam/xlogrecovery.c`). With
/// `snapshot` it takes the files for consistent at once, and such a record is a PANIC. That is right for an
/// exact snapshot alone, behind which no record ends a backup.
pub fn write_backup_label(data_dir: &Path, snapshot: &Snapshot) -> Result<(), Error> {
    let path = data_dir.join("backup_label");
    let label = backup_label(snapshot, was_standby(data_dir, snapshot)?);
    let write = |file: &mut fs::File| file.write_all(label.as_bytes());
    durable::write_in_place(&path, write).map_err(cannot::<Error>("write", &path))
}

/// Returns whether the files were copied from a standby: the end of such a backup is what its `pg_control`
/// says, not a record.
fn was_standby(data_dir: &Path, snapshot: &Snapshot) -> Result<bool, Error> {
    // In a directory that is not complete it has another name.
    let unfinished = data_dir.join(control::UNFINISHED);
    let path = if unfinished.exists() { unfinished } else { data_dir.join(control::PATH) };
    let bytes = bounded::read(&path, bounded::OF_CLUSTER).map_err(cannot::<Error>("read", &path))?;
    let version = Version::of_major(snapshot.postgres_major);
    let control = version.and_then(|version| ControlFile::parse(&bytes, version).ok());
    Ok(control.is_some_and(|control| matches!(control.state, State::InArchiveRecovery | State::ShutDownInRecovery)))
}

/// Makes the server of a data directory at rest a standby: it never writes WAL. `pg_control` may speak of the backup
/// that the files came from, also after they were recovered; PostgreSQL 14 would let nobody in before it had found
/// the end of that.
pub fn make_standby(data_dir: &Path, version: &Version) -> Result<(), Error> {
    let path = data_dir.join(control::PATH);
    let mut bytes = bounded::read(&path, bounded::OF_CLUSTER).map_err(cannot::<Error>("read", &path))?;
    let damaged = |error| cannot::<Error>("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error));
    control::forget_backup(&mut bytes, version).map_err(damaged)?;
    regular::write(&path, &bytes).map_err(cannot::<Error>("write", &path))?;
    let path = data_dir.join("standby.signal");
    regular::write(&path, "").map_err(cannot::<Error>("write", &path))
}

fn backup_label(snapshot: &Snapshot, from_standby: bool) -> String {
    let method = if is_exact(snapshot) { "snapshot" } else { "streamed" };
    let from = if from_standby { "standby" } else { "primary" };
    let timeline = snapshot.postgres_timeline;
    let file = segment::file_name(timeline, snapshot.start, snapshot.wal_segment_size);
    let time = jiff::Timestamp::from_microsecond(snapshot.time_us).unwrap_or_default();
    let time = time.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "START WAL LOCATION: {} (file {file})\n\
         CHECKPOINT LOCATION: {}\n\
         BACKUP METHOD: {method}\n\
         BACKUP FROM: {from}\n\
         START TIME: {time}\n\
         LABEL: zenith\n\
         START TIMELINE: {timeline}\n",
        snapshot.start, snapshot.checkpoint
    )
}

/// Makes `pg_wal` of a data directory a link to `wal_dir`, unless it is. The link is a relative one: a repository
/// that is copied or moved stays in itself, and a server in the copy never writes the original's WAL.
pub fn link_wal(data_dir: &Path, wal_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join("pg_wal");
    let absolute = |path: &Path| std::path::absolute(path).map_err(cannot::<Error>("find", path));
    let target = relative(&absolute(data_dir)?, &absolute(wal_dir)?);
    if fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot::<Error>("remove", &path)(error)),
        _ => {}
    }
    symlink(target, &path).map_err(cannot::<Error>("create", &path))
}

/// Returns whether a data directory has tablespaces in folders elsewhere. If it was copied with its repository, those
/// are the original's, so it is not taken up again after a crash: replayed from a snapshot they become its own.
pub fn has_tablespaces_elsewhere(data_dir: &Path) -> bool {
    let is_link = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
    // One that cannot be looked into may have some.
    folder::entries(&data_dir.join("pg_tblspc")).map_or(true, |entries| entries.iter().any(is_link))
}

/// Returns the way from the folder `from` to `to`, both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_relative() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(way("/r/datadirs/t/data", "/r/timelines/t/wal"), Path::new("../../../timelines/t/wal"));
        assert_eq!(way("/r/datadirs/t/data", "/r/datadirs/t/wal"), Path::new("../wal"));
        assert_eq!(way("/a", "/b/c"), Path::new("../b/c"));
    }
}
