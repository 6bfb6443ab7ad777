//! A snapshot as a data directory: decides what every file operation means, and knows nothing of FUSE.
//!
//! ```text
//! fuse ─► Vfs ─┬─► tree: names          ─┬─► local: journal, changed blocks
//!              └─► file: blocks of one  ─┴─► base: the snapshot's blocks, from the store
//! ```
//!
//! Memory: the names of all files (some 300 bytes each), two to four bits for each block of files that
//! changed, the maps of at most 24 MiB, and the store's cache of frames.

pub mod ahead;
pub mod base;
pub mod file;
pub mod idle;
mod tree;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::Error;
use super::local::journal::Record;
use super::local::{Layer, Opened};
use crate::objects::file_error::cannot;
use crate::objects::frame::blocks_in;
use crate::objects::snapshot::Snapshot;
use crate::objects::{ObjectId, Repo};
use base::Base;
use file::{Changed, Cx, LazyFile, Noted, os};
use tree::Tree;
pub use tree::{Kind, Node, ROOT, number_of};

#[cfg(test)]
mod tests;

/// The longest name, bytes, as everywhere.
const NAME_MAX: usize = 255;

/// What there is to say of an inode.
#[derive(Debug, Clone)]
pub struct Attributes {
    pub ino: u64,
    pub kind: Kind,
    pub mode: u32,
    pub modified: SystemTime,
    pub links: u32,
    /// Bytes.
    pub length: u64,
}

/// What may be made under a name.
#[derive(Debug)]
pub enum Make<'a> {
    File,
    Folder,
    Symlink(&'a [u8]),
}

/// A lazy data directory.
#[derive(Debug)]
pub struct Vfs {
    tree: RwLock<Tree>,
    layer: Layer,
    base: Base,
    snapshot: ObjectId,
    /// The snapshot that [`changed`](Vfs::changed) is about.
    mark: RwLock<ObjectId>,
}

/// What keeps a layer from being taken up again.
#[derive(Debug)]
pub enum Broken {
    /// It says or lacks what it cannot.
    Damaged(&'static str),
    /// That may pass.
    Io(std::io::Error),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Broken {
        Broken::Io(error)
    }
}

impl Vfs {
    /// Shows the snapshot `id`, with the layer in `dir`, which is made if there is none. Fails if the
    /// layer lies over another one or is damaged; the caller may then remove it.
    pub fn open(repo: &Arc<Repo>, id: &ObjectId, dir: &Path, base: Base) -> Result<Vfs, Error> {
        let snapshot = repo.store().snapshot(id)?;
        let damaged = |what| Error::Layer { dir: dir.to_owned(), what };
        let tree = Tree::of_snapshot(&snapshot, time_of(&snapshot)).map_err(damaged)?;
        let vfs = |tree, layer| {
            let (tree, mark) = (RwLock::new(tree), RwLock::new(*id));
            Vfs { tree, layer, base, snapshot: *id, mark }
        };
        if !dir.exists() {
            return Ok(vfs(tree, Layer::create(dir, id)?));
        }
        let Opened { layer, snapshot, records } = Layer::open(dir)?;
        if snapshot != *id {
            return Err(damaged("it lies over another snapshot"));
        }
        let vfs = vfs(tree, layer);
        vfs.replay(&records).map_err(|broken| match broken {
            Broken::Damaged(what) => damaged(what),
            Broken::Io(error) => cannot("open", dir)(error),
        })?;
        Ok(vfs)
    }

    /// Does again what the journal says.
    fn replay(&self, records: &[Record]) -> Result<(), Broken> {
        let mut tree = self.write_tree();
        let mut noted: HashMap<u64, Noted> = HashMap::new();
        let impossible = |_| Broken::Damaged("its journal says what cannot have happened");
        for record in records {
            // Somebody may write to a file that has lost its name. What became of that is of no use any more.
            let of_node = match record {
                Record::Cut { ino, .. } | Record::Local { ino, .. } | Record::Mode { ino, .. } => Some(*ino),
                _ => None,
            };
            if of_node.is_some_and(|ino| tree.node(ino).is_err()) {
                continue;
            }
            tree.check(record).map_err(impossible)?;
            tree.apply(record, SystemTime::now()).map_err(impossible)?;
            match record {
                Record::Cut { ino, length } => {
                    if *length > tree.file(*ino).map_err(impossible)?.stored_length() {
                        return Err(Broken::Damaged("its journal cuts a file to more than it had"));
                    }
                    let noted = noted.entry(*ino).or_default();
                    noted.any = true;
                    noted.blocks.truncate(u32::try_from(length.div_ceil(8192)).unwrap_or(u32::MAX));
                    noted.shortest = Some(noted.shortest.unwrap_or(u64::MAX).min(*length));
                    noted.cut = Some(*length);
                }
                Record::Local { ino, runs } => {
                    let noted = noted.entry(*ino).or_default();
                    noted.any = true;
                    noted.cut = None;
                    // Behind the snapshot's file all blocks are local, without a note.
                    let end = blocks_in(tree.file(*ino).map_err(impossible)?.stored_length());
                    let end = u32::try_from(end).unwrap_or(u32::MAX);
                    for (first, count) in runs {
                        // The last block of a run is below 2^32.
                        noted.blocks.insert_range(*first, (first + count).min(end));
                    }
                }
                _ => {}
            }
        }
        let mut kept = HashSet::new();
        for (ino, node) in tree.iter() {
            if let Kind::File(file) = &node.kind {
                file.reopen(self.cx(), &noted.remove(&ino).unwrap_or_default(), node.made_here)?;
                kept.insert(ino);
            }
        }
        Ok(self.layer.remove_others(&kept)?)
    }

    fn cx(&self) -> Cx<'_> {
        Cx { layer: &self.layer, base: &self.base }
    }

    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_tree(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn file(&self, ino: u64) -> Result<Arc<LazyFile>, Errno> {
        self.tree().file(ino).cloned()
    }

    /// Returns the folder of the local layer.
    pub fn layer_dir(&self) -> &Path {
        self.layer.dir()
    }

    /// Returns the snapshot below.
    pub fn snapshot(&self) -> ObjectId {
        self.snapshot
    }

    /// Returns the snapshot's side, which knows of damages and of what was read.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Makes a change of names: in the journal first, so that one that fails did not happen.
    fn change(&self, tree: &mut Tree, record: &Record, temporary: bool) -> Result<(), Errno> {
        tree.check(record)?;
        if !temporary {
            self.layer.note(record).map_err(os)?;
        }
        if let Some(gone) = tree.apply(record, SystemTime::now())? {
            if temporary {
                self.layer.remove_file(gone);
            } else {
                self.layer.doom(gone);
            }
        }
        Ok(())
    }

    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attributes, Errno> {
        let tree = self.tree();
        attributes(&tree, tree.lookup(parent, name.as_encoded_bytes())?)
    }

    pub fn attributes(&self, ino: u64) -> Result<Attributes, Errno> {
        attributes(&self.tree(), ino)
    }

    /// Makes something new under a free name.
    pub fn make(&self, parent: u64, name: &OsStr, mode: u32, what: &Make) -> Result<Attributes, Errno> {
        let name = name.as_encoded_bytes().to_vec();
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mode = mode & 0o7777;
        let mut tree = self.write_tree();
        let temporary = tree.is_temporary(parent, &name);
        let ino = tree.take_number();
        let record = match what {
            Make::File => Record::File { parent, name, ino, mode },
            Make::Folder => Record::Folder { parent, name, ino, mode },
            Make::Symlink(target) => Record::Symlink { parent, name, ino, mode, target: target.to_vec() },
        };
        self.change(&mut tree, &record, temporary)?;
        attributes(&tree, ino)
    }

    /// Gives a file another name.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attributes, Errno> {
        let name = name.as_encoded_bytes().to_vec();
        let mut tree = self.write_tree();
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if tree.node(ino)?.temporary || tree.is_temporary(parent, &name) {
            return Err(Errno::EXDEV);
        }
        self.change(&mut tree, &Record::Link { parent, name, ino }, false)?;
        attributes(&tree, ino)
    }

    /// Removes a name: of a folder where `folder`, of anything else where not.
    pub fn remove(&self, parent: u64, name: &OsStr, folder: bool) -> Result<(), Errno> {
        let name = name.as_encoded_bytes().to_vec();
        let mut tree = self.write_tree();
        let node = tree.node(tree.lookup(parent, &name)?)?;
        match (&node.kind, folder) {
            (Kind::Folder { .. }, false) => return Err(Errno::EISDIR),
            (Kind::File(_) | Kind::Symlink(_), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        let temporary = node.temporary;
        self.change(&mut tree, &Record::Remove { parent, name }, temporary)
    }

    /// Changes a name; what has the new one is replaced, unless `replace` forbids it.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<(), Errno> {
        let (name, new_name) = (from.1.as_encoded_bytes().to_vec(), to.1.as_encoded_bytes().to_vec());
        if new_name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut tree = self.write_tree();
        let temporary = tree.node(tree.lookup(from.0, &name)?)?.temporary;
        if temporary != tree.is_temporary(to.0, &new_name) {
            return Err(Errno::EXDEV);
        }
        if !replace && tree.lookup(to.0, &new_name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let record = Record::Rename { parent: from.0, name, new_parent: to.0, new_name };
        self.change(&mut tree, &record, temporary)
    }

    pub fn set_mode(&self, ino: u64, mode: u32) -> Result<(), Errno> {
        let mut tree = self.write_tree();
        let temporary = tree.node(ino)?.temporary;
        self.change(&mut tree, &Record::Mode { ino, mode: mode & 0o7777 }, temporary)
    }

    /// Sets the time of the last change, which is kept in memory only.
    pub fn set_modified(&self, ino: u64, time: SystemTime) -> Result<(), Errno> {
        let mut tree = self.write_tree();
        let node = tree.node_mut(ino)?;
        match &node.kind {
            Kind::File(file) => file.set_modified(time),
            _ => node.modified = time,
        }
        Ok(())
    }

    pub fn target(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        match &self.tree().node(ino)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Returns what a folder holds: name and inode.
    pub fn list(&self, ino: u64) -> Result<Vec<(Vec<u8>, Attributes)>, Errno> {
        let tree = self.tree();
        let children = tree.children(ino)?;
        children.iter().map(|(name, child)| Ok((name.clone(), attributes(&tree, *child)?))).collect()
    }

    /// Notes that somebody has an inode open: it stays, even without a name.
    pub fn open_inode(&self, ino: u64) -> Result<(), Errno> {
        self.write_tree().open(ino)
    }

    pub fn close_inode(&self, ino: u64) {
        self.write_tree().close(ino);
    }

    /// Returns whether anybody has anything open.
    pub fn is_in_use(&self) -> bool {
        self.tree().iter().any(|(_, node)| node.opens > 0)
    }

    /// Appends up to `size` bytes to `out`, fewer at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<(), Errno> {
        self.file(ino)?.read(self.cx(), offset, size, out)
    }

    pub fn write(&self, ino: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.file(ino)?.write(self.cx(), offset, data)
    }

    pub fn resize(&self, ino: u64, length: u64) -> Result<(), Errno> {
        self.file(ino)?.resize(self.cx(), length)
    }

    pub fn allocate(&self, ino: u64, offset: u64, length: u64, keep_size: bool) -> Result<(), Errno> {
        self.file(ino)?.allocate(self.cx(), offset, length, keep_size)
    }

    /// Makes a file durable: data, length, names. A temporary one is gone after a crash, and the journal knows of none.
    pub fn sync(&self, ino: u64) -> Result<(), Errno> {
        if self.tree().node(ino).is_ok_and(|node| node.temporary) {
            return Ok(());
        }
        match self.file(ino) {
            Ok(file) => file.sync(self.cx()),
            Err(_) => self.sync_names(),
        }
    }

    /// Makes all changes of names durable.
    pub fn sync_names(&self) -> Result<(), Errno> {
        self.layer.sync().map_err(os)
    }

    /// Makes everything durable that has a name which lasts.
    pub fn flush(&self) -> Result<(), Errno> {
        self.files_that(|node| node.links > 0).iter().try_for_each(|(ino, _)| self.sync(*ino))?;
        self.sync_names()
    }

    /// Frees the space of removed files, if there are some, and makes durable what users wrote: PostgreSQL syncs its own files where it
    /// relies on them, an editor does not.
    pub fn tidy(&self) -> Result<(), Errno> {
        if self.layer.has_doomed() {
            self.sync_names()?;
        }
        let of_users = self.tree().outside_own_folders();
        of_users.into_iter().try_for_each(|ino| self.sync(ino))
    }

    fn files(&self) -> Vec<(u64, Arc<LazyFile>)> {
        self.files_that(|_| true)
    }

    fn files_that(&self, is_wanted: impl Fn(&Node) -> bool) -> Vec<(u64, Arc<LazyFile>)> {
        let file = |(ino, node): (u64, &Node)| match &node.kind {
            Kind::File(file) if is_wanted(node) => Some((ino, file.clone())),
            _ => None,
        };
        self.tree().iter().filter_map(file).collect()
    }

    /// Returns the snapshot that [`changed`](Vfs::changed) is about.
    pub fn mark(&self) -> ObjectId {
        *self.mark.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a snapshot: what changes from now on may not be in it.
    pub fn begin_mark(&self) {
        self.files().iter().for_each(|(_, file)| file.begin_mark());
    }

    /// Ends a snapshot, which holds what had changed when it began.
    pub fn end_mark(&self, snapshot: ObjectId) {
        let mut mark = self.mark.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.files().iter().for_each(|(_, file)| file.end_mark());
        *mark = snapshot;
    }

    /// Returns which blocks of which files may differ from the snapshot of the last mark, by path.
    pub fn changed(&self) -> Vec<(Vec<u8>, Changed)> {
        let paths = self.tree().paths();
        let files = self.files();
        let changed = files.iter().filter_map(|(ino, file)| {
            let changed = file.changed();
            let any = changed.whole || !changed.blocks.is_empty();
            Some((paths.get(ino)?.clone(), changed)).filter(|_| any)
        });
        changed.collect()
    }

    /// Returns how many bytes of the snapshot are not local, and how many files show there are of it.
    pub fn remote_bytes(&self) -> u64 {
        self.files().iter().map(|(_, file)| file.remote_bytes()).sum()
    }

    /// Makes blocks local that nobody changed, up to 32 at a time, until `stop` says so.
    pub fn hydrate(&self, stop: &dyn Fn() -> bool) -> Result<(), Errno> {
        for (ino, file) in self.files() {
            for (first, count) in file.remote_runs(32) {
                if stop() {
                    return Ok(());
                }
                file.hydrate(self.cx(), first, count)?;
            }
            self.sync(ino)?;
        }
        Ok(())
    }

    /// Returns the paths and blocks that were read of the snapshot at first: runs of first and count.
    pub fn touched(&self) -> Vec<(Vec<u8>, u32, u32)> {
        let paths = self.tree().paths();
        let mut runs: Vec<(u64, u32, u32)> = Vec::new();
        for (ino, block) in self.base.touched() {
            match runs.last_mut() {
                Some((last, first, count)) if *last == ino && *first + *count == block => *count += 1,
                _ => runs.push((ino, block, 1)),
            }
        }
        let named = runs.into_iter().filter_map(|(ino, first, count)| Some((paths.get(&ino)?.clone(), first, count)));
        named.collect()
    }
}

fn attributes(tree: &Tree, ino: u64) -> Result<Attributes, Errno> {
    let Node { kind, mode, modified, links, .. } = tree.node(ino)?;
    let (length, modified) = match kind {
        Kind::File(file) => (file.length(), file.modified()),
        Kind::Symlink(target) => (target.len() as u64, *modified),
        Kind::Folder { .. } => (4096, *modified),
    };
    // A folder's children are not for the caller, and may be many.
    let kind = match kind {
        Kind::Folder { parent, .. } => Kind::Folder { parent: *parent, children: Default::default() },
        other => other.clone(),
    };
    Ok(Attributes { ino, kind, mode: *mode, modified, links: *links, length })
}

fn time_of(snapshot: &Snapshot) -> SystemTime {
    let since = Duration::from_micros(u64::try_from(snapshot.time_us).unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}
