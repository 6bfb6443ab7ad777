//! Log files: one that has grown large is put away as `log.1`, and a few older ones are kept.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};

use crate::objects::regular;

/// A log is put away at that size, bytes, and so many older ones are kept.
const LARGEST: usize = 10 << 20;
const KEPT: usize = 3;

/// Opens the file `path` for who writes all of it, to go on behind what is there.
pub fn open(path: &Path) -> FileRotate<AppendCount> {
    FileRotate::new(path, AppendCount::new(KEPT), ContentLimit::BytesSurpassed(LARGEST), Compression::None, None)
}

/// Makes a log, where there is none; refuses what is no file, such as a pipe, for which its writers would wait.
pub fn make(path: &Path) -> io::Result<File> {
    regular::open_with(File::options().create(true).append(true), path)
}

/// Puts the file `path` away if it is large: for a log that programs write to which know of no other. Those that have it
/// open go on in the older one.
pub fn put_away_if_large(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LARGEST as u64 => open(path).rotate(),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_few_files_of_limited_size_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "of the daemon before\n").unwrap();
        let line = "x".repeat(999) + "\n";
        let mut log = open(&path);
        (0..LARGEST / 1000 + 2).for_each(|_| log.write_all(line.as_bytes()).unwrap());
        let first = fs::read_to_string(dir.path().join("log.1")).unwrap();
        assert!(first.starts_with("of the daemon before\n") && first.len() <= LARGEST + line.len());
        drop(log);
        let mut log = open(&path);
        (0..6 * LARGEST / 1000).for_each(|_| log.write_all(line.as_bytes()).unwrap());
        drop(log);
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 1 + KEPT);
        let largest = files.iter().map(|file| file.metadata().unwrap().len()).max().unwrap();
        assert!(largest <= (LARGEST + line.len()) as u64, "{largest} bytes");
        assert!(fs::read_to_string(&path).unwrap().lines().all(|read| read == line.trim_end()));
    }

    #[test]
    fn a_log_that_others_write_is_put_away_once_it_is_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        put_away_if_large(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "small").unwrap();
        put_away_if_large(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"small");
        fs::File::options().write(true).open(&path).unwrap().set_len(LARGEST as u64 + 1).unwrap();
        put_away_if_large(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("log.1")).unwrap().len(), LARGEST as u64 + 1);
    }
}
