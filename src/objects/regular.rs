//! Opens files of a repository. Others who may write to it may have put something else in the place of one: a pipe would be waited
//! for without end, and holds nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_DIRECTORY, O_NONBLOCK};

/// Opens a regular file for reading; what is none is an error.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// Opens a regular file with `options`, without waiting.
#[expect(clippy::disallowed_methods, reason = "what it opens is looked at")]
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(O_NONBLOCK).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
    }
}

/// Makes a new file with a mode, of which the umask takes what it takes, for writing.
#[expect(clippy::disallowed_methods, reason = "what is new is no pipe")]
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(mode).open(path)
}

/// Makes a file for writing, or empties the one that is there.
pub fn create(path: &Path) -> io::Result<File> {
    open_with(File::options().create(true).truncate(true).write(true), path)
}

/// Gives a file that content; not durable yet.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(content.as_ref())
}

/// Opens a folder, to sync it.
#[expect(clippy::disallowed_methods, reason = "of what is no folder nothing is opened")]
pub fn open_dir(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(O_DIRECTORY).open(path)
}

/// Returns the content of a regular file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Returns the text of a regular file.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    open(path).and_then(io::read_to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&path).is_err() && read(&path).is_err() && read_to_string(&path).is_err());
        assert!(write(&path, "").is_err() && create_new(&path, 0o600).is_err() && open_dir(&path).is_err());
        for options in
            [File::options().write(true), File::options().append(true), File::options().read(true).write(true)]
        {
            assert!(open_with(options, &path).is_err());
        }
        assert!(open(dir.path()).is_err());
        let path = dir.path().join("file");
        open_with(File::options().create(true).truncate(false).write(true), &path).unwrap();
        assert_eq!(read(&path).unwrap(), b"");
    }
}
