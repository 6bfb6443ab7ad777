//! Who may read a repository's files: its owner alone, or with `core.shared = "group"` its group, as with git.
//!
//! What is made gets its mode from the process's umask, which `cli` sets at the start: no file is open to others even for
//! a moment. This here closes what was made before, by an older program or by a copy that lost the modes.
//!
//! The folder `.zenith` itself decides: with its own mode right, nobody else gets any further. Only while the files
//! below it are being seen to it has the sticky bit, so that whoever opens it next goes on where a crash ended that.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::format::Shared;

const STICKY: u32 = 0o1000;

impl Shared {
    /// Returns the umask with which the repository's files are made.
    pub fn umask(self) -> u16 {
        match self {
            Shared::No => 0o077,
            Shared::Group => 0o007,
        }
    }

    /// Returns the mode of a folder. What is made in one that a group shares belongs to that group.
    fn folder(self) -> u32 {
        match self {
            Shared::No => 0o700,
            Shared::Group => 0o2770,
        }
    }

    /// Returns the mode of a file that has `mode`: its group may do what its owner may, or nothing.
    fn file(self, mode: u32) -> u32 {
        let own = mode & 0o700;
        match self {
            Shared::No => own,
            Shared::Group => own | own >> 3,
        }
    }
}

/// Gives the new folder `.zenith` its mode.
pub fn close(dir: &Path, shared: Shared) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(shared.folder()))
}

/// Gives all of a repository the modes that it should have, unless it has them. Costs a look at one folder; the first
/// time, one at each file. What belongs to somebody else stays as it is.
pub fn repair(dir: &Path, shared: Shared) -> io::Result<()> {
    if fs::metadata(dir)?.mode() & 0o7777 == shared.folder() {
        return Ok(());
    }
    let closed = set(dir, shared.folder() | STICKY)?;
    if closed {
        repair_below(dir, Path::new(""), shared)?;
        close(dir, shared)?;
    }
    Ok(())
}

/// Returns whether a path in the repository is what servers, and the folder of their sockets, see to themselves. The
/// data directory may be a mount, which nobody may look at who cannot wait for it.
fn is_left_alone(path: &Path) -> bool {
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    matches!(names.as_slice(), ["run"] | ["datadirs", "copies"] | ["datadirs", _, "data"])
}

/// Sees to what is in the folder `below` of the repository `dir`.
fn repair_below(dir: &Path, below: &Path, shared: Shared) -> io::Result<()> {
    let entries = match fs::read_dir(dir.join(below)) {
        Ok(entries) => entries,
        Err(error) if is_not_ours(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let (path, kind, below) = (entry.path(), entry.file_type()?, below.join(entry.file_name()));
        if is_left_alone(&below) {
            continue;
        }
        if kind.is_dir() {
            set(&path, shared.folder())?;
            repair_below(dir, &below, shared)?;
        } else if kind.is_file() {
            match fs::symlink_metadata(&path) {
                Ok(metadata) => drop(set(&path, shared.file(metadata.mode()))?),
                Err(error) if is_not_ours(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Sets a mode; returns whether that was ours to do.
fn set(path: &Path, mode: u32) -> io::Result<bool> {
    match fs::set_permissions(path, Permissions::from_mode(mode)) {
        Ok(()) => Ok(true),
        Err(error) if is_not_ours(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Somebody else's, on a file system that nobody writes to, or gone this instant.
fn is_not_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    [NotFound, PermissionDenied, ReadOnlyFilesystem].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_repository_is_closed_and_opened_to_its_group() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".zenith");
        let (folder, file, data) = (dir.join("a/b"), dir.join("a/file"), dir.join("datadirs/x/data"));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&data).unwrap();
        fs::write(&file, "").unwrap();
        for path in [&dir, &folder, &data] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        repair(&dir, Shared::No).unwrap();
        assert_eq!([&dir, &folder, &file].map(|path| mode(path)), [0o700, 0o700, 0o600]);
        assert_eq!(mode(&data), 0o755);
        repair(&dir, Shared::Group).unwrap();
        assert_eq!([&dir, &folder, &file].map(|path| mode(path)), [0o2770, 0o2770, 0o660]);
        // A crash amid it.
        fs::set_permissions(&dir, Permissions::from_mode(0o1700)).unwrap();
        repair(&dir, Shared::No).unwrap();
        assert_eq!([&dir, &folder, &file].map(|path| mode(path)), [0o700, 0o700, 0o600]);
        // With the folder right nothing below it is looked at.
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        repair(&dir, Shared::No).unwrap();
        assert_eq!(mode(&file), 0o640);
    }
}
