//! The only place that syncs and renames. Each function is named by its promise.
//!
//! A temporary file is made in the repository's `tmp/` (same file system as everything else),
//! written, synced, renamed, and then the folder that received the name is synced: a crash at
//! any instant leaves the old state or the new one under a name, never a mixture.
//!
//! Only what is durable is believed (INVARIANT 8): whoever finds something done already, a name that is there, a line
//! in a log, may follow a process that was killed before its sync, so it syncs that itself.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::{copy, regular};

/// Where each sync is noted.
static TRACE: OnceLock<PathBuf> = OnceLock::new();

/// Has each sync of this process noted in a file, a line with the path of what was synced: so a test sees one that
/// was lost.
pub fn trace_syncs(file: &Path) {
    let _ = TRACE.set(file.to_owned()); // only the first call counts
}

/// Syncs content and all that is known of an open file or folder.
fn sync_all(file: &File) -> io::Result<()> {
    note(file);
    file.sync_all()
}

/// Syncs the content and the length of an open file.
fn sync_data(file: &File) -> io::Result<()> {
    note(file);
    #[cfg(test)]
    faults::check()?;
    file.sync_data()
}

fn note(file: &File) {
    let Some(trace) = TRACE.get() else { return };
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    // It is for tests, which see that something is missing.
    let opened = regular::open_with(OpenOptions::new().create(true).append(true), trace);
    let _ = opened.and_then(|mut trace| trace.write_all(format!("{}\n", path.display()).as_bytes()));
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
    sync_all(&regular::open_dir(dir)?)
}

/// Syncs the content of one file.
pub fn sync_file(path: &Path) -> io::Result<()> {
    sync_all(&regular::open(path)?)
}

/// Syncs the content and the length of an open file.
pub fn sync_open(file: &File) -> io::Result<()> {
    sync_data(file)
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
    replace_with(file, path)
}

/// Does so with a temporary file that has the content already.
pub fn replace_with(file: NamedTempFile, path: &Path) -> io::Result<()> {
    sync_all(file.as_file())?;
    file.persist(path).map_err(|error| error.error)?;
    sync_dir(parent(path)?)
}

/// Puts the file `new`, which is durable, in the place of `path` in the same folder.
pub fn replace_by(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    sync_dir(parent(path)?)
}

/// Renames a prepared folder, whose files are synced already, to a name that must be free.
pub fn publish_dir(from: &Path, to: &Path) -> io::Result<()> {
    sync_dir(from)?;
    fs::rename(from, to)?;
    sync_dir(parent(to)?)
}

/// Moves a folder, which nobody uses, to a name that must be free. Where that is on another file system the folder is copied,
/// which takes its room a second time; a crash between leaves both.
pub fn move_dir(tmp: &Path, from: &Path, to: &Path) -> io::Result<()> {
    match publish_dir(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        moved => return moved,
    }
    let copied = tempfile::Builder::new().prefix("moved-").tempdir_in(tmp)?;
    let whole = copied.path().join("it");
    copy::tree(from, &whole)?;
    sync_tree(&whole)?;
    publish_dir(&whole, to)?;
    discard_dir(tmp, from)
}

/// Removes a folder with all that it holds: a crash leaves all of it or nothing. One that is gone already is success. Where
/// `tmp` is on another file system the folder is renamed beside where it is.
pub fn discard_dir(tmp: &Path, path: &Path) -> io::Result<()> {
    let dir = parent(path)?;
    let away_in = |dir: &Path| tempfile::Builder::new().prefix("discarded-").tempdir_in(dir);
    let mut away = away_in(tmp)?;
    let mut renamed = fs::rename(path, away.path().join("it"));
    if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::CrossesDevices) {
        away = away_in(dir)?;
        renamed = fs::rename(path, away.path().join("it"));
    }
    match renamed {
        Ok(()) => sync_dir(dir)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    away.close()
}

/// Writes `bytes` at offset `at` of an open file; they survive a crash after `Ok`. To be called even if the file has
/// them there already and whoever wrote them may have failed to sync them: after a sync that failed the kernel takes
/// what it could not write for written, and the next sync succeeds although nothing reached the disk.
pub fn write_at(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, at)?;
    sync_data(file)
}

/// Appends `bytes` to an open file of `length` bytes to which nobody else writes; they survive a crash after `Ok`. After
/// an error nobody finds them in the file. A crash before `Ok` may leave a prefix of them at its end.
pub fn append_to(file: &File, length: u64, bytes: &[u8]) -> io::Result<()> {
    // Where they cannot be cut off, whoever finds them writes them once more.
    write_at(file, length, bytes).inspect_err(|_| drop(file.set_len(length)))
}

/// Appends a line to the file at `path`, which is made if there is none; its folder is there. It survives a crash after
/// `Ok`, and is a line of its own even if a crash left the one before without an end.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    let mut file = regular::open_with(OpenOptions::new().create(true).read(true).append(true), path)?;
    let mut last = [b'\n'];
    match file.metadata()?.len().checked_sub(1) {
        Some(at) => file.read_exact_at(&mut last, at)?,
        // Before there is anything in it: so a file with content has a name that is durable.
        None => sync_dir(parent(path)?)?,
    }
    let end_of_last = if last == *b"\n" { "" } else { "\n" };
    file.write_all(format!("{end_of_last}{line}\n").as_bytes())?;
    sync_data(&file)
}

/// Writes a file that may be in use by name already, in place, and syncs it and its folder.
pub fn write_in_place(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = regular::create(path)?;
    write(&mut file)?;
    sync_all(&file)?;
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
    let gone = match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        gone => gone,
    };
    match sync_dir(parent(path)?) {
        // So is the folder.
        Err(error) if error.kind() == io::ErrorKind::NotFound && gone.is_err() => Ok(()),
        synced => synced,
    }
}

/// Creates a folder and its missing parents, durably. Of those that are there the last may not be durable yet:
/// whoever made it synced its parents before.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return match path.parent().map_or(Ok(()), sync_dir) {
            // Who may not read that one did not make this one; and some file systems sync no folders.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
                Ok(())
            }
            synced => synced,
        };
    }
    let dir = parent(path)?;
    create_dir_all(dir)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(dir),
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(dir) => Ok(dir),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder")),
    }
}

#[cfg(test)]
pub mod faults {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static NEXT: Cell<bool> = const { Cell::new(false) };
    }

    /// Has the next sync of a file's content fail on this thread.
    pub fn fail_next_sync() {
        NEXT.set(true);
    }

    pub(super) fn check() -> io::Result<()> {
        if NEXT.take() { Err(io::Error::from_raw_os_error(nix::libc::EIO)) } else { Ok(()) }
    }
}
