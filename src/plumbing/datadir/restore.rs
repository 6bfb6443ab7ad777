//! Writes the files of a snapshot into a folder, in parallel, every byte verified.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::Error;
use crate::objects::file_error::cannot;
use crate::objects::frame::BLOCK_SIZE;
use crate::objects::pg::control;
use crate::objects::snapshot::{Node, Snapshot};
use crate::objects::store::Store;
use crate::objects::store::file::{READ_BLOCKS, StoredFile};
use crate::objects::{durable, regular};
use crate::progress::Progress;

/// Files and parts of files are written together until they have this many bytes.
const BATCH_BYTES: u64 = 64 << 20;

/// A part of a file that one thread writes.
struct Part {
    file: Arc<Target>,
    block: u32,
}

struct Target {
    path: PathBuf,
    handle: File,
    source: StoredFile,
}

/// Writes all files of `snapshot` below `root`, which must be an empty folder or not exist. Nothing
/// is synced. The files of tablespaces become folders in `pg_tblspc`.
///
/// Nothing is written outside `root`, whoever made the snapshot: every entry lies in a folder that was made
/// before ([`paths`](crate::objects::snapshot::paths)), and no name is taken that is there already.
pub fn restore(store: &Store, snapshot: &Snapshot, root: &Path, progress: &dyn Progress) -> Result<(), Error> {
    restore_unfinished(store, snapshot, root, progress)?;
    finish(root)
}

/// Does so, but for [`finish`]: before that no PostgreSQL starts on the files. On a part of them, or on all without their WAL, it would
/// without a word.
pub fn restore_unfinished(
    store: &Store,
    snapshot: &Snapshot,
    root: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    make_root(root)?;
    progress.start("restoring", snapshot.total_bytes());
    let written = write_all(store, snapshot, root, progress);
    progress.finish();
    written
}

/// Lets PostgreSQL start on the files below `root`: if all that it needs is durable, a crash leaves it a whole cluster or none.
pub fn finish(root: &Path) -> Result<(), Error> {
    let (unfinished, path) = (root.join(control::UNFINISHED), root.join(control::PATH));
    match durable::replace_by(&unfinished, &path) {
        // Files that are no cluster's.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(cannot::<Error>("create", &path)),
    }
}

fn make_root(root: &Path) -> Result<(), Error> {
    match fs::read_dir(root) {
        Ok(mut entries) => match entries.next() {
            None => fs::set_permissions(root, Permissions::from_mode(0o700))
                .map_err(cannot::<Error>("change the mode of", root)),
            Some(_) => Err(Error::NotEmpty(root.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(cannot::<Error>("create", root))
        }
        Err(error) => Err(cannot::<Error>("list", root)(error)),
    }
}

fn write_all(store: &Store, snapshot: &Snapshot, root: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for entry in &snapshot.entries {
        let name = if entry.path == control::PATH.as_bytes() { control::UNFINISHED.as_bytes() } else { &entry.path };
        let path = root.join(OsStr::from_bytes(name));
        match &entry.node {
            Node::Dir => {
                DirBuilder::new().mode(entry.mode | 0o700).create(&path).map_err(cannot::<Error>("create", &path))?;
            }
            Node::Symlink { target } => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &path)
                    .map_err(cannot::<Error>("create", &path))?;
            }
            &Node::File { length, content } => {
                let source = StoredFile::open(store, length, content)?;
                let handle = regular::create_new(&path, entry.mode);
                let handle = handle.map_err(cannot::<Error>("create", &path))?;
                // The mode given at creation goes through the umask.
                let mode = Permissions::from_mode(entry.mode);
                handle.set_permissions(mode).map_err(cannot::<Error>("change the mode of", &path))?;
                let file = Arc::new(Target { path, handle, source });
                let blocks = crate::objects::frame::blocks_in(length) as u32; // a map has no more
                for block in (0..blocks).step_by(READ_BLOCKS as usize) {
                    batch.push(Part { file: file.clone(), block });
                    batch_bytes += u64::from((blocks - block).min(READ_BLOCKS)) * BLOCK_SIZE as u64;
                    if batch_bytes >= BATCH_BYTES || batch.len() >= 512 {
                        write_batch(store, std::mem::take(&mut batch), progress)?;
                        batch_bytes = 0;
                    }
                }
            }
        }
    }
    write_batch(store, batch, progress)
}

fn write_batch(store: &Store, batch: Vec<Part>, progress: &dyn Progress) -> Result<(), Error> {
    progress.check()?;
    batch.into_par_iter().try_for_each_init(Vec::new, |bytes, part| {
        bytes.clear();
        part.file.source.read(store, part.block, READ_BLOCKS, bytes)?;
        let offset = u64::from(part.block) * BLOCK_SIZE as u64;
        part.file.handle.write_all_at(bytes, offset).map_err(cannot::<Error>("write", &part.file.path))?;
        progress.advance(bytes.len() as u64);
        Ok(())
    })
}
