//! Reads small files whole, and no others: what is longer than it can be is damaged, and takes no memory.

use std::io::{self, Read};
use std::path::Path;

use super::regular;

/// The most bytes of a ref: a tag has a message.
pub const REF: u64 = 1 << 20;
/// The most bytes of an entry of the trash: a tag's message, of which each byte may take six, and why it was deleted.
pub const ENTRY: u64 = 16 << 20;
/// The most bytes of the config.
pub const CONFIG: u64 = 16 << 20;
/// The most bytes of a timeline's origin: five lines.
pub const ORIGIN: u64 = 4096;

/// The most bytes of a file in which PostgreSQL notes what a cluster is, as `PG_VERSION` and `pg_control`.
pub const OF_CLUSTER: u64 = 64 << 10;

/// Returns the content of a file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_from(regular::open(path)?, most)
}

/// Returns all that `source` has, if that is at most `most` bytes.
pub fn read_from(source: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    source.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {most} bytes")));
    }
    Ok(content)
}

/// Returns the text of a file of at most `most` bytes.
pub fn read_to_string(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_long_is_an_error_and_takes_no_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "text").unwrap();
        assert_eq!(read_to_string(file.path(), 4).unwrap(), "text");
        file.as_file().set_len(1 << 40).unwrap(); // a hole
        let error = read_to_string(file.path(), 4).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 4 bytes");
    }
}
