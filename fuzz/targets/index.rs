//! Indexes of packs: a damaged one leads nowhere, never beyond its end.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use zenith::objects::ObjectId;
use zenith::objects::store::index::{Index, build};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("zenith-fuzz-index-{}", std::process::id()))
});

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
    fs::write(&*FILE, bytes).expect("there is room");
    let index = Index::open(&FILE);
    let _ = fs::remove_file(&*FILE);
    let Ok(index) = index else {
        assert!(!sound);
        return;
    };
    assert!(!sound || index.verify(&FILE).is_ok());
    for id in index.ids().take(20) {
        assert!(!sound || index.find(&id).is_some());
        let _ = index.find(&id);
        assert!(!sound || index.with_prefix(&id.to_string()[..6]).contains(&id));
    }
    let _ = index.with_prefix("00ff");
}
