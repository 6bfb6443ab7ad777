//! The proof of life of a server: a lock on a file that the postmaster inherits, and all that it forks.
//!
//! The kernel holds a flock(2) as long as anybody has the open file: through a kill -9 of the postmaster while a backend is
//! still busy, and not an instant longer than the last of them. So whoever can take the lock knows that no server runs
//! there, and that none can be started as long as it is held. What stands in a file, or a process's number, proves
//! neither. The file lies outside of every mount, and where nobody removes it while a server might run.
//!
//! # Format
//! One line: the postmaster's number and when it began (see [`Process`]), or nothing. It says whom to signal, and is
//! believed only while the lock is held.
//!
//! # Who has it
//! Whoever starts a server, from before its files are laid out; the postmaster as descriptor [`DESCRIPTOR`], and its
//! children; and what those run: archive_command, COPY ... PROGRAM. zenith's own commands among them close it first
//! thing ([`close_inherited`]). Others are given [`GRACE`] once a postmaster was stopped; who finds one dead gives them none.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::Signal;

use super::Error;
use super::process::{Process, inheritors};

/// The descriptor that a postmaster finds it under.
pub const DESCRIPTOR: i32 = 3;
/// Names the file to what a postmaster starts: device and inode.
const VARIABLE: &str = "ZENITH_ALIVE";
/// What a server has started and left behind may go on for so long after its postmaster.
pub const GRACE: Duration = Duration::from_secs(5);
/// Others look at the lock for an instant, by sharing it.
const LOOKS: Duration = Duration::from_millis(500);
/// How long other commands are waited for that have the lock.
const OTHERS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);
/// How long processes that were killed may take to go.
const KILLED: Duration = Duration::from_secs(10);

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nobody is there.
    Stopped,
    /// A command is about to start it, or looks after what it left; or died before it noted the postmaster.
    Held,
    Running(Process),
    /// The postmaster is gone, but not all that it started.
    Orphaned,
}

/// The file whose lock a server holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    path: PathBuf,
}

/// The lock in this process: no server runs there but one that was started with it.
#[must_use = "a server may be started by others when this is dropped"]
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
}

impl Alive {
    /// The lock on the file `path`, whose folder exists.
    pub fn at(path: PathBuf) -> Alive {
        Alive { path }
    }

    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Option<File>, Error> {
        match File::options().read(true).write(true).open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", &self.path)(error)),
        }
    }

    /// Returns whether a server, or what it started, is there; or somebody who is about to start one. Where that cannot be
    /// found out the answer is an error, never a no.
    pub fn is_held(&self) -> Result<bool, Error> {
        let Some(file) = self.open()? else { return Ok(false) };
        // Shared: two who look do not take each other for a server.
        is_locked(file.try_lock_shared()).map_err(Error::io("lock", &self.path))
    }

    /// Returns what is known of the server.
    pub fn status(&self) -> Result<Status, Error> {
        if !self.is_held()? {
            return Ok(Status::Stopped);
        }
        let Some(mut file) = self.open()? else { return Ok(Status::Stopped) };
        Ok(match noted(&mut file) {
            Some(postmaster) if postmaster.is_alive() => Status::Running(postmaster),
            Some(_) => Status::Orphaned,
            None => Status::Held,
        })
    }

    /// Takes the lock. Fails if a server is there, or what it left.
    pub fn take(&self) -> Result<Held, Error> {
        let open = || File::options().create(true).truncate(false).read(true).write(true).open(&self.path);
        let mut file = open().map_err(Error::io("open", &self.path))?;
        let begun = Instant::now();
        while is_locked(file.try_lock()).map_err(Error::io("lock", &self.path))? {
            if begun.elapsed() > LOOKS {
                return Err(Error::StillAlive { lock: self.path.clone(), process: noted(&mut file) });
            }
            sleep(PAUSE);
        }
        // What stands there is about a server that is gone.
        file.set_len(0).map_err(Error::io("write", &self.path))?;
        Ok(Held { file, path: self.path.clone() })
    }

    /// Ends what a server left whose postmaster is gone, at once, and takes the lock. A backend that outlives its
    /// postmaster goes on until its statement is done, and would acknowledge commits into WAL that is sealed already.
    /// Fails where the postmaster lives, or another command has the lock.
    pub fn take_from_the_dead(&self) -> Result<Held, Error> {
        if self.status()? == Status::Orphaned {
            self.end_orphans(Instant::now())?;
        }
        match self.take() {
            // A command may have died between the start of a postmaster and the note of it.
            Err(Error::StillAlive { process: None, .. }) if self.has_unnoted()? => {
                self.end_orphans(Instant::now())?;
                self.take()
            }
            taken => taken,
        }
    }

    /// Returns whether a server has the lock that nobody noted.
    fn has_unnoted(&self) -> Result<bool, Error> {
        let Some(file) = self.open()?.filter(|_| matches!(self.status(), Ok(Status::Held))) else { return Ok(false) };
        Ok(!inheritors(&file).map_err(Error::io("look for who has", &self.path))?.is_empty())
    }

    /// Does so once other commands are done that see to what the server left: they seal it, and some begin at any time.
    pub fn take_after_others(&self) -> Result<Held, Error> {
        let patience = Instant::now() + OTHERS;
        loop {
            match self.take_from_the_dead() {
                Err(Error::StillAlive { .. }) if self.postmaster()?.is_none() && Instant::now() < patience => {}
                taken => return taken,
            }
        }
    }

    /// Waits until all that a server started is gone; from `patience` on what is left is killed.
    pub fn end_orphans(&self, patience: Instant) -> Result<(), Error> {
        while self.is_held()? {
            let now = Instant::now();
            if now >= patience {
                let Some(file) = self.open()? else { return Ok(()) };
                let orphans = inheritors(&file).map_err(Error::io("look for who has", &self.path))?;
                if (orphans.is_empty() && self.is_held()?) || now > patience + KILLED {
                    return Err(Error::StillAlive { lock: self.path.clone(), process: orphans.first().copied() });
                }
                for orphan in &orphans {
                    orphan.signal(Signal::SIGKILL).map_err(Error::io("end what a server left on", &self.path))?;
                }
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Returns the postmaster, if one was noted and lives.
    pub fn postmaster(&self) -> Result<Option<Process>, Error> {
        Ok(match self.status()? {
            Status::Running(process) => Some(process),
            _ => None,
        })
    }
}

fn is_locked(attempt: Result<(), std::fs::TryLockError>) -> io::Result<bool> {
    match attempt {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

fn noted(file: &mut File) -> Option<Process> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.take(100).read_to_string(&mut text)).ok()?;
    text.parse().ok()
}

impl Held {
    /// Has the process that `command` starts inherit the lock.
    pub fn hand_to(&self, command: &mut Command) -> Result<(), Error> {
        let io = Error::io("hand over", &self.path);
        let metadata = self.file.metadata().and_then(|metadata| {
            let parent_fd = self.file.as_fd().try_clone_to_owned()?;
            Ok((metadata, parent_fd))
        });
        let (metadata, parent_fd) = metadata.map_err(io)?;
        command.env(VARIABLE, identity(&metadata));
        let mapping = FdMapping { parent_fd, child_fd: DESCRIPTOR };
        command.fd_mappings(vec![mapping]).expect("invariant: there is one");
        Ok(())
    }

    /// Notes the postmaster that was started with it, so that others know whom to signal.
    pub fn note(&self, postmaster: Process) -> Result<(), Error> {
        let mut file = &self.file;
        let written = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| writeln!(file, "{postmaster}"));
        written.map_err(Error::io("write", &self.path))
    }
}

fn identity(metadata: &fs::Metadata) -> String {
    format!("{}:{}", metadata.dev(), metadata.ino())
}

/// Closes the lock of the server that started this process, by archive_command or COPY ... PROGRAM: this process is
/// no part of the server, and may outlive it. To be called first thing.
pub fn close_inherited() {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let is_it = fs::metadata(format!("/dev/fd/{DESCRIPTOR}")).is_ok_and(|metadata| identity(&metadata) == wanted);
    if is_it {
        let _ = nix::unistd::close(DESCRIPTOR); // what is not open need not be closed
    }
}

/// Returns whether the file system of the folder `dir` keeps locks: without them nobody could tell who is alive.
pub fn keeps_locks(dir: &Path) -> io::Result<bool> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    let other = file.reopen()?;
    if is_locked(file.as_file().try_lock())? {
        return Ok(false);
    }
    is_locked(other.try_lock_shared())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(held: &Held, seconds: &str) -> std::process::Child {
        let mut command = Command::new("sleep");
        command.arg(seconds);
        held.hand_to(&mut command).unwrap();
        command.spawn().unwrap()
    }

    #[test]
    fn the_lock_is_held_as_long_as_any_child_lives_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Alive::at(dir.path().join("alive"));
        assert_eq!(alive.status().unwrap(), Status::Stopped);
        let held = alive.take().unwrap();
        assert_eq!(alive.status().unwrap(), Status::Held);
        assert!(matches!(alive.take(), Err(Error::StillAlive { .. })));
        let mut child = sleeper(&held, "60");
        let process = Process::of(child.id() as i32);
        held.note(process).unwrap();
        drop(held);
        assert_eq!(alive.status().unwrap(), Status::Running(process));
        process.signal(Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(alive.status().unwrap(), Status::Stopped);
        drop(alive.take().unwrap());
    }

    #[test]
    fn what_outlives_the_postmaster_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Alive::at(dir.path().join("alive"));
        let held = alive.take().unwrap();
        let mut postmaster = sleeper(&held, "60");
        let mut backend = sleeper(&held, "60");
        held.note(Process::of(postmaster.id() as i32)).unwrap();
        drop(held);
        assert!(matches!(alive.take_from_the_dead(), Err(Error::StillAlive { .. })));
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        assert_eq!(alive.status().unwrap(), Status::Orphaned);
        assert!(matches!(alive.take(), Err(Error::StillAlive { .. })));
        drop(alive.take_from_the_dead().unwrap());
        assert!(!backend.wait().unwrap().success());
    }

    #[test]
    fn a_server_that_was_not_noted_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Alive::at(dir.path().join("alive"));
        let held = alive.take().unwrap();
        let mut child = sleeper(&held, "60");
        drop(held);
        assert_eq!(alive.status().unwrap(), Status::Held);
        drop(alive.take_from_the_dead().unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn looks_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Alive::at(dir.path().join("alive"));
        drop(alive.take().unwrap());
        let file = File::open(alive.path()).unwrap();
        file.lock_shared().unwrap();
        assert!(!alive.is_held().unwrap());
        assert!(keeps_locks(dir.path()).unwrap());
    }
}
