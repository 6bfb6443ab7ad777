//! WAL objects.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::wal;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((start, content)) = wal::decode(bytes) {
        assert_eq!(wal::encode(start, content).expect("read"), bytes);
    }
});
