//! The snapshot below a lazy data directory: reads its blocks from the store, verified.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use nix::errno::Errno;
use quick_cache::{Weighter, sync::Cache};
use rayon::prelude::*;

use crate::objects::Repo;
use crate::objects::frame::{BLOCK_SIZE, blocks_in};
use crate::objects::snapshot::Content;
use crate::objects::store::file::StoredFile;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// The most memory for the maps of files, bytes.
const MAP_CACHE_BYTES: u64 = 24 << 20;
/// The most blocks that are remembered of a start, and the most errors.
pub const MOST_TOUCHED: usize = 4096;
const MOST_DAMAGES: usize = 100;

/// A read of so many bytes leaves most of a frame unused.
const LITTLE: u64 = 64 << 10;
/// How many such reads may wait to be followed up.
const QUEUE: usize = 64;

#[derive(Clone)]
struct MapWeight;

impl Weighter<u64, Arc<StoredFile>> for MapWeight {
    fn weight(&self, _: &u64, file: &Arc<StoredFile>) -> u64 {
        let map = file.map();
        200 + map.frames.len() as u64 * 40 + map.extents.len() as u64 * 12
    }
}

/// The snapshot's files.
pub struct Base {
    repo: Arc<Repo>,
    files: Cache<u64, Arc<StoredFile>, MapWeight>,
    /// Blocks that a start read, by inode, until the moment after which nothing is noted.
    touched: Mutex<BTreeSet<(u64, u32)>>,
    note_until: Option<Instant>,
    damages: Mutex<Vec<String>>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// Where frames were read of which somebody wanted little: file and offset in bytes.
    ahead: OnceLock<SyncSender<(u64, u64)>>,
}

impl Base {
    /// Reads from the store of `repo`; blocks read before `note_until` are remembered.
    pub fn new(repo: Arc<Repo>, note_until: Option<Instant>) -> Base {
        Base {
            repo,
            files: Cache::with_weighter(1000, MAP_CACHE_BYTES, MapWeight),
            touched: Mutex::default(),
            note_until,
            damages: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            ahead: OnceLock::new(),
        }
    }

    fn open(&self, ino: u64, (length, content): (u64, Content)) -> Result<Arc<StoredFile>, Errno> {
        let open = || StoredFile::open(self.repo.store(), length, content).map(Arc::new);
        self.files.get_or_insert_with(&ino, open).map_err(|error| self.damaged(&error))
    }

    /// Appends the bytes `from` to before `to` of a stored file to `out`, for the server.
    pub fn read(&self, ino: u64, stored: (u64, Content), from: u64, to: u64, out: &mut Vec<u8>) -> Result<(), Errno> {
        if from < to {
            // A stored file has fewer than 2^32 blocks.
            self.note(ino, (from / BLOCK) as u32, (blocks_in(to) - from / BLOCK) as u32);
        }
        let is_new = self.fetch(ino, stored, from, to, out)?;
        if is_new && to - from <= LITTLE {
            // Whoever looks after that is busy otherwise: then not.
            let _ = self.ahead.get().map(|ahead| ahead.try_send((ino, from)));
        }
        Ok(())
    }

    /// Does so without anybody having asked. Frames are read on all cores. Returns whether one of them had to
    /// be decoded.
    pub fn fetch(
        &self,
        ino: u64,
        stored: (u64, Content),
        from: u64,
        to: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        if from >= to {
            return Ok(false);
        }
        let file = self.open(ino, stored)?;
        let (first, count) = ((from / BLOCK) as u32, (blocks_in(to) - from / BLOCK) as u32); // as above
        let store = self.repo.store();
        let mut frames: Vec<_> = file.extents(first, count).map(|(id, _)| id).collect();
        frames.dedup();
        let misses = frames.iter().filter(|id| !store.has_cached(id)).count();
        self.misses.fetch_add(misses as u64, Ordering::Relaxed);
        self.hits.fetch_add((frames.len() - misses) as u64, Ordering::Relaxed);
        if frames.len() > 1 {
            let read = frames.par_iter().try_for_each(|id| store.frame(id).map(drop));
            read.map_err(|error| self.damaged(&error))?;
        }
        let start = out.len();
        file.read(store, first, count, out).map_err(|error| self.damaged(&error))?;
        out.drain(start..start + (from % BLOCK) as usize);
        out.truncate(start + (to - from) as usize);
        Ok(misses > 0)
    }

    /// Returns how many frames were wanted so far that were in the cache, and how many that were not.
    pub fn cached(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Returns where from now on frames are read of which somebody wanted little.
    pub fn ahead(&self) -> Receiver<(u64, u64)> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(QUEUE);
        // A second one would never hear of anything.
        let _ = self.ahead.set(sender);
        receiver
    }

    /// Forgets what the caches hold. It is read again when somebody wants it.
    pub fn forget(&self) {
        self.files.clear();
        self.repo.store().forget_frames();
    }

    /// Closes the files of packs that were merged with others.
    pub fn close_packs_that_are_gone(&self) {
        // Where the folder cannot be listed they stay open until the next look.
        let _ = self.repo.store().refresh();
    }

    fn note(&self, ino: u64, first: u32, count: u32) {
        if self.note_until.is_some_and(|until| Instant::now() < until) {
            let mut touched = self.touched.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if touched.len() < MOST_TOUCHED {
                touched.extend((first..first + count).map(|block| (ino, block)));
            }
        }
    }

    /// Returns the blocks that were read before the moment given at the beginning, by inode.
    pub fn touched(&self) -> Vec<(u64, u32)> {
        self.touched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().copied().collect()
    }

    fn damaged(&self, error: &crate::objects::store::Error) -> Errno {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = format!("{error}{cause}");
        let mut damages = self.damages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if damages.len() < MOST_DAMAGES && !damages.contains(&text) {
            damages.push(text);
        }
        Errno::EIO
    }

    /// Returns what could not be read so far, each once, in order.
    pub fn damages(&self) -> Vec<String> {
        self.damages.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Base").finish_non_exhaustive()
    }
}
