//! The trash: what was dropped, until it is emptied.
//!
//! # Format
//! `trash/<id>/`, eight hexadecimal digits, is an entry. Its file `entry` is TOML: `what` (`timeline`, `tag`,
//! `data-directory` or `wal`), `branch` (that it was dropped from; of a tag, the tag), `position` (timeline@LSN),
//! `commits` (whether it may hold transactions that no branch has; of a timeline that is found out anew), `bytes` (what
//! it took on the disk when it came), `message` (of a tag), `who`, `time_us` (microseconds since 1970) and `why`. A timeline
//! stays where it is, under `timelines/`; the entry refers to it as a branch or a tag does. Files were moved into the
//! entry: `datadir/` is a folder of `datadirs/`, `wal/` has segment files.
//!
//! An entry that cannot be read is damaged. What it refers to is not known, so as long as it is there it counts as a
//! reference to everything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::timeline::{Position, TimelineId};
use super::{bounded, durable, folder};
use crate::objects::file_error::{FileError, cannot};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A timeline and its ancestors: a branch that was deleted or moved.
    Timeline,
    /// The same up to an LSN: a tag that was deleted or moved.
    Tag,
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
            What::Tag => "tag",
            What::DataDirectory => "data-directory",
            What::Wal => "wal",
        }
    }

    /// Returns the name of the folder in the entry that holds its files.
    pub fn folder(self) -> Option<&'static str> {
        match self {
            What::Timeline | What::Tag => None,
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
    /// 0 in entries from before it was noted.
    #[serde(default)]
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub who: String,
    /// Microseconds since 1970.
    pub time_us: i64,
    pub why: String,
}

impl Entry {
    /// Returns whether the entry refers to a timeline, as a branch or a tag does.
    pub fn names(&self, timeline: TimelineId) -> bool {
        self.what.folder().is_none() && self.position.timeline == timeline
    }
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
    /// `None` where it is damaged.
    pub entry: Option<Entry>,
}

/// The trash cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the trash has no '{0}'")]
    Unknown(String),
    #[error("'{0}' is ambiguous in the trash")]
    Ambiguous(String),
    #[error("'{}' is damaged: it does not read like an entry of the trash", .0.display())]
    Damaged(PathBuf),
    #[error(transparent)]
    Io(#[from] FileError),
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

    /// Adds an entry, durably, with the files that `fill` puts into its folder, which count with its bytes; prepared in
    /// `tmp`.
    pub fn put(&self, tmp: &Path, mut entry: Entry, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Item, Error> {
        let id = TimelineId::random().to_string()[..8].to_owned();
        let path = self.dir.join(&id);
        let put = || {
            let dir = tempfile::Builder::new().prefix("trash-").tempdir_in(tmp)?;
            fill(dir.path())?;
            entry.bytes = entry.bytes.saturating_add(folder::disk_bytes(dir.path()));
            write(tmp, dir.path(), &entry)?;
            durable::sync_tree(dir.path())?;
            durable::create_dir_all(&self.dir)?;
            let prepared = dir.keep();
            durable::publish_dir(&prepared, &path).inspect_err(|_| drop(fs::remove_dir_all(&prepared)))
        };
        put().map_err(cannot::<Error>("write", &path))?;
        Ok(Item { id, path, entry: Some(entry) })
    }

    /// Adds an entry, and moves the folder `files` into it. A crash between leaves the files where they were, and an
    /// entry without files, which the next call takes; where they are on another file system, both may have them.
    pub fn put_folder(&self, tmp: &Path, mut entry: Entry, files: &Path) -> Result<Item, Error> {
        let folder = entry.what.folder().expect("invariant: an entry that has files");
        entry.bytes = folder::disk_bytes(files);
        let key = |entry: &Entry| (entry.what, entry.position, entry.commits);
        let is_begun =
            |item: &Item| item.entry.as_ref().is_some_and(|begun| key(begun) == key(&entry)) && !item.has_files();
        let item = match self.list()?.into_iter().find(is_begun) {
            // As of now: it may have been begun long ago.
            Some(Item { id, path, .. }) => {
                write(tmp, &path, &entry).map_err(cannot::<Error>("write", &path))?;
                Item { id, path, entry: Some(entry) }
            }
            None => self.put(tmp, entry, |_| Ok(()))?,
        };
        durable::move_dir(tmp, files, &item.path.join(folder)).map_err(cannot::<Error>("move", files))?;
        Ok(item)
    }

    /// Returns all entries, those that are damaged first, then the oldest. Costs a small file an entry.
    pub fn list(&self) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        for entry in folder::entries(&self.dir).map_err(cannot::<Error>("list", &self.dir))? {
            let Ok(id) = entry.file_name().into_string() else { continue };
            if id.len() != 8 || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                continue;
            }
            let path = entry.path();
            let file = path.join("entry");
            let entry = match bounded::read_to_string(&file, bounded::ENTRY) {
                Ok(text) => toml_edit::de::from_str(&text).ok(),
                // Nor can it be read some other time.
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory => None,
                    _ => return Err(cannot::<Error>("read", &file)(error)),
                },
            };
            // Else removed meanwhile.
            if entry.is_some() || path.try_exists().map_err(cannot::<Error>("look for", &path))? {
                items.push(Item { id, path, entry });
            }
        }
        items.sort_by_cached_key(|item| (item.entry.as_ref().map(|entry| entry.time_us), item.id.clone()));
        Ok(items)
    }

    /// Returns the bytes that all entries took when they came.
    pub fn bytes(&self) -> Result<u64, Error> {
        Ok(total_bytes(&self.list()?))
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
        durable::discard_dir(tmp, &item.path).map_err(cannot::<Error>("remove", &item.path))
    }
}

/// Returns the bytes that entries took when they came.
pub fn total_bytes(items: &[Item]) -> u64 {
    items.iter().flat_map(|item| &item.entry).fold(0, |sum, entry| sum.saturating_add(entry.bytes))
}

impl Item {
    /// Returns what the entry says, or that it is damaged.
    pub fn entry(&self) -> Result<&Entry, Error> {
        self.entry.as_ref().ok_or_else(|| Error::Damaged(self.path.join("entry")))
    }

    /// Returns whether the entry has its files: a crash may have come before they were moved into it.
    pub fn has_files(&self) -> bool {
        let folder = self.entry.as_ref().and_then(|entry| entry.what.folder());
        folder.is_some_and(|folder| self.path.join(folder).is_dir())
    }
}

/// Writes what an entry in the folder `dir` says, durably.
fn write(tmp: &Path, dir: &Path, entry: &Entry) -> io::Result<()> {
    let text = toml_edit::ser::to_string_pretty(entry).map_err(io::Error::other)?;
    durable::replace(tmp, &dir.join("entry"), text.as_bytes())
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
            bytes: 0,
            message: Some("one\n\ntwo".into()),
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
        assert!(newer.entry().unwrap().bytes >= 10);
        assert_eq!(trash.find(&newer.id[..7]).unwrap(), newer);
        trash.remove(dir.path(), &newer).unwrap();
        trash.remove(dir.path(), &newer).unwrap();
        assert!(matches!(trash.find(&newer.id), Err(Error::Unknown(_))));
    }

    #[test]
    fn an_entry_has_room_for_the_longest_message() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path());
        let message = Some("\u{1}".repeat(bounded::REF as usize));
        let item = trash.put(dir.path(), Entry { message, ..entry(5) }, |_| Ok(())).unwrap();
        assert_eq!(trash.list().unwrap(), [item]);
    }

    #[test]
    fn a_damaged_entry_hides_no_other_and_what_is_no_entry_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path());
        let [sound, damaged] = [5, 6].map(|time_us| trash.put(dir.path(), entry(time_us), |_| Ok(())).unwrap());
        fs::write(dir.path().join("trash/README"), "hello").unwrap();
        fs::create_dir(dir.path().join("trash/folder")).unwrap();
        let damages: [&dyn Fn(&Path); 4] = [
            &|file| fs::write(file, "hello").unwrap(),
            &|file| fs::write(file, b"\xff").unwrap(),
            &|file| fs::remove_file(file).unwrap(),
            &|file| fs::create_dir(file).unwrap(),
        ];
        for damage in damages {
            damage(&damaged.path.join("entry"));
            let items = trash.list().unwrap();
            assert_eq!(items, [Item { entry: None, ..damaged.clone() }, sound.clone()]);
            assert!(matches!(items[0].entry(), Err(Error::Damaged(_))));
        }
        trash.remove(dir.path(), &damaged).unwrap();
        assert_eq!(trash.list().unwrap(), [sound]);
    }
}
