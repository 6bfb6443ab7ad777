//! What a start will read, read before it asks: the blocks that the last start of the snapshot read
//! first, and those that the WAL to be replayed refers to.
//!
//! # Format
//! `prefetch/<snapshot>` is a JSON list of runs of blocks: path, first block, number of blocks. It may
//! be missing or old; nothing depends on it.

use std::path::PathBuf;

use crate::error::CmdResult;
use crate::objects::{ObjectId, Repo, durable};

/// Blocks of a file: path, first block, number of blocks.
pub type Run = (String, u32, u32);

fn path(repo: &Repo, snapshot: &ObjectId) -> PathBuf {
    repo.dir().join("prefetch").join(snapshot.to_string())
}

/// Notes what a start of `snapshot` read.
pub fn note(repo: &Repo, snapshot: &ObjectId, touched: &[(Vec<u8>, u32, u32)]) -> CmdResult {
    let named =
        |(path, first, count): &(Vec<u8>, u32, u32)| Some((String::from_utf8(path.clone()).ok()?, *first, *count));
    let runs: Vec<Run> = touched.iter().filter_map(named).collect();
    let path = path(repo, snapshot);
    std::fs::create_dir_all(path.parent().expect("invariant: it lies in a folder"))?;
    let mut file = durable::temp_file(repo.tmp()?)?;
    std::io::Write::write_all(&mut file, &serde_json::to_vec(&runs).expect("invariant: only simple fields"))?;
    durable::keep_as(file, &path)?;
    Ok(())
}
