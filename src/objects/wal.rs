//! WAL objects: one interval of a timeline's WAL.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 8 | LSN of the first byte |
//! | rest | the WAL from there on, byte for byte as in PostgreSQL's segment file |
//!
//! An interval lies within one segment and is not empty. Where it begins and ends is up to who
//! sealed it: at a segment's boundary, or at the end of a record.

use super::codec::{Malformed, Reader};
use super::pg::Lsn;

/// The most bytes of WAL in one object: the largest segment that PostgreSQL knows.
pub const MAX_INTERVAL: usize = 1 << 30;

/// An interval that is empty, or longer than a segment can be: no reader takes it.
#[derive(Debug, thiserror::Error)]
#[error("an interval of {length} bytes from {start} on")]
pub struct Impossible {
    pub start: Lsn,
    pub length: usize,
}

/// Returns the content of the object that holds `bytes` of WAL from `start` on.
pub fn encode(start: Lsn, bytes: &[u8]) -> Result<Vec<u8>, Impossible> {
    if !is_possible(bytes.len()) {
        return Err(Impossible { start, length: bytes.len() });
    }
    let mut content = Vec::with_capacity(8 + bytes.len());
    content.extend_from_slice(&start.0.to_le_bytes());
    content.extend_from_slice(bytes);
    Ok(content)
}

fn is_possible(length: usize) -> bool {
    (1..=MAX_INTERVAL).contains(&length)
}

/// Returns the LSN of the first byte, and the WAL.
pub fn decode(content: &[u8]) -> Result<(Lsn, &[u8]), Malformed> {
    let mut reader = Reader::new(content);
    let start = Lsn(reader.u64()?);
    let left = reader.left();
    if !is_possible(left) {
        return Err(reader.malformed("an interval of impossible length"));
    }
    Ok((start, reader.take(left)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        let content = encode(Lsn(77), b"wal").unwrap();
        assert_eq!(decode(&content), Ok((Lsn(77), &b"wal"[..])));
    }

    #[test]
    fn refuses_empty_intervals() {
        assert!(encode(Lsn(77), b"").is_err());
        assert!(decode(&[77, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(decode(b"short").is_err());
    }
}
