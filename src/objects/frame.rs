//! Frames: the unit of storage, hashing, dedup and lazy read.
//!
//! # Format
//! The content of a frame is nothing but the bytes of up to [`FRAME_BLOCKS`] blocks of one file,
//! one after the other. They need not be neighbours in the file: the changed blocks of a delta
//! share frames. Every block has [`BLOCK_SIZE`] bytes, except that the last block of a file may
//! be shorter; it then is the last of its frame. A file of at most [`FRAME_SIZE`] bytes is one
//! frame, without a map. A frame is never empty.

/// PostgreSQL's block size, in bytes (`BLCKSZ`).
pub const BLOCK_SIZE: usize = 8192;
/// The most blocks of a frame.
pub const FRAME_BLOCKS: usize = 32;
/// The most bytes of a frame.
pub const FRAME_SIZE: usize = BLOCK_SIZE * FRAME_BLOCKS;

/// Returns block `index` of a frame's content; empty where the frame has no such block.
pub fn block(content: &[u8], index: usize) -> &[u8] {
    let start = (index * BLOCK_SIZE).min(content.len());
    let end = (start + BLOCK_SIZE).min(content.len());
    &content[start..end]
}

/// Returns how many blocks `length` bytes fill, the last one perhaps in part.
pub fn blocks_in(length: u64) -> u64 {
    length.div_ceil(BLOCK_SIZE as u64)
}
