//! Sorted ids in a mapped file, with a fan-out: what the index of a pack and that of all packs have in common.
//!
//! The fan-out has 256 numbers of four bytes: how many ids have a first byte of at most this number. Ids lie at equal
//! distances. A look-up touches three or four pages.

use std::cmp::Ordering;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::Error;
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;
use crate::objects::regular;

/// Bytes of a fan-out.
pub const FANOUT_BYTES: usize = 256 * 4;

/// Where ids lie in a file.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Offset of the fan-out, bytes.
    pub fanout: usize,
    /// Offset of the first id, bytes.
    pub ids: usize,
    /// From one id to the next, bytes; at least [`ObjectId::LEN`].
    pub stride: usize,
    /// Number of ids.
    pub count: usize,
}

/// A mapped file with sorted ids.
pub struct Table {
    map: Mmap,
    layout: Layout,
}

/// Maps a published file, which is never written again.
pub fn map_file(path: &Path) -> Result<Mmap, Error> {
    let file = regular::open(path).map_err(cannot::<Error>("open", path))?;
    // SAFETY: a published index is replaced or removed, never written again and never shortened (INVARIANT 2), so the
    // mapped bytes do not change while the mapping lives.
    unsafe { Mmap::map(&file) }.map_err(cannot::<Error>("map", path))
}

impl Table {
    /// Takes a mapped file whose ids lie as `layout` says. The error is what contradicts that.
    pub fn new(map: Mmap, layout: Layout) -> Result<Table, &'static str> {
        let Layout { fanout, ids, stride, count } = layout;
        let fits = |from: usize, bytes: Option<usize>| {
            bytes.and_then(|bytes| from.checked_add(bytes)).is_some_and(|end| end <= map.len())
        };
        if stride < ObjectId::LEN || !fits(fanout, Some(FANOUT_BYTES)) || !fits(ids, count.checked_mul(stride)) {
            return Err("its length does not fit the number of its objects");
        }
        let table = Table { map, layout };
        if !(0..256).map(|byte| table.upto(byte)).is_sorted() || table.upto(255) != count {
            return Err("its fan-out is not sorted");
        }
        Ok(table)
    }

    /// Returns the bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Returns the number of ids.
    pub fn count(&self) -> usize {
        self.layout.count
    }

    fn upto(&self, byte: usize) -> usize {
        u32_at(&self.map, self.layout.fanout + byte * 4) as usize
    }

    /// Returns the numbers of the ids that begin with `byte`.
    pub fn bucket(&self, byte: u8) -> Range<usize> {
        let start = if byte == 0 { 0 } else { self.upto(usize::from(byte) - 1) };
        start..self.upto(usize::from(byte))
    }

    fn raw(&self, number: usize) -> &[u8] {
        &self.map[self.layout.ids + number * self.layout.stride..][..ObjectId::LEN]
    }

    /// Returns the id with this number, which is below [`Table::count`].
    pub fn id(&self, number: usize) -> ObjectId {
        let mut id = [0; ObjectId::LEN];
        id.copy_from_slice(self.raw(number));
        ObjectId(id)
    }

    /// Returns the number of an id, if it is there.
    pub fn find(&self, id: &ObjectId) -> Option<usize> {
        let Range { start: mut low, end: mut high } = self.bucket(id.0[0]);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.raw(middle).cmp(&id.0) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// Returns the ids that begin with `prefix`, lower-case hexadecimal digits.
    pub fn with_prefix(&self, prefix: &str) -> Vec<ObjectId> {
        let first = prefix.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let numbers = first.map_or(0..self.count(), |byte| self.bucket(byte));
        numbers.filter(|number| begins_with(self.raw(*number), prefix)).map(|number| self.id(number)).collect()
    }

    /// Checks the file, whose last 32 bytes are the SHA-256 of all before, and that the ids are in order.
    pub fn verify(&self, path: &Path) -> Result<(), Error> {
        let (content, checksum) = self.map.split_at(self.map.len() - 32);
        let what = if Sha256::digest(content).as_slice() != checksum {
            "its checksum does not match"
        } else if !self.is_sorted() {
            "its ids are not sorted"
        } else {
            return Ok(());
        };
        Err(Error::BadPack { path: path.to_owned(), what: what.to_owned() })
    }

    /// Returns whether the ids are in order, and where the fan-out says.
    fn is_sorted(&self) -> bool {
        let in_place = |byte: u8| self.bucket(byte).all(|number| self.raw(number)[0] == byte);
        (1..self.count()).all(|number| self.raw(number - 1) <= self.raw(number)) && (0..=255).all(in_place)
    }
}

/// Returns whether an id, printed, begins with `prefix`.
fn begins_with(id: &[u8], prefix: &str) -> bool {
    let digit = |at: usize| id.get(at / 2).map(|byte| if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 });
    let mut digits = prefix.chars().enumerate();
    digits.all(|(at, wanted)| digit(at).and_then(|digit| char::from_digit(digit.into(), 16)) == Some(wanted))
}

/// Returns the fan-out of ids of which so many begin with each byte.
pub fn fanout(counts: &[u32; 256]) -> [u8; FANOUT_BYTES] {
    let mut bytes = [0; FANOUT_BYTES];
    let mut upto = 0u32;
    for (count, field) in counts.iter().zip(bytes.chunks_exact_mut(4)) {
        upto += count;
        field.copy_from_slice(&upto.to_le_bytes());
    }
    bytes
}

/// Reads a little-endian number; the caller knows that it is there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// Reads a little-endian number; the caller knows that it is there.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
