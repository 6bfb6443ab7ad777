//! The WAL reader: bytes as they came, and records with the right checksums on pages with the right headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::Lsn;
use zenith::objects::pg::crc::crc32c;
use zenith::objects::pg::version::VERSIONS;
use zenith::objects::pg::wal::{Expected, Memory, PAGE, WalReader, segment_header, segment_start};

const SEGMENT: u32 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let [first, second, rest @ ..] = bytes else { return };
    let version = &VERSIONS[usize::from(*first) % VERSIONS.len()];
    let expected = Expected { version, segment_size: SEGMENT, system_identifier: 7 };
    // Near the beginning, and at the very end of all positions.
    let start = if second & 1 == 0 { Lsn(1 << 20) } else { Lsn(0u64.wrapping_sub(1 << 20)) };
    if let Ok(found) = segment_start(rest) {
        read(found.lsn, rest, found.expected);
    }
    read(start, rest, expected);
    read(start, &[&segment_header(&expected, start, 1)[..], rest].concat(), expected);
    read(start, &written(start, rest, &expected, usize::from(*second)), expected);
});

/// Reads all records, from the start and from amid.
fn read(start: Lsn, bytes: &[u8], expected: Expected) {
    let source = Memory { start, bytes };
    let mut reader = WalReader::new(source, expected, start);
    let mut before = start;
    while let Ok(record) = reader.read() {
        assert!(record.start >= before && record.end > record.start || record.end == Lsn::MAX);
        assert_eq!(record.bytes.len(), record.length() as usize);
        let _ = (record.commit(), record.changes_nothing(), record.backup_end(), record.tablespace_in_place());
        let _ = (record.resource_manager_name(), record.is_switch());
        if let Ok((blocks, main)) = record.body() {
            assert!(blocks.len() <= 33 && main.len() <= record.bytes.len());
        }
        if record.end == Lsn::MAX || record.end == before {
            break;
        }
        before = record.end;
    }
    for at in [start.plus(1), start.plus(PAGE as u64 + 77)] {
        if let Ok(mut reader) = WalReader::seek(source, expected, at) {
            let _ = reader.read();
        }
    }
}

/// Writes records whose bodies are pieces of `bytes` as a server would.
fn written(start: Lsn, bytes: &[u8], expected: &Expected, seed: usize) -> Vec<u8> {
    let mut wal = segment_header(expected, start, 1);
    let (mut rest, mut prev) = (bytes, 0u64);
    while let [length, info, manager, after @ ..] = rest {
        let (body, after) = after.split_at((usize::from(*length) * (1 + seed % 64)).min(after.len()));
        let at = start.plus(wal.len() as u64);
        let mut record = Vec::new();
        record.extend(((24 + body.len()) as u32).to_le_bytes());
        record.extend(5u32.to_le_bytes());
        record.extend(prev.to_le_bytes());
        record.extend([*info, manager % 22, 0, 0]);
        let crc = crc32c(&[body, &record]);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        let mut left = record.as_slice();
        while !left.is_empty() {
            let room = PAGE - wal.len() % PAGE;
            if room == PAGE {
                let page = start.plus(wal.len() as u64);
                let mut header = segment_header(expected, page, 1)[..24].to_vec();
                let flags = u16::from(left.len() < record.len());
                header[2..4].copy_from_slice(&flags.to_le_bytes());
                header[16..20].copy_from_slice(&(if flags == 1 { left.len() as u32 } else { 0 }).to_le_bytes());
                wal.extend(header);
                continue;
            }
            let (now, later) = left.split_at(room.min(left.len()));
            wal.extend(now);
            left = later;
        }
        wal.resize(wal.len().next_multiple_of(8), 0);
        (rest, prev) = (after, at.0);
    }
    wal
}
