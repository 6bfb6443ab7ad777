//! `zenith read-ahead`: reads parts of files into the kernel's page cache, for a process that serves these files and must
//! not wait for itself.
//!
//! # Format
//! Standard input has requests: the offset in decimal digits, a blank, the path below the data directory, and a NUL.

use std::ffi::OsStr;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::frame::FRAME_SIZE;
use crate::objects::regular;
use crate::plumbing::datadir::vfs::ahead::PART;

/// Read parts of files, so that the kernel has them
///
/// Reads requests from standard input, each an offset, a blank, a path below DIR and a NUL byte, and reads 1 MiB of that
/// file from there on. Ends with its input. mount-datadir runs this while somebody reads at random.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  printf '0 base/5/1259\\0' | zenith read-ahead /mnt/old/data\n")]
pub struct Args {
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes the request to read the part of the file `path` that begins at `offset`, bytes.
pub fn ask(pipe: &mut impl Write, path: &[u8], offset: u64) -> io::Result<()> {
    let mut request = format!("{offset} ").into_bytes();
    request.extend_from_slice(path);
    request.push(0);
    pipe.write_all(&request)
}

/// Returns the offset and the path of a request, if it is one.
fn parse(request: &[u8]) -> Option<(u64, &Path)> {
    let request = request.strip_suffix(b"\0")?;
    let blank = request.iter().position(|byte| *byte == b' ')?;
    let offset = std::str::from_utf8(&request[..blank]).ok()?.parse().ok()?;
    Some((offset, Path::new(OsStr::from_bytes(&request[blank + 1..]))))
}

/// Reads a part of a file, to have it in the page cache. The file is open for this instant only, since an open
/// one would keep the mount alive.
fn read_part(path: &Path, start: u64, buffer: &mut [u8]) -> io::Result<()> {
    let file = regular::open(path)?;
    // The kernel reads what is asked for, and no more.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    let mut offset = start;
    while offset < start.saturating_add(PART) {
        match file.read_at(buffer, offset)? {
            0 => break,
            read => offset += read as u64, // at most the buffer
        }
    }
    Ok(())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let dir = cx.folder.join(&args.dir);
    let (mut input, mut request, mut buffer) = (io::stdin().lock(), Vec::new(), vec![0; FRAME_SIZE]);
    loop {
        request.clear();
        if input.read_until(0, &mut request)? == 0 {
            return Ok(());
        }
        if let Some((offset, path)) = parse(&request) {
            // A read that fails is of no concern to anybody.
            let _ = read_part(&dir.join(path), offset, &mut buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        ask(&mut bytes, b"base/5/a b", 1 << 20).unwrap();
        assert_eq!(parse(&bytes), Some((1 << 20, Path::new("base/5/a b"))));
        for damaged in [&b""[..], b"\0", b"x y\0", b"12\0", b"12 name"] {
            assert_eq!(parse(damaged), None);
        }
    }
}
