//! What can go wrong with a data directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::objects::store;
use crate::progress::Interrupted;

/// A data directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {verb} '{}'", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    /// Somebody writes to it meanwhile.
    #[error("'{}' changed while it was read", path.display())]
    Changed { path: PathBuf },
    /// A file of a kind that a data directory does not have.
    #[error("'{}' is too large: a file of a snapshot has at most 32 TiB", path.display())]
    TooLarge { path: PathBuf },
    /// No reader would take it.
    #[error("'{}' cannot be part of a snapshot: {what}", path.display())]
    Unfit { path: PathBuf, what: &'static str },
    #[error("the tar stream is damaged")]
    Tar(#[source] io::Error),
    #[error("'{}' is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("'{}' is damaged", path.display())]
    Journal { path: PathBuf, source: crate::objects::codec::Malformed },
    /// What the journal says cannot have happened.
    #[error("the local layer '{}' is damaged: {what}", dir.display())]
    Layer { dir: PathBuf, what: &'static str },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Error {
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { verb, path, source }
    }
}
