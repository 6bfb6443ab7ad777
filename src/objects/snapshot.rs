//! Snapshots: the cluster's files as of an LSN; a commit and its tree in one.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 1 | version: 1 |
//! | 16 | timeline id |
//! | 8 | start: LSN of the first WAL that a start from here replays (the checkpoint's redo) |
//! | 8 | checkpoint: LSN of the checkpoint record that recovery begins with |
//! | 8 | consistent: LSN from which on the files can be used |
//! | 8 | time of writing, microseconds since 1970, signed |
//! | 8 | system identifier |
//! | 4 | PostgreSQL major version |
//! | 4 | catalog version |
//! | 4 | PostgreSQL's own timeline id |
//! | 4 | WAL segment size, bytes |
//! | 1 | 1 where there is a parent, else 0 |
//! | 32 | only where there is one: id of the parent snapshot |
//! | varint | number of entries |
//! | each: | |
//! | varint, bytes | path below the data directory, `/` between names, no leading one |
//! | 1 | type: 1 folder, 2 file, 3 symbolic link |
//! | varint | permission bits, at most 07777 |
//! | folder | nothing more |
//! | file | varint length in bytes; then nothing (empty), 1 byte 1 and the id of a frame, or 1 byte 2 and the id of a map |
//! | link | varint, bytes: target |
//!
//! Entries are sorted by the bytes of their paths, each once. A file of at most 256 KiB is a
//! frame, a longer one a map.

use super::codec::{Malformed, Reader, put_varint};
use super::frame::FRAME_SIZE;
use super::id::ObjectId;
use super::pg::Lsn;
use super::timeline::TimelineId;

const VERSION: u8 = 1;

/// What a file's bytes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Empty,
    Frame(ObjectId),
    Map(ObjectId),
}

impl Content {
    /// Returns the object that holds the content, if it is not empty.
    pub fn object(self) -> Option<ObjectId> {
        match self {
            Content::Empty => None,
            Content::Frame(id) | Content::Map(id) => Some(id),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Dir,
    /// A file of so many bytes.
    File {
        length: u64,
        content: Content,
    },
    Symlink {
        target: Vec<u8>,
    },
}

/// One path of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the data directory, as bytes, without a leading `/`.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    pub node: Node,
}

/// A snapshot; the fields are those of the format above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub checkpoint: Lsn,
    pub consistent: Lsn,
    pub time_us: i64,
    pub system_identifier: u64,
    pub postgres_major: u32,
    pub catalog_version: u32,
    pub postgres_timeline: u32,
    pub wal_segment_size: u32,
    pub parent: Option<ObjectId>,
    pub entries: Vec<Entry>,
}

impl Snapshot {
    /// Returns the entry of `path`.
    pub fn entry(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.as_slice().cmp(path)).ok().map(|at| &self.entries[at])
    }

    /// Returns the length of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| if let Node::File { length, .. } = entry.node { length } else { 0 }).sum()
    }

    /// Returns the objects that the entries name, in their order.
    pub fn objects(&self) -> impl Iterator<Item = Content> + '_ {
        self.entries.iter().filter_map(|entry| match entry.node {
            Node::File { content: Content::Empty, .. } | Node::Dir | Node::Symlink { .. } => None,
            Node::File { content, .. } => Some(content),
        })
    }

    /// Returns the canonical form. The entries must be sorted.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(self.timeline.as_bytes());
        for lsn in [self.start, self.checkpoint, self.consistent] {
            out.extend_from_slice(&lsn.0.to_le_bytes());
        }
        out.extend_from_slice(&self.time_us.to_le_bytes());
        out.extend_from_slice(&self.system_identifier.to_le_bytes());
        for number in [self.postgres_major, self.catalog_version, self.postgres_timeline, self.wal_segment_size] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(self.parent.is_some()));
        if let Some(parent) = &self.parent {
            out.extend_from_slice(&parent.0);
        }
        put_varint(&mut out, self.entries.len() as u64);
        for entry in &self.entries {
            put_bytes(&mut out, &entry.path);
            let (kind, mode) = match entry.node {
                Node::Dir => (1, entry.mode),
                Node::File { .. } => (2, entry.mode),
                Node::Symlink { .. } => (3, entry.mode),
            };
            out.push(kind);
            put_varint(&mut out, u64::from(mode));
            match &entry.node {
                Node::Dir => {}
                Node::Symlink { target } => put_bytes(&mut out, target),
                Node::File { length, content } => {
                    put_varint(&mut out, *length);
                    let tag = match content {
                        Content::Empty => None,
                        Content::Frame(id) => Some((1, id)),
                        Content::Map(id) => Some((2, id)),
                    };
                    if let Some((tag, id)) = tag {
                        out.push(tag);
                        out.extend_from_slice(&id.0);
                    }
                }
            }
        }
        out
    }

    /// Reads the canonical form, and nothing but it.
    pub fn decode(content: &[u8]) -> Result<Snapshot, Malformed> {
        let mut reader = Reader::new(content);
        if reader.u8()? != VERSION {
            return Err(Malformed { offset: 0, what: "an unknown version of snapshot" });
        }
        let timeline = TimelineId::from_bytes(reader.array()?);
        let (start, checkpoint, consistent) = (Lsn(reader.u64()?), Lsn(reader.u64()?), Lsn(reader.u64()?));
        let time_us = i64::from_le_bytes(reader.array()?);
        let system_identifier = reader.u64()?;
        let (postgres_major, catalog_version) = (reader.u32()?, reader.u32()?);
        let (postgres_timeline, wal_segment_size) = (reader.u32()?, reader.u32()?);
        if !super::pg::segment::is_valid_size(wal_segment_size) {
            return Err(reader.malformed("an impossible WAL segment size"));
        }
        let parent = match reader.u8()? {
            0 => None,
            1 => Some(ObjectId(reader.array()?)),
            _ => return Err(reader.malformed("neither a parent nor none")),
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(reader.count(4)?);
        for _ in 0..entries.capacity() {
            let at = reader.offset();
            let wrong = |what| Malformed { offset: at, what };
            let path = take_bytes(&mut reader)?;
            if !is_sound_path(&path) {
                return Err(wrong("a path that leaves the data directory"));
            }
            if entries.last().is_some_and(|last| last.path >= path) {
                return Err(wrong("paths out of order"));
            }
            let kind = reader.u8()?;
            let mode = u32::try_from(reader.varint()?).ok().filter(|mode| *mode <= 0o7777);
            let mode = mode.ok_or_else(|| wrong("impossible permission bits"))?;
            let node = match kind {
                1 => Node::Dir,
                2 => take_file(&mut reader)?,
                3 => Node::Symlink { target: take_bytes(&mut reader)? },
                _ => return Err(wrong("an unknown type of entry")),
            };
            entries.push(Entry { path, mode, node });
        }
        reader.end()?;
        Ok(Snapshot {
            timeline,
            start,
            checkpoint,
            consistent,
            time_us,
            system_identifier,
            postgres_major,
            catalog_version,
            postgres_timeline,
            wal_segment_size,
            parent,
            entries,
        })
    }
}

/// Returns whether a path stays below the folder that it is joined to.
fn is_sound_path(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

fn take_file(reader: &mut Reader) -> Result<Node, Malformed> {
    let length = reader.varint()?;
    if length == 0 {
        return Ok(Node::File { length, content: Content::Empty });
    }
    let content = match (reader.u8()?, length <= FRAME_SIZE as u64) {
        (1, true) => Content::Frame(ObjectId(reader.array()?)),
        (2, false) => Content::Map(ObjectId(reader.array()?)),
        _ => return Err(reader.malformed("content of the wrong kind for the file's length")),
    };
    Ok(Node::File { length, content })
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take_bytes(reader: &mut Reader) -> Result<Vec<u8>, Malformed> {
    let length = reader.count(1)?;
    reader.take(length).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Snapshot {
        let file = |path: &str, length, content| Entry {
            path: path.into(),
            mode: 0o600,
            node: Node::File { length, content },
        };
        Snapshot {
            timeline: TimelineId::random(),
            start: Lsn(0x100_0028),
            checkpoint: Lsn(0x100_0060),
            consistent: Lsn(0x100_00D8),
            time_us: -5,
            system_identifier: 7,
            postgres_major: 15,
            catalog_version: 202_209_061,
            postgres_timeline: 1,
            wal_segment_size: 16 << 20,
            parent: Some(ObjectId([3; 32])),
            entries: vec![
                file("PG_VERSION", 3, Content::Frame(ObjectId([1; 32]))),
                Entry { path: b"base".to_vec(), mode: 0o700, node: Node::Dir },
                file("base/1", 1 << 30, Content::Map(ObjectId([2; 32]))),
                file("base/2", 0, Content::Empty),
                Entry { path: b"conf".to_vec(), mode: 0o777, node: Node::Symlink { target: b"/etc/x".to_vec() } },
            ],
        }
    }

    #[test]
    fn comes_back() {
        let snapshot = sample();
        assert_eq!(Snapshot::decode(&snapshot.encode()), Ok(snapshot));
    }

    #[test]
    fn refuses_paths_that_leave_the_folder_or_are_out_of_order() {
        for path in ["../x", "/x", "a//b", "a/..", ".", ""] {
            let mut snapshot = sample();
            snapshot.entries.truncate(1);
            snapshot.entries[0].path = path.into();
            let error = Snapshot::decode(&snapshot.encode()).unwrap_err();
            assert_eq!(error.what, "a path that leaves the data directory", "{path}");
        }
        let mut snapshot = sample();
        snapshot.entries.swap(0, 1);
        assert_eq!(Snapshot::decode(&snapshot.encode()).unwrap_err().what, "paths out of order");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_gives_another_snapshot_or_an_error(byte in 0usize..1000, bit in 0u8..8) {
            let snapshot = sample();
            let mut bytes = snapshot.encode();
            let byte = byte % bytes.len();
            bytes[byte] ^= 1 << bit;
            prop_assert_ne!(Snapshot::decode(&bytes), Ok(snapshot));
        }

        #[test]
        fn arbitrary_bytes_give_a_snapshot_or_an_error(tail: Vec<u8>) {
            let mut bytes = sample().encode();
            bytes.truncate(93);
            bytes.extend(tail);
            let _ = Snapshot::decode(&bytes);
        }
    }
}
