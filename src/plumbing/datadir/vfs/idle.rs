//! Memory of a file system that nobody reads from: what a start leaves in the caches is of no more use, since PostgreSQL
//! and the kernel have it too, and thirty databases at rest are to take little. And room on the disk: of packs that were merged
//! with others since they were opened.

use std::time::{Duration, Instant};

use super::Vfs;

/// Nothing is read for so long before memory is given back.
const PATIENCE: Duration = Duration::from_secs(10);

/// So often it is looked after packs that are gone.
const LOOK: Duration = Duration::from_secs(60);

/// When something was read last.
#[derive(Debug)]
pub struct Idle {
    looked: Instant,
    /// Frames that were wanted so far.
    wanted: u64,
    since: Instant,
    given_back: bool,
}

impl Default for Idle {
    /// Begins to watch.
    fn default() -> Idle {
        Idle { looked: Instant::now(), wanted: 0, since: Instant::now(), given_back: false }
    }
}

impl Idle {
    /// Empties the caches, once, when nothing has been read for a while. To be called every now and then.
    pub fn look(&mut self, vfs: &Vfs) {
        let (hits, misses) = vfs.base().cached();
        if hits + misses != self.wanted {
            *self = Idle { wanted: hits + misses, looked: self.looked, ..Idle::default() };
        } else if !self.given_back && self.since.elapsed() > PATIENCE {
            self.given_back = true;
            vfs.base().forget();
            give_back();
        }
        if self.looked.elapsed() > LOOK {
            self.looked = Instant::now();
            vfs.base().close_packs_that_are_gone();
        }
    }
}

/// Gives freed memory back to the system: glibc keeps it, since others may want it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: it touches memory only that is free, under the allocator's own locks.
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

#[cfg(test)]
mod tests {
    /// Returns this process's anonymous memory, bytes.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn freed_memory_goes_back() {
        // Too small to be mappings of their own, and not at the end of the heap.
        let blocks: Vec<Vec<u8>> = (0..2000).map(|number| vec![number as u8 | 1; 20_000]).collect();
        let last = vec![1_u8; 20_000];
        let full = resident();
        drop(blocks);
        super::give_back();
        assert!(resident() + (20 << 20) < full, "{} of {full}", resident());
        assert_eq!(last.len(), 20_000);
    }
}
