//! The control file: as it came, and with the right checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::control::ControlFile;
use zenith::objects::pg::version::VERSIONS;
use zenith::objects::pg::crc::crc32c;

fuzz_target!(|bytes: &[u8]| {
    for version in &VERSIONS {
        let _ = ControlFile::parse(bytes, version);
        let at = version.control_crc_offset;
        if bytes.len() < at + 4 {
            continue;
        }
        let mut file = bytes.to_vec();
        let crc = crc32c(&[&bytes[..at]]);
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        if let Ok(control) = ControlFile::parse(&file, version) {
            assert_eq!((control.block_size, control.wal_block_size), (8192, 8192));
            assert!(control.wal_segment_size.is_power_of_two());
        }
    }
});
