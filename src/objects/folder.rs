//! What is in a folder, all of it: a look that fails must never pass for an empty folder, since things are removed, and ends of WAL
//! believed, by what is not there.

use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

/// Returns the entries of a folder; none, if there is no such folder.
pub fn entries(dir: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns the names in a folder; none, if there is no such folder.
pub fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    Ok(entries(dir)?.into_iter().map(|entry| entry.file_name()).collect())
}
