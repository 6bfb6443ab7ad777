//! What is in a folder, all of it: a look that fails must never pass for an empty folder, since things are removed, and ends of WAL
//! believed, by what is not there.

use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
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

/// Makes a folder, unless it is there, in one that is there: should a repository have been moved meanwhile, nobody makes another one in
/// its place. Not durable.
pub fn make_in_place(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Returns the bytes that all below `path` takes on the disk; what cannot be looked at counts as nothing.
pub fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = metadata.is_dir().then(|| fs::read_dir(path)).into_iter().flatten().flatten();
    let below: u64 = below.flatten().map(|entry| disk_bytes(&entry.path())).sum();
    metadata.blocks().saturating_mul(512).saturating_add(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_the_folder_above() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("repository/tmp");
        assert_eq!(make_in_place(&below).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(dir.path().join("repository")).unwrap();
        make_in_place(&below).unwrap();
        make_in_place(&below).unwrap();
    }

    #[test]
    fn what_a_folder_takes_is_what_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        let empty = disk_bytes(dir.path());
        fs::write(below.join("file"), [1; 100_000]).unwrap();
        fs::File::create(below.join("holes")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/usr", below.join("elsewhere")).unwrap();
        let taken = disk_bytes(dir.path()) - empty;
        // Some file systems compress.
        assert!((1..200_000).contains(&taken), "{taken} bytes");
        assert_eq!(disk_bytes(&dir.path().join("nothing")), 0);
    }
}
