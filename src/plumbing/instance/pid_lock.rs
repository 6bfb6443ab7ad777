//! A file that names the process which does something, and is locked as long as that lives.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use crate::objects::regular;
use crate::plumbing::postgres::process::{Process, inheritors, lockers};

/// The file. Dropping it releases the lock, if this process had it.
#[must_use = "the lock is released when this is dropped"]
#[derive(Debug)]
pub struct PidLock(File);

impl PidLock {
    /// Opens the file `path`; makes it, if it is not there. On a disk that nobody can write to any more it can be locked all the
    /// same, by who stops a server there.
    pub fn open(path: &Path) -> io::Result<PidLock> {
        let opened = regular::open_with(File::options().create(true).truncate(false).read(true).write(true), path);
        match opened {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => regular::open(path).map(PidLock),
            opened => opened.map(PidLock),
        }
    }

    /// Returns whether a process has the lock on the file `path`; `None` if there is no such file.
    pub fn is_held(path: &Path) -> io::Result<Option<bool>> {
        match regular::open(path) {
            // Shared: two who look do not see each other.
            Ok(file) => Ok(Some(file.try_lock_shared().is_err())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the lock on the same file that the parent process handed over on standard input, or this one.
    pub fn or_inherited(self) -> io::Result<PidLock> {
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(if identity(&stdin)? == identity(&self.0)? { PidLock(stdin) } else { self })
    }

    /// Returns the lock that the parent process handed over on standard output, if that is a file.
    pub fn handed_on_stdout() -> io::Result<Option<PidLock>> {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(stdout.metadata()?.is_file().then_some(PidLock(stdout)))
    }

    /// Returns whether the file is the one that is now at `path`; `None` where none is there.
    pub fn is_at(&self, path: &Path) -> io::Result<Option<bool>> {
        let own = self.0.metadata()?;
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            there => there.map(|there| Some((there.dev(), there.ino()) == (own.dev(), own.ino()))),
        }
    }

    /// Returns whether the lock is this process's, which it becomes if no other process has it.
    pub fn try_take(&self) -> bool {
        self.0.try_lock().is_ok()
    }

    /// Returns whether no other process has the lock, nor gets it as long as this lives. Who [looks](PidLock::is_held) sees a free one.
    pub fn try_share(&self) -> bool {
        self.0.try_lock_shared().is_ok()
    }

    /// Writes this process into the file.
    pub fn note(&mut self) -> io::Result<()> {
        let own = Process::own()?;
        self.0.rewind()?;
        self.0.set_len(0)?;
        write!(self.0, "{own}")
    }

    /// Returns the process that noted itself last, if it lives: somebody else may have the lock by now, who has not noted
    /// that yet. A bare number, which earlier versions wrote, is believed of a process that has the lock on the file at
    /// `path`, which is this one.
    pub fn noted(&mut self, path: &Path) -> Option<Process> {
        let mut text = String::new();
        self.0.rewind().and_then(|()| self.0.read_to_string(&mut text)).ok()?;
        match text.parse::<Process>() {
            Ok(process) => Some(process).filter(Process::is_alive),
            Err(_) => {
                let pid: i32 = text.trim().parse().ok()?;
                lockers(path).ok()?.into_iter().find(|process| process.pid == pid)
            }
        }
    }

    /// Returns the process that noted itself last in the file `path`, if it is there and the process lives.
    pub fn noted_at(path: &Path) -> Option<Process> {
        PidLock(regular::open(path).ok()?).noted(path)
    }

    /// Returns the processes that were handed the lock when they were started, and have it.
    pub fn holders(&self) -> io::Result<Vec<Process>> {
        inheritors(&self.0)
    }

    /// Hands the lock over to a process that is to be started: it has the lock from its first instant on, and as
    /// long as one of the two lives.
    pub fn hand_over(self) -> Stdio {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_it_says_who() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut held = PidLock::open(&path).unwrap();
        assert!(held.try_take() && held.noted(&path).is_none());
        held.note().unwrap();
        held.note().unwrap();
        let mut other = PidLock::open(&path).unwrap();
        assert!(!other.try_take());
        assert_eq!(other.noted(&path), Some(Process::own().unwrap()));
        // As earlier versions wrote it.
        let parent = std::os::unix::process::parent_id();
        for (number, noted) in [(std::process::id(), Some(Process::own().unwrap())), (parent, None)] {
            std::fs::write(&path, number.to_string()).unwrap();
            assert_eq!(other.noted(&path), noted);
        }
        std::fs::write(&path, format!("{parent} 1")).unwrap();
        assert_eq!(other.noted(&path), None);
        assert_eq!(PidLock::is_held(&path).unwrap(), Some(true));
        drop(held);
        assert_eq!(PidLock::is_held(&path).unwrap(), Some(false));
        assert_eq!(PidLock::is_held(&dir.path().join("none")).unwrap(), None);
        assert!(other.try_take());
    }
}
