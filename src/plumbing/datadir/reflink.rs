//! Restores by cloning: where the file system lets files share their blocks (XFS, btrfs), one restored copy of
//! a snapshot is kept, and every data directory is a clone of it, which takes neither time nor space.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::Error;
use super::restore::restore;
use crate::objects::file_error::cannot;
use crate::objects::lock::{self, Mode, Patience};
use crate::objects::snapshot::Snapshot;
use crate::objects::store::Store;
use crate::objects::{ObjectId, durable, regular};
use crate::progress::Progress;

/// The file in the folder of the copies whose lock whoever makes or clones one holds.
const LOCK: &str = "lock";

/// Makes `to` share the blocks of `from`, until one of them is written.
#[cfg(target_os = "linux")]
fn clone_file(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

#[cfg(not(target_os = "linux"))]
fn clone_file(_: &File, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns whether the file system of the folder `dir` clones files.
fn is_supported(dir: &Path) -> io::Result<bool> {
    let (from, to) = (tempfile::tempfile_in(dir)?, tempfile::tempfile_in(dir)?);
    io::Write::write_all(&mut &from, &[0; 4096])?;
    Ok(clone_file(&from, &to).is_ok())
}

/// Writes the files of the snapshot `id` below `root`, which must not exist: as clones of the copy in
/// `copies/<id>`, which is made first if it is not there, or one by one where files cannot be cloned.
/// One copy is kept at a time. Returns whether they are clones.
pub fn restore_or_clone(
    store: &Store,
    (id, snapshot): (&ObjectId, &Snapshot),
    root: &Path,
    copies: &Path,
    progress: &dyn Progress,
) -> Result<bool, Error> {
    durable::create_dir_all(copies).map_err(cannot::<Error>("create", copies))?;
    if !is_supported(copies).map_err(cannot::<Error>("write in", copies))? {
        restore(store, snapshot, root, progress)?;
        return Ok(false);
    }
    let copy = copies.join(id.to_string());
    if !copy.is_dir() {
        remove_all(copies)?;
    }
    // As long as somebody has this nothing is removed.
    let path = copies.join(LOCK);
    let held = Patience::default().open(&path, Mode::Shared);
    let _held = held.map_err(|error| cannot::<Error>("lock", &path)(io::Error::other(error)))?;
    if !copy.is_dir() {
        let new =
            tempfile::Builder::new().prefix("new-").tempdir_in(copies).map_err(cannot::<Error>("write in", copies))?;
        let files = new.path().join("files");
        restore(store, snapshot, &files, progress)?;
        // It outlives a power cut, and so must its content.
        let publish = durable::sync_tree(&files).and_then(|()| durable::publish_dir(&files, &copy));
        publish.or_else(|error| if copy.is_dir() { Ok(()) } else { Err(cannot::<Error>("create", &copy)(error)) })?;
    }
    clone_tree(&copy, root)?;
    Ok(true)
}

/// Removes all copies, each at once: a crash leaves all of it or nothing. Does nothing while somebody makes or clones one.
fn remove_all(copies: &Path) -> Result<(), Error> {
    let path = copies.join(LOCK);
    let held = lock::try_open(&path).map_err(|error| cannot::<Error>("lock", &path)(io::Error::other(error)))?;
    let Some(_held) = held else { return Ok(()) };
    for old in fs::read_dir(copies).map_err(cannot::<Error>("list", copies))?.flatten() {
        if old.file_name() != LOCK {
            durable::discard_dir(copies, &old.path()).map_err(cannot::<Error>("remove", &old.path()))?;
        }
    }
    Ok(())
}

fn clone_tree(from: &Path, to: &Path) -> Result<(), Error> {
    let mode = fs::metadata(from).map_err(cannot::<Error>("read", from))?.permissions().mode() & 0o7777;
    DirBuilder::new().mode(mode).create(to).map_err(cannot::<Error>("create", to))?;
    let entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    entries.map_err(cannot::<Error>("list", from))?.into_par_iter().try_for_each(|entry| {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(cannot::<Error>("read", &path))?;
        if kind.is_dir() {
            clone_tree(&path, &target)
        } else if kind.is_symlink() {
            let link = |place: PathBuf| std::os::unix::fs::symlink(place, &target);
            fs::read_link(&path).and_then(link).map_err(cannot::<Error>("create", &target))
        } else {
            clone_one(&path, &target).map_err(cannot::<Error>("create", &target))
        }
    })
}

fn clone_one(from: &Path, to: &Path) -> io::Result<()> {
    let source = regular::open(from)?;
    let mode = source.metadata()?.permissions().mode() & 0o7777;
    let target = regular::create_new(to, mode)?;
    target.set_permissions(Permissions::from_mode(mode))?; // whatever the umask says
    clone_file(&source, &target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_somebody_clones_stay_and_others_go_as_a_whole() {
        let home = tempfile::tempdir().unwrap();
        let copies = home.path();
        let copy = copies.join("copy");
        fs::create_dir_all(copy.join("base")).unwrap();
        let held = Patience::default().open(&copies.join(LOCK), Mode::Shared).unwrap();
        remove_all(copies).unwrap();
        assert!(copy.is_dir());
        drop(held);
        remove_all(copies).unwrap();
        let left: Vec<_> = fs::read_dir(copies).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, [LOCK]);
    }
}
