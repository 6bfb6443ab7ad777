//! Multi-pack indexes: a damaged one leads nowhere, never beyond its end.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use memmap2::MmapMut;
use sha2::{Digest, Sha256};
use zenith::objects::ObjectId;
use zenith::objects::store::midx::MultiIndex;

/// Bytes for each object.
const EACH: usize = 48;

fuzz_target!(|bytes: &[u8]| {
    // As it came; and as the objects of a sound one, of which a byte is damaged then.
    look(bytes, false);
    let [packs, rest @ ..] = bytes else { return };
    let mut built = build(usize::from(packs % 4) + 1, rest);
    look(&built, true);
    let (length, last) = (built.len(), rest.last().copied().unwrap_or_default());
    let at = rest.iter().fold(usize::from(*packs), |at, byte| at.wrapping_mul(31) ^ usize::from(*byte)) % length;
    built[at] ^= last | 1;
    look(&built, false);
});

/// Returns the bytes of one that names so many packs, with an object for each piece of `rows`.
fn build(packs: usize, rows: &[u8]) -> Vec<u8> {
    let mut rows: Vec<Vec<u8>> = rows.chunks_exact(EACH).map(<[u8]>::to_vec).collect();
    for row in &mut rows {
        let pack = u32::from(row[32]) % packs as u32;
        row[32..36].copy_from_slice(&pack.to_le_bytes());
    }
    rows.sort();
    let mut bytes = b"ZNM1".to_vec();
    bytes.extend((packs as u32).to_le_bytes());
    (0..packs).for_each(|number| bytes.extend([number as u8; 32]));
    rows.iter().for_each(|row| bytes.extend(row));
    for first in 0..=255u8 {
        bytes.extend((rows.iter().filter(|row| row[0] <= first).count() as u32).to_le_bytes());
    }
    bytes.extend((rows.len() as u32).to_le_bytes());
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    bytes
}

fn look(bytes: &[u8], sound: bool) {
    let mut map = MmapMut::map_anon(bytes.len().max(1)).expect("there is memory");
    map[..bytes.len()].copy_from_slice(bytes);
    let path = Path::new("fuzz");
    let index = MultiIndex::of(map.make_read_only().expect("it is ours"), path);
    let Ok(index) = index else {
        assert!(!sound);
        return;
    };
    assert!(!sound || index.verify(path).is_ok());
    let packs = index.packs().count();
    for id in index.ids().take(20) {
        let found = index.find(&id);
        assert!(!sound || found.is_some());
        assert!(found.is_none_or(|(pack, _)| pack < packs));
        assert!(index.number(&id).is_none_or(|number| number < index.count()));
        assert!(!sound || index.with_prefix(&id.to_string()[..6]).contains(&id));
    }
    let _ = (index.with_prefix("00ff"), index.find(&ObjectId([9; 32])));
}
