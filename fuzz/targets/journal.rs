//! The journal of a local layer: as it came, and its records with the right checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::ObjectId;
use zenith::objects::pg::crc::crc32c;
use zenith::plumbing::datadir::local::journal::{BEGIN, HEADER, header, read};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut journal = header(&ObjectId([7; 32]));
    let mut rest = bytes;
    let mut number = 0u64;
    while let Some((length, after)) = rest.split_first() {
        let (payload, after) = after.split_at(usize::from(*length).min(after.len()));
        let (size, synced) = ((payload.len() as u32).to_le_bytes(), (journal.len() as u64).to_le_bytes());
        let crc = crc32c(&[payload, &size, &number.to_le_bytes(), &synced]);
        [&size[..], &crc.to_le_bytes(), &synced, payload].iter().for_each(|part| journal.extend_from_slice(part));
        (rest, number) = (after, number + 1);
    }
    check(&journal);
});

fn check(bytes: &[u8]) {
    let Ok(journal) = read(bytes) else { return };
    let begin = if journal.has_durable { HEADER } else { BEGIN };
    assert!(journal.end >= begin && journal.end <= bytes.len());
    let mut again = header(&journal.snapshot);
    for (number, record) in journal.records.iter().enumerate() {
        record.encode(number as u64, 0, &mut again);
    }
    assert_eq!(again.len() - HEADER, journal.end - begin, "records have one form");
    let read = read(&again).expect("what is written can be read");
    assert_eq!((read.records, read.end), (journal.records, again.len()));
}
