//! Prepares a restored data directory so that PostgreSQL replays the WAL from its snapshot.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::Error;
use crate::objects::durable;
use crate::objects::pg::segment;
use crate::objects::snapshot::Snapshot;

/// Writes `backup_label` into a data directory that was restored from `snapshot`.
///
/// With it PostgreSQL runs plain crash recovery from the snapshot's checkpoint to the end of the
/// WAL in `pg_wal`. Without it a cleanly shut down `pg_control` would make PostgreSQL skip the replay
/// and overwrite the WAL. The method must not be `streamed`, which would demand the record that ends
/// a base backup (`src/backend/access/transam/xlogrecovery.c`).
pub fn write_backup_label(data_dir: &Path, snapshot: &Snapshot) -> Result<(), Error> {
    let path = data_dir.join("backup_label");
    let write = |file: &mut fs::File| file.write_all(backup_label(snapshot).as_bytes());
    durable::write_in_place(&path, write).map_err(Error::io("write", &path))
}

fn backup_label(snapshot: &Snapshot) -> String {
    let timeline = snapshot.postgres_timeline;
    let file = segment::file_name(timeline, snapshot.start, snapshot.wal_segment_size);
    let time = jiff::Timestamp::from_microsecond(snapshot.time_us).unwrap_or_default();
    let time = time.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "START WAL LOCATION: {} (file {file})\n\
         CHECKPOINT LOCATION: {}\n\
         BACKUP METHOD: snapshot\n\
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
