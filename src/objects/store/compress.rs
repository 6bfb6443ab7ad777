//! zstd with one context a thread, since making a context costs more than a frame.

use std::cell::RefCell;
use std::io::{self, Read};

use zstd::bulk::{Compressor, Decompressor};

/// zstd's fastest ordinary level.
pub const FASTEST: i32 = 1;

thread_local! {
    /// Contexts by level: a writer uses two or three.
    static COMPRESSORS: RefCell<Vec<(i32, Compressor<'static>)>> = const { RefCell::new(Vec::new()) };
    /// Room for the worst case, used again and again: most contents get far smaller.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Contents up to this many bytes, which are all but huge segments of WAL, are inflated in one go into a
/// buffer of their length; longer ones grow as they come, so that a wrong length allocates no more than it brings.
const ONE_GO: usize = 64 << 20;

/// Returns `content` compressed at `level`.
pub fn compress(content: &[u8], level: i32) -> Vec<u8> {
    COMPRESSORS.with_borrow_mut(|compressors| {
        let known = compressors.iter().position(|(known, _)| *known == level).unwrap_or_else(|| {
            compressors.push((level, Compressor::new(level).expect("zstd takes every level")));
            compressors.len() - 1
        });
        ROOM.with_borrow_mut(|room| {
            room.clear();
            room.reserve(zstd::zstd_safe::compress_bound(content.len()));
            let compressed = compressors[known].1.compress_to_buffer(content, room);
            compressed.expect("the buffer has zstd's own bound");
            room.to_vec()
        })
    })
}

/// Returns the `length` bytes that `stored` was compressed from.
pub fn decompress(stored: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let content = if length <= ONE_GO {
        DECOMPRESSOR.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = Some(Decompressor::new()?);
            }
            slot.as_mut().expect("set above").decompress(stored, length)
        })?
    } else {
        let mut content = Vec::new();
        let limit = (length as u64).saturating_add(1);
        zstd::stream::read::Decoder::with_buffer(stored)?.take(limit).read_to_end(&mut content)?;
        content
    };
    if content.len() == length {
        Ok(content)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "its content has another length than its header says"))
    }
}
