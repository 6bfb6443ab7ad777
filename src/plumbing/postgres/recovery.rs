//! Prepares a restored data directory so that PostgreSQL replays the WAL from its snapshot.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::Error;
use crate::objects::durable;
use crate::objects::pg::segment;
use crate::objects::snapshot::Snapshot;

/// When a server that recovers may let somebody read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    /// At the end of the WAL: plain crash recovery.
    AtTheEnd,
    /// As soon as the record is replayed that ends the backup.
    AfterBackup,
}

/// Returns whether the files of a snapshot are those of a server that was shut down, rather than
/// a backup of one that ran: only a shutdown checkpoint is its own redo point.
pub fn is_exact(snapshot: &Snapshot) -> bool {
    snapshot.start == snapshot.checkpoint
}

/// Writes `backup_label` into a data directory with the files of `snapshot`.
///
/// With it PostgreSQL replays from the snapshot's checkpoint on to the end of the WAL in `pg_wal`.
/// Without it a cleanly shut down `pg_control` would make PostgreSQL skip the replay and overwrite the
/// WAL. The method `streamed` makes it wait for the record that ends a base backup before anybody may
/// read (`src/backend/access/transam/xlogrecovery.c`), which WAL behind an exact snapshot does not have.
pub fn write_backup_label(data_dir: &Path, snapshot: &Snapshot, readable: Readable) -> Result<(), Error> {
    let path = data_dir.join("backup_label");
    let streamed = readable == Readable::AfterBackup && !is_exact(snapshot);
    let label = backup_label(snapshot, if streamed { "streamed" } else { "snapshot" });
    let write = |file: &mut fs::File| file.write_all(label.as_bytes());
    durable::write_in_place(&path, write).map_err(Error::io("write", &path))
}

/// Makes the server of a data directory a standby: it replays what there is, and never writes WAL.
pub fn write_standby_signal(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join("standby.signal");
    fs::write(&path, "").map_err(Error::io("write", &path))
}

fn backup_label(snapshot: &Snapshot, method: &str) -> String {
    let timeline = snapshot.postgres_timeline;
    let file = segment::file_name(timeline, snapshot.start, snapshot.wal_segment_size);
    let time = jiff::Timestamp::from_microsecond(snapshot.time_us).unwrap_or_default();
    let time = time.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "START WAL LOCATION: {} (file {file})\n\
         CHECKPOINT LOCATION: {}\n\
         BACKUP METHOD: {method}\n\
         BACKUP FROM: primary\n\
         START TIME: {time}\n\
         LABEL: zenith\n\
         START TIMELINE: {timeline}\n",
        snapshot.start, snapshot.checkpoint
    )
}

/// Makes `pg_wal` of a data directory a link to `wal_dir`.
pub fn link_wal(data_dir: &Path, wal_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join("pg_wal");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path)(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(wal_dir, &path).map_err(Error::io("create", &path))
}
