//! Base backups: as they came, and with the right checksums in their headers.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use zenith::plumbing::datadir::Error;
use zenith::plumbing::datadir::tar::read;
use zenith::plumbing::datadir::write::{Bytes, Item};

/// Where segments of WAL go: few get so far.
static WAL: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("zenith-fuzz-tar-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is room");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut sums = bytes.to_vec();
    for header in sums.chunks_exact_mut(512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    check(&sums);
});

fn check(bytes: &[u8]) {
    let mut left = 0u64;
    let each = &mut |item| {
        match item {
            Item::File { path, length, .. } => {
                assert_eq!(left, 0, "all parts of the file before came");
                assert!(!path.is_empty() && !path.starts_with(b"/"));
                left = length;
                // A sparse file may be long, at no cost for who made it; whoever writes it has a limit, too.
                if length > 16 << 20 {
                    return Err(Error::TooLarge { path: "x".into() });
                }
            }
            Item::Part(Bytes::Now(part), None) => {
                left -= part.len() as u64;
            }
            Item::Dir { path, .. } | Item::Symlink { path, .. } => {
                assert!(path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
            }
            _ => unreachable!("a stream has no parent"),
        }
        Ok(())
    };
    let _ = read(bytes, &WAL, each);
}
