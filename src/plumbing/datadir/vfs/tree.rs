//! The names of a lazy data directory. Every change of them is a record of the journal, applied here
//! alike when it happens and when the journal is read again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use nix::errno::Errno;

use super::file::LazyFile;
use crate::objects::snapshot::paths::is_own_folder;
use crate::objects::snapshot::{Node as Stored, Snapshot};
use crate::plumbing::datadir::local::journal::Record;

/// The inode of the root.
pub const ROOT: u64 = 1;
/// Those of a snapshot's entries begin here.
pub const FIRST: u64 = 2;

/// Returns the inode of the entry of a snapshot at `path`.
pub fn number_of(snapshot: &Snapshot, path: &[u8]) -> Option<u64> {
    let number = snapshot.entries.iter().position(|entry| entry.path == path)?;
    Some(FIRST + number as u64)
}

/// What an inode is.
#[derive(Debug, Clone)]
pub enum Kind {
    Folder { parent: u64, children: BTreeMap<Vec<u8>, u64> },
    File(Arc<LazyFile>),
    Symlink(Vec<u8>),
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// That of a folder or a link; a file has its own.
    pub modified: SystemTime,
    /// Names that lead here.
    pub links: u32,
    /// How many have it open.
    pub opens: u32,
    /// In a folder of PostgreSQL's temporary files, which it clears itself after a crash: not in the journal.
    pub temporary: bool,
    /// Made here, rather than the snapshot's.
    pub made_here: bool,
}

/// All inodes.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

impl Tree {
    /// Returns the tree of a snapshot. Fails where an entry lies in no folder.
    pub fn of_snapshot(snapshot: &Snapshot, modified: SystemTime) -> Result<Tree, &'static str> {
        let root = Node {
            kind: Kind::Folder { parent: ROOT, children: BTreeMap::new() },
            mode: 0o700,
            modified,
            links: 2,
            opens: 0,
            temporary: false,
            made_here: false,
        };
        let mut tree = Tree { nodes: HashMap::from([(ROOT, root.clone())]), next: FIRST };
        let mut folders: HashMap<&[u8], u64> = HashMap::from([(&b""[..], ROOT)]);
        for entry in &snapshot.entries {
            let at = entry.path.iter().rposition(|byte| *byte == b'/');
            let (folder, name) =
                at.map_or((&b""[..], &entry.path[..]), |at| (&entry.path[..at], &entry.path[at + 1..]));
            let parent = *folders.get(folder).ok_or("an entry lies in no folder")?;
            let ino = tree.next;
            tree.next += 1;
            let (kind, links) = match &entry.node {
                Stored::Dir => (Kind::Folder { parent, children: BTreeMap::new() }, 2),
                Stored::File { length, content } => {
                    (Kind::File(Arc::new(LazyFile::of_snapshot(ino, *length, *content, modified))), 1)
                }
                Stored::Symlink { target } => (Kind::Symlink(target.clone()), 1),
            };
            if let Stored::Dir = entry.node {
                folders.insert(&entry.path, ino);
            }
            tree.nodes.insert(ino, Node { kind, mode: entry.mode, links, ..root.clone() });
            tree.children_mut(parent).expect("invariant: only folders are in `folders`").insert(name.to_vec(), ino);
        }
        Ok(tree)
    }

    /// Returns the number for the next inode, which is used up.
    pub fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub fn node(&self, ino: u64) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::ENOENT)
    }

    pub fn node_mut(&mut self, ino: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    pub fn file(&self, ino: u64) -> Result<&Arc<LazyFile>, Errno> {
        match &self.node(ino)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Folder { .. } => Err(Errno::EISDIR),
            Kind::Symlink(_) => Err(Errno::EINVAL),
        }
    }

    pub fn children(&self, ino: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Errno> {
        match &self.node(ino)?.kind {
            Kind::Folder { children, .. } => Ok(children),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn children_mut(&mut self, ino: u64) -> Result<&mut BTreeMap<Vec<u8>, u64>, Errno> {
        match &mut self.node_mut(ino)?.kind {
            Kind::Folder { children, .. } => Ok(children),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        self.children(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Returns all inodes.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(ino, node)| (*ino, node))
    }

    /// Returns the path of every file, by inode; of one with several names, one of them.
    pub fn paths(&self) -> HashMap<u64, Vec<u8>> {
        let mut paths = HashMap::new();
        let mut folders = vec![(ROOT, Vec::new())];
        while let Some((folder, path)) = folders.pop() {
            for (name, ino) in self.children(folder).into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { [&path, &b"/"[..], name].concat() };
                match self.nodes.get(ino).map(|node| &node.kind) {
                    Some(Kind::Folder { .. }) => folders.push((*ino, path)),
                    Some(Kind::File(_)) => drop(paths.insert(*ino, path)),
                    _ => {}
                }
            }
        }
        paths
    }

    /// Returns the files that lie in none of PostgreSQL's own folders, such as its configuration.
    pub fn outside_own_folders(&self) -> Vec<u64> {
        let (mut files, mut folders) = (Vec::new(), vec![ROOT]);
        while let Some(folder) = folders.pop() {
            for (name, ino) in self.children(folder).into_iter().flatten() {
                match self.nodes.get(ino).map(|node| &node.kind) {
                    Some(Kind::Folder { .. }) if folder != ROOT || !is_own_folder(name) => folders.push(*ino),
                    Some(Kind::File(_)) => files.push(*ino),
                    _ => {}
                }
            }
        }
        files
    }

    /// Returns whether what lies in `parent` under `name` is temporary.
    pub fn is_temporary(&self, parent: u64, name: &[u8]) -> bool {
        name.starts_with(b"pgsql_tmp") || self.node(parent).is_ok_and(|node| node.temporary)
    }

    /// Checks whether a change can be made.
    pub fn check(&self, record: &Record) -> Result<(), Errno> {
        let free = |parent: u64, name: &[u8]| match self.lookup(parent, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        };
        match record {
            Record::File { parent, name, ino, .. }
            | Record::Folder { parent, name, ino, .. }
            | Record::Symlink { parent, name, ino, .. } => {
                if self.nodes.contains_key(ino) {
                    return Err(Errno::EEXIST);
                }
                free(*parent, name)
            }
            Record::Link { parent, name, ino } => {
                free(*parent, name)?;
                self.file(*ino).map(drop).map_err(|_| Errno::EPERM)
            }
            Record::Remove { parent, name } => {
                let ino = self.lookup(*parent, name)?;
                match &self.node(ino)?.kind {
                    Kind::Folder { children, .. } if !children.is_empty() => Err(Errno::ENOTEMPTY),
                    _ => Ok(()),
                }
            }
            Record::Rename { parent, name, new_parent, new_name } => {
                let ino = self.lookup(*parent, name)?;
                let is_folder = self.children(ino).is_ok();
                // A folder must not become its own descendant.
                let mut above = *new_parent;
                while is_folder && above != ROOT {
                    if above == ino {
                        return Err(Errno::EINVAL);
                    }
                    let Kind::Folder { parent, .. } = self.node(above)?.kind else { return Err(Errno::ENOTDIR) };
                    above = parent;
                }
                match self.lookup(*new_parent, new_name).and_then(|other| Ok((other, self.node(other)?))) {
                    Ok((other, _)) if other == ino => Ok(()),
                    Ok((_, Node { kind: Kind::Folder { children, .. }, .. })) => match is_folder {
                        false => Err(Errno::EISDIR),
                        true if !children.is_empty() => Err(Errno::ENOTEMPTY),
                        true => Ok(()),
                    },
                    Ok(_) if is_folder => Err(Errno::ENOTDIR),
                    Ok(_) | Err(Errno::ENOENT) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Record::Mode { ino, .. } => self.node(*ino).map(drop),
            Record::Cut { ino, .. } | Record::Local { ino, .. } => self.file(*ino).map(drop),
        }
    }

    /// Makes a change that was [checked](Tree::check). Returns the inode that lost its last name.
    pub fn apply(&mut self, record: &Record, now: SystemTime) -> Result<Option<u64>, Errno> {
        match record {
            Record::File { parent, name, ino, mode } => {
                self.add(*parent, name, *ino, *mode, Kind::File(Arc::new(LazyFile::new(*ino, now))), now)?;
            }
            Record::Folder { parent, name, ino, mode } => {
                let kind = Kind::Folder { parent: *parent, children: BTreeMap::new() };
                self.add(*parent, name, *ino, *mode, kind, now)?;
            }
            Record::Symlink { parent, name, ino, mode, target } => {
                self.add(*parent, name, *ino, *mode, Kind::Symlink(target.clone()), now)?;
            }
            Record::Link { parent, name, ino } => {
                self.file(*ino)?.set_whole();
                self.node_mut(*ino)?.links += 1;
                self.children_mut(*parent)?.insert(name.clone(), *ino);
            }
            Record::Remove { parent, name } => {
                let ino = self.children_mut(*parent)?.remove(name).ok_or(Errno::ENOENT)?;
                self.node_mut(*parent)?.modified = now;
                return self.unlink(ino);
            }
            Record::Rename { parent, name, new_parent, new_name } => {
                let ino = self.children_mut(*parent)?.remove(name).ok_or(Errno::ENOENT)?;
                let old = self.children_mut(*new_parent)?.insert(new_name.clone(), ino);
                if let Kind::Folder { parent, .. } = &mut self.node_mut(ino)?.kind {
                    *parent = *new_parent;
                }
                self.moved(ino);
                return match old.filter(|old| *old != ino) {
                    Some(old) => self.unlink(old),
                    None => Ok(None),
                };
            }
            Record::Mode { ino, mode } => self.node_mut(*ino)?.mode = *mode,
            // What files do with their blocks is theirs.
            Record::Cut { .. } | Record::Local { .. } => {}
        }
        Ok(None)
    }

    fn add(&mut self, parent: u64, name: &[u8], ino: u64, mode: u32, kind: Kind, now: SystemTime) -> Result<(), Errno> {
        let links = if matches!(kind, Kind::Folder { .. }) { 2 } else { 1 };
        let temporary = self.is_temporary(parent, name);
        self.children_mut(parent)?.insert(name.to_vec(), ino);
        self.node_mut(parent)?.modified = now;
        self.nodes.insert(ino, Node { kind, mode, modified: now, links, opens: 0, temporary, made_here: true });
        self.next = self.next.max(ino.saturating_add(1));
        Ok(())
    }

    /// Returns `ino` where that was its last name; forgets it unless somebody has it open.
    fn unlink(&mut self, ino: u64) -> Result<Option<u64>, Errno> {
        let node = self.node_mut(ino)?;
        node.links = if matches!(node.kind, Kind::Folder { .. }) { 0 } else { node.links.saturating_sub(1) };
        if node.links > 0 {
            return Ok(None);
        }
        if node.opens == 0 {
            self.nodes.remove(&ino);
        }
        Ok(Some(ino))
    }

    /// Notes that files are no longer where the snapshot has them.
    fn moved(&mut self, ino: u64) {
        let mut below = vec![ino];
        while let Some(ino) = below.pop() {
            match self.nodes.get(&ino).map(|node| &node.kind) {
                Some(Kind::File(file)) => file.set_whole(),
                Some(Kind::Folder { children, .. }) => below.extend(children.values()),
                _ => {}
            }
        }
    }

    /// Counts somebody who has `ino` open.
    pub fn open(&mut self, ino: u64) -> Result<(), Errno> {
        self.node_mut(ino)?.opens += 1;
        Ok(())
    }

    /// Counts somebody who has it open no more.
    pub fn close(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_sub(1);
            if node.opens == 0 && node.links == 0 {
                self.nodes.remove(&ino);
            }
        }
    }
}
