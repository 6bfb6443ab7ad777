//! What lies beside the WAL of a timeline, for a start that goes on from its end: a folder that is replaced as a whole.
//!
//! # Format
//! The file `at` in it is the LSN at which the timeline ended when all of it was so. Earlier versions wrote none.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::objects::pg::Lsn;
use crate::objects::{Repo, bounded, durable};

const AT: &str = "at";

/// Returns the LSN as of which the folder `dir` is; `None` where it does not say, or is not there.
pub fn as_of(dir: &Path) -> io::Result<Option<Lsn>> {
    match bounded::read_to_string(&dir.join(AT), bounded::ORIGIN) {
        Ok(text) => text.parse().map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a folder, as of `lsn`, in the place of `target`, durably. What `fill` writes into it is durable when that returns.
pub fn replace(repo: &Repo, target: &Path, lsn: Lsn, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let tmp = repo.tmp().map_err(io::Error::other)?;
    let made = tempfile::Builder::new().prefix("beside-").tempdir_in(tmp)?;
    fill(made.path())?;
    durable::write_in_place(&made.path().join(AT), |file| write!(file, "{lsn}"))?;
    durable::discard_dir(tmp, target)?;
    durable::publish_dir(made.path(), target)?;
    let _ = made.keep();
    Ok(())
}
