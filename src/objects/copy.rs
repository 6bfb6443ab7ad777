//! Copies files as they are: with their holes, permission bits and owners, and links as links.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, lchown, symlink};
use std::path::Path;

use super::regular;

/// What is zeroes becomes a hole in pieces of this, bytes: a page of PostgreSQL.
const PAGE: usize = 8 << 10;

/// Copies what `source` has from byte `from` on to the same place in the empty file `target`, which gets its length; pages
/// of zeroes become holes.
pub fn content(source: &File, from: u64, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let (mut at, mut page) = (from, [0; PAGE]);
    while at < length {
        let part = &mut page[..(length - at).min(PAGE as u64) as usize]; // at most a page
        source.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            target.write_all_at(part, at)?;
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// Copies the file that `from` is, or leads to; not durable yet.
pub fn file(from: &Path, to: &Path) -> io::Result<()> {
    let source = regular::open(from)?;
    content(&source, 0, &regular::create_new(to, 0o600)?)?;
    hand_over(to, &source.metadata()?)
}

/// Copies a folder, or what else is at `from`, with all that it holds to `to`, which must not be there; not durable yet. Pipes
/// and sockets, which hold nothing, are left out.
pub fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        DirBuilder::new().mode(0o700).create(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            tree(&from.join(&name), &to.join(&name))?;
        }
    } else if metadata.is_file() {
        return file(from, to);
    } else if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else {
        return Ok(());
    }
    hand_over(to, &metadata)
}

/// Gives a copy the owner and the mode of its original.
fn hand_over(copy: &Path, original: &Metadata) -> io::Result<()> {
    // Only root may give files away, and only root meets others' here.
    let _ = lchown(copy, Some(original.uid()), Some(original.gid()));
    if original.is_symlink() { Ok(()) } else { fs::set_permissions(copy, original.permissions()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_comes_out_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("base/1")).unwrap();
        fs::create_dir(from.join("empty")).unwrap();
        let sparse = File::create(from.join("base/1/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(b"amid", 5 << 20).unwrap();
        fs::write(from.join("base/1/plain"), "text").unwrap();
        fs::write(dir.path().join("outside"), "not to be copied").unwrap();
        symlink("../outside", from.join("link")).unwrap();
        symlink("nowhere", from.join("dangling")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        mode(&from.join("base/1/plain"), 0o640);
        mode(&from.join("empty"), 0o500);

        tree(&from, &to).unwrap();
        let mode = |path| fs::metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("base/1/plain"), mode("empty")), (0o640, 0o500));
        assert_eq!(fs::read(to.join("base/1/plain")).unwrap(), b"text");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../outside"));
        assert_eq!(fs::read_link(to.join("dangling")).unwrap(), Path::new("nowhere"));
        assert!(!to.join("pipe").exists());
        let sparse = File::open(to.join("base/1/sparse")).unwrap();
        let metadata = sparse.metadata().unwrap();
        assert!(metadata.len() == 1 << 30 && metadata.blocks() < 1 << 10, "{metadata:?}");
        let mut amid = [0; 4];
        sparse.read_exact_at(&mut amid, 5 << 20).unwrap();
        assert_eq!(&amid, b"amid");
    }
}
