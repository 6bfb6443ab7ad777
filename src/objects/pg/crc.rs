//! CRC-32C, PostgreSQL's checksum of WAL records, control files and slots (`src/include/port/pg_crc32c.h`).

use crc_fast::{CrcAlgorithm, Digest};

/// Returns the CRC-32C of `parts`, one after the other.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    crc32c_begin(parts).finalize() as u32 // a 32-bit checksum
}

/// Begins a CRC-32C with `parts`, to be gone on with more than once.
pub fn crc32c_begin(parts: &[&[u8]]) -> Digest {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    digest
}

/// Returns the CRC-32C of what was begun and `parts` behind it.
pub fn crc32c_go_on(begun: &Digest, parts: &[&[u8]]) -> u32 {
    let mut digest = *begun;
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize() as u32 // a 32-bit checksum
}
