//! Maps: which block of a file is which part of which frame.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 1 | version: 1 |
//! | varint | length of the file in bytes |
//! | 1 | depth: 0 for a whole map, else how many maps lie below |
//! | 32 | only where depth > 0: id of the base map, whose depth is one less |
//! | varint | number of frames |
//! | 32 each | ids of the frames, in the order of their first use, each once |
//! | varint | number of extents |
//! | each: | |
//! | varint | blocks skipped since the end of the extent before |
//! | varint | number of blocks, less one |
//! | signed varint | number of the frame, less that of the extent before (before the first: 0) |
//! | 1 | the extent's first block within the frame |
//!
//! Extents are in the order of the file's blocks, do not overlap, stay within their frame's 32
//! blocks, and neighbours that could be one are one. A whole map's extents leave no gap. A map
//! with a base holds the blocks that changed; all others, up to the length, are the base's. So
//! there is one form for one content, and equal maps have equal ids.

use std::collections::HashMap;

use super::codec::{Malformed, Reader, put_signed, put_varint};
use super::frame::{FRAME_BLOCKS, blocks_in};
use super::id::ObjectId;

/// The most maps below a map. A longer chain is written whole, by reference to the same frames.
pub const MAX_DEPTH: u8 = 8;

const VERSION: u8 = 1;

/// A run of blocks of a file that lie one after the other in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The file's first block of the run.
    pub block: u32,
    /// Length of the run in blocks, 1 to 32.
    pub count: u8,
    /// The run's first block within the frame.
    pub offset: u8,
    /// Number of the frame in [`Map::frames`].
    pub frame: u32,
}

impl Extent {
    /// Returns the block after the run.
    pub fn end(&self) -> u32 {
        self.block + u32::from(self.count)
    }

    fn continues(&self, before: &Extent) -> bool {
        self.frame == before.frame && self.block == before.end() && self.offset == before.offset + before.count
    }
}

/// A map as it is stored: whole, or the changes against a base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Map {
    /// Length of the file in bytes.
    pub length: u64,
    /// The map that this one changes, and this one's depth above a whole map.
    pub base: Option<(ObjectId, u8)>,
    /// The frames that the extents refer to.
    pub frames: Vec<ObjectId>,
    /// Runs of blocks in the order of the file.
    pub extents: Vec<Extent>,
}

/// Builds the frames and extents of a map from runs given in the order of the file.
#[derive(Debug, Default)]
pub struct MapBuilder {
    frames: Vec<ObjectId>,
    numbers: HashMap<ObjectId, u32>,
    extents: Vec<Extent>,
}

impl MapBuilder {
    /// Adds the run of `count` blocks from `block` on, which lie in `frame` from `offset` on.
    pub fn push(&mut self, block: u32, count: u8, frame: ObjectId, offset: u8) {
        let number = *self.numbers.entry(frame).or_insert_with(|| {
            self.frames.push(frame);
            self.frames.len() as u32 - 1 // fewer frames than blocks, and those are counted in u32
        });
        let extent = Extent { block, count, offset, frame: number };
        match self.extents.last_mut() {
            Some(last) if extent.continues(last) => last.count += count,
            _ => self.extents.push(extent),
        }
    }

    /// Returns whether no run was added.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Returns the map of a file of `length` bytes.
    pub fn finish(self, length: u64, base: Option<(ObjectId, u8)>) -> Map {
        Map { length, base, frames: self.frames, extents: self.extents }
    }
}

impl Map {
    /// Returns how many maps lie below this one.
    pub fn depth(&self) -> u8 {
        self.base.map_or(0, |(_, depth)| depth)
    }

    /// Returns the canonical form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_varint(&mut out, self.length);
        out.push(self.depth());
        if let Some((base, _)) = &self.base {
            out.extend_from_slice(&base.0);
        }
        put_varint(&mut out, self.frames.len() as u64);
        self.frames.iter().for_each(|id| out.extend_from_slice(&id.0));
        put_varint(&mut out, self.extents.len() as u64);
        let (mut block, mut frame) = (0, 0);
        for extent in &self.extents {
            put_varint(&mut out, u64::from(extent.block - block));
            put_varint(&mut out, u64::from(extent.count - 1));
            put_signed(&mut out, i64::from(extent.frame) - i64::from(frame));
            out.push(extent.offset);
            (block, frame) = (extent.end(), extent.frame);
        }
        out
    }

    /// Reads the canonical form, and nothing but it.
    pub fn decode(content: &[u8]) -> Result<Map, Malformed> {
        let mut reader = Reader::new(content);
        if reader.u8()? != VERSION {
            return Err(Malformed { offset: 0, what: "an unknown version of map" });
        }
        let length = reader.varint()?;
        let blocks = u32::try_from(blocks_in(length)).map_err(|_| reader.malformed("a file beyond 32 TiB"))?;
        let base = match reader.u8()? {
            0 => None,
            depth if depth <= MAX_DEPTH => Some((ObjectId(reader.array()?), depth)),
            _ => return Err(reader.malformed("a chain of maps that is too long")),
        };
        let frames =
            (0..reader.count(ObjectId::LEN)?).map(|_| reader.array().map(ObjectId)).collect::<Result<Vec<_>, _>>()?;
        // It grows as extents come: a count is no more than a claim.
        let count = reader.count(4)?;
        let mut extents: Vec<Extent> = Vec::new();
        let (mut end, mut frame, mut used) = (0u32, 0i64, 0i64);
        for _ in 0..count {
            let at = reader.offset();
            let wrong = |what| Malformed { offset: at, what };
            let gap = u32::try_from(reader.varint()?).map_err(|_| wrong("an extent beyond the end of the file"))?;
            let count = reader.varint()?;
            frame = frame.checked_add(reader.signed()?).ok_or_else(|| wrong("an extent in no frame"))?;
            let offset = reader.u8()?;
            let block = end.checked_add(gap).ok_or_else(|| wrong("an extent beyond the end of the file"))?;
            if count >= FRAME_BLOCKS as u64 || usize::from(offset) + count as usize >= FRAME_BLOCKS {
                return Err(wrong("an extent beyond the end of its frame"));
            }
            let count = count as u8 + 1;
            // Frames are numbered in the order of their first use.
            if frame < 0 || frame > used || frame >= frames.len() as i64 {
                return Err(wrong("an extent in no frame"));
            }
            used = used.max(frame + 1);
            let extent = Extent { block, count, offset, frame: frame as u32 };
            end = block.checked_add(u32::from(count)).ok_or_else(|| wrong("an extent beyond the end of the file"))?;
            if end > blocks {
                return Err(wrong("an extent beyond the end of the file"));
            }
            if base.is_none() && gap > 0 {
                return Err(wrong("a gap in a whole map"));
            }
            if extents.last().is_some_and(|last| extent.continues(last)) {
                return Err(wrong("two extents that could be one"));
            }
            extents.push(extent);
        }
        if used != frames.len() as i64 {
            return Err(reader.malformed("a frame that no extent uses"));
        }
        if base.is_none() && end != blocks {
            return Err(reader.malformed("a whole map that ends before the file"));
        }
        reader.end()?;
        Ok(Map { length, base, frames, extents })
    }

    /// Returns whether the extents leave no block of the file out, as those of a whole map do.
    pub fn is_whole(&self) -> bool {
        let mut end = 0;
        let adjoins = |extent: &Extent| extent.block == std::mem::replace(&mut end, extent.end());
        self.extents.iter().all(adjoins) && u64::from(end) == blocks_in(self.length)
    }

    /// Returns the whole map of a file of at most 32 blocks that is all in one frame.
    pub fn of_frame(frame: ObjectId, length: u64) -> Map {
        let mut builder = MapBuilder::default();
        if length > 0 {
            builder.push(0, blocks_in(length).min(FRAME_BLOCKS as u64) as u8, frame, 0);
        }
        builder.finish(length, None)
    }

    /// Returns the whole map that `self`, a map without a base, becomes by `changes`.
    pub fn overlay(&self, changes: &Map) -> Map {
        let blocks = blocks_in(changes.length) as u32; // decode refuses more
        let mut out = MapBuilder::default();
        let mut old = self.extents.iter().copied().peekable();
        let mut keep = |out: &mut MapBuilder, from: u32, to: u32| {
            // The base's extents that lie in [from, to), cut to it.
            while let Some(extent) = old.peek().copied().filter(|extent| extent.block < to) {
                let (start, end) = (extent.block.max(from), extent.end().min(to));
                if start < end {
                    let skipped = (start - extent.block) as u8;
                    out.push(start, (end - start) as u8, self.frames[extent.frame as usize], extent.offset + skipped);
                }
                if extent.end() > to {
                    break;
                }
                old.next();
            }
        };
        let mut end = 0;
        for extent in &changes.extents {
            keep(&mut out, end, extent.block);
            out.push(extent.block, extent.count, changes.frames[extent.frame as usize], extent.offset);
            end = extent.end();
        }
        keep(&mut out, end, blocks);
        out.finish(changes.length, None)
    }

    /// Returns the extents that hold any of the `count` blocks from `block` on, in order, each cut
    /// to that range, with its frame's id. Blocks that the map does not cover are left out.
    pub fn lookup(&self, block: u32, count: u32) -> impl Iterator<Item = (ObjectId, Extent)> + '_ {
        let to = block.saturating_add(count);
        let first = self.extents.partition_point(|extent| extent.end() <= block);
        self.extents[first..].iter().take_while(move |extent| extent.block < to).map(move |extent| {
            let (start, end) = (extent.block.max(block), extent.end().min(to));
            let cut = Extent {
                block: start,
                count: (end - start) as u8,
                offset: extent.offset + (start - extent.block) as u8,
                frame: extent.frame,
            };
            (self.frames[extent.frame as usize], cut)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> ObjectId {
        ObjectId([n; 32])
    }

    fn whole(blocks: u32) -> Map {
        let mut builder = MapBuilder::default();
        for start in (0..blocks).step_by(32) {
            builder.push(start, (blocks - start).min(32) as u8, id((start / 32) as u8), 0);
        }
        builder.finish(u64::from(blocks) * 8192, None)
    }

    #[test]
    fn comes_back() {
        let map = whole(100);
        assert_eq!(Map::decode(&map.encode()), Ok(map));
    }

    #[test]
    fn overlay_takes_the_changed_blocks_and_no_others() {
        let mut changed = MapBuilder::default();
        for (n, block) in [3u32, 4, 40, 99, 100].into_iter().enumerate() {
            changed.push(block, 1, id(200), n as u8);
        }
        let merged = whole(100).overlay(&changed.finish(101 * 8192, Some((id(9), 1))));
        for block in 0..101 {
            let (frame, extent) = merged.lookup(block, 1).next().unwrap();
            let expected = match [3, 4, 40, 99, 100].iter().position(|&changed| changed == block) {
                Some(n) => (id(200), n as u8),
                None => (id((block / 32) as u8), (block % 32) as u8),
            };
            assert_eq!((frame, extent.offset), expected, "block {block}");
        }
        assert_eq!(Map::decode(&merged.encode()), Ok(merged));
    }

    #[test]
    fn changes_that_leave_blocks_out_make_no_whole_map() {
        let (mut near, mut far) = (MapBuilder::default(), MapBuilder::default());
        near.push(100, 1, id(200), 0);
        far.push(101, 1, id(200), 0);
        assert!(whole(100).overlay(&near.finish(101 * 8192, Some((id(9), 1)))).is_whole());
        assert!(!whole(100).overlay(&far.finish(102 * 8192, Some((id(9), 1)))).is_whole());
        assert!(!whole(100).overlay(&MapBuilder::default().finish(101 * 8192, Some((id(9), 1)))).is_whole());
    }

    #[test]
    fn overlay_shortens() {
        let merged = whole(100).overlay(&MapBuilder::default().finish(33 * 8192 - 5, Some((id(9), 1))));
        assert_eq!(merged.extents.last().map(Extent::end), Some(33));
        assert_eq!(merged.frames.len(), 2);
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        let good = whole(64);
        let mut split = good.clone();
        split.extents[0].count = 16;
        split.extents.insert(1, Extent { block: 16, count: 16, offset: 16, frame: 0 });
        assert_eq!(Map::decode(&split.encode()).unwrap_err().what, "two extents that could be one");
        let mut unused = good.clone();
        unused.frames.push(id(77));
        assert_eq!(Map::decode(&unused.encode()).unwrap_err().what, "a frame that no extent uses");
        let mut short = good.clone();
        short.length += 8192;
        assert_eq!(Map::decode(&short.encode()).unwrap_err().what, "a whole map that ends before the file");
        let mut long = good.encode();
        long.push(0);
        assert_eq!(Map::decode(&long).unwrap_err().what, "bytes after the end");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_a_map_or_an_error(mut bytes: Vec<u8>) {
            let _ = Map::decode(&bytes);
            bytes.insert(0, VERSION);
            if let Ok(map) = Map::decode(&bytes) {
                prop_assert_eq!(map.encode(), bytes);
            }
        }

        #[test]
        fn a_flipped_bit_never_gives_the_same_map(byte in 0usize..200, bit in 0u8..8) {
            let map = whole(100);
            let mut bytes = map.encode();
            let byte = byte % bytes.len();
            bytes[byte] ^= 1 << bit;
            prop_assert_ne!(Map::decode(&bytes), Ok(map));
        }
    }
}
