//! Gives the kernel the rest of a frame of which somebody read a little: whoever reads at random would have the
//! frame decoded again for each of its blocks, once it has left the cache. The kernel asks for it as for any
//! read-ahead, so its page cache stays its own.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::Vfs;
use crate::objects::frame::FRAME_SIZE;

const PAUSE: Duration = Duration::from_millis(100);
/// What is read where somebody read a little, bytes.
const PART: u64 = 1 << 20;
/// How many parts are not read again at once.
const RECENT: usize = 64;

/// Follows up reads from files of `vfs`, which is mounted at `root`, until `over`.
pub fn follow_up(vfs: &Vfs, root: &Path, reads: &Receiver<(u64, u64)>, over: &AtomicBool) {
    let mut paths = HashMap::new();
    let mut buffer = vec![0; FRAME_SIZE];
    let mut followed = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        let (ino, offset) = match reads.recv_timeout(PAUSE) {
            Ok(read) => read,
            Err(RecvTimeoutError::Timeout) => continue,
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
            // A read that fails is of no concern to anybody.
            let _ = read_part(&root.join(OsStr::from_bytes(path)), part.1 * PART, &mut buffer, over);
        }
    }
}

/// Reads a part of a file, to have it in the page cache. The file is open for this instant only, since an open
/// one would keep the mount alive.
fn read_part(path: &Path, start: u64, buffer: &mut [u8], over: &AtomicBool) -> std::io::Result<()> {
    let file = File::open(path)?;
    // The kernel reads what is asked for, and no more.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    let mut offset = start;
    while offset < start + PART && !over.load(Ordering::Relaxed) {
        match file.read_at(buffer, offset)? {
            0 => break,
            read => offset += read as u64,
        }
    }
    Ok(())
}
