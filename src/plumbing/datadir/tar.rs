//! Reads a data directory from a tar stream, such as `pg_basebackup -D - -F tar -X fetch` prints.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Error;
use super::exclude::is_excluded;
use super::write::{Bytes, Item, UNIT_BYTES};
use crate::objects::file_error::cannot;
use crate::objects::pg::control;
use crate::objects::regular;
use crate::objects::snapshot::paths::is_own;

/// Files at the top that describe the backup; kept in memory, at most this many bytes of each.
const KEPT: [(&str, u64); 4] =
    [("PG_VERSION", 1 << 10), (control::PATH, 64 << 10), ("backup_label", 64 << 10), ("backup_manifest", 256 << 20)];

/// The most bytes that the stream may take for what stands before an entry's content: long names are read into memory.
const LONGEST_HEADER: u64 = 1 << 20;

/// What is found on the way through a stream beside the files of the snapshot.
#[derive(Debug, Default)]
pub struct Aside {
    /// Content of the files that describe the backup, by path.
    pub files: HashMap<String, Vec<u8>>,
}

/// A stream that gives no more than was granted.
struct Rationed<R> {
    stream: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Rationed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an entry whose header is too long"));
        }
        let count = self.stream.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - count as u64);
        Ok(count)
    }
}

/// Reads all of `stream` and gives its entries to `each`. WAL segments are put into `wal_dir`. Memory: a part of a
/// file, and the files that describe the backup.
pub fn read(
    stream: impl Read,
    wal_dir: &Path,
    each: &mut dyn FnMut(Item) -> Result<(), Error>,
) -> Result<Aside, Error> {
    let mut aside = Aside::default();
    let left = Rc::new(Cell::new(LONGEST_HEADER));
    let mut archive = tar::Archive::new(Rationed { stream, left: left.clone() });
    let mut entries = archive.entries().map_err(Error::Tar)?;
    loop {
        left.set(LONGEST_HEADER);
        let Some(entry) = entries.next() else { return Ok(aside) };
        let mut entry = entry.map_err(Error::Tar)?;
        left.set(u64::MAX);
        take(&mut entry, wal_dir, &mut aside, each)?;
        // What nobody wanted, so that the next header is the next thing to read.
        io::copy(&mut entry, &mut io::sink()).map_err(Error::Tar)?;
    }
}

/// Takes one entry.
fn take(
    entry: &mut tar::Entry<impl Read>,
    wal_dir: &Path,
    aside: &mut Aside,
    each: &mut dyn FnMut(Item) -> Result<(), Error>,
) -> Result<(), Error> {
    let path = normal_path(&entry.path_bytes());
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(()) };
    let mode = entry.header().mode().map_err(Error::Tar)? & 0o777;
    let kind = entry.header().entry_type();
    if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
        if let Some(name) = path.strip_prefix(b"pg_wal/").filter(|name| !name.contains(&b'/')) {
            let target: PathBuf = wal_dir.join(std::ffi::OsStr::from_bytes(name));
            let copied = regular::create(&target).and_then(|mut file| io::copy(entry, &mut file));
            return copied.map(drop).map_err(cannot::<Error>("write", &target));
        }
        return take_file(entry, path, mode, aside, each);
    }
    if is_excluded(&path) {
        return Ok(());
    }
    if kind.is_dir() {
        each(Item::Dir { path, mode })
    } else if kind.is_symlink() {
        // Of the cluster's own files a link is not enough: what it points to is not in the stream.
        if is_own(&path) && path != b"pg_wal" {
            let what = "a link to what is not in the stream, such as a tablespace";
            return Err(Error::Unfit { path: PathBuf::from(OsStr::from_bytes(&path)), what });
        }
        Ok(())
    } else if kind.is_hard_link() {
        // Without its content the snapshot would lack a file.
        let what = format!("'{}' is a hard link: make the stream without", String::from_utf8_lossy(&path));
        Err(Error::Tar(io::Error::new(io::ErrorKind::Unsupported, what)))
    } else {
        Ok(())
    }
}

fn take_file(
    entry: &mut tar::Entry<impl Read>,
    path: Vec<u8>,
    mode: u32,
    aside: &mut Aside,
    each: &mut dyn FnMut(Item) -> Result<(), Error>,
) -> Result<(), Error> {
    let length = entry.size();
    let name = String::from_utf8_lossy(&path).into_owned();
    let kept = KEPT.iter().any(|(known, most)| *known == name && length <= *most);
    let excluded = is_excluded(&path);
    if excluded && !kept {
        return Ok(());
    }
    let mut whole = Vec::new();
    if !excluded {
        each(Item::File { path, mode, length })?;
    }
    for offset in (0..length).step_by(UNIT_BYTES) {
        let mut bytes = Vec::new();
        let count = (length - offset).min(UNIT_BYTES as u64);
        entry.take(count).read_to_end(&mut bytes).map_err(Error::Tar)?;
        if bytes.len() as u64 != count {
            return Err(Error::Tar(io::ErrorKind::UnexpectedEof.into()));
        }
        if kept {
            whole.extend_from_slice(&bytes);
        }
        if !excluded {
            each(Item::Part(Bytes::Now(bytes), None))?;
        }
    }
    if kept {
        aside.files.insert(name, whole);
    }
    Ok(())
}

/// Returns a path without `./`, doubled or trailing slashes; `None` where it leaves the folder.
fn normal_path(path: &[u8]) -> Option<Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<&[u8]> = names.collect();
    (!names.contains(&&b".."[..])).then(|| names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(stream: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let wal = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        let mut each = |item| {
            if let Item::Dir { path, .. } | Item::File { path, .. } | Item::Symlink { path, .. } = item {
                paths.push(path);
            }
            Ok(())
        };
        read(stream, wal.path(), &mut each).map(|_| paths)
    }

    fn header(kind: tar::EntryType, path: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn a_name_without_end_is_refused_before_it_fills_the_memory() {
        let header = header(tar::EntryType::GNULongName, "././@LongLink", 1 << 40);
        let endless = header.as_bytes().chain(io::repeat(b'x'));
        let wal = tempfile::tempdir().unwrap();
        let error = read(endless, wal.path(), &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Tar(_)), "{error}");
    }

    #[test]
    fn a_hard_link_is_refused_and_what_nobody_wants_is_passed_over() {
        let mut link = tar::Builder::new(Vec::new());
        link.append(&header(tar::EntryType::Link, "base", 0), &[][..]).unwrap();
        assert!(matches!(paths(&link.into_inner().unwrap()), Err(Error::Tar(_))));
        let mut stream = tar::Builder::new(Vec::new());
        let long = vec![7; 3 << 20];
        stream.append(&header(tar::EntryType::Regular, "pg_stat_tmp/x", 3 << 20), &long[..]).unwrap();
        stream.append(&header(tar::EntryType::Regular, "./x", 3), &b"abc"[..]).unwrap();
        assert_eq!(paths(&stream.into_inner().unwrap()).unwrap(), [b"x"]);
    }
}
