//! Indexes of packs: a damaged one leads nowhere, never beyond its end.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use memmap2::MmapMut;
use zenith::objects::ObjectId;
use zenith::objects::store::index::{Index, build};

fuzz_target!(|bytes: &[u8]| {
    // As it came; and as the ids and positions of an index that is made of it.
    let each = |chunk: &[u8]| {
        let mut id = [0; 32];
        id.copy_from_slice(&chunk[..32]);
        let position = zenith::objects::store::index::Position {
            offset: u64::from(chunk[32]) << (chunk[33] % 56),
            length: u32::from(chunk[34]),
        };
        (ObjectId(id), position)
    };
    let mut entries: Vec<_> = bytes.chunks_exact(35).map(each).collect();
    let mut built = build(&mut entries).expect("few");
    look(bytes, false);
    look(&built, true);
    if let Some((last, rest)) = bytes.split_last() {
        let at =
            rest.iter().fold(usize::from(*last), |at, byte| at.wrapping_mul(31) ^ usize::from(*byte)) % built.len();
        built[at] ^= last | 1;
        look(&built, false);
    }
});

fn look(bytes: &[u8], sound: bool) {
    let mut map = MmapMut::map_anon(bytes.len().max(1)).expect("there is memory");
    map[..bytes.len()].copy_from_slice(bytes);
    let path = Path::new("fuzz");
    let index = Index::of(map.make_read_only().expect("it is ours"), path);
    let Ok(index) = index else {
        assert!(!sound);
        return;
    };
    assert!(!sound || index.verify(path).is_ok());
    for id in index.ids().take(20) {
        assert!(!sound || index.find(&id).is_some());
        let _ = index.find(&id);
        assert!(!sound || index.with_prefix(&id.to_string()[..6]).contains(&id));
    }
    let _ = index.with_prefix("00ff");
}
