//! The only place that syncs and renames. Each function is named by its promise.
//!
//! A temporary file is made in the repository's `tmp/` (same file system as everything else),
//! written, synced, renamed, and then the folder that received the name is synced: a crash at
//! any instant leaves the old state or the new one under a name, never a mixture.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rayon::prelude::*;
use tempfile::NamedTempFile;

/// Whether an immutable file was new or had been there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    New,
    Existing,
}

/// Returns a new file with a unique name in `tmp`, removed again unless it is published.
pub fn temp_file(tmp: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix("z-").permissions(by_umask()).tempfile_in(tmp)
}

/// Returns the mode of a new file of which the umask takes what it takes, see [`mode`](super::mode).
pub fn by_umask() -> Permissions {
    Permissions::from_mode(0o666)
}

/// Syncs a folder: the names created, renamed or removed in it survive a crash.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs the content of one file.
pub fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs the content and the length of an open file.
pub fn sync_open(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Gives a temporary file a name without syncing anything: for files that a crash may take.
pub fn keep_as(file: NamedTempFile, path: &Path) -> io::Result<File> {
    file.persist(path).map_err(|error| error.error)
}

/// Replaces the content of `path`. After `Ok`, a crash leaves the new content; before, the old
/// content or the new one.
pub fn replace(tmp: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = temp_file(tmp)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_dir(parent(path)?)
}

/// Publishes a finished temporary file under a name that is given by its content: a file that
/// is there already is the same file, and success.
pub fn put_immutable(file: NamedTempFile, path: &Path) -> io::Result<Put> {
    file.as_file().sync_all()?;
    let dir = parent(path)?;
    match file.persist_noclobber(path) {
        Ok(_) => sync_dir(dir).map(|()| Put::New),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            // Whoever wrote it may not have synced the folder yet.
            sync_dir(dir).map(|()| Put::Existing)
        }
        Err(error) => Err(error.error),
    }
}

/// Renames a prepared folder, whose files are synced already, to a name that must be free.
pub fn publish_dir(from: &Path, to: &Path) -> io::Result<()> {
    sync_dir(from)?;
    fs::rename(from, to)?;
    sync_dir(parent(to)?)
}

/// Appends `bytes` to an open file; they survive a crash after `Ok`. A crash before that may leave
/// a prefix of them at its end.
pub fn append_to(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_data()
}

/// Writes a file that may be in use by name already, in place, and syncs it and its folder.
pub fn write_in_place(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    write(&mut file)?;
    file.sync_all()?;
    sync_dir(parent(path)?)
}

/// Syncs everything below `root`, files before the folders that name them; many at once, since a
/// journal commits them together.
pub fn sync_tree(root: &Path) -> io::Result<()> {
    let entries = fs::read_dir(root)?.collect::<io::Result<Vec<_>>>()?;
    entries.into_par_iter().try_for_each(|entry| {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())
        } else if kind.is_file() {
            sync_file(&entry.path())
        } else {
            Ok(())
        }
    })?;
    sync_dir(root)
}

/// Removes a file whose absence must survive a crash; one that is gone already is success.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a folder and its missing parents, durably.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let dir = parent(path)?;
    create_dir_all(dir)?;
    match fs::create_dir(path) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(dir) => Ok(dir),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder")),
    }
}
