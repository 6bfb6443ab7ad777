//! Walks a data directory and hands out its files in the order of their paths.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::geteuid;

use super::Error;
use super::blocks::Blocks;
use super::control::Changes;
use super::exclude::{Unlogged, is_excluded};
use super::rights::{may_follow, may_have, may_list};
use super::write::{Bytes, Item, UNIT_BYTES};
use crate::objects::file_error::cannot;
use crate::objects::frame::{BLOCK_SIZE, FRAME_SIZE, blocks_in};
use crate::objects::pg::control;
use crate::objects::regular;
use crate::objects::snapshot::paths::is_own;
use crate::objects::snapshot::{Node, Snapshot};

/// What was found at a path.
#[derive(Debug)]
enum Found {
    Dir,
    File {
        length: u64,
        /// Whose it was when it was looked at.
        owner: u32,
        /// Device and inode, of one that a link leads to.
        target: Option<(u64, u64)>,
    },
}

/// The paths of a data directory, sorted, without what snapshots leave out.
#[derive(Debug)]
pub struct Scan {
    root: PathBuf,
    paths: Vec<(Vec<u8>, u32, Found)>,
    /// The links in `pg_tblspc`: what lies below them is of another file system, which does not note what changes.
    elsewhere: Vec<Vec<u8>>,
    /// A server writes to it meanwhile.
    live: bool,
    /// Whose it is.
    owner: u32,
}

impl Scan {
    /// Walks `root`. What symbolic links point to takes their place, so that no server that is started on the
    /// snapshot writes to files outside of its data directory: files, and PostgreSQL's own folders, among them
    /// tablespaces. Links to other folders, to nothing, or to what whoever made them may not read are passed over, and so are sockets
    /// and pipes.
    /// With `live`, a server may write to it meanwhile.
    pub fn new(root: &Path, live: bool) -> Result<Scan, Error> {
        let owner = fs::metadata(root).map_err(cannot::<Error>("read", root))?.uid();
        let mut scan = Scan { root: root.to_owned(), paths: Vec::new(), elsewhere: Vec::new(), live, owner };
        scan.walk(Vec::new())?;
        let unlogged = Unlogged::among(scan.paths.iter().map(|(path, ..)| path.as_slice()));
        scan.paths.retain(|(path, ..)| !unlogged.is_excluded(path));
        scan.paths.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(scan)
    }

    fn walk(&mut self, below: Vec<u8>) -> Result<(), Error> {
        let dir = self.full(&below);
        let entries = match fs::read_dir(&dir) {
            Err(error) if self.is_gone(&error) => return Ok(()),
            entries => entries.map_err(cannot::<Error>("list", &dir))?,
        };
        for entry in entries {
            let name = entry.map_err(cannot::<Error>("list", &dir))?.file_name();
            let mut path = below.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            if !is_excluded(&path) {
                self.visit(path)?;
            }
        }
        Ok(())
    }

    fn visit(&mut self, path: Vec<u8>) -> Result<(), Error> {
        let full = self.full(&path);
        // Looked at once: what it is may change.
        let own = fs::symlink_metadata(&full);
        let is_link = own.as_ref().is_ok_and(fs::Metadata::is_symlink);
        if is_link && !may_follow(&full) {
            // PostgreSQL needs what is in its own folders: nothing of that is left out in silence.
            return if is_own(&path) { Err(Error::Link(full)) } else { Ok(()) };
        }
        let metadata = match if is_link { fs::metadata(&full) } else { own } {
            Err(error) if self.is_gone(&error) => return Ok(()),
            // The user's own link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_own(&path) && full.is_symlink() => {
                return Ok(());
            }
            metadata => metadata.map_err(cannot::<Error>("read", &full))?,
        };
        let kind = metadata.file_type();
        if is_link && path != b"pg_wal" {
            self.elsewhere.push(path.clone());
        }
        let found = if kind.is_dir() {
            if is_link && !is_own(&path) {
                return Ok(());
            }
            if !may_list(&full, self.owner) {
                return if is_own(&path) { Err(Error::Link(full)) } else { Ok(()) };
            }
            if path != b"pg_wal" {
                self.walk(path.clone())?;
            }
            Found::Dir
        } else if kind.is_file() {
            let identity = (metadata.dev(), metadata.ino());
            Found::File { length: metadata.len(), owner: metadata.uid(), target: is_link.then_some(identity) }
        } else {
            return Ok(());
        };
        self.paths.push((path, metadata.mode() & 0o7777, found));
        Ok(())
    }

    fn is_gone(&self, error: &io::Error) -> bool {
        self.live && error.kind() == io::ErrorKind::NotFound
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Returns the length of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.paths.iter().map(|(_, _, found)| if let Found::File { length, .. } = found { *length } else { 0 }).sum()
    }

    /// Hands out folders, links, files and the parts of files. Opens one file at a time. With what is
    /// `known` of the parent's files, only what may differ from them is read.
    pub fn items<'a>(&'a self, known: Option<&'a Known>) -> impl Iterator<Item = Result<Item, Error>> + 'a {
        // Last of all: those that are read at the same time say nothing of what comes after it.
        let is_control = |path: &[u8]| path == control::PATH.as_bytes();
        let (control, others): (Vec<_>, Vec<_>) = self.paths.iter().partition(|(path, ..)| is_control(path));
        others.into_iter().chain(control).flat_map(move |(path, mode, found)| match found {
            Found::Dir => vec![Ok(Item::Dir { path: path.clone(), mode: *mode })],
            Found::File { .. } => self.file(path, *mode, found, known).unwrap_or_else(|error| vec![Err(error)]),
        })
    }

    fn file(
        &self,
        path: &[u8],
        mode: u32,
        found: &Found,
        known: Option<&Known>,
    ) -> Result<Vec<Result<Item, Error>>, Error> {
        let Found::File { length, owner, target } = *found else { return Ok(Vec::new()) };
        let is_noted = !self.elsewhere.iter().any(|link| path.starts_with(link) && path.get(link.len()) == Some(&b'/'));
        let changed = known.filter(|_| is_noted).map_or(Changed::All, |known| known.of(path, length));
        if let Changed::Nothing = changed {
            return Ok(vec![Ok(Item::Unchanged { path: path.to_vec(), mode })]);
        }
        let full = self.full(path);
        let file = match regular::open(&full) {
            Ok(file) => Arc::new(file),
            // Dropped since it was listed: what comes after the snapshot's start drops it again.
            Err(error) if self.is_gone(&error) => return Ok(Vec::new()),
            Err(error) => return Err(cannot::<Error>("open", &full)(error)),
        };
        // Whoever may write there may have put a link in its place since, to what root may read and he may not.
        let opened = file.metadata().map_err(cannot::<Error>("read", &full))?;
        let is_another = opened.uid() != owner || target.is_some_and(|target| target != (opened.dev(), opened.ino()));
        if geteuid().is_root() && is_another {
            return Err(Error::Changed { path: full });
        }
        // A link that may be followed was judged by where it leads.
        if target.is_none() && !may_have(&opened, self.owner) {
            return if is_own(path) { Err(Error::Link(full)) } else { Ok(Vec::new()) };
        }
        let mut items = vec![Ok(Item::File { path: path.to_vec(), mode, length })];
        for offset in (0..length).step_by(UNIT_BYTES) {
            let bytes = (length - offset).min(UNIT_BYTES as u64);
            let blocks = blocks_in(bytes) as u32; // of a part
            let which = match &changed {
                Changed::Blocks(changed) => changed.runs_within((offset / BLOCK_SIZE as u64) as u32, blocks),
                _ => vec![(0, blocks)],
            };
            if which.is_empty() {
                items.push(Ok(Item::Skip));
                continue;
            }
            let (file, full, live, runs) = (file.clone(), full.clone(), self.live, which.clone());
            let read = move |bytes: &mut [u8]| {
                runs.iter().try_for_each(|(first, count)| {
                    let start = *first as usize * BLOCK_SIZE;
                    let end = (start + *count as usize * BLOCK_SIZE).min(bytes.len());
                    read_at(&file, &mut bytes[start..end], offset + start as u64, live).map_err(|error| {
                        match error.kind() {
                            io::ErrorKind::UnexpectedEof => Error::Changed { path: full.clone() },
                            _ => cannot("read", &full)(error),
                        }
                    })
                })
            };
            items.push(Ok(Item::Part(Bytes::Later(Box::new(read)), Some(which))));
        }
        Ok(items)
    }
}

/// Fills `bytes`. A file that shrinks meanwhile is an error, unless it is a `live` one: zeros stand for
/// what is gone then, and the WAL cuts it again.
fn read_at(file: &File, bytes: &mut [u8], offset: u64, live: bool) -> io::Result<()> {
    if !live {
        return file.read_exact_at(bytes, offset);
    }
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => {
                bytes[done..].fill(0);
                break;
            }
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a lazy data directory knows of the difference to a snapshot.
pub struct Known<'a> {
    pub snapshot: &'a Snapshot,
    pub changes: Changes,
}

/// What of a file may differ.
enum Changed {
    Nothing,
    Blocks(Blocks),
    All,
}

impl Known<'_> {
    /// Returns what may differ from the snapshot in the file at `path`, which has `length` bytes.
    fn of(&self, path: &[u8], length: u64) -> Changed {
        let Some(Node::File { length: old, .. }) = self.snapshot.entry(path).map(|entry| &entry.node) else {
            return Changed::All;
        };
        match self.changes.of(path) {
            None if *old == length => Changed::Nothing,
            // One frame is read and written as a whole.
            Some(changed) if !changed.whole && length > FRAME_SIZE as u64 => {
                let mut blocks = changed.blocks.clone();
                // What the snapshot does not have is new, whatever was noted.
                if length > *old {
                    blocks.insert_range((*old / BLOCK_SIZE as u64) as u32, blocks_in(length) as u32);
                } else if length < *old && !length.is_multiple_of(BLOCK_SIZE as u64) {
                    blocks.insert((length / BLOCK_SIZE as u64) as u32);
                }
                Changed::Blocks(blocks)
            }
            _ => Changed::All,
        }
    }
}
