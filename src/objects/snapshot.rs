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
//! | varint | permission bits, at most 0777; of a folder at most 07777, of which the lower nine count |
//! | folder | nothing more |
//! | file | varint length in bytes; then nothing (empty), 1 byte 1 and the id of a frame, or 1 byte 2 and the id of a map |
//! | link | varint, bytes: target |
//!
//! Entries are sorted by the bytes of their paths, each once, and lie in folders of the same snapshot: see
//! [`paths`]. There are at most 8,388,608. A file of at most 256 KiB is a frame, a longer one a map, of at
//! most 32 TiB.

pub mod paths;

use super::codec::{Malformed, Reader, put_varint};
use super::frame::{FRAME_SIZE, blocks_in};
use super::id::ObjectId;
use super::pg::Lsn;
use super::timeline::TimelineId;

const VERSION: u8 = 1;
/// The most entries: a tenth of a gigabyte of memory for each million.
pub const MAX_ENTRIES: usize = 8 << 20;

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
    /// Permission bits, at most 0777.
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
        let lengths =
            self.entries.iter().map(|entry| if let Node::File { length, .. } = entry.node { length } else { 0 });
        lengths.fold(0, u64::saturating_add)
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
        let entries = take_entries(&mut reader)?;
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

/// Takes the entries, each checked against those before. The list grows as they come: a count is no more than a claim.
fn take_entries(reader: &mut Reader) -> Result<Vec<Entry>, Malformed> {
    let count = reader.count(4)?;
    if count > MAX_ENTRIES {
        return Err(reader.malformed("too many entries"));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..count {
        let at = reader.offset();
        let wrong = |what| Malformed { offset: at, what };
        let path = take_bytes(reader)?;
        let kind = reader.u8()?;
        let mode = u32::try_from(reader.varint()?).ok().filter(|mode| *mode <= 0o7777);
        let mode = mode.ok_or_else(|| wrong("impossible permission bits"))?;
        let entry = match kind {
            // A folder made in one that passes its group on has a bit for that, which means nothing elsewhere.
            1 => Entry { path, mode: mode & paths::PERMISSIONS, node: Node::Dir },
            2 => Entry { path, mode, node: take_file(reader)? },
            3 => Entry { path, mode, node: Node::Symlink { target: take_bytes(reader)? } },
            _ => return Err(wrong("an unknown type of entry")),
        };
        paths::check(&entries, &entry).map_err(wrong)?;
        entries.push(entry);
    }
    Ok(entries)
}

fn take_file(reader: &mut Reader) -> Result<Node, Malformed> {
    let length = reader.varint()?;
    if u32::try_from(blocks_in(length)).is_err() {
        return Err(reader.malformed("a file beyond 32 TiB"));
    }
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

    fn refused(entries: Vec<Entry>) -> &'static str {
        Snapshot::decode(&Snapshot { entries, ..sample() }.encode()).unwrap_err().what
    }

    fn dir(path: &str) -> Entry {
        Entry { path: path.into(), mode: 0o700, node: Node::Dir }
    }

    fn empty(path: &str) -> Entry {
        Entry { node: Node::File { length: 0, content: Content::Empty }, ..dir(path) }
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry { node: Node::Symlink { target: target.into() }, ..dir(path) }
    }

    #[test]
    fn refuses_paths_that_leave_the_folder_or_are_out_of_order() {
        for path in ["../x", "/x", "a//b", "a/..", ".", "", "a\0b", "a/./b", "a/"] {
            assert_eq!(refused(vec![empty(path)]), "a path that leaves the data directory", "{path}");
        }
        assert_eq!(refused(vec![empty("b"), empty("a")]), "paths out of order");
        assert_eq!(refused(vec![empty("a"), empty("a")]), "a path that is there twice");
        assert_eq!(refused(vec![empty(&"x".repeat(256))]), "a path that is too long");
        assert_eq!(refused(vec![empty(".zenith.mark")]), "a name that zenith keeps for itself");
    }

    #[test]
    fn refuses_what_lies_in_a_link_a_file_or_nothing() {
        let what = "a path in what is not a folder of the snapshot";
        assert_eq!(refused(vec![link("x", "/elsewhere"), empty("x/owned")]), what);
        assert_eq!(refused(vec![dir("a"), link("a/x", "/elsewhere"), empty("a/x/owned")]), what);
        assert_eq!(refused(vec![empty("x"), empty("x/y")]), what);
        assert_eq!(refused(vec![empty("x/y")]), what);
        // The bytes of these two lie between a folder and what is in it.
        let fine = vec![dir("a"), empty("a-b"), empty("a.b"), empty("a/b"), dir("a/c"), empty("a/c/d"), empty("a/e")];
        let snapshot = Snapshot { entries: fine, ..sample() };
        assert_eq!(Snapshot::decode(&snapshot.encode()), Ok(snapshot));
    }

    #[test]
    fn refuses_links_where_a_server_writes_and_bits_that_lend_a_user() {
        for path in ["pg_wal", "postgresql.auto.conf", "backup_label", "base", "pg_stat_tmp"] {
            assert_eq!(refused(vec![link(path, "/x")]), "a symbolic link where PostgreSQL or zenith writes", "{path}");
        }
        assert_eq!(
            refused(vec![dir("base"), link("base/1", "/x")]),
            "a symbolic link where PostgreSQL or zenith writes"
        );
        assert_eq!(refused(vec![link("x", "")]), "a symbolic link to nowhere");
        for mode in [0o4755, 0o2755, 0o1755, 0o10_000] {
            assert_eq!(refused(vec![Entry { mode, ..empty("x") }]), "impossible permission bits");
        }
        let inherited = Snapshot { entries: vec![Entry { mode: 0o2700, ..dir("x") }], ..sample() };
        assert_eq!(Snapshot::decode(&inherited.encode()).unwrap().entries[0].mode, 0o700);
    }

    #[test]
    fn a_count_or_a_length_is_believed_only_once_the_bytes_are_there() {
        let mut bytes = Snapshot { entries: Vec::new(), ..sample() }.encode();
        bytes.pop();
        put_varint(&mut bytes, MAX_ENTRIES as u64 + 1);
        bytes.resize(bytes.len() + 5 * MAX_ENTRIES, 0);
        assert_eq!(Snapshot::decode(&bytes).unwrap_err().what, "too many entries");
        let long = Entry { node: Node::File { length: 1 << 46, content: Content::Map(ObjectId([1; 32])) }, ..dir("x") };
        assert_eq!(refused(vec![long]), "a file beyond 32 TiB");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_gives_another_snapshot_or_an_error(byte in 0usize..1000, bit in 0u8..8) {
            let snapshot = sample();
            let mut bytes = snapshot.encode();
            let byte = byte % bytes.len();
            bytes[byte] ^= 1 << bit;
            // But the upper bits of the folder's mode, which do not count.
            let folder = bytes.windows(5).position(|bytes| bytes == b"base\x01").map(|at| at + 5);
            let counts = !folder.is_some_and(|mode| byte == mode + 1 && (2..5).contains(&bit));
            prop_assert_eq!(Snapshot::decode(&bytes) == Ok(snapshot), !counts);
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
