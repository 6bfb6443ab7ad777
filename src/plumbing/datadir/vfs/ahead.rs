//! Finds out where the kernel should read on: whoever reads a little of a frame at random would have the frame decoded again
//! for each of its blocks, once it has left the cache. So the rest of its part is read into the kernel's page cache, by a
//! process that does not serve the files itself.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Vfs;

const PAUSE: Duration = Duration::from_millis(100);
/// What is read where somebody read a little, bytes.
pub const PART: u64 = 1 << 20;
/// How many parts are not read again at once.
const RECENT: usize = 64;

/// A part of a file that should be read: the file's path, and where the part begins, bytes. `None` when there is nothing to read.
pub type Wanted<'a> = Option<(&'a [u8], u64)>;

/// Follows up reads from files of `vfs` until `over`: tells `ask` what to read.
pub fn follow_up(vfs: &Vfs, reads: &Receiver<(u64, u64)>, over: &AtomicBool, ask: &mut dyn FnMut(Wanted)) {
    let mut paths = HashMap::new();
    let mut followed = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        let (ino, offset) = match reads.recv_timeout(PAUSE) {
            Ok(read) => read,
            Err(RecvTimeoutError::Timeout) => {
                ask(None);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let part = (ino, offset / PART);
        if followed.contains(&part) {
            continue;
        }
        followed.push_back(part);
        if followed.len() > RECENT {
            followed.pop_front();
        }
        // Renamed files are found under their old names: then the wrong one is read, or none.
        if !paths.contains_key(&ino) {
            paths = vfs.tree().paths();
        }
        if let Some(path) = paths.get(&ino) {
            ask(Some((path, part.1 * PART)));
        }
    }
}
