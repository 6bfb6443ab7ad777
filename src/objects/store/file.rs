//! Reads the blocks of a stored file, wherever they lie.

use super::{Error, Store};
use crate::objects::frame::{self, FRAME_BLOCKS, FRAME_SIZE};
use crate::objects::id::ObjectId;
use crate::objects::map::{Extent, Map};
use crate::objects::snapshot::{Content, Entry, Node};

/// A file of a snapshot, its chain of maps resolved. Takes memory for the map: about 50 bytes for
/// each frame of the file and 12 for each run of blocks, so at most 2 MiB for a segment of 1 GiB.
#[derive(Debug, Clone)]
pub struct StoredFile {
    map: Map,
}

impl StoredFile {
    /// Opens a file's content of `length` bytes.
    pub fn open(store: &Store, length: u64, content: Content) -> Result<StoredFile, Error> {
        let map = match content {
            Content::Empty => Map::default(),
            Content::Frame(id) => Map::of_frame(id, length.min(FRAME_SIZE as u64)),
            Content::Map(id) => {
                let map = store.whole_map(&id)?;
                if map.length != length {
                    let error =
                        crate::objects::codec::Malformed { offset: 1, what: "a map for a file of another length" };
                    return Err(store.malformed(&id, &error));
                }
                map
            }
        };
        Ok(StoredFile { map })
    }

    /// Opens the file of a snapshot's entry; `None` for a folder or a link.
    pub fn of_entry(store: &Store, entry: &Entry) -> Result<Option<StoredFile>, Error> {
        match entry.node {
            Node::File { length, content } => StoredFile::open(store, length, content).map(Some),
            Node::Dir | Node::Symlink { .. } => Ok(None),
        }
    }

    /// Returns the length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.map.length
    }

    /// Returns the whole map of the file.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Returns which frames hold the `count` blocks from `block` on, in order.
    pub fn extents(&self, block: u32, count: u32) -> impl Iterator<Item = (ObjectId, Extent)> + '_ {
        self.map.lookup(block, count)
    }

    /// Appends the bytes of up to `count` blocks from `block` on, verified, to `out`; stops at the
    /// end of the file.
    pub fn read(&self, store: &Store, block: u32, count: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        for (id, extent) in self.extents(block, count) {
            let content = store.frame(&id)?;
            for number in extent.offset..extent.offset + extent.count {
                let bytes = frame::block(&content, usize::from(number));
                let at = u64::from(extent.block + u32::from(number - extent.offset)) * frame::BLOCK_SIZE as u64;
                let wanted = (self.map.length - at.min(self.map.length)).min(frame::BLOCK_SIZE as u64) as usize;
                // A map never says where in a shorter block a file ends: the lengths must agree.
                match bytes.get(..wanted) {
                    Some(bytes) => out.extend_from_slice(bytes),
                    None => {
                        let what = "a block that a map names is shorter than the file needs";
                        return Err(store.malformed(&id, &crate::objects::codec::Malformed { offset: 0, what }));
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the frames of the file, in the order of their first use.
    pub fn frames(&self) -> &[ObjectId] {
        &self.map.frames
    }
}

/// The most blocks that one call of [`StoredFile::read`] should ask for, to keep buffers small.
pub const READ_BLOCKS: u32 = 16 * FRAME_BLOCKS as u32;
