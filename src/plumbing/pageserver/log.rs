//! The page server's log: structured lines, filtered by `RUST_LOG`, put away when a file grows large.

use std::path::Path;
use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing_subscriber::EnvFilter;

/// A file of the log has at most so many bytes, and so many older ones are kept.
const LARGEST: usize = 10 << 20;
const KEPT: usize = 3;

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Opens the file `path`, to go on behind what is there; one that has grown large becomes `path.1`.
fn open(path: &Path) -> FileRotate<AppendCount> {
    FileRotate::new(path, AppendCount::new(KEPT), ContentLimit::BytesSurpassed(LARGEST), Compression::None, None)
}

/// Has everything logged to the file `path`.
pub fn to_file(path: &Path) {
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter());
    let _ = subscriber.with_writer(Mutex::new(open(path))).try_init(); // another one stays in place
}

/// Has everything logged to standard error, for people.
pub fn to_terminal() {
    let subscriber = tracing_subscriber::fmt().with_target(false).with_env_filter(filter());
    let _ = subscriber.with_writer(std::io::stderr).with_ansi(false).try_init();
}

#[cfg(test)]
mod tests {
    use std::fs;
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
}
