//! What the operating system refused to do with a file: one error for all who meet it.

use std::io;
use std::path::{Path, PathBuf};

/// A file or folder that something could not be done with, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} '{}'", path.display())]
pub struct FileError {
    /// What was to be done, such as `read`.
    pub verb: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// Returns a function that makes what the operating system said about `path` an error of the caller's own type.
pub fn cannot<E: From<FileError>>(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> E + use<E> {
    let path = path.to_owned();
    move |source| E::from(FileError { verb, path, source })
}
