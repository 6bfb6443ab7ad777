//! The trash: what was dropped, until it is emptied.
//!
//! # Format
//! `trash/<id>/`, eight hexadecimal digits, is an entry. Its file `entry` is TOML: `what` (`timeline`, `data-directory` or
//! `wal`), `branch` (that it was dropped from), `position` (timeline@LSN), `commits` (whether it may hold transactions
//! that no branch has), `who`, `time_us` (microseconds since 1970) and `why`. A timeline stays where it is, under
//! `timelines/`; the entry refers to it as a branch does. Files were moved into the entry: `datadir/` is a folder of
//! `datadirs/`, `wal/` has segment files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use super::timeline::{Position, TimelineId};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A timeline and its ancestors: a branch that was deleted.
    Timeline,
    /// The files of a server that was not shut down.
    DataDirectory,
    /// WAL behind the end that was believed.
    Wal,
}

impl What {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            What::Timeline => "timeline",
            What::DataDirectory => "data-directory",
            What::Wal => "wal",
        }
    }

    /// Returns the name of the folder in the entry that holds its files.
    pub fn folder(self) -> Option<&'static str> {
        match self {
            What::Timeline => None,
            What::DataDirectory => Some("datadir"),
            What::Wal => Some("wal"),
        }
    }
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub what: What,
    pub branch: String,
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub position: Position,
    pub commits: bool,
    pub who: String,
    /// Microseconds since 1970.
    pub time_us: i64,
    pub why: String,
}

fn as_text<S: serde::Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(position)
}

fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom("not a timeline and an LSN"))
}

/// An entry with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub path: PathBuf,
    pub entry: Entry,
}

/// The trash cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the trash has no '{0}'")]
    Unknown(String),
    #[error("'{0}' is ambiguous in the trash")]
    Ambiguous(String),
    #[error("'{}' is corrupt: it does not read like an entry of the trash", .0.display())]
    Corrupt(PathBuf),
    #[error("cannot {verb} '{}'", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { verb, path, source }
}

/// The trash of a repository.
#[derive(Debug, Clone)]
pub struct Trash {
    dir: PathBuf,
}

impl Trash {
    /// Opens the trash of the repository in `dir`.
    pub fn open(dir: &Path) -> Trash {
        Trash { dir: dir.join("trash") }
    }

    /// Adds an entry, durably, with the files that `fill` puts into its folder; prepared in `tmp`.
    pub fn put(&self, tmp: &Path, entry: Entry, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Item, Error> {
        let id = TimelineId::random().to_string()[..8].to_owned();
        let path = self.dir.join(&id);
        let text = toml_edit::ser::to_string_pretty(&entry).expect("invariant: only simple fields");
        let put = || {
            let dir = tempfile::Builder::new().prefix("trash-").tempdir_in(tmp)?;
            durable::replace(tmp, &dir.path().join("entry"), text.as_bytes())?;
            fill(dir.path())?;
            durable::sync_tree(dir.path())?;
            durable::create_dir_all(&self.dir)?;
            let prepared = dir.keep();
            durable::publish_dir(&prepared, &path).inspect_err(|_| drop(fs::remove_dir_all(&prepared)))
        };
        put().map_err(io_error("write", &path))?;
        Ok(Item { id, path, entry })
    }

    /// Adds an entry, and moves the folder `files` into it. A crash between leaves the files where they were, and an
    /// entry without files, which the next call takes.
    pub fn put_folder(&self, tmp: &Path, entry: Entry, files: &Path) -> Result<Item, Error> {
        let folder = entry.what.folder().expect("invariant: an entry that has files");
        let is_begun = |item: &Item| {
            let Entry { what, position, commits, .. } = &item.entry;
            (*what, *position, *commits) == (entry.what, entry.position, entry.commits) && !item.has_files()
        };
        let item = match self.list()?.into_iter().find(is_begun) {
            Some(item) => item,
            None => self.put(tmp, entry, |_| Ok(()))?,
        };
        durable::publish_dir(files, &item.path.join(folder)).map_err(io_error("move", files))?;
        Ok(item)
    }

    /// Returns all entries, the oldest first.
    pub fn list(&self) -> Result<Vec<Item>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", &self.dir)(error)),
        };
        let mut items = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_error("list", &self.dir))?.path();
            let file = path.join("entry");
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("read", &file)(error)),
            };
            let entry = toml_edit::de::from_str(&text).map_err(|_| Error::Corrupt(file))?;
            let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            items.push(Item { id, path, entry });
        }
        items.sort_by(|a, b| (a.entry.time_us, &a.id).cmp(&(b.entry.time_us, &b.id)));
        Ok(items)
    }

    /// Returns the entry whose id begins with `prefix`.
    pub fn find(&self, prefix: &str) -> Result<Item, Error> {
        let mut found: Vec<Item> = self.list()?.into_iter().filter(|item| item.id.starts_with(prefix)).collect();
        match (found.pop(), found.is_empty()) {
            (Some(item), true) => Ok(item),
            (None, _) => Err(Error::Unknown(prefix.to_owned())),
            _ => Err(Error::Ambiguous(prefix.to_owned())),
        }
    }

    /// Removes an entry with its files, for good.
    pub fn remove(&self, tmp: &Path, item: &Item) -> Result<(), Error> {
        durable::discard_dir(tmp, &item.path).map_err(io_error("remove", &item.path))
    }
}

impl Item {
    /// Returns whether the entry has its files: a crash may have come before they were moved into it.
    pub fn has_files(&self) -> bool {
        self.entry.what.folder().is_some_and(|folder| self.path.join(folder).is_dir())
    }

    /// Returns the bytes that the entry's files take on the disk.
    pub fn file_bytes(&self) -> u64 {
        disk_bytes(&self.path)
    }
}

/// Returns the bytes that all below `path` takes on the disk; what cannot be looked at counts as nothing.
fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = metadata.is_dir().then(|| fs::read_dir(path)).into_iter().flatten().flatten();
    let below: u64 = below.flatten().map(|entry| disk_bytes(&entry.path())).sum();
    metadata.blocks() * 512 + below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::pg::Lsn;

    fn entry(time_us: i64) -> Entry {
        Entry {
            what: What::Wal,
            branch: "main".into(),
            position: Position { timeline: TimelineId::from_bytes([7; 16]), lsn: Lsn(0x15ECF68) },
            commits: true,
            who: "me".into(),
            time_us,
            why: "\"quoted\" = why\n[x]".into(),
        }
    }

    #[test]
    fn entries_come_back_oldest_first_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path());
        assert_eq!(trash.list().unwrap(), []);
        let newer = trash.put(dir.path(), entry(9), |dir| fs::write(dir.join("x"), "some files")).unwrap();
        let older = trash.put(dir.path(), entry(5), |_| Ok(())).unwrap();
        assert_eq!(trash.list().unwrap(), [older.clone(), newer.clone()]);
        assert!(newer.file_bytes() >= 10);
        assert_eq!(trash.find(&newer.id[..7]).unwrap(), newer);
        trash.remove(dir.path(), &newer).unwrap();
        trash.remove(dir.path(), &newer).unwrap();
        assert!(matches!(trash.find(&newer.id), Err(Error::Unknown(_))));
        fs::write(older.path.join("entry"), "hello").unwrap();
        assert!(matches!(trash.list(), Err(Error::Corrupt(_))));
    }
}
