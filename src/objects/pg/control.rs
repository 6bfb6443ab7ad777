//! `global/pg_control`: the state of a cluster (`src/include/catalog/pg_control.h`).

use std::ops::Range;

use super::Lsn;
use super::version::Version;

/// Where it lies in a data directory (`XLOG_CONTROL_FILE` in `src/include/access/xlog_internal.h`).
pub const PATH: &str = "global/pg_control";
/// What it is called as long as a data directory is not complete. Without it no PostgreSQL starts.
pub const UNFINISHED: &str = "global/pg_control.unfinished";

/// The cluster's state, PostgreSQL's `DBState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

/// The fields that zenith needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: u64,
    pub catalog_version: u32,
    pub state: State,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    /// PostgreSQL's own timeline id at that checkpoint.
    pub timeline: u32,
    pub min_recovery_point: Lsn,
    pub block_size: u32,
    pub wal_block_size: u32,
    /// Bytes.
    pub wal_segment_size: u32,
    pub data_checksums: bool,
    /// The settings that its server had last.
    pub sizes: Sizes,
}

/// The settings that bound what a server keeps in memory of its transactions: the WAL that it writes is replayed, and
/// shown, only by one that has as much room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes([u32; 5]);

/// Their names, in the order in which they lie in `pg_control` and in WAL, and PostgreSQL's own values of them.
const SIZES: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

impl Sizes {
    /// How long they are in `pg_control` and in WAL, bytes.
    pub const LENGTH: usize = 4 * SIZES.len();

    /// Reads them.
    pub fn parse(bytes: &[u8; Sizes::LENGTH]) -> Sizes {
        let (numbers, _) = bytes.as_chunks();
        Sizes(std::array::from_fn(|at| u32::from_le_bytes(numbers[at])))
    }

    /// Makes each at least as large as that of `other`.
    pub fn raise(&mut self, other: &Sizes) {
        self.0.iter_mut().zip(other.0).for_each(|(size, other)| *size = (*size).max(other));
    }

    /// Returns that of a setting, if the setting that is `configured` is not enough.
    pub fn more_than(&self, setting: &str, configured: Option<&str>) -> Option<u32> {
        let at = SIZES.iter().position(|(name, _)| *name == setting)?;
        let has = configured.map_or(Some(SIZES[at].1), |value| value.parse().ok());
        has.is_none_or(|has| has < self.0[at]).then_some(self.0[at])
    }
}

/// The file is not a control file of a version that zenith knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("pg_control has only {0} bytes")]
    TooShort(usize),
    #[error("the checksum of pg_control does not match its content")]
    Checksum,
    #[error("pg_control says impossible things: {0}")]
    Impossible(&'static str),
    #[error("zenith works with 8 KiB blocks; this cluster has blocks of {0} bytes")]
    BlockSize(u32),
}

impl ControlFile {
    /// Reads the content of `pg_control` of a cluster of `version`.
    pub fn parse(bytes: &[u8], version: &Version) -> Result<ControlFile, Error> {
        let crc_at = version.control_crc_offset;
        if bytes.len() < crc_at + 4 {
            return Err(Error::TooShort(bytes.len()));
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if super::crc::crc32c(&[&bytes[..crc_at]]) != u32_at(crc_at) {
            return Err(Error::Checksum);
        }
        let state = match u32_at(16) {
            0 => State::StartingUp,
            1 => State::ShutDown,
            2 => State::ShutDownInRecovery,
            3 => State::ShuttingDown,
            4 => State::InCrashRecovery,
            5 => State::InArchiveRecovery,
            6 => State::InProduction,
            _ => return Err(Error::Impossible("an unknown state")),
        };
        let control = ControlFile {
            system_identifier: u64_at(0),
            catalog_version: u32_at(12),
            state,
            checkpoint: Lsn(u64_at(32)),
            redo: Lsn(u64_at(40)),
            timeline: u32_at(48),
            min_recovery_point: Lsn(u64_at(136)),
            block_size: u32_at(216),
            wal_block_size: u32_at(224),
            wal_segment_size: u32_at(228),
            data_checksums: u32_at(252) != 0,
            sizes: Sizes(std::array::from_fn(|number| u32_at(180 + 4 * number))),
        };
        if !super::segment::is_valid_size(control.wal_segment_size) {
            return Err(Error::Impossible("the size of WAL segments"));
        }
        match (control.block_size, control.wal_block_size) {
            (8192, 8192) => Ok(control),
            (8192, other) | (other, _) => Err(Error::BlockSize(other)),
        }
    }
}

/// Where a backup begins, where it ends, and whether its end must be found: the same in all versions, bytes.
const BACKUP: Range<usize> = 152..169;

/// Takes out of the content of `pg_control` that the cluster came from a backup whose end was not found yet.
pub fn forget_backup(bytes: &mut [u8], version: &Version) -> Result<(), Error> {
    ControlFile::parse(bytes, version)?;
    let crc_at = version.control_crc_offset;
    bytes[BACKUP].fill(0);
    let crc = super::crc::crc32c(&[&bytes[..crc_at]]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_not_enough_is_raised_and_no_other() {
        let mut sizes = Sizes([100, 8, 10, 5, 64]);
        assert_eq!(sizes.more_than("max_prepared_transactions", None), Some(5));
        assert_eq!(sizes.more_than("max_prepared_transactions", Some("4")), Some(5));
        assert_eq!(sizes.more_than("max_prepared_transactions", Some("5")), None);
        assert_eq!(sizes.more_than("max_connections", None), None);
        assert_eq!(sizes.more_than("max_connections", Some("no number")), Some(100));
        assert_eq!(sizes.more_than("work_mem", None), None);
        sizes.raise(&Sizes([1, 9, 1, 1, 1]));
        assert_eq!(sizes, Sizes([100, 9, 10, 5, 64]));
    }

    #[test]
    fn refuses_short_and_damaged_files() {
        let version = Version::of_major(15).unwrap();
        assert_eq!(ControlFile::parse(b"x", version), Err(Error::TooShort(1)));
        assert_eq!(ControlFile::parse(&[0; 8192], version), Err(Error::Checksum));
        assert_eq!(forget_backup(&mut [0; 8192], version), Err(Error::Checksum));
    }

    #[test]
    fn a_backup_is_forgotten_and_nothing_else() {
        for version in &super::super::version::VERSIONS {
            let crc_at = version.control_crc_offset;
            let mut bytes = vec![0; 8192];
            bytes[16] = 1;
            bytes[217] = 32; // blocks of 8 KiB
            bytes[225] = 32;
            bytes[231] = 1; // segments of 16 MiB
            let seal = |bytes: &mut [u8]| {
                let crc = crate::objects::pg::crc::crc32c(&[&bytes[..crc_at]]);
                bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
            };
            seal(&mut bytes);
            let clean = bytes.clone();
            bytes[BACKUP].fill(7);
            seal(&mut bytes);
            forget_backup(&mut bytes, version).unwrap();
            assert_eq!(bytes, clean);
        }
    }
}
