//! What lies beside the WAL of a timeline, for a start that goes on from its end: a folder that is replaced as a whole.
//!
//! # Format
//! The file `at` in it is text, one line: the LSN at which the timeline ended when all of it was so, and, behind a space, a SHA-256 of
//! all other files, of each in order of their paths: the length of its path in bytes (8 bytes, little-endian), the path, and the same of
//! its content. Earlier versions wrote no file, or no SHA-256.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::objects::pg::Lsn;
use crate::objects::{ObjectId, Repo, bounded, durable, folder, regular};

const AT: &str = "at";
/// How much of a file is read at a time, bytes.
const PART: usize = 64 << 10;

/// Returns the LSN as of which the folder `dir` is; `None` where it does not say, or is not there. An error if it holds something else
/// than was put there. Costs a read of it.
pub fn as_of(dir: &Path) -> io::Result<Option<Lsn>> {
    let path = dir.join(AT);
    let text = match bounded::read_to_string(&path, bounded::ORIGIN) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // What the system refuses says nothing of the file.
        Err(error) => match error.kind() {
            ErrorKind::InvalidData | ErrorKind::IsADirectory => return Err(corrupt(&path, &error.to_string())),
            _ => return Err(error),
        },
    };
    let mut words = text.split_whitespace();
    let lsn = words.next().unwrap_or_default().parse().map_err(|_| corrupt(&path, "it does not begin with an LSN"))?;
    let sum = words.next().map(str::parse::<ObjectId>).transpose();
    let sum = sum.map_err(|_| corrupt(&path, "it does not end with a SHA-256"))?;
    match sum {
        Some(sum) if sum != sum_of(dir)? => {
            let what = "it does not hold what was put there; moved away, it is no more in the way, and the branch goes on \
                        with what its snapshot has";
            Err(corrupt(dir, what))
        }
        _ => Ok(Some(lsn)),
    }
}

fn corrupt(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("'{}' is corrupt: {what}", path.display()))
}

/// Puts a folder, as of `lsn`, in the place of `target`, durably. What `fill` writes into it is durable when that returns.
pub fn replace(repo: &Repo, target: &Path, lsn: Lsn, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let tmp = repo.tmp().map_err(io::Error::other)?;
    let made = tempfile::Builder::new().prefix("beside-").tempdir_in(tmp)?;
    fill(made.path())?;
    let sum = sum_of(made.path())?;
    durable::write_in_place(&made.path().join(AT), |file| writeln!(file, "{lsn} {sum}"))?;
    durable::discard_dir(tmp, target)?;
    durable::publish_dir(made.path(), target)?;
    let _ = made.keep();
    Ok(())
}

/// Returns the SHA-256 of what lies in a folder, but for what says it.
fn sum_of(dir: &Path) -> io::Result<ObjectId> {
    let mut files = Vec::new();
    list(dir, Path::new(""), &mut files)?;
    files.sort_unstable();
    let (mut sum, mut part) = (Sha256::new(), vec![0; PART]);
    for path in files.into_iter().filter(|path| path != Path::new(AT)) {
        let mut file = regular::open(&dir.join(&path))?;
        let name = path.as_os_str().as_bytes();
        sum.update((name.len() as u64).to_le_bytes());
        sum.update(name);
        sum.update(file.metadata()?.len().to_le_bytes());
        loop {
            let read = file.read(&mut part)?;
            if read == 0 {
                break;
            }
            sum.update(&part[..read]);
        }
    }
    Ok(ObjectId(sum.finalize().into()))
}

/// Adds the paths of the files in the folder `below` of `dir`, and of those in its folders.
fn list(dir: &Path, below: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in folder::entries(&dir.join(below))? {
        let path = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(dir, &path, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}
