//! Who may read a repository's files: its owner alone, or with `core.shared = "group"` its group, as with git.
//!
//! What is made gets its mode from the process's umask, which `cli` sets at the start: no file is open to others even for
//! a moment. This here closes what was made before, by an older program or by a copy that lost the modes.
//!
//! The folder `.zenith` itself decides: with its own mode right, nobody else gets any further. Only while the files
//! below it are being seen to it has the sticky bit, so that whoever opens it next goes on where a crash ended that.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::geteuid;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, fstat, openat, statat};

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
/// time, one at each file. What belongs to somebody else stays as it is, and all of somebody else's repository.
pub fn repair(dir: &Path, shared: Shared) -> io::Result<()> {
    let metadata = fs::metadata(dir)?;
    if metadata.mode() & 0o7777 == shared.folder() || metadata.uid() != geteuid().as_raw() {
        return Ok(());
    }
    // The folder itself may lie elsewhere.
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    let Some(folder) = open(CWD, &dir, OFlags::DIRECTORY)? else { return Ok(()) };
    if set(&folder, |_| shared.folder() | STICKY)? {
        repair_below(&folder, Path::new(""), shared)?;
        set(&folder, |_| shared.folder())?;
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

/// Sees to what is in an open folder, `below` in the repository. Every name is looked up in the open folder, and no link is followed:
/// others who may write there may put a link to a file of ours in any place, at any time.
fn repair_below(folder: &OwnedFd, below: &Path, shared: Shared) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let below = below.join(name);
        if name == "." || name == ".." || is_left_alone(&below) {
            continue;
        }
        // A pipe would be waited for.
        let kind = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let Some(opened) = (match kind {
            Ok(FileType::Directory) => open(folder, Path::new(name), OFlags::DIRECTORY)?,
            Ok(FileType::RegularFile) => open(folder, Path::new(name), OFlags::NONBLOCK)?,
            _ => None,
        }) else {
            continue;
        };
        if kind == Ok(FileType::Directory) {
            if set(&opened, |_| shared.folder())? {
                repair_below(&opened, &below, shared)?;
            }
        } else {
            set(&opened, |mode| shared.file(mode))?;
        }
    }
    Ok(())
}

/// Opens a file or folder, but no link; `None` where that is not for us.
fn open(folder: impl AsFd, name: &Path, what: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | what;
    match openat(folder, name, flags, Mode::empty()).map_err(io::Error::from) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if is_not_ours(&error) => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ELOOP | nix::libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the mode of an open file or folder what `mode` says of the one that it has; returns whether that was ours to do.
fn set(opened: &OwnedFd, mode: impl FnOnce(u32) -> u32) -> io::Result<bool> {
    let stat = fstat(opened)?;
    // A file with a second name may be something else there.
    let is_another = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1;
    if stat.st_uid != geteuid().as_raw() || is_another {
        return Ok(false);
    }
    match fchmod(opened, Mode::from_raw_mode(mode(stat.st_mode & 0o7777))).map_err(io::Error::from) {
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
        // What a link leads to is somebody else's business, and so is a file that has a name elsewhere.
        let outside = home.path().join("outside");
        fs::create_dir_all(outside.join("folder")).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        [(&outside, 0o755), (&outside.join("folder"), 0o755), (&outside.join("file"), 0o644), (&dir, 0o755)]
            .iter()
            .for_each(|(path, mode)| open(path, *mode));
        std::os::unix::fs::symlink(&outside, dir.join("to-folder")).unwrap();
        std::os::unix::fs::symlink(outside.join("file"), dir.join("to-file")).unwrap();
        fs::hard_link(outside.join("file"), dir.join("linked")).unwrap();
        repair(&dir, Shared::No).unwrap();
        assert_eq!(
            [&outside, &outside.join("folder"), &outside.join("file")].map(|path| mode(path)),
            [0o755, 0o755, 0o644]
        );
        // With the folder right nothing below it is looked at.
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        repair(&dir, Shared::No).unwrap();
        assert_eq!(mode(&file), 0o640);
    }
}
