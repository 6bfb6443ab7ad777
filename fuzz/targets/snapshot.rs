//! Snapshots: nothing that is read leads out of the folder, whatever wrote it.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use zenith::objects::snapshot::{Node, Snapshot};

fuzz_target!(|bytes: &[u8]| {
    let Ok(snapshot) = Snapshot::decode(bytes) else { return };
    let again = snapshot.encode();
    assert!(again.len() <= bytes.len(), "only bits of folders go");
    assert_eq!(Snapshot::decode(&again).as_ref(), Ok(&snapshot));
    let _ = (snapshot.total_bytes(), snapshot.objects().count());
    let mut folders = HashSet::from([&b""[..]]);
    for entry in &snapshot.entries {
        let path = entry.path.as_slice();
        let at = path.iter().rposition(|&byte| byte == b'/');
        let (folder, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        assert!(folders.contains(folder), "lies in an earlier folder");
        assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&0));
        assert!(entry.mode <= 0o777);
        if entry.node == Node::Dir {
            assert!(folders.insert(path), "is there once");
        }
        assert_eq!(snapshot.entry(path), Some(entry));
    }
});
