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
//! A look-up touches three or four pages. The checksum is `fsck`'s: a damaged index leads to an
//! object that is missing or does not match its id, never to wrong data.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::Error;
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;

const MAGIC: &[u8; 4] = b"ZNX1";
const FANOUT: usize = 8;
const IDS: usize = FANOUT + 256 * 4;
/// Bytes for each object: id, offset, length.
const EACH: usize = 32 + 8 + 4;

/// Where an object lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    /// Length of the stored form in bytes.
    pub length: u32,
}

/// An open index.
pub struct Index {
    map: Mmap,
    count: usize,
}

impl Index {
    /// Opens an index and checks its size; the checksum is left to [`Index::verify`].
    pub fn open(path: &Path) -> Result<Index, Error> {
        let file = File::open(path).map_err(cannot::<Error>("open", path))?;
        // SAFETY: a published index is never written again and never shortened (INVARIANT 2), so
        // the mapped bytes do not change while the mapping lives.
        let map = unsafe { Mmap::map(&file) }.map_err(cannot::<Error>("map", path))?;
        let bad = |what: &str| Error::BadPack { path: path.to_owned(), what: what.to_owned() };
        if map.get(..4) != Some(MAGIC) {
            return Err(bad("it does not begin like an index"));
        }
        let count = map.get(4..8).map_or(0, |bytes| read_u32(bytes, 0)) as usize;
        if map.len() != IDS + count * EACH + 32 {
            return Err(bad("its length does not fit the number of its objects"));
        }
        let index = Index { map, count };
        let ends = (0..256).map(|byte| index.fan(byte));
        if !ends.is_sorted() || index.fan(255) != count {
            return Err(bad("its fan-out is not sorted"));
        }
        Ok(index)
    }

    fn fan(&self, byte: usize) -> usize {
        read_u32(&self.map, FANOUT + byte * 4) as usize
    }

    fn range(&self, byte: u8) -> (usize, usize) {
        let start = if byte == 0 { 0 } else { self.fan(usize::from(byte) - 1) };
        (start, self.fan(usize::from(byte)))
    }

    fn id(&self, number: usize) -> &[u8] {
        &self.map[IDS + number * 32..][..32]
    }

    /// Returns the position of an object, if it is in the pack.
    pub fn find(&self, id: &ObjectId) -> Option<Position> {
        let (mut low, mut high) = self.range(id.0[0]);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.id(middle).cmp(&id.0) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.position(middle)),
            }
        }
        None
    }

    fn position(&self, number: usize) -> Position {
        let offsets = IDS + self.count * 32;
        let lengths = offsets + self.count * 8;
        let mut offset = [0; 8];
        offset.copy_from_slice(&self.map[offsets + number * 8..][..8]);
        Position { offset: u64::from_le_bytes(offset), length: read_u32(&self.map, lengths + number * 4) }
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether the pack holds nothing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns all ids, sorted.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        (0..self.count).map(|number| self.id_at(number))
    }

    fn id_at(&self, number: usize) -> ObjectId {
        let mut id = [0; 32];
        id.copy_from_slice(self.id(number));
        ObjectId(id)
    }

    /// Returns the ids that begin with `prefix`, at least two lower-case hexadecimal digits.
    pub fn with_prefix(&self, prefix: &str) -> Vec<ObjectId> {
        let first = prefix.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (start, end) = first.map_or((0, self.count), |byte| self.range(byte));
        (start..end).map(|number| self.id_at(number)).filter(|id| id.to_string().starts_with(prefix)).collect()
    }

    /// Checks the index against its checksum and its order.
    pub fn verify(&self, path: &Path) -> Result<(), Error> {
        let (content, checksum) = self.map.split_at(self.map.len() - 32);
        let what = if Sha256::digest(content).as_slice() != checksum {
            "its checksum does not match"
        } else if !self.ids().is_sorted() {
            "its ids are not sorted"
        } else {
            return Ok(());
        };
        Err(Error::BadPack { path: path.to_owned(), what: what.to_owned() })
    }
}

/// Returns the bytes of an index of `entries`, which get sorted.
pub fn build(entries: &mut [(ObjectId, Position)]) -> io::Result<Vec<u8>> {
    entries.sort_unstable_by_key(|(id, _)| *id);
    let count = u32::try_from(entries.len()).map_err(io::Error::other)?;
    let mut out = Vec::with_capacity(IDS + entries.len() * EACH + 32);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&count.to_le_bytes());
    for byte in 0..=255u8 {
        let upto = entries.partition_point(|(id, _)| id.0[0] <= byte) as u32; // at most count
        out.extend_from_slice(&upto.to_le_bytes());
    }
    entries.iter().for_each(|(id, _)| out.extend_from_slice(&id.0));
    entries.iter().for_each(|(_, position)| out.extend_from_slice(&position.offset.to_le_bytes()));
    entries.iter().for_each(|(_, position)| out.extend_from_slice(&position.length.to_le_bytes()));
    let checksum = Sha256::digest(&out);
    out.extend_from_slice(&checksum);
    Ok(out)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
