//! What a start will read, read before it asks: the blocks that the WAL to be replayed refers to, and
//! those that the last start of the snapshot read first.
//!
//! # Format
//! `prefetch/<snapshot>` is a JSON list of runs of blocks: path, first block, number of blocks. It may
//! be missing or old; nothing depends on it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::error::CmdResult;
use crate::objects::frame::BLOCK_SIZE;
use crate::objects::pg::record::{BlockRef, Record};
use crate::objects::snapshot::Snapshot;
use crate::objects::{ObjectId, Repo, bounded, copy, durable, folder, regular};
use crate::plumbing::datadir::blocks::Blocks;

/// Blocks of a file: path, first block, number of blocks.
pub type Run = (String, u32, u32);

/// The most blocks that WAL makes us remember: their numbers take some 100 bytes each.
const MOST_BLOCKS: usize = 200_000;
/// A list has no more bytes.
const LONGEST: u64 = 64 << 20;
/// Blocks of a file of a relation, unless PostgreSQL was built otherwise; then the wrong ones are read.
const SEGMENT_BLOCKS: u32 = 131_072;
/// A gap of so many blocks is read as well: they most likely lie in the same frame.
const GAP: u32 = 8;

const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// What to read.
#[derive(Debug, Default)]
pub struct Plan {
    files: BTreeMap<String, Blocks>,
    /// Blocks that the WAL touched: only how it does so first matters.
    seen: HashSet<(u32, u32, u32, u8, u32)>,
}

impl Plan {
    /// Adds the blocks that replaying a record reads from files with the names of `snapshot`.
    pub fn add_record(&mut self, snapshot: &Snapshot, record: &Record) {
        // What cannot be read here, the replay will speak of.
        for block in record.body().map(|(blocks, _)| blocks).unwrap_or_default() {
            let BlockRef { tablespace, database, relation, fork, block: number, .. } = block;
            let is_first =
                self.seen.len() < MOST_BLOCKS && self.seen.insert((tablespace, database, relation, fork, number));
            if is_first && !block.image_applies && !block.will_init {
                let (path, number) = file_of(snapshot, &block);
                self.files.entry(path).or_default().insert(number);
            }
        }
    }

    /// Adds what the last start of a snapshot read.
    pub fn add_noted(&mut self, repo: &Repo, snapshot: &ObjectId) {
        let Ok(bytes) = bounded::read(&path(repo, snapshot), LONGEST) else { return };
        let runs: Vec<Run> = serde_json::from_slice(&bytes).unwrap_or_default();
        for (path, first, count) in runs {
            let end = first.saturating_add(count.min(SEGMENT_BLOCKS)).min(SEGMENT_BLOCKS);
            // Only below the data directory.
            if !path.starts_with('/') && !path.split('/').any(|name| name == "..") {
                self.files.entry(path).or_default().insert_range(first, end);
            }
        }
    }

    /// Has the kernel read all of it from the data directory `data`, in the background. Returns when the
    /// kernel knows; what it cannot read is of no concern.
    pub fn fetch(&self, data: &Path) {
        for (path, blocks) in &self.files {
            let Ok(file) = regular::open(&data.join(path)) else { continue };
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for (first, count) in blocks.runs() {
                match runs.last_mut() {
                    Some((start, length)) if first - (*start + *length) <= GAP => *length = first + count - *start,
                    _ => runs.push((first, count)),
                }
            }
            for (first, count) in runs {
                let (offset, length) = (i64::from(first) * BLOCK_SIZE as i64, i64::from(count) * BLOCK_SIZE as i64);
                let _ = posix_fadvise(&file, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            }
        }
    }
}

/// Has the kernel read all of a file, in the background.
pub fn fetch_file(path: &Path) {
    if let Ok(file) = regular::open(path) {
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// Returns the file that a block lies in, and its number there.
fn file_of(snapshot: &Snapshot, block: &BlockRef) -> (String, u32) {
    let folder = match block.tablespace {
        GLOBAL_TABLESPACE => "global".to_owned(),
        DEFAULT_TABLESPACE => format!("base/{}", block.database),
        tablespace => {
            let (major, catalog) = (snapshot.postgres_major, snapshot.catalog_version);
            format!("pg_tblspc/{tablespace}/PG_{major}_{catalog}/{}", block.database)
        }
    };
    let fork = ["", "_fsm", "_vm", "_init"].get(usize::from(block.fork)).copied().unwrap_or_default();
    let segment = match block.block / SEGMENT_BLOCKS {
        0 => String::new(),
        number => format!(".{number}"),
    };
    (format!("{folder}/{}{fork}{segment}", block.relation), block.block % SEGMENT_BLOCKS)
}

fn path(repo: &Repo, snapshot: &ObjectId) -> PathBuf {
    repo.dir().join("prefetch").join(snapshot.to_string())
}

/// Notes what a start of `snapshot` read.
pub fn note(repo: &Repo, snapshot: &ObjectId, touched: &[(Vec<u8>, u32, u32)]) -> CmdResult {
    let named =
        |(path, first, count): &(Vec<u8>, u32, u32)| Some((String::from_utf8(path.clone()).ok()?, *first, *count));
    let runs: Vec<Run> = touched.iter().filter_map(named).collect();
    let path = path(repo, snapshot);
    folder::make_in_place(path.parent().expect("invariant: it lies in a folder"))?;
    let mut file = durable::temp_file(repo.tmp()?)?;
    std::io::Write::write_all(&mut file, &serde_json::to_vec(&runs).expect("invariant: only simple fields"))?;
    durable::keep_as(file, &path)?;
    Ok(())
}

/// Gives a snapshot the list of the one that it came from, unless it has its own. A list that grew to
/// `most` blocks ends here, so that what no start needs any more leaves it.
pub fn pass_on(repo: &Repo, from: &ObjectId, to: &ObjectId, most: usize) {
    let (from, to) = (path(repo, from), path(repo, to));
    let runs = bounded::read(&from, LONGEST).ok().and_then(|bytes| serde_json::from_slice::<Vec<Run>>(&bytes).ok());
    let blocks = runs.unwrap_or_default().iter().map(|(_, _, count)| *count as usize).sum::<usize>();
    if blocks > 0 && blocks < most && !to.exists() {
        let _ = copy::file(&from, &to); // without it the next start only fetches less
    }
}
