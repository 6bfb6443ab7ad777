//! Reads a data directory from a tar stream, such as `pg_basebackup -D - -F tar -X fetch` prints.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::exclude::is_excluded;
use super::write::{Bytes, Item, UNIT_BYTES};

/// Files at the top that describe the backup; kept in memory, at most this many bytes of each.
const KEPT: [&str; 4] = ["PG_VERSION", "global/pg_control", "backup_label", "backup_manifest"];
const KEPT_BYTES: u64 = 256 << 20;

/// What is found on the way through a stream beside the files of the snapshot.
#[derive(Debug, Default)]
pub struct Aside {
    /// Content of the files that describe the backup, by path.
    pub files: HashMap<String, Vec<u8>>,
}

/// Reads all of `stream` and gives its entries to `each`. WAL segments are put into `wal_dir`.
pub fn read(
    stream: impl Read,
    wal_dir: &Path,
    each: &mut dyn FnMut(Item) -> Result<(), Error>,
) -> Result<Aside, Error> {
    let mut aside = Aside::default();
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(Error::Tar)? {
        let mut entry = entry.map_err(Error::Tar)?;
        let path = normal_path(&entry.path_bytes());
        let Some(path) = path.filter(|path| !path.is_empty()) else { continue };
        let mode = entry.header().mode().map_err(Error::Tar)? & 0o7777;
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let length = entry.size();
            if let Some(name) = path.strip_prefix(b"pg_wal/").filter(|name| !name.contains(&b'/')) {
                let target: PathBuf = wal_dir.join(std::ffi::OsStr::from_bytes(name));
                let copied = File::create(&target).and_then(|mut file| io::copy(&mut entry, &mut file));
                copied.map_err(Error::io("write", &target))?;
                continue;
            }
            let name = String::from_utf8_lossy(&path).into_owned();
            let kept = KEPT.contains(&name.as_str()) && length <= KEPT_BYTES;
            let excluded = is_excluded(&path);
            if excluded && !kept {
                continue;
            }
            let mut whole = Vec::new();
            if !excluded {
                each(Item::File { path, mode, length })?;
            }
            for offset in (0..length).step_by(UNIT_BYTES) {
                let mut bytes = Vec::new();
                let count = (length - offset).min(UNIT_BYTES as u64);
                entry.by_ref().take(count).read_to_end(&mut bytes).map_err(Error::Tar)?;
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
        } else if is_excluded(&path) {
            continue;
        } else if kind.is_dir() {
            each(Item::Dir { path, mode })?;
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
            each(Item::Symlink { path, mode: 0o777, target })?;
        }
    }
    Ok(aside)
}

/// Returns a path without `./`, doubled or trailing slashes; `None` where it leaves the folder.
fn normal_path(path: &[u8]) -> Option<Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<&[u8]> = names.collect();
    (!names.contains(&&b".."[..])).then(|| names.join(&b'/'))
}
