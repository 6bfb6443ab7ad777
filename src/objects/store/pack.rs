//! Packs: many objects in one file, with an index beside it.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 4 | `ZNP1` |
//! | each object | its stored form (see [`super::encode`]) |
//! | 4 | `ZNPE`: a pack without it was not finished |
//!
//! A pack is named by the SHA-256 of its bytes: packs of one name are the same file. (Those from before have the SHA-256 of
//! the sorted ids of their objects for a name, which is unique as well.) The index (see [`super::index`]) comes last, since it is
//! what makes a pack seen.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::Error;
use super::encode::{Encoded, LONGEST_START, stored_length};
use super::index::{self, Index, Position};
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;
use crate::objects::{durable, regular};

const MAGIC: &[u8; 4] = b"ZNP1";
const END: &[u8; 4] = b"ZNPE";
/// The ending of the empty file beside a pack that says that the pack is damaged.
const DAMAGED: &str = "damaged";

/// Files of packs, open, with their length in bytes.
pub type OpenFiles = Cache<PathBuf, Arc<(File, u64)>>;

/// A pack, whose files are opened when they are needed.
pub struct Pack {
    name: ObjectId,
    path: PathBuf,
    index_path: PathBuf,
    index: OnceLock<Index>,
    files: Arc<OpenFiles>,
}

impl Pack {
    /// Returns the pack `name` in `dir`, whose file is opened among `files`.
    pub fn new(dir: &Path, name: ObjectId, files: Arc<OpenFiles>) -> Pack {
        let path = dir.join(format!("{name}.pack"));
        Pack { name, index_path: path.with_extension("idx"), path, index: OnceLock::new(), files }
    }

    /// Checks that both files are there, and opens the index.
    pub fn open(&self) -> Result<(), Error> {
        std::fs::metadata(&self.path).map_err(cannot::<Error>("open", &self.path))?;
        self.index().map(drop)
    }

    /// Returns whether the file of the pack is there; whoever removes a pack removes that first.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Returns the name.
    pub fn name(&self) -> &ObjectId {
        &self.name
    }

    /// Returns the file of the pack.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file of the index.
    pub fn index_path(&self) -> &Path {
        &self.index_path
    }

    /// Returns the length of the pack in bytes.
    pub fn bytes(&self) -> Result<u64, Error> {
        self.file().map(|file| file.1)
    }

    /// Makes the pack durable: whoever published it may have been killed before its name was.
    pub fn secure(&self) -> Result<(), Error> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        durable::sync_dir(dir).map_err(cannot::<Error>("sync", dir))
    }

    /// Returns the index.
    pub fn index(&self) -> Result<&Index, Error> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let index = Index::open(&self.index_path)?;
        Ok(self.index.get_or_init(|| index))
    }

    /// Returns whether it has no index, or one that is damaged as far as its size and begin tell.
    pub fn lacks_index(&self) -> bool {
        match self.index() {
            Err(Error::Io(error)) => error.source.kind() == std::io::ErrorKind::NotFound,
            Err(error) => error.is_corruption(),
            Ok(_) => false,
        }
    }

    /// Returns the open file, and its length in bytes.
    fn file(&self) -> Result<Arc<(File, u64)>, Error> {
        let open = || {
            let file = regular::open(&self.path)?;
            let length = file.metadata()?.len();
            Ok(Arc::new((file, length)))
        };
        self.files.get_or_insert_with(&self.path, open).map_err(cannot("open", &self.path))
    }

    /// Returns whether it is open, and another file has come in its place: brought back from a backup.
    pub fn is_replaced(&self) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let Some(open) = self.files.peek(&self.path).and_then(|opened| opened.0.metadata().ok()) else { return false };
        std::fs::metadata(&self.path).is_ok_and(|there| identity(open) != identity(there))
    }

    /// Reads the stored form of an object. Its content is not verified yet.
    pub fn read(&self, id: &ObjectId, position: Position) -> Result<Encoded, Error> {
        let corrupt = |what: String| Error::Corrupt { id: *id, path: self.path.clone(), what };
        let opened = self.file()?;
        let (file, length) = &*opened;
        let stored = u64::from(position.length);
        if position.offset.checked_add(stored).is_none_or(|end| end > *length) {
            return Err(corrupt("the index points beyond the end of the pack".to_owned()));
        }
        let encoded = Encoded::read_at(file, position.offset, stored).map_err(cannot::<Error>("read", &self.path))?;
        let encoded = encoded.map_err(|error| corrupt(error.to_string()))?;
        if encoded.id == *id { Ok(encoded) } else { Err(corrupt(format!("the index points to object {}", encoded.id))) }
    }

    /// Checks the frame of the pack and its index, not the objects.
    pub fn verify(&self) -> Result<(), Error> {
        let opened = self.file()?;
        let (file, length) = &*opened;
        let mut ends = [0; 8];
        if *length < ends.len() as u64 {
            return Err(Error::BadPack { path: self.path.clone(), what: "it is cut off".to_owned() });
        }
        let (begin, end) = ends.split_at_mut(4);
        let read = file.read_exact_at(begin, 0).and_then(|()| file.read_exact_at(end, length.saturating_sub(4)));
        read.map_err(cannot::<Error>("read", &self.path))?;
        if begin != MAGIC || end != END {
            let what = "it does not begin and end like a pack".to_owned();
            return Err(Error::BadPack { path: self.path.clone(), what });
        }
        let index = self.index()?;
        index.verify(&self.index_path)?;
        // What an index leaves out nobody finds.
        if index.stored_bytes().checked_add(8) != Some(*length) {
            let what = "its index does not name all that it holds".to_owned();
            return Err(Error::BadPack { path: self.path.clone(), what });
        }
        Ok(())
    }

    /// Makes the index of a pack that has none, or a damaged one, durably, from what stands before each object; what was read of the
    /// one before stays in use. Memory: 60 bytes an object.
    pub fn make_index(&self, tmp: &Path) -> Result<(), Error> {
        let bad = |what: String| Error::BadPack { path: self.path.clone(), what };
        let opened = self.file()?;
        let (file, length) = &*opened;
        let read =
            |at: u64, bytes: &mut [u8]| file.read_exact_at(bytes, at).map_err(cannot::<Error>("read", &self.path));
        let end = length.checked_sub(END.len() as u64).filter(|end| *end >= MAGIC.len() as u64);
        let end = end.ok_or_else(|| bad("it is cut off".to_owned()))?;
        let (mut begin, mut last) = ([0; MAGIC.len()], [0; END.len()]);
        read(0, &mut begin)?;
        read(end, &mut last)?;
        if begin != *MAGIC || last != *END {
            return Err(bad("it does not begin and end like a pack".to_owned()));
        }
        let (mut entries, mut offset) = (Vec::new(), MAGIC.len() as u64);
        while offset < end {
            let mut start = vec![0; LONGEST_START.min((end - offset) as usize)]; // at most LONGEST_START
            read(offset, &mut start)?;
            let (id, stored) = stored_length(&start).map_err(|error| bad(format!("at byte {offset}: {error}")))?;
            let within = offset.checked_add(u64::from(stored)).filter(|next| *next <= end);
            let next = within.ok_or_else(|| bad(format!("the object at byte {offset} goes beyond its end")))?;
            entries.push((id, Position { offset, length: stored }));
            offset = next;
        }
        let mut write = || {
            let index = index::build(&mut entries)?;
            let mut file = durable::temp_file(tmp)?;
            file.write_all(&index)?;
            durable::replace_with(file, &self.index_path)
        };
        write().map_err(cannot::<Error>("write", &self.index_path))
    }

    /// Returns whether it was found to be damaged, and is the same file since.
    pub fn is_marked(&self) -> bool {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let marked = modified(&self.path.with_extension(DAMAGED));
        marked.is_some_and(|marked| modified(&self.path).is_some_and(|written| written <= marked))
    }

    /// Notes that it is damaged, or is not, for those who would read all of it in vain.
    pub fn set_marked(&self, is_damaged: bool) -> Result<(), Error> {
        let path = self.path.with_extension(DAMAGED);
        // Without the note it is found out again.
        let noted = match is_damaged {
            true => regular::write(&path, ""),
            false => match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        noted.map_err(cannot::<Error>("write", &path))
    }

    /// Removes it: the pack first, so that an index without a pack is what such a removal left, and nothing else. Others who
    /// have it open go on with it; who looks for its objects finds them where they were put before.
    pub fn remove(&self) -> Result<(), Error> {
        self.files.remove(&self.path);
        self.set_marked(false)?;
        durable::remove(&self.path).map_err(cannot::<Error>("remove", &self.path))?;
        durable::remove(&self.index_path).map_err(cannot::<Error>("remove", &self.index_path))
    }
}

/// A pack that is being written. Dropping it leaves nothing behind.
#[must_use = "a pack that is not finished stores nothing"]
pub struct PackWriter {
    dir: PathBuf,
    tmp: PathBuf,
    file: BufWriter<NamedTempFile>,
    offset: u64,
    hasher: Sha256,
    entries: Vec<(ObjectId, Position)>,
    seen: HashSet<ObjectId>,
    buffer: Vec<u8>,
}

impl PackWriter {
    /// Begins a pack that will be published in `dir`.
    pub fn create(dir: &Path, tmp: &Path) -> Result<PackWriter, Error> {
        let file = durable::temp_file(tmp).map_err(cannot::<Error>("write in", tmp))?;
        let mut writer = PackWriter {
            dir: dir.to_owned(),
            tmp: tmp.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            offset: 0,
            hasher: Sha256::new(),
            entries: Vec::new(),
            seen: HashSet::new(),
            buffer: Vec::new(),
        };
        writer.put(MAGIC)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.offset += bytes.len() as u64;
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(cannot::<Error>("write in", &self.tmp))
    }

    /// Returns where the pack ends now.
    pub fn mark(&self) -> Mark {
        Mark { offset: self.offset, entries: self.entries.len(), hasher: self.hasher.clone() }
    }

    /// Takes back what was added since `mark`.
    pub fn roll_back(&mut self, mark: Mark) -> Result<(), Error> {
        let Mark { offset, entries, hasher } = mark;
        let mut cut = || {
            self.file.flush()?;
            let file = self.file.get_mut().as_file_mut();
            file.set_len(offset)?;
            file.seek(SeekFrom::Start(offset)).map(drop)
        };
        cut().map_err(cannot::<Error>("write in", &self.tmp))?;
        for (id, _) in self.entries.drain(entries..) {
            self.seen.remove(&id);
        }
        (self.offset, self.hasher) = (offset, hasher);
        Ok(())
    }

    /// Returns whether this pack holds the object already.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.seen.contains(id)
    }

    /// Adds an object, unless the pack holds it already. Returns the bytes that it added.
    pub fn append(&mut self, object: &Encoded) -> Result<u64, Error> {
        object.check_length()?;
        if !self.seen.insert(object.id) {
            return Ok(0);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        object.write(&mut buffer);
        let position = Position { offset: self.offset, length: buffer.len() as u32 }; // content has at most 1 GiB
        self.entries.push((object.id, position));
        let put = self.put(&buffer);
        self.buffer = buffer;
        put.map(|()| u64::from(position.length))
    }

    /// Publishes the pack, then its index; all packs that were published before are durable after that too, which
    /// whoever left out what they hold relies on. Returns what is new; `None` for an empty one.
    pub fn finish(mut self) -> Result<Option<Published>, Error> {
        if self.entries.is_empty() {
            durable::create_dir_all(&self.dir).map_err(cannot::<Error>("create", &self.dir))?;
            durable::sync_dir(&self.dir).map_err(cannot::<Error>("sync", &self.dir))?;
            return Ok(None);
        }
        self.put(END)?;
        let index = index::build(&mut self.entries).map_err(cannot::<Error>("index a pack in", &self.dir))?;
        let name = ObjectId(self.hasher.finalize().into());
        let path = self.dir.join(format!("{name}.pack"));
        let publish = || {
            durable::create_dir_all(&self.dir)?;
            let file = self.file.into_inner().map_err(|error| error.into_error())?;
            let mut index_file = durable::temp_file(&self.tmp)?;
            index_file.write_all(&index)?;
            // Whatever is there by these names may be damaged; these are whole.
            durable::replace_with(file, &path)?;
            durable::replace_with(index_file, &path.with_extension("idx"))
        };
        publish().map_err(cannot::<Error>("write", &path))?;
        Ok(Some(Published { name, bytes: self.offset + index.len() as u64 }))
    }
}

/// A place to which a pack can be taken back.
pub struct Mark {
    offset: u64,
    entries: usize,
    hasher: Sha256,
}

/// A pack that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub name: ObjectId,
    /// What it and its index take.
    pub bytes: u64,
}
