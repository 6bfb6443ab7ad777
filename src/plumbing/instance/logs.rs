//! Log files: one that has grown large is put away as `log.1`, and a few older ones are kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::objects::regular;

/// A log is put away at that size, bytes, and so many older ones are kept.
const LARGEST: u64 = 10 << 20;
const KEPT: usize = 3;

/// A log that this process writes all of, from many threads. Who writes to it has other work to do, which must not fail for
/// a line: a file that the user removed, or a disk that is full, costs lines at most.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    current: Mutex<Current>,
}

/// The file that lines go to, and how many bytes it has.
#[derive(Debug)]
struct Current {
    file: File,
    bytes: u64,
}

impl Log {
    /// Opens the file `path`, to go on behind what is there.
    pub fn open(path: &Path) -> io::Result<Log> {
        let file = make(path)?;
        let bytes = file.metadata()?.len();
        Ok(Log { path: path.to_owned(), current: Mutex::new(Current { file, bytes }) })
    }

    fn add(&self, line: &[u8]) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.file.write_all(line)?;
        current.bytes += line.len() as u64;
        if current.bytes > LARGEST {
            // Where it cannot be put away, lines go on in the old one, and that is tried again after as many.
            current.bytes = 0;
            current.file = put_away(&self.path)?;
        }
        Ok(())
    }
}

impl Write for &Log {
    /// Writes a line. Nobody is told if that fails: there is no other place to tell it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a log, where there is none; refuses what is no file, such as a pipe, for which its writers would wait.
pub fn make(path: &Path) -> io::Result<File> {
    regular::open_with(File::options().create(true).append(true), path)
}

/// Puts the file `path` away if it is large: for a log that programs write to which know of no other. Those that have it
/// open go on in the older one.
pub fn put_away_if_large(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LARGEST => put_away(path).map(drop),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts a log away as the first of the older ones, each of which becomes the next, as far as the first number that is free.
/// Returns the new one.
fn put_away(path: &Path) -> io::Result<File> {
    let free = (1..KEPT).find(|number| !numbered(path, *number).exists()).unwrap_or(KEPT);
    for number in (0..free).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            // Removed by the user.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    make(path)
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_added_extension(number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(log: &Log, bytes: u64, line: &str) {
        (0..bytes / line.len() as u64).for_each(|_| (&mut &*log).write_all(line.as_bytes()).unwrap());
    }

    #[test]
    fn a_few_files_of_limited_size_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "of the daemon before\n").unwrap();
        let line = "x".repeat(999) + "\n";
        write(&Log::open(&path).unwrap(), LARGEST + 2000, &line);
        let first = fs::read_to_string(dir.path().join("log.1")).unwrap();
        assert!(first.starts_with("of the daemon before\n") && first.len() as u64 <= LARGEST + 1000);
        write(&Log::open(&path).unwrap(), 6 * LARGEST, &line);
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 1 + KEPT);
        let largest = files.iter().map(|file| file.metadata().unwrap().len()).max().unwrap();
        assert!(largest <= LARGEST + 1000, "{largest} bytes");
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
        fs::File::options().write(true).open(&path).unwrap().set_len(LARGEST + 1).unwrap();
        put_away_if_large(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("log.1")).unwrap().len(), LARGEST + 1);
    }

    #[test]
    fn what_happens_to_its_files_does_not_stop_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (old, line) = (|number| numbered(&path, number), "x".repeat(999) + "\n");
        let log = Log::open(&path).unwrap();
        (0..3).for_each(|_| write(&log, LARGEST + 1000, &line));
        // Somebody needs the room: older ones, and the one in use.
        fs::remove_file(old(2)).unwrap();
        write(&log, LARGEST + 1000, &line);
        assert!([1, 2, 3].iter().all(|number| old(*number).exists()));
        fs::remove_file(&path).unwrap();
        write(&log, LARGEST + 1000, &line);
        // Somebody is in the way: lines go on in the file at hand.
        [1, 2, 3].iter().for_each(|number| drop(fs::remove_file(old(*number))));
        fs::create_dir_all(old(1).join("full")).unwrap();
        fs::create_dir_all(old(2).join("full")).unwrap();
        fs::write(old(3), "").unwrap();
        write(&log, 2 * LARGEST, &line);
        assert!(fs::metadata(&path).unwrap().len() > 2 * LARGEST - 1000);
    }

    #[test]
    fn a_full_disk_and_a_thread_that_panics_cost_lines_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("log")).unwrap();
        let panics = || {
            let _held = log.current.lock().unwrap();
            panic!("with the log in hand");
        };
        std::thread::scope(|scope| scope.spawn(panics).join().unwrap_err());
        assert!(log.current.is_poisoned());
        write(&log, 5, "line\n");
        assert_eq!(fs::read_to_string(&log.path).unwrap(), "line\n");
        let full = File::options().write(true).open("/dev/full").unwrap();
        log.current.lock().unwrap_or_else(PoisonError::into_inner).file = full;
        write(&log, 5, "line\n");
    }
}
