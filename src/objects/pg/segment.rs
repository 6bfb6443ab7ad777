//! WAL segments: their sizes and file names (`src/include/access/xlog_internal.h`).

use super::Lsn;

/// The shortest segment, bytes.
pub const SMALLEST: u32 = 1 << 20;
/// The largest ones.
pub const LARGEST: u32 = 1 << 30;

/// Returns whether PostgreSQL knows segments of this many bytes: powers of two from 1 MiB to 1 GiB.
pub fn is_valid_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (SMALLEST..=LARGEST).contains(&bytes)
}

/// Returns the name of the segment that holds `lsn`: three groups of eight hexadecimal digits.
pub fn file_name(timeline: u32, lsn: Lsn, segment_size: u32) -> String {
    let per_id = 0x1_0000_0000 / u64::from(segment_size);
    let number = lsn.segment_number(segment_size);
    format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id)
}

/// Returns PostgreSQL's timeline id and the first LSN of the segment of this name; `None` for
/// files that are not segments, such as `.history` and `.partial`.
pub fn parse_file_name(name: &str, segment_size: u32) -> Option<(u32, Lsn)> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    let (timeline, high, low) = (part(0)?, part(8)?, part(16)?);
    let start = u64::from(low).checked_mul(u64::from(segment_size)).filter(|&start| start < 0x1_0000_0000)?;
    Some((timeline, Lsn(u64::from(high) << 32 | start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (lsn, size, name) in [
            (Lsn(0x100_0000), 16 << 20, "000000010000000000000001"),
            (Lsn(0x12_FF00_0000), 16 << 20, "0000000100000012000000FF"),
            (Lsn(0x1_0010_0000), 1 << 20, "000000010000000100000001"),
        ] {
            assert_eq!(file_name(1, lsn, size), name);
            assert_eq!(parse_file_name(name, size), Some((1, lsn)));
        }
        for name in ["00000002.history", "000000010000000000000001.partial", "", "00000001000000000000FFFF"] {
            assert_eq!(parse_file_name(name, 16 << 20), None, "{name}");
        }
    }
}
