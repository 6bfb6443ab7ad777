//! What the operating system refused to do with a file: one error for all who meet it.

use std::error::Error;
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

/// Returns the operating system's own error among the causes of an error, if there is one: what it refused, for want of
/// descriptors or memory for instance, says nothing of what the files hold.
pub fn of_system<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(found) = cause {
        cause = match found.downcast_ref::<io::Error>() {
            Some(error) if error.raw_os_error().is_some() => return Some(error),
            // Its source is that of what it wraps.
            Some(wrapper) => wrapper.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => found.source(),
        };
    }
    None
}

/// Returns whether the system refused something for want of what it may have again, such as descriptors: that says nothing of a file.
pub fn is_want(error: &(dyn Error + 'static)) -> bool {
    use nix::libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let wants = [EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM];
    of_system(error).and_then(io::Error::raw_os_error).is_some_and(|code| wants.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_said_is_found_however_it_is_wrapped() {
        let said = || io::Error::from_raw_os_error(24);
        let named = || cannot::<FileError>("open", Path::new("x"))(said());
        let wrapped = io::Error::other(named());
        let twice = cannot::<FileError>("read", Path::new("y"))(io::Error::other(io::Error::other(named())));
        for error in [&said() as &(dyn Error + 'static), &named(), &wrapped, &twice] {
            assert_eq!(of_system(error).unwrap().raw_os_error(), Some(24));
            assert!(is_want(error));
        }
        assert!(of_system(&io::Error::other("damaged")).is_none());
        assert!(!is_want(&io::Error::from_raw_os_error(nix::libc::EIO)));
        assert!(of_system(&io::Error::from(io::ErrorKind::UnexpectedEof)).is_none());
    }
}
