//! One file of a lazy data directory: a snapshot's blocks, and over them those that were written.
//!
//! A block is local where a bit says so, and everywhere behind what still shows of the snapshot's
//! file: new files and what a file grew by are wholly local, without a bit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::Broken;
use super::base::Base;
use crate::objects::frame::{BLOCK_SIZE, blocks_in};
use crate::objects::snapshot::Content;
use crate::plumbing::datadir::blocks::Blocks;
use crate::plumbing::datadir::local::Layer;
use crate::plumbing::datadir::local::disk::DiskFile;
use crate::plumbing::datadir::local::journal::Record;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// The most runs of blocks that one record of the journal takes.
const RUNS_PER_RECORD: usize = 50_000;

/// What differs from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// The file is not the one that the snapshot has under its name: all of it may differ.
    pub whole: bool,
    pub blocks: Blocks,
}

/// A file.
#[derive(Debug)]
pub struct LazyFile {
    ino: u64,
    /// Length and content in the snapshot.
    stored: (u64, Content),
    state: RwLock<State>,
    /// Whether data was written that no sync has seen.
    dirty: AtomicBool,
    /// When it was written last, microseconds since 1970; not kept beyond the process.
    modified_us: AtomicU64,
    /// Held by syncs and cuts, whose records must not get between each other.
    order: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The file of the local layer, as long as this one; `None` while nothing was written.
    local: Option<Arc<DiskFile>>,
    length: u64,
    /// How much of the snapshot's file still shows, bytes.
    shown: u64,
    /// Which of the blocks that show are local.
    blocks: Blocks,
    /// Which of them no note in the journal says so of.
    pending: Blocks,
    /// A note is due with the next sync, whatever became local: the file's first, or the one after a cut.
    due: bool,
    /// What changed since the last mark, and what did between the mark before and that.
    fresh: Changed,
    older: Changed,
}

impl State {
    fn is_local(&self, block: u32) -> bool {
        u64::from(block) >= blocks_in(self.shown) || self.blocks.contains(block)
    }
}

/// What the journal said of a file, when the layer is opened again.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    pub blocks: Blocks,
    /// The least length to which it was cut.
    pub shortest: Option<u64>,
    /// The length to cut it to once more.
    pub cut: Option<u64>,
    /// Whether anything was noted.
    pub any: bool,
}

/// What the functions of a file need from outside.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub layer: &'a Layer,
    pub base: &'a Base,
}

fn block_of(offset: u64) -> u32 {
    u32::try_from(offset / BLOCK).unwrap_or(u32::MAX)
}

/// Returns the block after the last that `length` bytes touch.
fn end_block(length: u64) -> u32 {
    u32::try_from(blocks_in(length)).unwrap_or(u32::MAX)
}

/// Returns what a request that failed so is answered with.
pub(super) fn os(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl LazyFile {
    /// A file as the snapshot has it.
    pub fn of_snapshot(ino: u64, length: u64, content: Content, modified: SystemTime) -> LazyFile {
        let state = State { length, shown: length, ..State::default() };
        let file = LazyFile {
            ino,
            stored: (length, content),
            state: RwLock::new(state),
            dirty: AtomicBool::new(false),
            modified_us: AtomicU64::new(0),
            order: Mutex::default(),
        };
        file.set_modified(modified);
        file
    }

    /// A file that was made here.
    pub fn new(ino: u64, modified: SystemTime) -> LazyFile {
        let file = LazyFile::of_snapshot(ino, 0, Content::Empty, modified);
        file.set_whole();
        file
    }

    /// Takes up the local blocks of a layer that was opened again. `made_here` is for a file that is not
    /// the snapshot's.
    pub fn reopen(&self, cx: Cx, noted: &Noted, made_here: bool) -> Result<(), Broken> {
        let local = cx.layer.open_file(self.ino)?;
        if !made_here && !noted.any {
            // Nothing of it ever was durable.
            if local.is_some() {
                cx.layer.remove_file(self.ino);
            }
            return Ok(());
        }
        let local = match (local, noted.cut) {
            (Some(file), _) => file,
            (None, Some(_)) => cx.layer.create_file(self.ino)?,
            // A new file without data.
            (None, None) if made_here && !noted.any => return Ok(()),
            (None, None) => return Err(Broken::Damaged("local blocks are missing")),
        };
        if let Some(length) = noted.cut.filter(|_| !made_here) {
            local.resize(length)?;
        }
        let mut state = self.write_state();
        state.length = local.length()?;
        state.shown = self.stored.0.min(state.length).min(noted.shortest.unwrap_or(u64::MAX));
        state.blocks = noted.blocks.clone();
        let shown = end_block(state.shown);
        state.blocks.truncate(shown);
        state.due = noted.cut.is_some();
        let mut changed = state.blocks.clone();
        if state.shown < self.stored.0 || state.length > state.shown {
            changed.insert_range(block_of(state.shown), end_block(state.length));
        }
        state.fresh.blocks = changed;
        state.local = Some(Arc::new(local));
        Ok(())
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn length(&self) -> u64 {
        self.read_state().length
    }

    /// Returns the length that it has in the snapshot, bytes.
    pub fn stored_length(&self) -> u64 {
        self.stored.0
    }

    /// Returns when it was written last.
    pub fn modified(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.modified_us.load(Ordering::Relaxed))
    }

    pub fn set_modified(&self, time: SystemTime) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.modified_us.store(u64::try_from(since.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Notes that there is something for the next sync.
    fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
        self.set_modified(SystemTime::now());
    }

    /// Returns how many bytes of the snapshot's file are not local yet.
    pub fn remote_bytes(&self) -> u64 {
        let state = self.read_state();
        let blocks = blocks_in(state.shown).saturating_sub(u64::from(state.blocks.count()));
        (blocks * BLOCK).min(state.shown)
    }

    /// Notes that the file is not the one that the snapshot has under its name.
    pub fn set_whole(&self) {
        self.write_state().fresh.whole = true;
    }

    /// Begins a mark: what changes from now on belongs to the snapshot after the next.
    pub fn begin_mark(&self) {
        let mut state = self.write_state();
        let fresh = std::mem::take(&mut state.fresh);
        state.older.whole |= fresh.whole;
        state.older.blocks.insert_all(&fresh.blocks);
    }

    /// Ends a mark: what changed before its begin is in a snapshot now.
    pub fn end_mark(&self) {
        self.write_state().older = Changed::default();
    }

    /// Returns what changed since the last mark that was ended.
    pub fn changed(&self) -> Changed {
        let state = self.read_state();
        let mut changed = state.fresh.clone();
        changed.whole |= state.older.whole;
        changed.blocks.insert_all(&state.older.blocks);
        changed
    }

    /// Appends up to `size` bytes from `offset` on to `out`; fewer at the end of the file.
    pub fn read(&self, cx: Cx, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<(), Errno> {
        let (local, shown, runs) = {
            let state = self.read_state();
            let end = state.length.min(offset.saturating_add(size as u64));
            (state.local.clone(), state.shown, runs(&state, offset, end))
        };
        for (is_local, from, to) in runs {
            let start = out.len();
            match &local {
                Some(file) if is_local => {
                    out.resize(start + (to - from) as usize, 0);
                    file.read(from, &mut out[start..]).map_err(os)?;
                }
                _ => {
                    cx.base.read(self.ino, self.stored, from, to.min(shown), out)?;
                    out.resize(start + (to - from) as usize, 0);
                }
            }
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, cx: Cx, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if end_block(end) == u32::MAX {
            return Err(Errno::EFBIG);
        }
        let written = self.write_blocks(cx, offset, end, data);
        // Only now: a sync that ran meanwhile may not have seen all of it.
        self.touch();
        written
    }

    fn write_blocks(&self, cx: Cx, offset: u64, end: u64, data: &[u8]) -> Result<(), Errno> {
        let (first, after) = (block_of(offset), end_block(end));
        {
            // Most writes change blocks that changed before: others need not wait.
            let state = self.read_state();
            let known = |block| state.is_local(block) && state.fresh.blocks.contains(block);
            if let Some(local) = state.local.as_ref().filter(|_| end <= state.length && (first..after).all(known)) {
                return local.write(offset, data).map_err(os);
            }
        }
        let mut state = self.write_state();
        let local = self.localise(cx, &mut state)?;
        let shown = end_block(state.shown);
        for block in [first, after - 1] {
            let (start, stop) = (u64::from(block) * BLOCK, (u64::from(block) + 1) * BLOCK);
            let covered = offset <= start && end >= stop.min(state.shown);
            if block < shown && !state.blocks.contains(block) && !covered {
                // The rest of the block comes from the snapshot.
                let mut rest = Vec::new();
                cx.base.read(self.ino, self.stored, start, stop.min(state.shown), &mut rest)?;
                local.write(start, &rest).map_err(os)?;
            }
        }
        local.write(offset, data).map_err(os)?;
        for block in first..after.min(shown) {
            state.blocks.insert(block);
            state.pending.insert(block);
        }
        let from = first.min(block_of(state.length));
        state.fresh.blocks.insert_range(from, after);
        state.length = state.length.max(end);
        Ok(())
    }

    /// Makes `count` blocks from `first` on local as the snapshot has them, but those that changed meanwhile.
    pub fn hydrate(&self, cx: Cx, first: u32, count: u32) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        let shown = self.read_state().shown;
        let end = (u64::from(first) + u64::from(count)) * BLOCK;
        let _ = cx.base.fetch(self.ino, self.stored, u64::from(first) * BLOCK, end.min(shown), &mut bytes)?;
        let mut state = self.write_state();
        let local = self.localise(cx, &mut state)?;
        for (number, content) in bytes.chunks(BLOCK_SIZE).enumerate() {
            let block = first + number as u32; // fewer than `count`
            let end = u64::from(block) * BLOCK + content.len() as u64;
            // Written or cut meanwhile.
            if state.is_local(block) || end > state.shown {
                continue;
            }
            local.write(u64::from(block) * BLOCK, content).map_err(os)?;
            state.blocks.insert(block);
            state.pending.insert(block);
        }
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns the runs of the snapshot's blocks that are not local, first and count, each at most `most` long.
    pub fn remote_runs(&self, most: u32) -> Vec<(u32, u32)> {
        let state = self.read_state();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in (0..end_block(state.shown)).filter(|block| !state.blocks.contains(*block)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block && *count < most => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }

    fn localise(&self, cx: Cx, state: &mut State) -> Result<Arc<DiskFile>, Errno> {
        if let Some(local) = &state.local {
            return Ok(local.clone());
        }
        let local = match cx.layer.open_file(self.ino).map_err(os)? {
            Some(file) => file,
            None => cx.layer.create_file(self.ino).map_err(os)?,
        };
        local.resize(state.length).map_err(os)?;
        let local = Arc::new(local);
        state.local = Some(local.clone());
        state.due = true;
        Ok(local)
    }

    /// Makes the file `length` bytes long.
    pub fn resize(&self, cx: Cx, length: u64) -> Result<(), Errno> {
        let _order = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut state = self.write_state();
        if length == state.length {
            return Ok(());
        }
        if end_block(length) == u32::MAX {
            return Err(Errno::EFBIG);
        }
        // First what may fail for want of room: a cut that was noted counts after a crash.
        let local = self.localise(cx, &mut state)?;
        if length < state.shown {
            cx.layer.note(&Record::Cut { ino: self.ino, length }).map_err(os)?;
            state.due = true;
        }
        local.resize(length).map_err(os)?;
        self.touch();
        state.shown = state.shown.min(length);
        let end = end_block(length);
        let State { blocks, pending, fresh, older, .. } = &mut *state;
        [blocks, pending, &mut fresh.blocks, &mut older.blocks].into_iter().for_each(|set| set.truncate(end));
        let from = block_of(length.min(state.length));
        state.fresh.blocks.insert_range(from, end);
        state.length = length;
        Ok(())
    }

    /// Reserves space, as fallocate(2) does; `keep_size` where the file is not to grow.
    pub fn allocate(&self, cx: Cx, offset: u64, length: u64, keep_size: bool) -> Result<(), Errno> {
        let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::EFBIG)?;
        {
            let mut state = self.write_state();
            let local = self.localise(cx, &mut state)?;
            // Both fit: `end` does.
            fallocate(local.file(), FallocateFlags::FALLOC_FL_KEEP_SIZE, offset as i64, length as i64)?;
        }
        if keep_size || end <= self.length() { Ok(()) } else { self.resize(cx, end) }
    }

    /// Makes all that was written durable, and that it is local.
    pub fn sync(&self, cx: Cx) -> Result<(), Errno> {
        let _order = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (local, pending, due) = {
            let mut state = self.write_state();
            (state.local.clone(), std::mem::take(&mut state.pending), std::mem::take(&mut state.due))
        };
        let Some(local) = local else { return cx.layer.sync().map_err(os) };
        let synced = self.sync_local(cx, &local, &pending, due);
        if synced.is_err() {
            let mut state = self.write_state();
            state.pending.insert_all(&pending);
            state.due |= due;
            self.dirty.store(true, Ordering::Release);
        }
        synced.map_err(os)
    }

    /// Data first, then what says that it is there. What is to be noted was written before it was taken from the
    /// state, but whoever wrote it may not have said so in `dirty` yet: a note never relies on that.
    fn sync_local(&self, cx: Cx, local: &DiskFile, pending: &Blocks, due: bool) -> std::io::Result<()> {
        if self.dirty.swap(false, Ordering::AcqRel) || !pending.is_empty() || due {
            cx.layer.sync_content(local)?;
        }
        let runs: Vec<(u32, u32)> = pending.runs().collect();
        let mut chunks: Vec<&[(u32, u32)]> = runs.chunks(RUNS_PER_RECORD).collect();
        if chunks.is_empty() && due {
            chunks.push(&[]);
        }
        for chunk in chunks {
            cx.layer.note(&Record::Local { ino: self.ino, runs: chunk.to_vec() })?;
        }
        cx.layer.sync()
    }
}

/// Returns the runs of local and other bytes from `offset` to before `end`.
fn runs(state: &State, offset: u64, end: u64) -> Vec<(bool, u64, u64)> {
    let mut runs: Vec<(bool, u64, u64)> = Vec::with_capacity(1);
    let mut at = offset;
    while at < end {
        let block = block_of(at);
        let stop = ((u64::from(block) + 1) * BLOCK).min(end);
        let is_local = state.local.is_some() && state.is_local(block);
        match runs.last_mut() {
            Some((kind, _, to)) if *kind == is_local => *to = stop,
            _ => runs.push((is_local, at, stop)),
        }
        at = stop;
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::super::tests::{open, repo_with};
    use super::super::{ROOT, Vfs};
    use super::*;
    use crate::plumbing::datadir::local::disk::Event;

    /// Checks that the data of a file was synced after it was written and before it was noted.
    fn assert_order(vfs: &Vfs, ino: u64) {
        let (events, own) = (vfs.layer.events(), format!("{ino:x}"));
        let last = |is: &dyn Fn(&Event) -> bool| events.iter().rposition(is).expect("it happened");
        let changed = last(&|event| match event {
            Event::Write { name, .. } | Event::Resize { name, .. } | Event::Create(name) => *name == own,
            _ => false,
        });
        let synced = last(&|event| *event == Event::Sync(own.clone()));
        let named = last(&|event| *event == Event::SyncDir);
        let noted = last(&|event| matches!(event, Event::Write { name, .. } if name == "journal"));
        assert!(changed < synced && synced < noted && named < noted, "{events:?}");
    }

    #[test]
    fn a_sync_amid_a_write_notes_no_block_whose_data_is_not_durable() {
        let home = tempfile::tempdir().unwrap();
        let block = |byte| vec![byte; 4 * BLOCK_SIZE];
        let (repo, id) = repo_with(home.path(), &[("a", block(1)), ("b", block(2))]);
        let vfs = open(&repo, &id, &home.path().join("local"));
        let [a, b] = ["a", "b"].map(|name| vfs.lookup(ROOT, OsStr::new(name)).unwrap().ino);
        // The write is done, but has not said so yet when the sync comes.
        let file = vfs.file(a).unwrap();
        file.write_blocks(vfs.cx(), 0, BLOCK, &[7; BLOCK_SIZE]).unwrap();
        file.sync(vfs.cx()).unwrap();
        assert_order(&vfs, a);
        // A file that is local without a write, by a reservation of space.
        vfs.allocate(b, 0, 100, true).unwrap();
        vfs.sync(b).unwrap();
        assert_order(&vfs, b);
    }
}
