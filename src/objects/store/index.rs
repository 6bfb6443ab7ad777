//! Pack indexes: where each object of a pack lies. Sorted, fan-out first, read through a mapping.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 4 | `ZNX1` |
//! | 4 | number of objects, n |
//! | 256 × 4 | fan-out: how many objects have ids whose first byte is at most this entry's number |
//! | n × 32 | ids, sorted |
//! | n × 8 | offset of the object in the pack |
//! | n × 4 | length of its stored form in bytes |
//! | 32 | SHA-256 of all bytes before |
//!
//! The checksum is `fsck`'s: a damaged index leads to an object that is missing or does not match its id, never to
//! wrong data.

use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::Error;
use super::table::{FANOUT_BYTES, Layout, Table, fanout, map_file, u32_at, u64_at};
use crate::objects::id::ObjectId;

const MAGIC: &[u8; 4] = b"ZNX1";
const FANOUT: usize = 8;
const IDS: usize = FANOUT + FANOUT_BYTES;
/// Bytes for each object: id, offset, length.
const EACH: usize = ObjectId::LEN + 8 + 4;

/// Where an object lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    /// Length of the stored form in bytes.
    pub length: u32,
}

/// An open index.
pub struct Index {
    table: Table,
}

impl Index {
    /// Opens an index and checks its size; the checksum is left to [`Index::verify`].
    pub fn open(path: &Path) -> Result<Index, Error> {
        Index::of(map_file(path)?, path)
    }

    /// Takes the bytes of one, which lies at `path`.
    pub fn of(map: Mmap, path: &Path) -> Result<Index, Error> {
        let bad = |what: &str| Error::BadPack { path: path.to_owned(), what: what.to_owned() };
        if map.get(..4) != Some(MAGIC) {
            return Err(bad("it does not begin like an index"));
        }
        let count = map.get(4..8).map_or(0, |bytes| u32_at(bytes, 0)) as usize;
        if map.len() != IDS + count * EACH + 32 {
            return Err(bad("its length does not fit the number of its objects"));
        }
        let layout = Layout { fanout: FANOUT, ids: IDS, stride: ObjectId::LEN, count };
        Ok(Index { table: Table::new(map, layout).map_err(bad)? })
    }

    /// Returns the position of an object, if it is in the pack.
    pub fn find(&self, id: &ObjectId) -> Option<Position> {
        self.table.find(id).map(|number| self.position(number))
    }

    /// Returns the number of an object in the order of ids, if it is in the pack.
    pub fn number(&self, id: &ObjectId) -> Option<usize> {
        self.table.find(id)
    }

    /// Returns the bytes that the stored forms of all objects take.
    pub fn stored_bytes(&self) -> u64 {
        (0..self.len()).fold(0, |sum, number| sum + u64::from(self.position(number).length))
    }

    /// Returns the numbers of all objects in the order in which they lie in the pack. Memory: four bytes each.
    pub fn in_order_of_offsets(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..self.len() as u32).collect(); // the count is a 32-bit number
        numbers.sort_unstable_by_key(|number| self.position(*number as usize).offset);
        numbers
    }

    /// Returns the object with this number, and where it lies.
    pub fn entry(&self, number: u32) -> (ObjectId, Position) {
        (self.table.id(number as usize), self.position(number as usize))
    }

    fn position(&self, number: usize) -> Position {
        let offsets = IDS + self.len() * ObjectId::LEN;
        let lengths = offsets + self.len() * 8;
        let bytes = self.table.bytes();
        Position { offset: u64_at(bytes, offsets + number * 8), length: u32_at(bytes, lengths + number * 4) }
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.table.count()
    }

    /// Returns whether the pack holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all ids, sorted.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        (0..self.len()).map(|number| self.table.id(number))
    }

    /// Returns the objects with these numbers, sorted by id.
    pub fn entries(&self, numbers: Range<usize>) -> impl Iterator<Item = (ObjectId, Position)> + '_ {
        numbers.map(|number| (self.table.id(number), self.position(number)))
    }

    /// Returns the numbers of the objects whose ids begin with `byte`.
    pub fn bucket(&self, byte: u8) -> Range<usize> {
        self.table.bucket(byte)
    }

    /// Returns the ids that begin with `prefix`, at least two lower-case hexadecimal digits.
    pub fn with_prefix(&self, prefix: &str) -> Vec<ObjectId> {
        self.table.with_prefix(prefix)
    }

    /// Checks the index against its checksum and its order.
    pub fn verify(&self, path: &Path) -> Result<(), Error> {
        self.table.verify(path)
    }
}

/// Returns the bytes of an index of `entries`, which get sorted.
pub fn build(entries: &mut [(ObjectId, Position)]) -> io::Result<Vec<u8>> {
    entries.sort_unstable_by_key(|(id, _)| *id);
    let count = u32::try_from(entries.len()).map_err(io::Error::other)?;
    let mut counts = [0; 256];
    entries.iter().for_each(|(id, _)| counts[usize::from(id.0[0])] += 1);
    let mut out = Vec::with_capacity(IDS + entries.len() * EACH + 32);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&fanout(&counts));
    entries.iter().for_each(|(id, _)| out.extend_from_slice(&id.0));
    entries.iter().for_each(|(_, position)| out.extend_from_slice(&position.offset.to_le_bytes()));
    entries.iter().for_each(|(_, position)| out.extend_from_slice(&position.length.to_le_bytes()));
    let checksum = Sha256::digest(&out);
    out.extend_from_slice(&checksum);
    Ok(out)
}
