//! What the file system's process and others tell each other: files at the top of a lazy data
//! directory that no listing shows.
//!
//! | name | content |
//! | --- | --- |
//! | `.zenith.status` | one line of JSON: see [`Status`] |
//! | `.zenith.mark` | the id of the snapshot that the next name is about; written to it, `begin` begins a new mark and an id ends it |
//! | `.zenith.changed` | which blocks may differ from that snapshot: for each file with some a varint length and the path, 1 byte 1 where all of the file may, a varint length and the set's bytes |

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;

use super::Error;
use super::blocks::Blocks;
use super::vfs::Vfs;
use super::vfs::file::Changed;
use crate::objects::codec::{Malformed, Reader, put_varint};
use crate::objects::file_error::cannot;
use crate::objects::{ObjectId, regular};

/// One of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Status,
    Mark,
    Changed,
}

/// All of them.
pub const NAMES: [(Name, &str); 3] =
    [(Name::Status, ".zenith.status"), (Name::Mark, ".zenith.mark"), (Name::Changed, ".zenith.changed")];

/// How a lazy data directory is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// The snapshot below.
    pub snapshot: String,
    /// Bytes of it that are not local.
    pub remote_bytes: u64,
    /// Bytes that were to be made local in the background; `None` where that was not asked for.
    pub hydrating_bytes: Option<u64>,
    /// Frames that were wanted and in the cache, and that were not.
    #[serde(default)]
    pub cache_hits: u64,
    #[serde(default)]
    pub cache_misses: u64,
    /// What could not be read, each once.
    pub damages: Vec<String>,
}

/// Returns the content of a name.
pub fn content(vfs: &Vfs, name: Name, hydrating_bytes: Option<u64>) -> Vec<u8> {
    match name {
        Name::Status => {
            let (cache_hits, cache_misses) = vfs.base().cached();
            let status = Status {
                cache_hits,
                cache_misses,
                snapshot: vfs.snapshot().to_string(),
                remote_bytes: vfs.remote_bytes(),
                hydrating_bytes,
                damages: vfs.base().damages(),
            };
            serde_json::to_vec(&status).expect("invariant: only simple fields")
        }
        Name::Mark => vfs.mark().to_string().into_bytes(),
        Name::Changed => {
            let mut out = Vec::new();
            for (path, changed) in vfs.changed() {
                put_varint(&mut out, path.len() as u64);
                out.extend_from_slice(&path);
                out.push(u8::from(changed.whole));
                let blocks = changed.blocks.to_bytes();
                put_varint(&mut out, blocks.len() as u64);
                out.extend_from_slice(&blocks);
            }
            out
        }
    }
}

/// Does what was written to a name.
pub fn command(vfs: &Vfs, name: Name, bytes: &[u8]) -> Result<(), Errno> {
    if name != Name::Mark {
        return Err(Errno::EACCES);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?.trim();
    match (text, text.parse()) {
        ("begin", _) => vfs.begin_mark(),
        (_, Ok(snapshot)) => vfs.end_mark(snapshot),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// What differs from a snapshot, as the file system's process knows it.
#[derive(Debug, Default)]
pub struct Changes {
    files: HashMap<Vec<u8>, Changed>,
}

impl Changes {
    /// Returns what may differ in the file at `path`; `None` where nothing does.
    pub fn of(&self, path: &[u8]) -> Option<&Changed> {
        self.files.get(path)
    }

    /// Returns the paths of the files that may differ.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.files.keys().map(Vec::as_slice)
    }
}

/// The other side: a lazy data directory as other processes see it.
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    root: &'a Path,
}

impl<'a> Control<'a> {
    /// Returns the control of the data directory `root`; `None` where it is not a lazy one.
    pub fn of(root: &'a Path) -> io::Result<Option<Control<'a>>> {
        let control = Control { root };
        Ok(control.path(Name::Mark).try_exists()?.then_some(control))
    }

    fn read(&self, wanted: Name) -> Result<Vec<u8>, Error> {
        let path = self.path(wanted);
        regular::read(&path).map_err(cannot::<Error>("read", &path))
    }

    fn path(&self, wanted: Name) -> std::path::PathBuf {
        let name = NAMES.iter().find(|(name, _)| *name == wanted).expect("invariant: all names are listed").1;
        self.root.join(name)
    }

    fn tell(&self, text: &str) -> Result<(), Error> {
        let path = self.path(Name::Mark);
        let told =
            regular::open_with(File::options().write(true), &path).and_then(|mut file| file.write_all(text.as_bytes()));
        told.map_err(cannot::<Error>("write", &path))
    }

    fn malformed(&self, name: Name, source: Malformed) -> Error {
        Error::Journal { path: self.path(name), source }
    }

    /// Returns how it is doing.
    pub fn status(&self) -> Result<Status, Error> {
        let malformed = |_| self.malformed(Name::Status, Malformed { offset: 0, what: "not a status" });
        serde_json::from_slice(&self.read(Name::Status)?).map_err(malformed)
    }

    /// Returns the snapshot that [`changes`](Control::changes) are about.
    pub fn mark(&self) -> Result<ObjectId, Error> {
        let text = String::from_utf8_lossy(&self.read(Name::Mark)?).into_owned();
        text.trim().parse().map_err(|_| self.malformed(Name::Mark, Malformed { offset: 0, what: "not an id" }))
    }

    /// Begins a snapshot: what changes from now on is among the changes after the next one too.
    pub fn begin(&self) -> Result<(), Error> {
        self.tell("begin")
    }

    /// Ends a snapshot: from now on the changes are those against it.
    pub fn end(&self, snapshot: &ObjectId) -> Result<(), Error> {
        self.tell(&snapshot.to_string())
    }

    /// Returns what may differ from the snapshot of the mark.
    pub fn changes(&self) -> Result<Changes, Error> {
        let bytes = self.read(Name::Changed)?;
        let mut reader = Reader::new(&bytes);
        let mut read = || {
            let mut files = HashMap::new();
            while reader.left() > 0 {
                let length = reader.count(1)?;
                let path = reader.take(length)?.to_vec();
                let whole = reader.u8()? == 1;
                let length = reader.count(1)?;
                files.insert(path, Changed { whole, blocks: Blocks::from_bytes(reader.take(length)?) });
            }
            Ok(Changes { files })
        };
        read().map_err(|error| self.malformed(Name::Changed, error))
    }
}
