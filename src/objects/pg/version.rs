//! What differs between PostgreSQL's major versions, in one table.

/// One major version.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// As in `PG_VERSION`.
    pub major: u32,
    /// `XLOG_PAGE_MAGIC` (`src/include/access/xlog_internal.h`).
    pub wal_magic: u16,
    /// Offset of the checksum in `pg_control`, bytes (`src/include/catalog/pg_control.h`).
    pub control_crc_offset: usize,
    /// Bits of `bimg_info` that say that a page image is compressed (`src/include/access/xlogrecord.h`).
    pub image_compressed: u8,
    /// Bit of `bimg_info` that says that replay applies the image.
    pub image_apply: u8,
}

/// The versions that zenith knows, oldest first.
pub static VERSIONS: [Version; 5] = [
    Version { major: 14, wal_magic: 0xD10D, control_crc_offset: 288, image_compressed: 0x02, image_apply: 0x04 },
    Version { major: 15, wal_magic: 0xD110, control_crc_offset: 288, image_compressed: 0x1C, image_apply: 0x02 },
    Version { major: 16, wal_magic: 0xD113, control_crc_offset: 288, image_compressed: 0x1C, image_apply: 0x02 },
    Version { major: 17, wal_magic: 0xD116, control_crc_offset: 288, image_compressed: 0x1C, image_apply: 0x02 },
    Version { major: 18, wal_magic: 0xD118, control_crc_offset: 292, image_compressed: 0x1C, image_apply: 0x02 },
];

impl Version {
    /// Returns the version of this major number.
    pub fn of_major(major: u32) -> Option<&'static Version> {
        VERSIONS.iter().find(|version| version.major == major)
    }

    /// Returns the version that writes WAL pages with this magic number.
    pub fn of_wal_magic(magic: u16) -> Option<&'static Version> {
        VERSIONS.iter().find(|version| version.wal_magic == magic)
    }
}
