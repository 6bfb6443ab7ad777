//! `zenith hash-wal`: checks a WAL segment and names it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::file_error::cannot;
use crate::objects::pg::wal::{Memory, WalError, WalReader, What, segment_start};
use crate::objects::pg::{Lsn, segment};
use crate::objects::{Kind, ObjectId, bounded, wal};

/// Check a WAL segment file and print the id of its content
///
/// Checks every page and record, and prints the id that the WAL in the file has as an object: from
/// the segment's first byte to its last, or to the end of its last record where the rest is unused.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith hash-wal pg_wal/000000010000000000000001\n  zenith hash-wal -w 000000010000000000000002\n"
)]
pub struct Args {
    /// Store the WAL as an object too
    #[arg(short, long)]
    write: bool,
    /// Print the LSNs of its first byte and its end too
    #[arg(long)]
    range: bool,
    /// A segment file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The file is not a whole, undamaged segment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{file}' is not WAL that can be used")]
    Wal { file: String, source: WalError },
    #[error("'{file}' is truncated: it ends at {lsn}, amid a segment of {size} bytes")]
    Truncated { file: String, lsn: Lsn, size: u32 },
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        CommandError::new(Class::Corrupt, error)
    }
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub start: Lsn,
    pub end: Lsn,
    /// The content of the object.
    pub content: Vec<u8>,
}

/// Checks the bytes of a segment file. `system_identifier` is that of the cluster it must be of, if
/// one is known.
pub fn hash_wal(file: &str, bytes: &[u8], system_identifier: Option<u64>) -> Result<Outcome, Error> {
    let wrong = |source| Error::Wal { file: file.to_owned(), source };
    let first = segment_start(bytes).map_err(wrong)?;
    let mut expected = first.expected;
    expected.system_identifier = system_identifier.unwrap_or(expected.system_identifier);
    let size = expected.segment_size;
    let boundary = first.lsn.plus(u64::from(size));
    if bytes.len() != size as usize {
        let lsn = first.lsn.plus(bytes.len() as u64);
        return Err(Error::Truncated { file: file.to_owned(), lsn, size });
    }
    let source = Memory { start: first.lsn, bytes };
    let mut end = boundary;
    match WalReader::seek(source, expected, first.lsn) {
        // All of it is the middle of one record.
        Err(error) if error.noticed_at() >= boundary => {}
        Err(error) => return Err(wrong(error)),
        Ok(mut reader) => loop {
            match reader.read() {
                Ok(record) if record.end >= boundary => break,
                Ok(_) => {}
                Err(error) if error.noticed_at() >= boundary => break,
                Err(error) if is_unused(&error, size) => {
                    end = reader.position_lsn();
                    break;
                }
                Err(error) => return Err(wrong(error)),
            }
        },
    }
    let length = end.since(first.lsn) as usize; // at most a segment
    let unused = |_| wrong(WalError { lsn: first.lsn, what: What::Unused });
    let content = wal::encode(first.lsn, &bytes[..length]).map_err(unused)?;
    Ok(Outcome { start: first.lsn, end, content })
}

/// Returns whether the error is what unused WAL looks like: zeroes, or a page of an older segment
/// whose file is used again.
fn is_unused(error: &WalError, segment_size: u32) -> bool {
    match error.what {
        What::Unused => true,
        What::PageAddress(found) => found < error.lsn && error.lsn.since(found).is_multiple_of(u64::from(segment_size)),
        _ => false,
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let path = cx.folder.join(&args.file);
    #[expect(clippy::disallowed_methods, reason = "who names a pipe wants it read")]
    let file = fs::File::open(&path);
    let bytes = file
        .and_then(|file| bounded::read_from(file, u64::from(segment::LARGEST)))
        .map_err(|error| CommandError::from(cannot::<crate::plumbing::datadir::Error>("read", &path)(error)))?;
    let system = if args.write { Some(cx.repo()?.config().system()) } else { None };
    let outcome = hash_wal(&args.file.display().to_string(), &bytes, system)?;
    let id = if args.write {
        let repo = cx.repo()?;
        repo.store().write_loose(repo.tmp()?, Kind::Wal, &outcome.content, repo.config().core.compression_level)?
    } else {
        ObjectId::of(Kind::Wal, &outcome.content)
    };
    if args.range {
        return Ok(writeln!(cx.out, "{id} {} {}", outcome.start, outcome.end)?);
    }
    Ok(writeln!(cx.out, "{id}")?)
}
