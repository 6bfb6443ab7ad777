//! Walks a data directory and hands out its files in the order of their paths.

use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use super::exclude::{Unlogged, is_excluded};
use super::write::{Bytes, Item, UNIT_BYTES};

/// What was found at a path.
#[derive(Debug)]
enum Found {
    Dir,
    File { length: u64 },
    Symlink { target: Vec<u8> },
}

/// The paths of a data directory, sorted, without what snapshots leave out.
#[derive(Debug)]
pub struct Scan {
    root: PathBuf,
    paths: Vec<(Vec<u8>, u32, Found)>,
}

impl Scan {
    /// Walks `root`. Symbolic links in `pg_tblspc` and `pg_wal` itself are followed, since a
    /// snapshot holds tablespaces as folders; sockets and pipes are passed over.
    pub fn new(root: &Path) -> Result<Scan, Error> {
        let mut scan = Scan { root: root.to_owned(), paths: Vec::new() };
        scan.walk(Vec::new())?;
        let unlogged = Unlogged::among(scan.paths.iter().map(|(path, ..)| path.as_slice()));
        scan.paths.retain(|(path, ..)| !unlogged.is_excluded(path));
        scan.paths.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(scan)
    }

    fn walk(&mut self, below: Vec<u8>) -> Result<(), Error> {
        let dir = self.full(&below);
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let name = entry.map_err(Error::io("list", &dir))?.file_name();
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
        let followed = path == b"pg_wal" || path.starts_with(b"pg_tblspc/");
        let read = if followed { fs::metadata(&full) } else { fs::symlink_metadata(&full) };
        let metadata = read.map_err(Error::io("read", &full))?;
        let kind = metadata.file_type();
        let found = if kind.is_dir() {
            if path != b"pg_wal" {
                self.walk(path.clone())?;
            }
            Found::Dir
        } else if kind.is_file() {
            Found::File { length: metadata.len() }
        } else if kind.is_symlink() {
            let target = fs::read_link(&full).map_err(Error::io("read", &full))?;
            Found::Symlink { target: target.into_os_string().into_vec() }
        } else {
            return Ok(());
        };
        self.paths.push((path, metadata.mode() & 0o7777, found));
        Ok(())
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Returns the length of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.paths.iter().map(|(_, _, found)| if let Found::File { length } = found { *length } else { 0 }).sum()
    }

    /// Hands out folders, links, files and the parts of files. Opens one file at a time.
    pub fn items(&self) -> impl Iterator<Item = Result<Item, Error>> + '_ {
        self.paths.iter().flat_map(move |(path, mode, found)| {
            let first = match found {
                Found::Dir => Item::Dir { path: path.clone(), mode: *mode },
                Found::Symlink { target } => Item::Symlink { path: path.clone(), mode: *mode, target: target.clone() },
                Found::File { length } => Item::File { path: path.clone(), mode: *mode, length: *length },
            };
            let length = if let Found::File { length } = found { *length } else { 0 };
            let mut file: Option<Arc<File>> = None;
            let parts = (0..length).step_by(UNIT_BYTES).map(move |offset| {
                let full = self.full(path);
                let file = match &file {
                    Some(file) => file.clone(),
                    None => file.insert(Arc::new(File::open(&full).map_err(Error::io("open", &full))?)).clone(),
                };
                Ok(Item::Part(Bytes::Later(Box::new(move |bytes| {
                    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
                        std::io::ErrorKind::UnexpectedEof => Error::Changed { path: full.clone() },
                        _ => Error::Io { verb: "read", path: full.clone(), source: error },
                    })
                }))))
            });
            std::iter::once(Ok(first)).chain(parts)
        })
    }
}
