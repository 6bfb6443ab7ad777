//! WAL segments.
/// Returns whether PostgreSQL knows segments of this many bytes.
pub fn is_valid_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)
}
