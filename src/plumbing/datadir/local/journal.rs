//! The journal of a local layer: what became of names, and which blocks are local.
//!
//! # Format
//! | bytes | field |
//! | --- | --- |
//! | 8 | `ZLOCAL\0` and the version, 2 |
//! | 32 | id of the snapshot that the layer lies over |
//! | 8 | how much of the journal is durable at least, bytes |
//! | 4 | CRC-32C of the field before |
//! | then records, each: | |
//! | 4 | length of the payload in bytes, little-endian, at most 1 MiB |
//! | 4 | CRC-32C of the payload, the length, the record's number and the next field |
//! | 8 | how much of the journal was durable when the record was written, bytes |
//! | length | payload |
//!
//! Records are numbered from 0; the number, 8 bytes, is not stored. A payload is 1 byte that says what,
//! and its fields: numbers as varints, names as a varint length and bytes.
//!
//! | what | fields |
//! | --- | --- |
//! | 1 file made | parent, inode, mode, name |
//! | 2 folder made | parent, inode, mode, name |
//! | 3 symbolic link made | parent, inode, mode, name, target |
//! | 4 another name | parent, inode, name |
//! | 5 name removed | parent, name |
//! | 6 name changed, replacing what had the new one | parent, new parent, name, new name |
//! | 7 permission bits | inode, mode |
//! | 8 cut to a length | inode, length in bytes |
//! | 9 blocks are local | inode, number of runs, and each: blocks skipped since the run before, blocks less one |
//!
//! A name has 1 to 255 bytes and is one part of a path. The root is inode 1, the entries of the snapshot follow in
//! their order from 2 on, and numbers are not used again.
//!
//! A power cut may leave any part of what was appended since the last sync. Reading ends at the first
//! record that is not whole. Where a later one, or the header, tells that this one had been durable, the journal is
//! damaged, not cut, and is refused: the layer can be made anew from the repository. Without the end of its journal a
//! layer would be an older state of some files beside the newest one of others. PostgreSQL relies on every sync that
//! succeeded, and replays nothing from before its last checkpoint.
//!
//! The header is written after each sync, without one of its own, so it never tells of too much. What it misses
//! after a power cut is the last sync before that.
//!
//! Version 1 has no such fields in its header; such a journal is read, and gone on with as it is.

use crate::objects::ObjectId;
use crate::objects::codec::{Malformed, Reader, put_varint};
use crate::objects::pg::crc::{crc32c, crc32c_begin, crc32c_go_on};

const MAGIC: [u8; 7] = *b"ZLOCAL\0";
/// The part of the header that all versions have, bytes.
pub const BEGIN: usize = MAGIC.len() + 1 + ObjectId::LEN;
const DURABLE: usize = 8 + 4;
/// Length of what comes before the records, bytes.
pub const HEADER: usize = BEGIN + DURABLE;
const RECORD_HEADER: usize = 16;
const LONGEST: usize = 1 << 20;
/// The longest name, bytes.
const LONGEST_NAME: usize = 255;
/// How many bytes behind the end are looked through for whole records: those of a cut journal that look like some
/// are few.
const DOUBTFUL: usize = 64 << 20;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    File {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        mode: u32,
    },
    Folder {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        mode: u32,
    },
    Symlink {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        mode: u32,
        target: Vec<u8>,
    },
    Link {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
    },
    Remove {
        parent: u64,
        name: Vec<u8>,
    },
    Rename {
        parent: u64,
        name: Vec<u8>,
        new_parent: u64,
        new_name: Vec<u8>,
    },
    Mode {
        ino: u64,
        mode: u32,
    },
    Cut {
        ino: u64,
        length: u64,
    },
    /// Runs of blocks, first and count, in order.
    Local {
        ino: u64,
        runs: Vec<(u32, u32)>,
    },
}

/// Returns what a journal begins with.
pub fn header(snapshot: &ObjectId) -> Vec<u8> {
    [&MAGIC[..], &[2], &snapshot.0, &durable(HEADER as u64)].concat()
}

/// Returns what the header has at [`BEGIN`] once `bytes` of the journal are durable.
pub fn durable(bytes: u64) -> [u8; DURABLE] {
    let mut field = [0; DURABLE];
    field[..8].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c(&[&field[..8]]);
    field[8..].copy_from_slice(&crc.to_le_bytes());
    field
}

/// Reads the begin of a header. Returns the version and the snapshot.
pub fn read_begin(bytes: &[u8]) -> Result<(u8, ObjectId), Malformed> {
    let mut reader = Reader::new(bytes);
    let (magic, version) = (reader.array()?, reader.u8()?);
    if magic != MAGIC || !matches!(version, 1 | 2) {
        return Err(Malformed { offset: 0, what: "not a journal of a version that is known" });
    }
    Ok((version, ObjectId(reader.array()?)))
}

impl Record {
    /// Appends the record as the `number`th of a journal whose first `synced` bytes are durable.
    pub fn encode(&self, number: u64, synced: u64, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        self.put(&mut payload);
        let length = (payload.len() as u32).to_le_bytes(); // names and runs are bounded
        let synced = synced.to_le_bytes();
        let crc = crc32c(&[&payload, &length, &number.to_le_bytes(), &synced]);
        for part in [&length[..], &crc.to_le_bytes(), &synced, &payload] {
            out.extend_from_slice(part);
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let mut write = |what: u8, numbers: &[u64], texts: &[&[u8]]| {
            out.push(what);
            numbers.iter().for_each(|number| put_varint(out, *number));
            for text in texts {
                put_varint(out, text.len() as u64);
                out.extend_from_slice(text);
            }
        };
        match self {
            Record::File { parent, name, ino, mode } => write(1, &[*parent, *ino, u64::from(*mode)], &[name]),
            Record::Folder { parent, name, ino, mode } => write(2, &[*parent, *ino, u64::from(*mode)], &[name]),
            Record::Symlink { parent, name, ino, mode, target } => {
                write(3, &[*parent, *ino, u64::from(*mode)], &[name, target]);
            }
            Record::Link { parent, name, ino } => write(4, &[*parent, *ino], &[name]),
            Record::Remove { parent, name } => write(5, &[*parent], &[name]),
            Record::Rename { parent, name, new_parent, new_name } => {
                write(6, &[*parent, *new_parent], &[name, new_name])
            }
            Record::Mode { ino, mode } => write(7, &[*ino, u64::from(*mode)], &[]),
            Record::Cut { ino, length } => write(8, &[*ino, *length], &[]),
            Record::Local { ino, runs } => {
                write(9, &[*ino, runs.len() as u64], &[]);
                let mut end = 0;
                for (first, count) in runs {
                    put_varint(out, u64::from(first - end));
                    put_varint(out, u64::from(count - 1));
                    end = first + count;
                }
            }
        }
    }

    fn decode(payload: &[u8]) -> Result<Record, Malformed> {
        let mut reader = Reader::new(payload);
        let what = reader.u8()?;
        let first = reader.varint()?;
        let record = match what {
            1..=3 => {
                let (parent, ino, mode) = (first, reader.varint()?, take_mode(&mut reader)?);
                let name = take_name(&mut reader)?;
                match what {
                    1 => Record::File { parent, name, ino, mode },
                    2 => Record::Folder { parent, name, ino, mode },
                    _ => Record::Symlink { parent, name, ino, mode, target: take_text(&mut reader)? },
                }
            }
            4 => Record::Link { parent: first, ino: reader.varint()?, name: take_name(&mut reader)? },
            5 => Record::Remove { parent: first, name: take_name(&mut reader)? },
            6 => {
                let new_parent = reader.varint()?;
                let (name, new_name) = (take_name(&mut reader)?, take_name(&mut reader)?);
                Record::Rename { parent: first, name, new_parent, new_name }
            }
            7 => Record::Mode { ino: first, mode: take_mode(&mut reader)? },
            8 => Record::Cut { ino: first, length: reader.varint()? },
            9 => Record::Local { ino: first, runs: take_runs(&mut reader)? },
            _ => return Err(reader.malformed("an unknown kind of record")),
        };
        reader.end()?;
        Ok(record)
    }
}

fn take_mode(reader: &mut Reader) -> Result<u32, Malformed> {
    let mode = u32::try_from(reader.varint()?).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| reader.malformed("impossible permission bits"))
}

fn take_text(reader: &mut Reader) -> Result<Vec<u8>, Malformed> {
    let length = reader.count(1)?;
    reader.take(length).map(<[u8]>::to_vec)
}

fn take_name(reader: &mut Reader) -> Result<Vec<u8>, Malformed> {
    let name = take_text(reader)?;
    let part = !name.contains(&0) && !name.contains(&b'/') && !matches!(name.as_slice(), b"" | b"." | b"..");
    if part && name.len() <= LONGEST_NAME { Ok(name) } else { Err(reader.malformed("an impossible name")) }
}

fn take_runs(reader: &mut Reader) -> Result<Vec<(u32, u32)>, Malformed> {
    let (number, mut runs) = (reader.count(2)?, Vec::new());
    let mut end = 0u64;
    for _ in 0..number {
        let first = end.saturating_add(reader.varint()?);
        let count = reader.varint()?.saturating_add(1);
        end = first.checked_add(count).filter(|end| *end <= u64::from(u32::MAX)).unwrap_or(0);
        if end == 0 {
            return Err(reader.malformed("a run beyond 32 TiB"));
        }
        runs.push((first as u32, count as u32)); // both lie below `end`
    }
    Ok(runs)
}

/// A journal that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    pub snapshot: ObjectId,
    pub records: Vec<Record>,
    /// Bytes up to the end of the last whole record.
    pub end: usize,
    /// Whether its header tells how much is durable.
    pub has_durable: bool,
}

/// Reads a journal. One that a power cut left without its end is well; one that is damaged is not.
pub fn read(bytes: &[u8]) -> Result<Read, Malformed> {
    let (version, snapshot) = read_begin(bytes)?;
    let has_durable = version > 1;
    let (mut records, mut end) = (Vec::new(), if has_durable { HEADER } else { BEGIN });
    let was_durable = if has_durable { read_durable(bytes)? } else { 0 };
    while let Some(Candidate { payload, .. }) =
        candidate(bytes, end).filter(|candidate| candidate.is_whole([records.len() as u64]))
    {
        let record = Record::decode(payload);
        records.push(record.map_err(|error| Malformed { offset: end + RECORD_HEADER + error.offset, ..error })?);
        end += RECORD_HEADER + payload.len();
    }
    if was_durable > end as u64 {
        return Err(Malformed { offset: end, what: "the end is lost, although it was durable" });
    }
    let damaged = Malformed { offset: end, what: "a damaged record, with later ones that are whole" };
    // The number of a later record is unknown, but what lies between is not long.
    let later = records.len() as u64 + 1..records.len() as u64 + 64;
    let mut doubtful = 0;
    for at in end + 1..bytes.len().min(end + LONGEST) {
        // Only one that was written when this one was durable tells of it, and none knows more than what lies before
        // it.
        let tells = |candidate: &Candidate| candidate.synced > end as u64 && candidate.synced <= at as u64;
        let Some(candidate) = candidate(bytes, at).filter(tells) else { continue };
        doubtful += candidate.payload.len();
        if doubtful > DOUBTFUL || candidate.is_whole(later.clone()) {
            return Err(damaged);
        }
    }
    Ok(Read { snapshot, records, end, has_durable })
}

/// Reads how much of a journal its header says is durable.
fn read_durable(bytes: &[u8]) -> Result<u64, Malformed> {
    let field = bytes.get(BEGIN..).and_then(|rest| rest.first_chunk());
    let field: &[u8; DURABLE] = field.ok_or(Malformed { offset: bytes.len(), what: "a header that is cut short" })?;
    let mut number = [0; 8];
    number.copy_from_slice(&field[..8]);
    let number = u64::from_le_bytes(number);
    if durable(number) != *field {
        return Err(Malformed { offset: BEGIN, what: "a damaged header" });
    }
    Ok(number)
}

/// What may be a record.
struct Candidate<'a> {
    crc: u32,
    /// What was durable when it was written, bytes.
    synced: u64,
    payload: &'a [u8],
}

impl Candidate<'_> {
    /// Returns whether its checksum is that of a record with one of these numbers.
    fn is_whole(&self, numbers: impl IntoIterator<Item = u64>) -> bool {
        let length = (self.payload.len() as u32).to_le_bytes(); // at most LONGEST
        let begun = crc32c_begin(&[self.payload, &length]);
        let crc = |number: u64| crc32c_go_on(&begun, &[&number.to_le_bytes(), &self.synced.to_le_bytes()]);
        numbers.into_iter().any(|number| crc(number) == self.crc)
    }
}

/// Returns what may be the record at `at`, if there is room for it.
fn candidate(bytes: &[u8], at: usize) -> Option<Candidate<'_>> {
    let mut reader = Reader::new(bytes.get(at..)?);
    let (length, crc, synced) = (reader.u32().ok()?, reader.u32().ok()?, reader.u64().ok()?);
    // A payload is never empty, so zeros are no record.
    let wanted = Some(length as usize).filter(|length| (1..=LONGEST).contains(length))?;
    Some(Candidate { crc, synced, payload: reader.take(wanted).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Record> {
        let name = b"16384.1".to_vec();
        vec![
            Record::File { parent: 1, name: name.clone(), ino: 70, mode: 0o600 },
            Record::Folder { parent: 1, name: name.clone(), ino: 71, mode: 0o700 },
            Record::Symlink { parent: 1, name: name.clone(), ino: 72, mode: 0o777, target: b"/x".to_vec() },
            Record::Link { parent: 71, name: name.clone(), ino: 70 },
            Record::Remove { parent: 71, name: name.clone() },
            Record::Rename { parent: 1, name: name.clone(), new_parent: 71, new_name: name },
            Record::Mode { ino: 70, mode: 0o640 },
            Record::Cut { ino: 70, length: 1 << 40 },
            Record::Local { ino: 70, runs: vec![(0, 1), (5, 32), (100_000, 1)] },
        ]
    }

    fn journal() -> Vec<u8> {
        let mut bytes = header(&ObjectId([7; 32]));
        for (number, record) in samples().iter().enumerate() {
            // All but the last two are durable before the next.
            let synced = if number < samples().len() - 1 { bytes.len() } else { 0 };
            record.encode(number as u64, synced as u64, &mut bytes);
        }
        bytes
    }

    #[test]
    fn comes_back() {
        let bytes = journal();
        let (snapshot, end) = (ObjectId([7; 32]), bytes.len());
        assert_eq!(read(&bytes), Ok(Read { snapshot, records: samples(), end, has_durable: true }));
    }

    #[test]
    fn one_of_the_first_version_comes_back() {
        let mut bytes = [&MAGIC[..], &[1], &[7; 32]].concat();
        for (number, record) in samples().iter().enumerate() {
            record.encode(number as u64, 0, &mut bytes);
        }
        let (snapshot, end) = (ObjectId([7; 32]), bytes.len());
        assert_eq!(read(&bytes), Ok(Read { snapshot, records: samples(), end, has_durable: false }));
    }

    #[test]
    fn one_that_lost_its_durable_end_is_refused() {
        let mut bytes = journal();
        let end = bytes.len();
        bytes[BEGIN..HEADER].copy_from_slice(&durable(end as u64));
        assert_eq!(read(&bytes).unwrap().end, end);
        for length in HEADER..end {
            assert_eq!(
                read(&bytes[..length]).unwrap_err().what,
                "the end is lost, although it was durable",
                "{length}"
            );
        }
        for at in BEGIN..HEADER {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(read(&damaged).unwrap_err().what, "a damaged header", "byte {at}");
        }
    }

    #[test]
    fn one_that_was_cut_anywhere_gives_the_records_before() {
        let bytes = journal();
        for length in HEADER..bytes.len() {
            let read = read(&bytes[..length]).unwrap();
            assert_eq!(read.records, samples()[..read.records.len()]);
            assert!(read.records.len() < samples().len());
        }
        // A file system may have made it longer, but not written the end.
        let zeros = [&bytes[..bytes.len() - 5], &[0; 4096]].concat();
        assert_eq!(read(&zeros).unwrap().records.len(), samples().len() - 1);
    }

    #[test]
    fn one_that_is_damaged_amid_is_refused() {
        let bytes = journal();
        for at in HEADER..HEADER + 40 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(
                read(&damaged).unwrap_err().what,
                "a damaged record, with later ones that are whole",
                "byte {at}"
            );
        }
    }

    #[test]
    fn one_that_lost_what_was_never_durable_is_well() {
        let mut bytes = header(&ObjectId([7; 32]));
        samples()[0].encode(0, 0, &mut bytes);
        let second = bytes.len();
        samples()[1].encode(1, second as u64, &mut bytes);
        samples()[2].encode(2, second as u64, &mut bytes);
        bytes[second + 20] ^= 1;
        assert_eq!(read(&bytes).unwrap().records, samples()[..1]);
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0", &"x".repeat(256)] {
            let mut bytes = header(&ObjectId([7; 32]));
            Record::Remove { parent: 1, name: name.into() }.encode(0, 0, &mut bytes);
            assert_eq!(read(&bytes).unwrap_err().what, "an impossible name", "{name:?}");
        }
    }

    #[test]
    fn what_looks_like_many_long_records_is_given_up_soon() {
        let mut bytes = header(&ObjectId([7; 32]));
        // In every 16 bytes a length, a checksum and what may have been durable then.
        for at in (bytes.len()..3 << 20).step_by(16) {
            bytes.extend((LONGEST as u32).to_le_bytes());
            bytes.extend(7u32.to_le_bytes());
            bytes.extend((at as u64).to_le_bytes());
        }
        assert_eq!(read(&bytes).unwrap_err().what, "a damaged record, with later ones that are whole");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_records_or_an_error(tail: Vec<u8>, payload: Vec<u8>) {
            let _ = Record::decode(&payload);
            let _ = read(&[journal(), tail].concat());
        }
    }
}
