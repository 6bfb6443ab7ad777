//! The WAL reader: pages, and the records that run over them
//! (`src/include/access/xlog_internal.h`, `src/backend/access/transam/xlogreader.c`).
//!
//! A page has 8 KiB and a header of 24 bytes, 40 at the start of a segment: magic number (2), flags
//! (2), PostgreSQL's timeline id (4), the page's own LSN (8), bytes of the record that comes over
//! from the page before (4), padding (4); the long one goes on with the system identifier (8), the
//! segment size (4) and the page size (4). Records begin at multiples of 8 and go on over as many
//! pages as they need.
//!
//! At the end of active WAL lie zeroes, remains of older segments, or half a record. All of these
//! are errors here. Who scans for the end takes any of them as the end, as PostgreSQL does; who
//! reads sealed WAL takes them as damage.

use std::io;

use super::Lsn;
use super::crc::crc32c;
use super::record::{HEADER, Record};
use super::version::Version;

/// Bytes of a page of WAL.
pub const PAGE: usize = 8192;
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;

const FIRST_IS_CONTINUED: u16 = 1;
const HAS_LONG_HEADER: u16 = 2;
const FIRST_IS_OVERWRITE: u16 = 8;
const KNOWN_FLAGS: u16 = 15;

/// PostgreSQL's own limit for a record, `XLogRecordMaxSize`, bytes.
const MAX_RECORD: u32 = 1020 << 20;
/// The most bytes asked of the source at a time.
const CHUNK: usize = 32 * PAGE;

/// Gives WAL bytes.
pub trait WalSource {
    /// Fills `buffer` with the WAL from `lsn` on, as far as there is any; returns how many bytes.
    fn read(&mut self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize>;
}

/// What is wrong with the WAL at a position.
#[derive(Debug, thiserror::Error)]
pub enum What {
    #[error("the WAL ends")]
    End,
    #[error("unused WAL: zeroes where a record should begin")]
    Unused,
    #[error("a page with magic number {found:04X} where PostgreSQL {major} writes {expected:04X}")]
    Magic { found: u16, expected: u16, major: u32 },
    #[error("a page with magic number {0:04X}, which no PostgreSQL from 14 to 18 writes")]
    UnknownMagic(u16),
    #[error("a page with impossible flags {0:04X}")]
    PageFlags(u16),
    #[error("a page that says it belongs at {0}")]
    PageAddress(Lsn),
    #[error("WAL of another cluster: system identifier {found} instead of {expected}")]
    System { found: u64, expected: u64 },
    #[error("segments of {0} bytes")]
    SegmentSize(u32),
    #[error("a record of impossible length {0}")]
    Length(u32),
    #[error("a record of an unknown resource manager {0}")]
    ResourceManager(u8),
    #[error("a record that follows one at {found} instead of {expected}")]
    Previous { found: Lsn, expected: Lsn },
    #[error("a record that should go on at {page}, but the page there does not go on with it")]
    Continuation { page: Lsn },
    #[error("a record of {length} bytes whose checksum does not match")]
    Checksum { length: u32 },
    #[error("cannot read the WAL: {0}")]
    Io(io::Error),
}

/// The WAL cannot be read on.
#[derive(Debug, thiserror::Error)]
#[error("{what}, at {lsn}")]
pub struct WalError {
    /// Where.
    pub lsn: Lsn,
    pub what: What,
}

impl WalError {
    /// Returns whether this may be how active WAL ends: everything but an error of the disk.
    pub fn may_be_end(&self) -> bool {
        !matches!(self.what, What::Io(_))
    }

    /// Returns the position whose bytes told of it: that of the error, or further on that of a page
    /// which does not fit to a record before.
    pub fn noticed_at(&self) -> Lsn {
        if let What::Continuation { page } = self.what { page } else { self.lsn }
    }
}

/// What the pages must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub version: &'static Version,
    /// Bytes.
    pub segment_size: u32,
    pub system_identifier: u64,
}

struct PageHeader {
    flags: u16,
    remaining: u32,
    length: usize,
}

/// Reads records one after the other. Memory: the longest record, and 256 KiB.
pub struct WalReader<S> {
    source: S,
    expected: Expected,
    /// Room for the bytes at hand, how many they are, and where they begin.
    chunk: Vec<u8>,
    filled: usize,
    chunk_start: Lsn,
    /// Where the next record is looked for.
    next: Lsn,
    /// Where the last record began, if that is known.
    last: Option<Lsn>,
    record: Vec<u8>,
    /// Start and end of the record at hand, if [`WalReader::peek`] has read it and nobody took it.
    peeked: Option<(Lsn, Lsn)>,
}

impl<S: WalSource> WalReader<S> {
    /// Returns a reader that begins with the record at `start`, which must be where a record
    /// begins or ends.
    pub fn new(source: S, expected: Expected, start: Lsn) -> WalReader<S> {
        let chunk = Vec::new();
        WalReader {
            source,
            expected,
            chunk,
            filled: 0,
            chunk_start: Lsn(0),
            next: start,
            last: None,
            record: Vec::new(),
            peeked: None,
        }
    }

    /// Returns a reader that begins with the first record that starts at `lsn` or later. `lsn` may
    /// lie anywhere in a page whose start the source has.
    pub fn seek(source: S, expected: Expected, lsn: Lsn) -> Result<WalReader<S>, WalError> {
        let mut page = lsn.page_start();
        let mut reader = WalReader::new(source, expected, page);
        loop {
            let header = reader.header(page)?;
            if header.flags & FIRST_IS_CONTINUED == 0 {
                break;
            }
            let room = PAGE - header.length;
            if header.remaining as usize > room {
                page = page.plus(PAGE as u64);
                continue;
            }
            let end = page.plus((header.length + align(header.remaining as usize)) as u64);
            reader.next = end;
            break;
        }
        if reader.next < page {
            reader.next = page;
        }
        while reader.position(reader.next)? < lsn {
            if reader.peek()?.start >= lsn {
                break;
            }
            reader.advance();
        }
        Ok(reader)
    }

    /// Returns where the next record is looked for: the end of the last one.
    pub fn position_lsn(&self) -> Lsn {
        self.next
    }

    /// Returns `lsn`, moved over the page header where it points to one.
    fn position(&mut self, lsn: Lsn) -> Result<Lsn, WalError> {
        if lsn.0.is_multiple_of(PAGE as u64) { Ok(lsn.plus(self.header(lsn)?.length as u64)) } else { Ok(lsn) }
    }

    /// Reads the next record, and goes on behind it.
    pub fn read(&mut self) -> Result<Record<'_>, WalError> {
        self.peek()?;
        let (start, end) = self.peeked.expect("invariant: set by peek");
        self.advance();
        Ok(Record { start, end, bytes: &self.record, version: self.expected.version })
    }

    /// Goes on behind the record that [`WalReader::peek`] returned.
    pub fn advance(&mut self) {
        if let Some((start, end)) = self.peeked.take() {
            (self.last, self.next) = (Some(start), end);
        }
    }

    /// Reads the next record without going on behind it.
    pub fn peek(&mut self) -> Result<Record<'_>, WalError> {
        let (start, end) = match self.peeked {
            Some(at_hand) => at_hand,
            None => self.load()?,
        };
        self.peeked = Some((start, end));
        Ok(Record { start, end, bytes: &self.record, version: self.expected.version })
    }

    fn load(&mut self) -> Result<(Lsn, Lsn), WalError> {
        let mut start = self.position(self.next)?;
        let end = loop {
            match self.assemble(start)? {
                Assembled::Whole(end) => break end,
                // The server crashed amid this record and wrote another one over its continuation.
                Assembled::Overwritten(page) => start = self.position(page)?,
            }
        };
        self.check(start)?;
        let record = Record { start, end, bytes: &self.record, version: self.expected.version };
        let segment_size = self.expected.segment_size;
        // Behind the very last segment there is none to go on with.
        let next = || end.plus(u64::from(segment_size) - 1).segment_start(segment_size).max(end);
        Ok((start, if record.is_switch() { next() } else { end }))
    }

    /// Puts the bytes of the record at `start` together.
    fn assemble(&mut self, start: Lsn) -> Result<Assembled, WalError> {
        self.record.clear();
        let mut at = start;
        let first = self.page_rest(at)?;
        let mut total = [0; 4];
        total.copy_from_slice(&first[..4]); // a record begins at a multiple of 8
        let total = u32::from_le_bytes(total);
        if total == 0 {
            return Err(WalError { lsn: start, what: What::Unused });
        }
        if (total as usize) < HEADER || total > MAX_RECORD {
            return Err(WalError { lsn: start, what: What::Length(total) });
        }
        let total = total as usize;
        loop {
            let mut record = std::mem::take(&mut self.record);
            let missing = total - record.len();
            let rest = self.page_rest(at)?;
            let take = missing.min(rest.len());
            record.extend_from_slice(&rest[..take]);
            self.record = record;
            at = at.plus(take as u64);
            if take == missing {
                return Ok(Assembled::Whole(at.aligned()));
            }
            if self.record.len() >= HEADER {
                // Before more is read on the word of a length that may be garbage.
                self.check_header(start)?;
            }
            let header = self.header(at)?;
            if header.flags & FIRST_IS_OVERWRITE != 0 {
                return Ok(Assembled::Overwritten(at));
            }
            if header.flags & FIRST_IS_CONTINUED == 0 || header.remaining as usize != total - self.record.len() {
                return Err(WalError { lsn: start, what: What::Continuation { page: at } });
            }
            at = at.plus(header.length as u64);
        }
    }

    fn check_header(&self, start: Lsn) -> Result<(), WalError> {
        let record = Record { start, end: start, bytes: &self.record, version: self.expected.version };
        let fail = |what| Err(WalError { lsn: start, what });
        let manager = record.resource_manager();
        // Custom resource managers, from 128 on, came with version 15.
        if manager > 21 && (manager < 128 || self.expected.version.major < 15) {
            return fail(What::ResourceManager(manager));
        }
        match self.last {
            Some(expected) if record.prev() != expected => fail(What::Previous { found: record.prev(), expected }),
            None if record.prev() >= start => fail(What::Previous { found: record.prev(), expected: Lsn(0) }),
            _ => Ok(()),
        }
    }

    fn check(&self, start: Lsn) -> Result<(), WalError> {
        self.check_header(start)?;
        let (header, body) = self.record.split_at(HEADER);
        let mut stored = [0; 4];
        stored.copy_from_slice(&header[20..]);
        if crc32c(&[body, &header[..20]]) == u32::from_le_bytes(stored) {
            Ok(())
        } else {
            Err(WalError { lsn: start, what: What::Checksum { length: self.record.len() as u32 } })
        }
    }

    /// Returns the bytes from `at` to the end of its page.
    fn page_rest(&mut self, at: Lsn) -> Result<&[u8], WalError> {
        let offset = (at.0 % PAGE as u64) as usize;
        let page = self.page(Lsn(at.0 - offset as u64))?;
        if offset >= page.len() || page.len() - offset < 8 {
            return Err(WalError { lsn: at, what: What::End });
        }
        Ok(&page[offset..])
    }

    /// Reads and checks the header of the page at `lsn`.
    fn header(&mut self, lsn: Lsn) -> Result<PageHeader, WalError> {
        let expected = self.expected;
        let fail = |what| Err(WalError { lsn, what });
        let page = self.page(lsn)?;
        // WAL may end with the last bytes of a record just behind a short header.
        if page.len() < SHORT_HEADER {
            return fail(What::End);
        }
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let (magic, flags) = (u16_at(0), u16_at(2));
        if magic != expected.version.wal_magic {
            if page[..SHORT_HEADER].iter().all(|&byte| byte == 0) {
                return fail(What::Unused);
            }
            return fail(What::Magic {
                found: magic,
                expected: expected.version.wal_magic,
                major: expected.version.major,
            });
        }
        let starts_segment = lsn.segment_offset(expected.segment_size) == 0;
        if flags & !KNOWN_FLAGS != 0 || (starts_segment && flags & HAS_LONG_HEADER == 0) {
            return fail(What::PageFlags(flags));
        }
        if Lsn(u64_at(8)) != lsn {
            return fail(What::PageAddress(Lsn(u64_at(8))));
        }
        let length = if flags & HAS_LONG_HEADER != 0 {
            if page.len() < LONG_HEADER {
                return fail(What::End);
            }
            let (found, size) = (u64_at(24), u32_at(32));
            if found != expected.system_identifier {
                return fail(What::System { found, expected: expected.system_identifier });
            }
            if size != expected.segment_size || u32_at(36) as usize != PAGE {
                return fail(What::SegmentSize(size));
            }
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        Ok(PageHeader { flags, remaining: u32_at(16), length })
    }

    /// Returns as much of the page at `lsn` as the source has.
    fn page(&mut self, lsn: Lsn) -> Result<&[u8], WalError> {
        let within = lsn >= self.chunk_start && lsn.since(self.chunk_start) < self.filled as u64;
        if !within || lsn.since(self.chunk_start) as usize + PAGE > self.filled {
            // Twice as much each time: who looks up one record reads a page or two.
            let room = (2 * self.chunk.len()).clamp(PAGE, CHUNK);
            self.chunk.resize(room, 0);
            // At the end of the WAL this happens for each record: no more than what is there may be touched.
            (self.filled, self.chunk_start) = (0, lsn);
            let read = self.source.read(lsn, &mut self.chunk);
            self.filled = read.map_err(|error| WalError { lsn, what: What::Io(error) })?.min(room);
        }
        let offset = lsn.since(self.chunk_start) as usize;
        let end = (offset + PAGE).min(self.filled);
        if offset >= end { Err(WalError { lsn, what: What::End }) } else { Ok(&self.chunk[offset..end]) }
    }
}

/// Returns where the byte `offset` of the record that begins at `start` lies: records leave out the headers of the
/// pages that they run over.
pub fn position_in_record(start: Lsn, offset: usize, segment_size: u32) -> Lsn {
    let (mut at, mut left) = (start, offset as u64);
    loop {
        let page_end = at.page_start().plus(PAGE as u64);
        let room = page_end.since(at);
        if left < room {
            return at.plus(left);
        }
        left -= room;
        let header = if page_end.segment_offset(segment_size) == 0 { LONG_HEADER } else { SHORT_HEADER };
        at = page_end.plus(header as u64);
    }
}

enum Assembled {
    /// Ends here.
    Whole(Lsn),
    /// Was never finished; the page at this LSN begins with another record.
    Overwritten(Lsn),
}

fn align(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// WAL in memory, from an LSN on.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    pub start: Lsn,
    pub bytes: &'a [u8],
}

impl WalSource for Memory<'_> {
    fn read(&mut self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(lsn.since(self.start)).unwrap_or(usize::MAX);
        let rest = if lsn < self.start { &[] } else { self.bytes.get(offset..).unwrap_or_default() };
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// What the first page of a segment says of itself.
#[derive(Debug, Clone, Copy)]
pub struct SegmentStart {
    pub lsn: Lsn,
    pub expected: Expected,
    /// PostgreSQL's own timeline id.
    pub timeline: u32,
}

/// Reads the header at the start of a segment file, knowing nothing of where it comes from.
pub fn segment_start(bytes: &[u8]) -> Result<SegmentStart, WalError> {
    let fail = |lsn, what| Err(WalError { lsn, what });
    let Some(header) = bytes.get(..LONG_HEADER) else { return fail(Lsn(0), What::End) };
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let (magic, flags) = (u32_at(0) as u16, (u32_at(0) >> 16) as u16);
    let Some(version) = Version::of_wal_magic(magic) else {
        return fail(Lsn(0), What::UnknownMagic(magic));
    };
    let lsn = Lsn(u64_at(8));
    if flags & HAS_LONG_HEADER == 0 {
        return fail(lsn, What::PageFlags(flags));
    }
    let segment_size = u32_at(32);
    if !super::segment::is_valid_size(segment_size) {
        return fail(lsn, What::SegmentSize(segment_size));
    }
    if lsn.segment_offset(segment_size) != 0 {
        return fail(lsn, What::PageAddress(lsn));
    }
    let expected = Expected { version, segment_size, system_identifier: u64_at(24) };
    Ok(SegmentStart { lsn, expected, timeline: u32_at(4) })
}

/// Returns whether `page` was written as the page of WAL at `lsn`: recycled segments have another place's.
pub fn is_header_of(page: &[u8], expected: &Expected, lsn: Lsn) -> bool {
    let header = page_header(expected, lsn, 0, 0, 0);
    page.len() >= SHORT_HEADER && page[..2] == header[..2] && page[8..16] == header[8..16]
}

/// Returns the header of the segment that begins at `lsn`, 40 bytes, as if no record came over from the one before.
pub fn segment_header(expected: &Expected, lsn: Lsn, timeline: u32) -> Vec<u8> {
    let mut bytes = page_header(expected, lsn, timeline, HAS_LONG_HEADER, 0);
    bytes.extend(expected.system_identifier.to_le_bytes());
    bytes.extend(expected.segment_size.to_le_bytes());
    bytes.extend((PAGE as u32).to_le_bytes());
    bytes
}

/// Returns the header that every page has, 24 bytes.
fn page_header(expected: &Expected, lsn: Lsn, timeline: u32, flags: u16, remaining: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONG_HEADER);
    bytes.extend(expected.version.wal_magic.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(timeline.to_le_bytes());
    bytes.extend(lsn.0.to_le_bytes());
    bytes.extend(remaining.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        let version = Version::of_major(15).unwrap();
        Expected { version, segment_size: 1 << 20, system_identifier: 7 }
    }

    /// A segment with one record that ends `beyond` bytes into the second page's content.
    fn two_pages(beyond: usize) -> Vec<u8> {
        let length = PAGE - LONG_HEADER + beyond;
        let mut record = vec![0u8; length];
        record[..4].copy_from_slice(&(length as u32).to_le_bytes());
        let crc = crc32c(&[&record[HEADER..], &record[..20]]);
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        let start = Lsn(1 << 20);
        let mut wal = segment_header(&expected(), start, 1);
        wal.extend(&record[..PAGE - LONG_HEADER]);
        wal.extend(page_header(&expected(), start.plus(8192), 1, FIRST_IS_CONTINUED, beyond as u32));
        wal.extend(&record[PAGE - LONG_HEADER..]);
        wal
    }

    #[test]
    fn wal_may_end_just_behind_a_page_header() {
        for beyond in [8, 16, 24] {
            let wal = two_pages(beyond);
            let source = Memory { start: Lsn(1 << 20), bytes: &wal };
            let mut reader = WalReader::new(source, expected(), Lsn(1 << 20));
            let end = reader.read().unwrap().end;
            assert_eq!(end, Lsn((1 << 20) + wal.len() as u64));
            assert!(matches!(reader.read().unwrap_err().what, What::End));
        }
    }

    #[test]
    fn a_flipped_bit_in_a_record_is_a_wrong_checksum() {
        let mut wal = two_pages(8);
        wal[5000] ^= 1;
        let source = Memory { start: Lsn(1 << 20), bytes: &wal };
        let error = WalReader::new(source, expected(), Lsn(1 << 20)).read().unwrap_err();
        assert!(matches!(error.what, What::Checksum { .. }), "{error}");
    }
}
