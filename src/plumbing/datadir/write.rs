//! Writes the files of a cluster into the store, whole or against a parent snapshot.
//!
//! Files are cut into parts of 4 MiB. Some thirty-two parts at a time are read, compared, hashed and
//! compressed on all cores, and then appended to the pack in the order of the files, so that the
//! same input gives the same pack and neighbours in a file lie side by side. Memory: for each core a
//! part and the parent's version of it, the new frames of the parts in flight, the store's cache, and
//! the map of the file at hand: at most 256 MiB, whatever the size of the cluster (a part that does
//! not compress at all is 4 MiB of frames).

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::Error;
use crate::objects::frame::{self, BLOCK_SIZE, FRAME_BLOCKS, FRAME_SIZE};
use crate::objects::map::{MAX_DEPTH, MapBuilder};
use crate::objects::snapshot::{Content, Entry, Node, Snapshot, paths};
use crate::objects::store::compress::{self, FASTEST};
use crate::objects::store::encode::{Encoded, MAX_BASES, Xor};
use crate::objects::store::file::StoredFile;
use crate::objects::store::pack::PackWriter;
use crate::objects::store::{self, Store};
use crate::objects::{Kind, ObjectId};
use crate::progress::Progress;

/// Length of the parts of a file, in bytes: 16 frames.
pub const UNIT_BYTES: usize = 16 * FRAME_SIZE;

/// What of a part decides the level of its frames: enough to tell, little enough to cost nothing.
const SAMPLE_BYTES: usize = 8 * BLOCK_SIZE;
/// How many levels slower the slower one is.
const SLOWER: i32 = 2;

/// Parts are processed together until they have this many bytes; their compressed frames wait in
/// memory for the last of them.
const BATCH_BYTES: usize = 32 * UNIT_BYTES;
/// And no more than this many, for small files are parts too.
const BATCH_PARTS: usize = 512;

/// Fills a buffer of the part's length.
pub type Read = Box<dyn FnOnce(&mut [u8]) -> Result<(), Error> + Send>;

/// The bytes of a part of a file.
pub enum Bytes {
    /// Read already, from a stream.
    Now(Vec<u8>),
    /// To be read by the thread that works on the part, into a buffer of the part's length.
    Later(Read),
}

/// Runs of blocks of a part: first, and number of blocks.
pub type Runs = Vec<(u32, u32)>;

/// A data directory, piece by piece. The parts of a file follow it in order, all of 4 MiB but the last.
pub enum Item {
    Dir {
        path: Vec<u8>,
        mode: u32,
    },
    Symlink {
        path: Vec<u8>,
        mode: u32,
        target: Vec<u8>,
    },
    File {
        path: Vec<u8>,
        mode: u32,
        length: u64,
    },
    /// A part; where there are runs, it is the parent's in all other blocks, and only they are read.
    Part(Bytes, Option<Runs>),
    /// A part that is the parent's.
    Skip,
    /// A file that is the parent's.
    Unchanged {
        path: Vec<u8>,
        mode: u32,
    },
}

/// What was written, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Files, and their length together in bytes.
    pub files: u64,
    pub bytes: u64,
    /// Blocks of all files, and those that the parent does not have.
    pub blocks: u64,
    pub changed_blocks: u64,
    /// Bytes that were read to find them.
    pub read_bytes: u64,
    /// Frames that were new to the store, and those of them stored against older versions.
    pub new_frames: u64,
    pub delta_frames: u64,
}

/// The snapshot to write against.
pub struct Parent<'a> {
    pub snapshot: &'a Snapshot,
}

/// Turns items into the entries of a snapshot and the objects that these name.
pub struct TreeWriter<'a> {
    store: &'a Store,
    pack: PackWriter,
    parent: Option<Parent<'a>>,
    level: i32,
    progress: &'a dyn Progress,
    batch: Vec<Part>,
    batch_bytes: usize,
    files: Vec<File>,
    entries: Vec<Entry>,
    statistics: Statistics,
}

/// A file whose parts are under way.
struct File {
    path: Vec<u8>,
    mode: u32,
    length: u64,
    /// Bytes whose parts have been queued.
    queued: u64,
    parent: Option<Arc<ParentFile>>,
    changes: MapBuilder,
}

struct ParentFile {
    file: StoredFile,
    content: Content,
}

struct Part {
    /// Number in `files`.
    file: usize,
    block: u32,
    length: usize,
    bytes: Bytes,
    /// The blocks that are looked at; the others are the parent's.
    runs: Runs,
    parent: Option<Arc<ParentFile>>,
    /// Whether the part is all of a file that is one frame.
    whole_file: bool,
}

/// What became of a part.
#[derive(Default)]
struct Done {
    /// Runs of blocks: first block, count, frame, first block in the frame.
    runs: Vec<(u32, u8, ObjectId, u8)>,
    /// New objects; a frame that the store has already is not among them.
    objects: Vec<Encoded>,
}

impl<'a> TreeWriter<'a> {
    /// Begins. `level` is zstd's for frames that are stored whole.
    pub fn new(
        store: &'a Store,
        pack: PackWriter,
        parent: Option<&'a Snapshot>,
        level: i32,
        progress: &'a dyn Progress,
    ) -> TreeWriter<'a> {
        TreeWriter {
            store,
            pack,
            parent: parent.map(|snapshot| Parent { snapshot }),
            level,
            progress,
            batch: Vec::new(),
            batch_bytes: 0,
            files: Vec::new(),
            entries: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Takes the next piece.
    pub fn add(&mut self, item: Item) -> Result<(), Error> {
        match item {
            Item::Dir { path, mode } => self.entries.push(Entry { path, mode, node: Node::Dir }),
            Item::Symlink { path, mode, target } => {
                self.entries.push(Entry { path, mode, node: Node::Symlink { target } });
            }
            Item::File { path, mode, length } => self.begin_file(path, mode, length)?,
            Item::Part(bytes, runs) => self.queue(bytes, runs)?,
            Item::Skip => {
                let file = self.files.last_mut().expect("invariant: parts follow their file");
                let length = (file.length - file.queued).min(UNIT_BYTES as u64);
                file.queued += length;
                self.progress.advance(length);
            }
            Item::Unchanged { path, mode } => self.keep_file(path, mode)?,
        }
        Ok(())
    }

    /// Takes a file as the parent has it.
    fn keep_file(&mut self, path: Vec<u8>, mode: u32) -> Result<(), Error> {
        let entry = self.parent.as_ref().and_then(|parent| parent.snapshot.entry(&path));
        let Some(&Node::File { length, content }) = entry.map(|entry| &entry.node) else {
            return Err(Error::Changed { path: path_of(&path) });
        };
        self.count_file(length);
        self.progress.advance(length);
        self.entries.push(Entry { path, mode, node: Node::File { length, content } });
        Ok(())
    }

    fn count_file(&mut self, length: u64) {
        self.statistics.files += 1;
        self.statistics.bytes += length;
        self.statistics.blocks += frame::blocks_in(length);
    }

    fn begin_file(&mut self, path: Vec<u8>, mode: u32, length: u64) -> Result<(), Error> {
        if u32::try_from(frame::blocks_in(length)).is_err() {
            return Err(Error::TooLarge { path: path_of(&path) });
        }
        let entry = self.parent.as_ref().and_then(|parent| parent.snapshot.entry(&path));
        let parent = match entry.map(|entry| &entry.node) {
            Some(&Node::File { length, content }) => {
                let file = StoredFile::open(self.store, length, content)?;
                Some(Arc::new(ParentFile { file, content }))
            }
            _ => None,
        };
        self.count_file(length);
        self.files.push(File { path, mode, length, queued: 0, parent, changes: MapBuilder::default() });
        if length == 0 { self.flush_if_full() } else { Ok(()) }
    }

    fn queue(&mut self, bytes: Bytes, runs: Option<Runs>) -> Result<(), Error> {
        let number = self.files.len() - 1;
        let file = &mut self.files[number];
        let length = (file.length - file.queued).min(UNIT_BYTES as u64) as usize;
        let runs = runs.unwrap_or_else(|| vec![(0, frame::blocks_in(length as u64) as u32)]);
        let read = runs.iter().map(|(_, count)| u64::from(*count) * BLOCK_SIZE as u64).sum::<u64>();
        self.statistics.read_bytes += read.min(length as u64);
        self.batch.push(Part {
            file: number,
            runs,
            block: (file.queued / BLOCK_SIZE as u64) as u32, // begin_file refuses more
            length,
            bytes,
            parent: file.parent.clone(),
            whole_file: file.length <= FRAME_SIZE as u64,
        });
        file.queued += length as u64;
        self.batch_bytes += length;
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Error> {
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_PARTS { self.flush() } else { Ok(()) }
    }

    /// Works through the parts at hand, which are read only now, and closes the files that are complete.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.progress.check()?;
        let (store, level, progress) = (self.store, self.level, self.progress);
        let parts = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let owners: Vec<usize> = parts.iter().map(|part| part.file).collect();
        let done: Vec<Done> = parts
            .into_par_iter()
            .map(|part| {
                let length = part.length;
                let done = part.process(store, level);
                progress.advance(length as u64);
                done
            })
            .collect::<Result<_, _>>()?;
        for (file, done) in owners.into_iter().zip(done) {
            for object in &done.objects {
                if !self.pack.contains(&object.id) {
                    self.statistics.new_frames += 1;
                    self.statistics.delta_frames += u64::from(!object.bases().is_empty());
                }
                self.pack.append(object)?;
            }
            for (block, count, id, offset) in done.runs {
                self.statistics.changed_blocks += u64::from(count);
                self.files[file].changes.push(block, count, id, offset);
            }
        }
        let open = self.files.last().is_some_and(|file| file.queued < file.length);
        let complete = self.files.len() - usize::from(open);
        for file in self.files.drain(..complete).collect::<Vec<_>>() {
            let entry = self.close_file(file)?;
            self.entries.push(entry);
        }
        Ok(())
    }

    fn close_file(&mut self, file: File) -> Result<Entry, Error> {
        let File { path, mode, length, parent, changes, .. } = file;
        let content = match parent.as_deref() {
            Some(parent) if changes.is_empty() && parent.file.length() == length => parent.content,
            _ if length == 0 => Content::Empty,
            _ if length <= FRAME_SIZE as u64 => {
                let map = changes.finish(length, None);
                Content::Frame(*map.frames.first().expect("invariant: a small file is one frame"))
            }
            parent => Content::Map(self.write_map(length, parent, changes)?),
        };
        Ok(Entry { path, mode, node: Node::File { length, content } })
    }

    /// Writes the map of a file: the changes against the parent's map, or whole where there is
    /// none or the chain has become long.
    fn write_map(&mut self, length: u64, parent: Option<&ParentFile>, changes: MapBuilder) -> Result<ObjectId, Error> {
        let base = match parent.map(|parent| parent.content) {
            Some(Content::Map(id)) => Some((id, self.store.map(&id)?.depth() + 1)),
            _ => None,
        };
        let map = match (base, parent) {
            (Some((_, depth)), _) if depth <= MAX_DEPTH => changes.finish(length, base),
            (_, Some(parent)) => parent.file.map().overlay(&changes.finish(length, None)),
            (_, None) => changes.finish(length, None),
        };
        let content = map.encode();
        let id = ObjectId::of(Kind::Map, &content);
        if !self.store.has_sound(&id) {
            self.pack.append(&Encoded::compress(id, Kind::Map, &content, self.level))?;
        }
        Ok(id)
    }

    /// Finishes the files. Returns the entries, sorted and fit for a snapshot, and the pack, which is not published yet:
    /// the snapshot that names all this goes into it too.
    pub fn finish(mut self) -> Result<(Vec<Entry>, PackWriter, Statistics), Error> {
        self.flush()?;
        self.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for number in 0..self.entries.len() {
            self.entries[number].mode &= paths::PERMISSIONS;
            let (before, rest) = self.entries.split_at(number);
            paths::check(before, &rest[0]).map_err(|what| Error::Unfit { path: path_of(&rest[0].path), what })?;
        }
        Ok((self.entries, self.pack, self.statistics))
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// The parent's version of a block: the frame that it is to be stored against, and its number there.
type Base = (ObjectId, u8);

thread_local! {
    /// Bytes of the part at hand and of its parent: memory that is new costs more than reading does.
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Returns the level for the frames of a part that begins with `sample`: the wanted one; the fastest
/// where that does better, as on hexadecimal text, whose many short matches mislead the levels that
/// look for them; and a slower one where that saves much, as on B-tree indexes.
fn level_for(sample: &[u8], level: i32) -> i32 {
    let length = |level| compress::compress(sample, level).len();
    let wanted = length(level);
    if level > FASTEST && length(FASTEST) <= wanted {
        FASTEST
    } else if length(level + SLOWER) * 8 <= wanted * 7 {
        level + SLOWER
    } else {
        level
    }
}

impl Part {
    fn process(mut self, store: &Store, level: i32) -> Result<Done, Error> {
        BUFFERS.with_borrow_mut(|(bytes, old)| {
            match std::mem::replace(&mut self.bytes, Bytes::Now(Vec::new())) {
                Bytes::Now(now) => *bytes = now,
                Bytes::Later(read) => {
                    bytes.resize(self.length, 0);
                    read(bytes)?;
                }
            }
            match self.compare(store, level, bytes, old) {
                // What the parent had is lost, and this is not.
                Err(Error::Store(error)) if error.is_corruption() => Ok(self.keep(store, level, bytes)),
                done => done,
            }
        })
    }

    /// Stores what was read of the part, against nothing.
    fn keep(&self, store: &Store, level: i32, bytes: &[u8]) -> Done {
        let mut done = Done::default();
        let read = self.runs.iter().flat_map(|(first, count)| *first as usize..(*first + *count) as usize);
        let numbers: Vec<usize> =
            if self.whole_file { (0..bytes.len().div_ceil(BLOCK_SIZE)).collect() } else { read.collect() };
        for numbers in numbers.chunks(FRAME_BLOCKS) {
            let id = done.add_whole(store, &gather(bytes, numbers), level);
            done.add_runs(self.block, numbers, id);
        }
        done
    }

    /// Works on the bytes of the part; `old` is memory for the parent's.
    fn compare(&self, store: &Store, level: i32, bytes: &[u8], old: &mut Vec<u8>) -> Result<Done, Error> {
        let mut done = Done::default();
        let first = self.block;
        let Some(parent) = &self.parent else {
            let level = if bytes.len() > FRAME_SIZE { level_for(&bytes[..SAMPLE_BYTES], level) } else { level };
            for (number, content) in bytes.chunks(FRAME_SIZE).enumerate() {
                let id = done.add_whole(store, content, level);
                let block = first + (number * FRAME_BLOCKS) as u32;
                done.runs.push((block, content.len().div_ceil(BLOCK_SIZE) as u8, id, 0));
            }
            return Ok(done);
        };
        let file = &parent.file;
        read_runs(store, file, first, &self.runs, old)?;
        let changed = |number: &usize| self.whole_file || frame::block(bytes, *number) != frame::block(old, *number);
        let numbers = self.runs.iter().flat_map(|(first, count)| *first as usize..(*first + *count) as usize);
        let mut numbers = numbers.filter(changed).peekable();
        let same = self.whole_file && bytes == old.as_slice() && file.length() == bytes.len() as u64;
        if same || numbers.peek().is_none() {
            return Ok(done);
        }
        let (known, new): (Vec<usize>, Vec<usize>) = numbers.partition(|number| !frame::block(old, *number).is_empty());
        if self.whole_file {
            done.add_small_file(store, bytes, &known, file, level)?;
            return Ok(done);
        }
        let mut deltas = HashMap::new();
        let mut group = Group::default();
        for number in known {
            let base = base_of(store, file, first + number as u32, &mut deltas)?;
            if !group.takes(&base) {
                std::mem::take(&mut group).close(store, first, bytes, level, &mut done)?;
            }
            group.numbers.push(number);
            group.bases.push(base);
        }
        group.close(store, first, bytes, level, &mut done)?;
        for numbers in new.chunks(FRAME_BLOCKS) {
            let id = done.add_whole(store, &gather(bytes, numbers), level);
            done.add_runs(first, numbers, id);
        }
        done.runs.sort_unstable_by_key(|(block, ..)| *block);
        Ok(done)
    }
}

/// Reads the parent's version of a part that begins at block `first`: the blocks in `runs`, each at its
/// place, as far as the parent goes.
fn read_runs(store: &Store, file: &StoredFile, first: u32, runs: &Runs, old: &mut Vec<u8>) -> Result<(), store::Error> {
    let there = file.length().saturating_sub(u64::from(first) * BLOCK_SIZE as u64);
    let end = runs.last().map_or(0, |(first, count)| u64::from(*first + *count) * BLOCK_SIZE as u64);
    old.resize(there.min(end) as usize, 0); // at most a part
    let mut bytes = Vec::new();
    for (run, count) in runs {
        let start = *run as usize * BLOCK_SIZE;
        if start < old.len() {
            bytes.clear();
            file.read(store, first + run, *count, &mut bytes)?;
            let length = bytes.len().min(old.len() - start);
            old[start..start + length].copy_from_slice(&bytes[..length]);
        }
    }
    Ok(())
}

/// Changed blocks that will share a frame.
#[derive(Default)]
struct Group {
    numbers: Vec<usize>,
    bases: Vec<Base>,
}

impl Group {
    fn frames(&self) -> Vec<ObjectId> {
        let mut frames: Vec<ObjectId> = self.bases.iter().map(|(frame, _)| *frame).collect();
        frames.dedup();
        frames
    }

    /// Returns whether another block fits: by number, and by the frames that a read will need.
    fn takes(&self, base: &Base) -> bool {
        let frames = self.frames();
        self.numbers.len() < FRAME_BLOCKS && (frames.contains(&base.0) || frames.len() < MAX_BASES)
    }

    fn close(self, store: &Store, first: u32, bytes: &[u8], level: i32, done: &mut Done) -> Result<(), Error> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        let content = gather(bytes, &self.numbers);
        let id = done.add_delta(store, &content, &self.bases, level)?;
        done.add_runs(first, &self.numbers, id);
        Ok(())
    }
}

impl Done {
    fn add_whole(&mut self, store: &Store, content: &[u8], level: i32) -> ObjectId {
        let id = ObjectId::of(Kind::Frame, content);
        if !store.has_sound(&id) {
            self.objects.push(Encoded::compress(id, Kind::Frame, content, level));
        }
        id
    }

    fn add_delta(&mut self, store: &Store, content: &[u8], bases: &[Base], level: i32) -> Result<ObjectId, Error> {
        let id = ObjectId::of(Kind::Frame, content);
        if !store.has_sound(&id) {
            let mut frames: Vec<ObjectId> = Vec::new();
            let mut blocks = Vec::with_capacity(bases.len());
            for (frame, block) in bases {
                let number = frames.iter().position(|known| known == frame).unwrap_or_else(|| {
                    frames.push(*frame);
                    frames.len() - 1
                });
                blocks.push((number as u8, *block)); // at most MAX_BASES
            }
            let contents = frames.iter().map(|frame| store.frame(frame)).collect::<Result<Vec<_>, _>>()?;
            self.objects.push(Encoded::delta(id, content, Xor { bases: frames, blocks }, &contents, level));
        }
        Ok(id)
    }

    /// A small file is one frame, so all of its blocks are stored, but those that are the parent's cost nothing.
    fn add_small_file(
        &mut self,
        store: &Store,
        bytes: &[u8],
        known: &[usize],
        parent: &StoredFile,
        level: i32,
    ) -> Result<(), Error> {
        let count = bytes.len().div_ceil(BLOCK_SIZE);
        let mut deltas = HashMap::new();
        let bases = known
            .iter()
            .map(|number| base_of(store, parent, *number as u32, &mut deltas))
            .collect::<Result<Vec<_>, _>>()?;
        let mut frames: Vec<ObjectId> = bases.iter().map(|(frame, _)| *frame).collect();
        frames.sort_unstable();
        frames.dedup();
        let id = if bases.len() == count && frames.len() <= MAX_BASES {
            self.add_delta(store, bytes, &bases, level)?
        } else {
            self.add_whole(store, bytes, level)
        };
        self.runs.push((0, count as u8, id, 0)); // at most FRAME_BLOCKS
        Ok(())
    }

    /// Notes that the blocks `numbers` lie one after the other in a frame.
    fn add_runs(&mut self, first: u32, numbers: &[usize], id: ObjectId) {
        self.runs.extend(numbers.iter().enumerate().map(|(at, number)| (first + *number as u32, 1, id, at as u8)));
    }
}

fn gather(bytes: &[u8], numbers: &[usize]) -> Vec<u8> {
    let mut content = Vec::with_capacity(numbers.len() * BLOCK_SIZE);
    numbers.iter().for_each(|number| content.extend_from_slice(frame::block(bytes, *number)));
    content
}

/// Returns what a new version of a block is best stored against: the parent's version, or where
/// that is a delta itself, what it is a delta against, so that chains never have a second step.
fn base_of(
    store: &Store,
    parent: &StoredFile,
    block: u32,
    deltas: &mut HashMap<ObjectId, Option<Xor>>,
) -> Result<Base, store::Error> {
    let (frame, extent) = parent.extents(block, 1).next().expect("invariant: the parent has this block");
    let delta = match deltas.entry(frame) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(new) => new.insert(store.delta_of(&frame)?),
    };
    Ok(match delta {
        None => (frame, extent.offset),
        Some(delta) => {
            let (base, number) = delta.blocks[usize::from(extent.offset)];
            (delta.bases[usize::from(base)], number)
        }
    })
}
