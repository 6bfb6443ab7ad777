//! Stored forms: loose objects and the entries of packs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::store::encode::{Encoded, Encoding};

fuzz_target!(|bytes: &[u8]| {
    let Ok(encoded) = Encoded::read(bytes) else { return };
    let mut again = Vec::new();
    encoded.write(&mut again);
    assert_eq!(again, bytes);
    assert_eq!(encoded.stored_bytes(), bytes.len() as u64);
    assert!(encoded.check_length().is_ok());
    // What claims to be huge costs time here, not memory: see the tests.
    if encoded.length <= 1 << 20
        && let Ok(mut content) = encoded.inflate()
    {
        assert_eq!(content.len() as u64, encoded.length);
        if let Encoding::Xor(delta) = &encoded.encoding {
            let bases: Vec<Vec<u8>> = (0..delta.bases.len()).map(|number| vec![number as u8; number * 9000]).collect();
            delta.apply(&mut content, &bases).expect("the header was checked");
        }
    }
});
