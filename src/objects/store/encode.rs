//! The stored form of an object: compressed, or as the difference to blocks stored before.
//!
//! # Format of a stored object
//! | bytes | field |
//! | --- | --- |
//! | 1 | kind: 1 frame, 2 map, 3 snapshot, 4 wal |
//! | 1 | encoding: 0 the content as it is, 1 zstd, 2 XOR then zstd (frames only) |
//! | 8 | length of the content in bytes |
//! | 4 | length of the payload in bytes |
//! | 32 | id |
//! | 1 | only for encoding 2: number of base frames, 1 to 4 |
//! | 32 each | only for encoding 2: their ids; each is a frame stored with encoding 0 or 1 |
//! | 2 each | only for encoding 2, one for each block: number of its base frame, number of the block in that |
//! | rest | the payload |
//!
//! A content is at most as long as its kind permits ([`Kind::longest`]), and a payload at most as long as its content.
//!
//! With encoding 2 the payload inflates to the content XORed block by block with its base blocks;
//! where the base block is shorter, or not there, it counts as zeroes. The id is that of the content.

use std::borrow::Borrow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Error, compress};
use crate::objects::codec::{Malformed, Reader};
use crate::objects::frame::{self, BLOCK_SIZE, FRAME_BLOCKS, blocks_in};
use crate::objects::id::ObjectId;
use crate::objects::kind::Kind;

/// The most frames that one frame may be stored against: a lazy read of it inflates at most one more.
pub const MAX_BASES: usize = 4;

/// zstd level for XORed blocks. They are mostly zeroes, which every level skips at the same speed;
const XOR_LEVEL: i32 = 9;

/// Length of the header before the bases, in bytes.
const HEADER: usize = 1 + 1 + 8 + 4 + ObjectId::LEN;
/// The most bytes before the payload.
const LONGEST_HEADER: usize = HEADER + 1 + MAX_BASES * ObjectId::LEN + FRAME_BLOCKS * 2;
/// A stored form of so many bytes, as that of every frame, is read in one go; a longer one only once its header
/// is known to be sound.
const ONE_GO: usize = 512 << 10;

/// So many bytes tell how long a stored form is.
pub const LONGEST_START: usize = HEADER + 1;

/// Returns of which object a stored form that begins with `start` is, and how many bytes it has.
pub fn stored_length(start: &[u8]) -> Result<(ObjectId, u32), Malformed> {
    let mut reader = Reader::new(start);
    let (_, encoding, length, payload) = (reader.u8()?, reader.u8()?, reader.u64()?, reader.u32()?);
    let id = ObjectId(reader.array()?);
    let delta = match encoding {
        2 if length <= frame::FRAME_SIZE as u64 => {
            1 + u64::from(reader.u8()?) * ObjectId::LEN as u64 + blocks_in(length) * 2
        }
        2 => return Err(reader.malformed("a delta longer than a frame")),
        _ => 0,
    };
    let stored = HEADER as u64 + delta + u64::from(payload);
    let stored = u32::try_from(stored).map_err(|_| reader.malformed("an object of impossible length"))?;
    Ok((id, stored))
}

/// The blocks that a frame is stored against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xor {
    /// Frames that stand alone, at most [`MAX_BASES`].
    pub bases: Vec<ObjectId>,
    /// For each block of the frame: the number of its base frame, and of the block in that.
    pub blocks: Vec<(u8, u8)>,
}

impl Xor {
    /// XORs each block of `content` with its base; done twice it changes nothing.
    pub fn apply<F: Borrow<Vec<u8>>>(&self, content: &mut [u8], bases: &[F]) -> Result<(), Malformed> {
        if self.blocks.len() as u64 != blocks_in(content.len() as u64) {
            return Err(Malformed { offset: 0, what: "a delta for another number of blocks" });
        }
        for (block, &(base, number)) in content.chunks_mut(BLOCK_SIZE).zip(&self.blocks) {
            let base = bases.get(usize::from(base)).ok_or(Malformed { offset: 0, what: "a delta against no frame" })?;
            let base = frame::block(base.borrow(), usize::from(number));
            block.iter_mut().zip(base).for_each(|(byte, base)| *byte ^= base);
        }
        Ok(())
    }
}

/// How a payload becomes content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Zstd,
    Xor(Xor),
}

/// An object in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub id: ObjectId,
    pub kind: Kind,
    pub encoding: Encoding,
    /// Length of the content in bytes.
    pub length: u64,
    pub payload: Vec<u8>,
}

impl Encoded {
    /// Compresses an object that stands alone.
    pub fn compress(id: ObjectId, kind: Kind, content: &[u8], level: i32) -> Encoded {
        let packed = compress::compress(content, level);
        let (encoding, payload) =
            if packed.len() < content.len() { (Encoding::Zstd, packed) } else { (Encoding::Raw, content.to_vec()) };
        Encoded { id, kind, encoding, length: content.len() as u64, payload }
    }

    /// Stores a frame against older versions of its blocks where that saves enough to be worth
    /// the second frame that a read then inflates: at least a quarter.
    pub fn delta(id: ObjectId, content: &[u8], delta: Xor, bases: &[impl Borrow<Vec<u8>>], level: i32) -> Encoded {
        let mut xored = content.to_vec();
        delta.apply(&mut xored, bases).expect("invariant: the caller names a base for each block");
        let payload = compress::compress(&xored, XOR_LEVEL);
        let length = content.len() as u64;
        let small = Encoded { id, kind: Kind::Frame, encoding: Encoding::Xor(delta), length, payload };
        // Below a sixteenth no compression of the content by itself can come near.
        if small.payload.len() * 16 <= content.len() {
            return small;
        }
        let whole = Encoded::compress(id, Kind::Frame, content, level);
        if small.stored_bytes() * 4 <= whole.stored_bytes() * 3 { small } else { whole }
    }

    /// Returns the frames that this one is stored against.
    pub fn bases(&self) -> &[ObjectId] {
        match &self.encoding {
            Encoding::Xor(delta) => &delta.bases,
            Encoding::Raw | Encoding::Zstd => &[],
        }
    }

    /// Returns the number of bytes of the stored form.
    pub fn stored_bytes(&self) -> u64 {
        let delta = match &self.encoding {
            Encoding::Xor(delta) => 1 + delta.bases.len() * ObjectId::LEN + delta.blocks.len() * 2,
            Encoding::Raw | Encoding::Zstd => 0,
        };
        (HEADER + delta + self.payload.len()) as u64
    }

    /// Refuses a content that is longer than readers permit.
    pub fn check_length(&self) -> Result<(), Error> {
        if self.length <= self.kind.longest() as u64 {
            return Ok(());
        }
        Err(Error::TooLong { kind: self.kind, length: self.length, longest: self.kind.longest() })
    }

    /// Appends the stored form.
    pub fn write(&self, out: &mut Vec<u8>) {
        let encoding = match &self.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
            Encoding::Xor(_) => 2,
        };
        out.extend_from_slice(&[self.kind as u8, encoding]);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes()); // content has at most 1 GiB
        out.extend_from_slice(&self.id.0);
        if let Encoding::Xor(delta) = &self.encoding {
            out.push(delta.bases.len() as u8); // at most MAX_BASES
            delta.bases.iter().for_each(|base| out.extend_from_slice(&base.0));
            delta.blocks.iter().for_each(|&(base, number)| out.extend_from_slice(&[base, number]));
        }
        out.extend_from_slice(&self.payload);
    }

    /// Reads a stored form, which must be all of `bytes`. The content is not verified yet.
    pub fn read(bytes: &[u8]) -> Result<Encoded, Malformed> {
        let header = Header::read(bytes, bytes.len() as u64)?;
        let payload = bytes[bytes.len() - header.payload..].to_vec();
        Ok(header.with(payload))
    }

    /// Reads the stored form that takes `stored` bytes of a file from `offset` on.
    pub fn read_at(file: &File, offset: u64, stored: u64) -> io::Result<Result<Encoded, Malformed>> {
        let mut start = vec![0; stored.min(ONE_GO as u64) as usize];
        file.read_exact_at(&mut start, offset)?;
        if start.len() as u64 == stored {
            return Ok(Encoded::read(&start));
        }
        let header = match Header::read(&start, stored) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let mut payload = vec![0; header.payload];
        file.read_exact_at(&mut payload, offset + stored - header.payload as u64)?;
        Ok(Ok(header.with(payload)))
    }

    /// Returns the inflated payload: the content, or for a delta what is left to XOR.
    pub fn inflate(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.length).map_err(io::Error::other)?;
        match self.encoding {
            Encoding::Raw if self.payload.len() == length => Ok(self.payload.clone()),
            Encoding::Raw => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "its payload is not as long as its content"))
            }
            Encoding::Zstd | Encoding::Xor(_) => compress::decompress(&self.payload, length),
        }
    }
}

/// What stands before a payload.
struct Header {
    id: ObjectId,
    kind: Kind,
    encoding: Encoding,
    length: u64,
    /// Length of the payload in bytes.
    payload: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`, which begin a stored form of `stored` bytes.
    fn read(bytes: &[u8], stored: u64) -> Result<Header, Malformed> {
        let mut reader = Reader::new(&bytes[..bytes.len().min(LONGEST_HEADER)]);
        let kind = Kind::from_number(reader.u8()?).ok_or(Malformed { offset: 0, what: "an unknown kind of object" })?;
        let encoding = reader.u8()?;
        let length = reader.u64()?;
        if length > kind.longest() as u64 {
            return Err(Malformed { offset: 2, what: "a content longer than its kind may be" });
        }
        let payload = reader.u32()?;
        if u64::from(payload) > length {
            return Err(Malformed { offset: 10, what: "a payload longer than its content" });
        }
        let id = ObjectId(reader.array()?);
        let encoding = match (encoding, kind) {
            (0, _) => Encoding::Raw,
            (1, _) => Encoding::Zstd,
            (2, Kind::Frame) => Encoding::Xor(read_xor(&mut reader, length)?),
            _ => return Err(Malformed { offset: 1, what: "an unknown encoding" }),
        };
        match (reader.offset() as u64 + u64::from(payload)).cmp(&stored) {
            std::cmp::Ordering::Equal => Ok(Header { id, kind, encoding, length, payload: payload as usize }),
            std::cmp::Ordering::Greater => Err(reader.malformed("the content ends early")),
            std::cmp::Ordering::Less => Err(reader.malformed("bytes after the end")),
        }
    }

    fn with(self, payload: Vec<u8>) -> Encoded {
        let Header { id, kind, encoding, length, .. } = self;
        Encoded { id, kind, encoding, length, payload }
    }
}

fn read_xor(reader: &mut Reader, length: u64) -> Result<Xor, Malformed> {
    let count = usize::from(reader.u8()?);
    if !(1..=MAX_BASES).contains(&count) {
        return Err(reader.malformed("an impossible number of base frames"));
    }
    let bases = (0..count).map(|_| reader.array().map(ObjectId)).collect::<Result<_, _>>()?;
    let blocks = (0..blocks_in(length)) // at most FRAME_BLOCKS, by the limit on length
        .map(|_| match reader.array()? {
            [base, number] if usize::from(base) < count && usize::from(number) < FRAME_BLOCKS => Ok((base, number)),
            _ => Err(reader.malformed("a delta against no block")),
        })
        .collect::<Result<_, _>>()?;
    Ok(Xor { bases, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::frame::FRAME_SIZE;
    use proptest::prelude::*;

    fn delta() -> (Vec<u8>, Vec<u8>, Encoded) {
        let old: Vec<u8> = (0..FRAME_SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut new = old[3 * BLOCK_SIZE..5 * BLOCK_SIZE].to_vec();
        new[77] ^= 1;
        let id = ObjectId::of(Kind::Frame, &new);
        let base = ObjectId::of(Kind::Frame, &old);
        let xor = Xor { bases: vec![base], blocks: vec![(0, 3), (0, 4)] };
        let encoded = Encoded::delta(id, &new, xor, std::slice::from_ref(&old), 3);
        (old, new, encoded)
    }

    #[test]
    fn a_delta_is_small_and_comes_back() {
        let (old, new, encoded) = delta();
        assert!(encoded.stored_bytes() < 200, "{} bytes", encoded.stored_bytes());
        let mut bytes = Vec::new();
        encoded.write(&mut bytes);
        assert_eq!(bytes.len() as u64, encoded.stored_bytes());
        let read = Encoded::read(&bytes).unwrap();
        assert_eq!(read, encoded);
        let Encoding::Xor(xor) = &read.encoding else { panic!("stored whole") };
        let mut content = read.inflate().unwrap();
        xor.apply(&mut content, &[old]).unwrap();
        assert_eq!(content, new);
    }

    #[test]
    fn a_delta_that_saves_little_is_stored_whole() {
        let old = vec![0u8; BLOCK_SIZE];
        let new: Vec<u8> = (0..256u32).flat_map(|n| ObjectId::of(Kind::Frame, &n.to_le_bytes()).0).collect();
        let xor = Xor { bases: vec![ObjectId::of(Kind::Frame, &old)], blocks: vec![(0, 0)] };
        let encoded = Encoded::delta(ObjectId::of(Kind::Frame, &new), &new, xor, &[old], 3);
        assert!(encoded.bases().is_empty());
    }

    #[test]
    fn a_wrong_length_is_refused_before_anything_is_allocated() {
        let mut bytes = Vec::new();
        Encoded::compress(ObjectId([0; 32]), Kind::Frame, b"hello", 3).write(&mut bytes);
        bytes[2..10].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Encoded::read(&bytes).unwrap_err().what, "a content longer than its kind may be");
    }

    #[test]
    fn a_long_payload_is_read_only_after_a_sound_header() {
        let content: Vec<u8> = (0..20_000u32).flat_map(|n| ObjectId::of(Kind::Frame, &n.to_le_bytes()).0).collect();
        let encoded = Encoded::compress(ObjectId::of(Kind::Wal, &content), Kind::Wal, &content, 3);
        let mut bytes = b"before".to_vec();
        encoded.write(&mut bytes);
        let stored = encoded.stored_bytes();
        assert!(stored > ONE_GO as u64);
        let file = tempfile::tempfile().unwrap();
        let read = |bytes: &[u8], stored| {
            file.write_all_at(bytes, 0).unwrap();
            Encoded::read_at(&file, 6, stored).unwrap()
        };
        assert_eq!(read(&bytes, stored), Ok(encoded));
        assert_eq!(read(&bytes, stored - 1).unwrap_err().what, "the content ends early");
        bytes[6 + 10..6 + 14].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&bytes, stored).unwrap_err().what, "a payload longer than its content");
        // A hole of eight gigabytes takes no memory.
        file.set_len(8 << 30).unwrap();
        assert_eq!(read(&bytes, 7 << 30).unwrap_err().what, "a payload longer than its content");
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_never_the_same(at in 0usize..300, flip in 1u8..) {
            let (_, _, encoded) = delta();
            let mut bytes = Vec::new();
            encoded.write(&mut bytes);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_ne!(Encoded::read(&bytes), Ok(encoded));
        }

        #[test]
        fn arbitrary_bytes_give_an_object_or_an_error(bytes: Vec<u8>) {
            if let Ok(encoded) = Encoded::read(&bytes) {
                let _ = encoded.inflate();
            }
        }
    }
}
