//! zstd with one context a thread, since making a context costs more than a frame.

use std::cell::RefCell;
use std::io::{self, Read};

use zstd::bulk::{Compressor, Decompressor};

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Contents up to this many bytes are inflated in one go into a buffer of their length; longer
/// ones grow as they come, so that a wrong length allocates no more than it brings.
const ONE_GO: usize = 1 << 20;

/// Returns `content` compressed at `level`.
pub fn compress(content: &[u8], level: i32) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(kept, _)| *kept != level) {
            *slot = Some((level, Compressor::new(level).expect("zstd takes every level")));
        }
        let (_, compressor) = slot.as_mut().expect("set above");
        compressor.compress(content).expect("the buffer has zstd's own bound")
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
