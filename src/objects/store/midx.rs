//! The multi-pack index: where each object of many packs lies, so that no command opens the indexes of all of them.
//!
//! # Format
//! `objects/pack/multi-pack-index`:
//!
//! | bytes | field |
//! | --- | --- |
//! | 4 | `ZNM1` |
//! | 4 | number of packs, p |
//! | p × 32 | their names, those written first first |
//! | n × 48 | each object, sorted by id: id (32), number of its pack (4), offset in that (8), length of its stored form (4) |
//! | 256 × 4 | fan-out: how many objects have ids whose first byte is at most this entry's number |
//! | 4 | number of objects, n |
//! | 32 | SHA-256 of all bytes before |
//!
//! It is made of the packs' own indexes, so it may be removed at any time. Packs that it does not name are looked up in
//! theirs; of those that it names and that are gone by now its reader looks again for what came in their place.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::Error;
use super::index::Position;
use super::pack::Pack;
use super::table::{FANOUT_BYTES, Layout, Table, fanout, map_file, u32_at, u64_at};
use crate::objects::durable;
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;

const MAGIC: &[u8; 4] = b"ZNM1";
const HEADER: usize = 8;
const NAME: usize = 32;
/// Bytes for each object: id, pack, offset, length.
const EACH: usize = ObjectId::LEN + 4 + 8 + 4;
/// Bytes behind the objects.
const FOOTER: usize = FANOUT_BYTES + 4 + 32;

/// The file's name, in the folder of the packs.
pub const FILE: &str = "multi-pack-index";

/// Which file it was that was read: another one has come in its place when this differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    modified: (i64, i64),
    length: u64,
}

/// Returns that of the file at `path`; `None` where there is none.
pub fn version(path: &Path) -> Option<Version> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Some(Version { inode: metadata.ino(), modified, length: metadata.len() })
}

/// An open multi-pack index.
pub struct MultiIndex {
    table: Table,
    packs: usize,
}

impl MultiIndex {
    /// Opens it and checks its size; the checksum is left to [`MultiIndex::verify`].
    pub fn open(path: &Path) -> Result<MultiIndex, Error> {
        MultiIndex::of(map_file(path)?, path)
    }

    /// Takes the bytes of one, which lies at `path`.
    pub fn of(map: Mmap, path: &Path) -> Result<MultiIndex, Error> {
        let bad = |what: &str| Error::BadPack { path: path.to_owned(), what: what.to_owned() };
        if map.get(..4) != Some(MAGIC) || map.len() < HEADER + FOOTER {
            return Err(bad("it does not begin like a multi-pack index"));
        }
        let packs = u32_at(&map, 4) as usize;
        let footer = map.len() - FOOTER;
        let count = u32_at(&map, footer + FANOUT_BYTES) as usize;
        let ids = HEADER + packs * NAME;
        if count.checked_mul(EACH).and_then(|bytes| bytes.checked_add(ids)) != Some(footer) {
            return Err(bad("its length does not fit the number of its objects"));
        }
        let layout = Layout { fanout: footer, ids, stride: EACH, count };
        Ok(MultiIndex { table: Table::new(map, layout).map_err(bad)?, packs })
    }

    /// Returns the names of the packs, those written first first.
    pub fn packs(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let name = |number: usize| {
            let mut name = [0; NAME];
            name.copy_from_slice(&self.table.bytes()[HEADER + number * NAME..][..NAME]);
            ObjectId(name)
        };
        (0..self.packs).map(name)
    }

    /// Returns the number of objects.
    pub fn count(&self) -> usize {
        self.table.count()
    }

    /// Returns the number of an object among all, by which others may remember it.
    pub fn number(&self, id: &ObjectId) -> Option<usize> {
        self.table.find(id)
    }

    /// Returns the number of the pack that an object is in, and where.
    pub fn find(&self, id: &ObjectId) -> Option<(usize, Position)> {
        let at = HEADER + self.packs * NAME + self.table.find(id)? * EACH + ObjectId::LEN;
        let bytes = self.table.bytes();
        let position = Position { offset: u64_at(bytes, at + 4), length: u32_at(bytes, at + 12) };
        Some((u32_at(bytes, at) as usize, position)).filter(|(pack, _)| *pack < self.packs)
    }

    /// Returns all ids, sorted.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        (0..self.count()).map(|number| self.table.id(number))
    }

    /// Returns the ids that begin with `prefix`, at least two lower-case hexadecimal digits.
    pub fn with_prefix(&self, prefix: &str) -> Vec<ObjectId> {
        self.table.with_prefix(prefix)
    }

    /// Checks it against its checksum and its order.
    pub fn verify(&self, path: &Path) -> Result<(), Error> {
        self.table.verify(path)
    }
}

/// Writes to a file, and hashes what is written.
struct Hashing {
    file: BufWriter<File>,
    hasher: Sha256,
}

impl Hashing {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

/// Writes the multi-pack index of `packs`, those written first first, into their folder `dir`, durably. Of an object that
/// lies in several, the copy in the last one counts. Takes memory for a 256th of the objects at a time, 56 bytes each.
pub fn write(dir: &Path, tmp: &Path, packs: &[Arc<Pack>]) -> Result<(), Error> {
    let path = dir.join(FILE);
    let indexes = packs.iter().map(|pack| pack.index()).collect::<Result<Vec<_>, _>>()?;
    let write = || {
        let file = durable::temp_file(tmp)?;
        let mut out = Hashing { file: BufWriter::with_capacity(1 << 20, file.reopen()?), hasher: Sha256::new() };
        out.put(MAGIC)?;
        out.put(&u32::try_from(packs.len()).map_err(io::Error::other)?.to_le_bytes())?;
        packs.iter().try_for_each(|pack| out.put(&pack.name().0))?;
        let mut counts = [0u32; 256];
        let mut bucket = Vec::new();
        for byte in 0..=255u8 {
            bucket.clear();
            for (number, index) in (0u32..).zip(&indexes) {
                bucket.extend(index.entries(index.bucket(byte)).map(|(id, at)| (id, u32::MAX - number, at)));
            }
            bucket.sort_unstable_by_key(|(id, from_last, _)| (*id, *from_last));
            bucket.dedup_by_key(|(id, ..)| *id);
            counts[usize::from(byte)] = u32::try_from(bucket.len()).map_err(io::Error::other)?;
            for (id, from_last, at) in &bucket {
                out.put(&id.0)?;
                out.put(&(u32::MAX - from_last).to_le_bytes())?;
                out.put(&at.offset.to_le_bytes())?;
                out.put(&at.length.to_le_bytes())?;
            }
        }
        let count = counts.iter().try_fold(0u32, |sum, count| sum.checked_add(*count));
        out.put(&fanout(&counts))?;
        out.put(&count.ok_or_else(|| io::Error::other("more than 2^32 objects"))?.to_le_bytes())?;
        let checksum = out.hasher.clone().finalize();
        out.file.write_all(&checksum)?;
        out.file.flush()?;
        durable::replace_with(file, &path)
    };
    write().map_err(cannot("write", &path))
}
