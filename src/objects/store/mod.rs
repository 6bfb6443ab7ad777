//! The object store: content-addressed, append-only, every read verified.
//!
//! ```text
//! objects/ab/cdef…              loose objects: WAL intervals
//! objects/pack/<name>.pack .idx frames, maps and snapshots, those of one write to a pack
//! objects/pack/multi-pack-index where each object of them lies
//! ```
//!
//! Small packs and loose objects are merged into larger ones ([`repack`]), so there are never many.
//!
//! An object is published by renaming a finished, synced file; a name that exists is the same
//! object. [`Store::read`] hashes what it returns (INVARIANT 3).

pub mod compress;
pub mod encode;
pub mod file;
pub mod index;
pub mod loose;
pub mod midx;
pub mod pack;
pub mod packs;
pub mod repack;
pub mod seen;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};

use super::codec::Malformed;
use super::id::ObjectId;
use super::kind::Kind;
use super::map::Map;
use super::snapshot::Snapshot;
use crate::objects::file_error::FileError;
use encode::{Encoded, Encoding};
use pack::{Pack, PackWriter};
use packs::Packs;

/// How often a reader looks again for an object that is not where it was.
const LOOKS: usize = 3;

/// The most memory that decoded frames may take in the store's cache, in bytes.
pub const FRAME_CACHE_BYTES: u64 = 48 << 20;

/// The store cannot give or take an object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pack and no loose file holds it.
    #[error("object {id} is missing")]
    Missing { id: ObjectId },
    /// It is there, but not what it should be.
    #[error("object {id} is corrupt: {what}, in '{}'", path.display())]
    Corrupt { id: ObjectId, path: PathBuf, what: String },
    /// It is of another kind than the place that names it demands.
    #[error("object {id} is a {}, not a {}", found.name(), wanted.name())]
    WrongKind { id: ObjectId, found: Kind, wanted: Kind },
    /// A pack or its index cannot be used at all.
    #[error("'{}' is corrupt: {what}", path.display())]
    BadPack { path: PathBuf, what: String },
    /// It could not be read again.
    #[error("cannot store a {} of {length} bytes: the longest has {longest}", kind.name())]
    TooLong { kind: Kind, length: u64, longest: usize },
    /// No object's id begins with these digits.
    #[error("no object '{prefix}'")]
    UnknownPrefix { prefix: String },
    /// More than one object's id begins with these digits.
    #[error("object '{prefix}' is ambiguous: {}", candidates.iter().map(ObjectId::short).collect::<Vec<_>>().join(", "))]
    AmbiguousPrefix { prefix: String, candidates: Vec<ObjectId> },
    #[error(transparent)]
    Io(#[from] FileError),
}

impl Error {
    /// Returns whether stored data is damaged or gone, rather than out of reach.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Missing { .. } | Error::Corrupt { .. } | Error::WrongKind { .. } | Error::BadPack { .. })
    }
}

/// An object, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub kind: Kind,
    pub content: Vec<u8>,
}

/// Where an object lies and how, as `cat-object --stat` and `fsck` report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub kind: Kind,
    /// Length of the content in bytes.
    pub length: u64,
    /// Bytes that it takes in the store, header included.
    pub stored: u64,
    /// The frames that it is stored against; empty where it stands alone.
    pub bases: Vec<ObjectId>,
}

#[derive(Clone)]
struct FrameWeight;

impl Weighter<ObjectId, Arc<Vec<u8>>> for FrameWeight {
    fn weight(&self, _: &ObjectId, content: &Arc<Vec<u8>>) -> u64 {
        content.len() as u64 + 64
    }
}

/// An open store. Costs nothing to open: see [`packs`].
pub struct Store {
    dir: PathBuf,
    packs: Packs,
    frames: Cache<ObjectId, Arc<Vec<u8>>, FrameWeight>,
    /// The longest content of a WAL object, bytes.
    longest_wal: u64,
}

impl Store {
    /// Opens the store in `dir`, the repository's `objects/`.
    pub fn open(dir: &Path) -> Store {
        let frames =
            Cache::with_weighter(FRAME_CACHE_BYTES as usize / super::frame::FRAME_SIZE, FRAME_CACHE_BYTES, FrameWeight);
        let longest_wal = Kind::Wal.longest() as u64;
        let packs = Packs::new(&dir.join("pack"));
        Store { dir: dir.to_owned(), packs, frames, longest_wal }
    }

    /// Believes no WAL object that is longer than a segment of so many bytes.
    pub fn with_segment_size(self, bytes: u32) -> Store {
        Store { longest_wal: u64::from(bytes) + 8, ..self }
    }

    /// Returns the folder of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the indexes of packs that cannot be opened, and why.
    pub fn broken_packs(&self) -> Vec<(PathBuf, String)> {
        self.packs.broken().into_iter().filter(|(path, _)| !repack::is_remain(self, path)).collect()
    }

    /// Returns the packs.
    pub fn packs(&self) -> &Packs {
        &self.packs
    }

    fn locate(&self, id: &ObjectId) -> Option<(Arc<Pack>, index::Position)> {
        self.packs.locate(id)
    }

    /// Returns whether the object is there. What another process wrote since the last miss may go unseen.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.locate(id).is_some() || loose::path(&self.dir, id).exists()
    }

    /// Returns whether the object is there, and can be read: who has its content may drop that then. Costs reading it, unless that was
    /// done lately.
    pub fn has_sound(&self, id: &ObjectId) -> bool {
        self.contains(id) && (self.has_cached(id) || self.read(id).is_ok())
    }

    /// Returns the copies of an object in their stored form, not yet verified. There is more than one where writers did
    /// not know of each other; they may be encoded differently. Where the first one does, the others cost nothing.
    fn copies(&self, id: &ObjectId) -> impl Iterator<Item = Result<(Encoded, PathBuf), Error>> {
        let id = *id;
        let first = self.locate(&id);
        let known = first.clone();
        let loose = std::iter::once_with(move || self.loose_copy(&id).transpose()).flatten();
        // A multi-pack index that is damaged leads astray; the packs' own may know better.
        let again =
            std::iter::once_with(move || self.packs.locate_again(&id, known.as_ref().map(|(pack, at)| (&**pack, *at))))
                .flatten();
        let packed = move |(pack, at): (Arc<Pack>, index::Position)| self.packed_copy(&pack, &id, at);
        first.into_iter().map(packed).chain(loose).chain(again.map(packed))
    }

    /// Refuses an interval that no server wrote, before it is inflated.
    fn check_length(&self, encoded: Encoded, path: PathBuf) -> Result<(Encoded, PathBuf), Error> {
        if encoded.kind == Kind::Wal && encoded.length > self.longest_wal {
            let what = "an interval longer than a segment".to_owned();
            return Err(Error::Corrupt { id: encoded.id, path, what });
        }
        Ok((encoded, path))
    }

    /// Returns what `take` makes of the first copy of an object that it takes. Where it takes none, the error is that
    /// of the first: an object is damaged only if all of its copies are.
    fn first_good<T>(&self, id: &ObjectId, take: impl Fn(Encoded, PathBuf) -> Result<T, Error>) -> Result<T, Error> {
        for attempt in 0.. {
            let (mut failed, generation) = (None, self.packs.generation());
            for copy in self.copies(id) {
                match copy.and_then(|(encoded, path)| take(encoded, path)) {
                    Ok(taken) => return Ok(taken),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            // What it was in may have been merged with others since the last look, more than once on a busy machine.
            let may_be_elsewhere = self.packs.rescan()? || self.packs.generation() != generation;
            if attempt == LOOKS || !may_be_elsewhere {
                return Err(failed.unwrap_or(Error::Missing { id: *id }));
            }
        }
        unreachable!("invariant: it ends with the last look")
    }

    /// Reads an object and checks it against its id.
    pub fn read(&self, id: &ObjectId) -> Result<Object, Error> {
        self.first_good(id, |encoded, path| self.decode(id, encoded, path))
    }

    /// Reads one copy of an object in its stored form, not yet verified, from a pack.
    pub fn packed_copy(&self, pack: &Pack, id: &ObjectId, at: index::Position) -> Result<(Encoded, PathBuf), Error> {
        pack.read(id, at).and_then(|encoded| self.check_length(encoded, pack.path().to_owned()))
    }

    /// Reads that which lies by itself, if there is one.
    pub fn loose_copy(&self, id: &ObjectId) -> Result<Option<(Encoded, PathBuf)>, Error> {
        let read = loose::read(&self.dir, id)?;
        read.map(|encoded| self.check_length(encoded, loose::path(&self.dir, id))).transpose()
    }

    /// Returns the ids of the objects that lie by themselves.
    pub fn loose_ids(&self) -> Result<Vec<ObjectId>, Error> {
        loose::ids(&self.dir, "")
    }

    /// Returns the object that a stored form becomes, checked against its id.
    pub fn decode(&self, id: &ObjectId, encoded: Encoded, path: PathBuf) -> Result<Object, Error> {
        let corrupt = |what: String| Error::Corrupt { id: *id, path: path.clone(), what };
        let mut content = encoded.inflate().map_err(|error| corrupt(error.to_string()))?;
        if let Encoding::Xor(delta) = &encoded.encoding {
            let bases = delta.bases.iter().map(|base| self.base_frame(base)).collect::<Result<Vec<_>, _>>()?;
            delta.apply(&mut content, &bases).map_err(|error| corrupt(error.to_string()))?;
        }
        if ObjectId::of(encoded.kind, &content) != *id {
            return Err(corrupt("its content does not match its id".to_owned()));
        }
        Ok(Object { kind: encoded.kind, content })
    }

    /// Reads a frame that others are stored against, from a copy that stands alone, so chains have one step.
    fn base_frame(&self, id: &ObjectId) -> Result<Arc<Vec<u8>>, Error> {
        if let Some(content) = self.frames.get(id) {
            return Ok(content);
        }
        let object = self.first_good(id, |encoded, path| match encoded.encoding {
            Encoding::Xor(_) => {
                let what = "a delta is stored against it, but it is a delta itself".to_owned();
                Err(Error::Corrupt { id: *id, path, what })
            }
            Encoding::Raw | Encoding::Zstd => self.decode(id, encoded, path),
        })?;
        let content = Arc::new(expect_kind(id, object, Kind::Frame)?);
        self.frames.insert(*id, content.clone());
        Ok(content)
    }

    /// Reads a frame, from the cache if it was read lately. Who asks for one that another thread is
    /// reading waits for that.
    pub fn frame(&self, id: &ObjectId) -> Result<Arc<Vec<u8>>, Error> {
        self.frames.get_or_insert_with(id, || Ok(Arc::new(expect_kind(id, self.read(id)?, Kind::Frame)?)))
    }

    /// Returns whether reading a frame costs nothing, since that was done lately.
    pub fn has_cached(&self, id: &ObjectId) -> bool {
        self.frames.peek(id).is_some()
    }

    /// Forgets the frames that were read lately.
    pub fn forget_frames(&self) {
        self.frames.clear();
    }

    /// Reads a snapshot.
    pub fn snapshot(&self, id: &ObjectId) -> Result<Snapshot, Error> {
        let content = expect_kind(id, self.read(id)?, Kind::Snapshot)?;
        Snapshot::decode(&content).map_err(|error| self.malformed(id, &error))
    }

    /// Reads a map as it is stored, with or without a base.
    pub fn map(&self, id: &ObjectId) -> Result<Map, Error> {
        let content = expect_kind(id, self.read(id)?, Kind::Map)?;
        Map::decode(&content).map_err(|error| self.malformed(id, &error))
    }

    /// Reads a map and those below it, and returns the whole map that they are together.
    pub fn whole_map(&self, id: &ObjectId) -> Result<Map, Error> {
        let mut changes = Vec::new();
        let mut map = self.map(id)?;
        while let Some((base, depth)) = map.base {
            let below = self.map(&base)?;
            if below.depth() + 1 != depth {
                return Err(self.malformed(id, &Malformed { offset: 0, what: "a chain of maps of the wrong depth" }));
            }
            changes.push(std::mem::replace(&mut map, below));
        }
        let whole = changes.iter().rev().fold(map, |whole, changes| whole.overlay(changes));
        if !whole.is_whole() {
            return Err(self.malformed(id, &Malformed { offset: 0, what: "a chain of maps that leaves blocks out" }));
        }
        Ok(whole)
    }

    /// Returns the error about an object whose content is not what its place demands.
    pub fn malformed(&self, id: &ObjectId, error: &Malformed) -> Error {
        let path = self.locate(id).map_or_else(|| loose::path(&self.dir, id), |(pack, _)| pack.path().to_owned());
        Error::Corrupt { id: *id, path, what: error.to_string() }
    }

    /// Returns how an object is stored, without inflating its content.
    pub fn stored(&self, id: &ObjectId) -> Result<Stored, Error> {
        self.first_good(id, |encoded, _| {
            let (length, stored) = (encoded.length, encoded.stored_bytes());
            Ok(Stored { kind: encoded.kind, length, stored, bases: encoded.bases().to_vec() })
        })
    }

    /// Returns the bytes that the stored form of an object takes. Of one that lies by itself, as WAL does, nothing is read.
    pub fn stored_bytes(&self, id: &ObjectId) -> Result<u64, Error> {
        match fs::metadata(loose::path(&self.dir, id)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(_) => Ok(self.stored(id)?.stored),
        }
    }

    /// Returns the base of each block of a frame that is stored as a delta: a frame, and the number of
    /// the block in it. `None` where the frame stands alone.
    pub fn delta_of(&self, id: &ObjectId) -> Result<Option<encode::Xor>, Error> {
        self.first_good(id, |encoded, _| match encoded.encoding {
            Encoding::Xor(delta) => Ok(Some(delta)),
            Encoding::Raw | Encoding::Zstd => Ok(None),
        })
    }

    /// Stores one object by itself. Returns its id; one that is there already, and sound, is not written again, but made durable.
    pub fn write_loose(&self, tmp: &Path, kind: Kind, content: &[u8], level: i32) -> Result<ObjectId, Error> {
        let id = ObjectId::of(kind, content);
        if !self.has_sound(&id) {
            loose::write(&self.dir, tmp, &Encoded::compress(id, kind, content, level))?;
            return Ok(id);
        }
        // Whichever of its copies was sound.
        if let Some((pack, _)) = self.locate(&id) {
            pack.secure()?;
        }
        if loose::path(&self.dir, &id).exists() {
            loose::secure(&self.dir, &id)?;
        }
        Ok(id)
    }

    /// Begins a pack in `tmp`; nothing is in the store before [`PackWriter::finish`].
    pub fn pack(&self, tmp: &Path) -> Result<PackWriter, Error> {
        PackWriter::create(self.packs.dir(), tmp)
    }

    /// Opens what [`PackWriter::finish`] published.
    pub fn refresh(&self) -> Result<(), Error> {
        self.packs.rescan().map(drop)
    }

    /// Returns the ids of all objects, sorted, each once.
    pub fn ids(&self) -> Result<Vec<ObjectId>, Error> {
        self.packs.rescan()?;
        let mut ids: Vec<ObjectId> =
            self.packs.multi().iter().flat_map(|multi| multi.ids().collect::<Vec<_>>()).collect();
        for pack in self.packs.others() {
            ids.extend(pack.index()?.ids());
        }
        ids.extend(loose::ids(&self.dir, "")?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Returns the object whose id begins with `prefix`, at least four hexadecimal digits.
    pub fn resolve_prefix(&self, prefix: &str) -> Result<ObjectId, Error> {
        let lower = prefix.to_ascii_lowercase();
        let unknown = || Error::UnknownPrefix { prefix: prefix.to_owned() };
        if !(4..=64).contains(&lower.len()) || !lower.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let mut candidates: Vec<ObjectId> =
            self.packs.multi().iter().flat_map(|multi| multi.with_prefix(&lower)).collect();
        for pack in self.packs.others() {
            candidates.extend(pack.index()?.with_prefix(&lower));
        }
        candidates.extend(loose::ids(&self.dir, &lower)?);
        candidates.sort_unstable();
        candidates.dedup();
        match candidates.as_slice() {
            [] => Err(unknown()),
            [id] => Ok(*id),
            _ => Err(Error::AmbiguousPrefix { prefix: prefix.to_owned(), candidates }),
        }
    }
}

/// Returns the content of an object that must be of `wanted` kind.
pub fn expect_kind(id: &ObjectId, object: Object, wanted: Kind) -> Result<Vec<u8>, Error> {
    if object.kind == wanted {
        Ok(object.content)
    } else {
        Err(Error::WrongKind { id: *id, found: object.kind, wanted })
    }
}
