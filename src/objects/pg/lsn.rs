//! Log sequence numbers: byte positions in the WAL.

use std::fmt;
use std::str::FromStr;

/// A 64-bit position in the WAL, in bytes, printed `X/Y` in upper-case hexadecimal as
/// PostgreSQL's `pg_lsn` type does (`src/backend/utils/adt/pg_lsn.c`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position: PostgreSQL's `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// Beyond every position.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Returns the offset of this position in its segment of `segment_size` bytes.
    pub fn segment_offset(self, segment_size: u32) -> u32 {
        (self.0 % u64::from(segment_size)) as u32 // a remainder of a u32
    }

    /// Returns the number of the segment that holds this position.
    pub fn segment_number(self, segment_size: u32) -> u64 {
        self.0 / u64::from(segment_size)
    }

    /// Returns the first position of the segment that holds this position.
    pub fn segment_start(self, segment_size: u32) -> Lsn {
        Lsn(self.0 - u64::from(self.segment_offset(segment_size)))
    }

    /// Returns the first position of the page of WAL that holds this position.
    pub fn page_start(self) -> Lsn {
        Lsn(self.0 - self.0 % super::wal::PAGE as u64)
    }

    /// Returns the position `bytes` further on; stays at [`Lsn::MAX`] rather than wrap.
    pub fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Returns this position, or the next where a record can begin; stays rather than wrap.
    pub fn aligned(self) -> Lsn {
        Lsn(self.0.checked_next_multiple_of(8).unwrap_or(self.0))
    }

    /// Returns how many bytes lie between `earlier` and this position; 0 where `earlier` is later.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an LSN: expected two hexadecimal numbers like 0/15ECF68")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |part: &str| match part.len() {
            1..=8 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(part, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgresql_does() {
        for (number, text) in
            [(0, "0/0"), (0x15ECF68, "0/15ECF68"), (0x1_0000_0001, "1/1"), (u64::MAX, "FFFFFFFF/FFFFFFFF")]
        {
            assert_eq!(Lsn(number).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(number)));
        }
        assert_eq!("0/15ecf68".parse(), Ok(Lsn(0x15ECF68)));
    }

    #[test]
    fn refuses_what_is_not_an_lsn() {
        for text in ["", "/", "0", "0/", "/0", "0/1/2", "0/123456789", "+1/0", "0/-1", "g/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn finds_segments() {
        let lsn = Lsn(0x0215_ECF6);
        assert_eq!(lsn.segment_number(16 << 20), 2);
        assert_eq!(lsn.segment_start(16 << 20), Lsn(0x0200_0000));
        assert_eq!(lsn.segment_offset(16 << 20), 0x15ECF6);
    }
}
