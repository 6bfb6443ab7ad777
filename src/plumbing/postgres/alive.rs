//! The proof of life of a server: a lock on a file that the postmaster inherits, and all that it forks.
//!
//! The kernel holds a flock(2) as long as anybody has the open file: through a kill -9 of the postmaster while a backend is
//! still busy, and not an instant longer than the last of them. So whoever can take the lock knows that no server runs
//! there, and that none can be started as long as it is held. What stands in a file, or a process's number, proves
//! neither. The file lies outside of every mount, and where nobody removes it while a server might run.
//!
//! Should somebody remove or replace the file nevertheless, a server is found by where it works and by the lock that it was
//! handed, whatever that is on: whoever finds the lock free looks for that too, before it takes that for a proof.
//!
//! # Format
//! One line: the postmaster's number and when it began (see [`Process`]), or behind `by ` those of the command that has the
//! lock. It says whom to signal, and is believed only while the lock is held.
//!
//! # Who has it
//! Whoever starts a server, from before its files are laid out; the postmaster as descriptor [`DESCRIPTOR`], and its
//! children; and what those run: archive_command, COPY ... PROGRAM. zenith's own commands among them close it first
//! thing ([`close_inherited`]). Others are given [`GRACE`] once a postmaster was stopped; who finds one dead gives them none.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::Signal;

use super::Error;
use super::process::{Process, inheritors, lockers_in};
use crate::objects::file_error::cannot;
use crate::objects::regular;

/// The descriptor that a postmaster finds it under.
pub const DESCRIPTOR: i32 = 3;
/// Names the file to what a postmaster starts: device and inode.
const VARIABLE: &str = "ZENITH_ALIVE";
/// Before the number of the command that has the lock.
const TAKER: &str = "by ";
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
    /// A command is about to start it, or looks after what it left.
    Held,
    Running(Process),
    /// The postmaster is gone, but not all that it started.
    Orphaned,
}

/// The file whose lock a server holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    path: PathBuf,
    /// Where the server works.
    data: PathBuf,
}

/// The lock in this process: no server runs there but one that was started with it.
#[must_use = "a server may be started by others when this is dropped"]
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
}

/// What a look at the lock shows.
enum Look {
    Free,
    Locked(File),
    /// Nobody has the lock, but these have one that once lay in its place.
    Astray(Vec<Process>),
}

/// Who is noted in the file.
enum Noted {
    Postmaster(Process),
    /// The command that has the lock.
    Taker(Process),
    Nobody,
}

impl Alive {
    /// The lock on the file `path`, whose folder exists, of a server that works in the data directory `data`.
    pub fn of(path: PathBuf, data: PathBuf) -> Alive {
        Alive { path, data }
    }

    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Option<File>, Error> {
        let opened = match regular::open_with(File::options().read(true).write(true), &self.path) {
            // Enough to look.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => regular::open(&self.path),
            opened => opened,
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot::<Error>("open", &self.path)(error)),
        }
    }

    fn look(&self) -> Result<Look, Error> {
        if let Some(file) = self.locked()? {
            return Ok(Look::Locked(file));
        }
        let astray = self.astray()?;
        if astray.is_empty() {
            return Ok(Look::Free);
        }
        // One that was started since has the lock.
        Ok(self.locked()?.map_or(Look::Astray(astray), Look::Locked))
    }

    /// Returns the file, if somebody has the lock.
    fn locked(&self) -> Result<Option<File>, Error> {
        let Some(file) = self.open()? else { return Ok(None) };
        // Shared: two who look do not take each other for a server.
        let is_locked = is_locked(file.try_lock_shared()).map_err(cannot::<Error>("lock", &self.path))?;
        Ok(Some(file).filter(|_| is_locked))
    }

    /// Returns the processes of a server whose lock is on another file: somebody removed or replaced the one that it
    /// was started with.
    fn astray(&self) -> Result<Vec<Process>, Error> {
        lockers_in(&self.data, DESCRIPTOR).map_err(cannot::<Error>("look for who works in", &self.data))
    }

    /// Returns whether a server, or what it started, is there; or somebody who is about to start one. Where that cannot be
    /// found out the answer is an error, never a no.
    pub fn is_held(&self) -> Result<bool, Error> {
        Ok(!matches!(self.look()?, Look::Free))
    }

    /// Returns what is known of the server.
    pub fn status(&self) -> Result<Status, Error> {
        let look = self.look()?;
        let noted = match &look {
            Look::Locked(file) => noted(file),
            _ => Noted::Nobody,
        };
        Ok(match noted {
            Noted::Postmaster(postmaster) if postmaster.is_alive() => Status::Running(postmaster),
            Noted::Postmaster(_) => Status::Orphaned,
            Noted::Taker(taker) if taker.is_alive() => Status::Held,
            // A command that starts a server may die before it has noted that.
            Noted::Taker(_) | Noted::Nobody => {
                let holders = self.holders(&look)?;
                match (postmaster_of(&holders), look) {
                    (_, Look::Free) => Status::Stopped,
                    (Some(postmaster), _) => Status::Running(postmaster),
                    (None, Look::Locked(_)) if holders.is_empty() => Status::Held,
                    (None, _) => Status::Orphaned,
                }
            }
        })
    }

    /// Returns the processes of the server that a look has shown. Commands are none of them.
    fn holders(&self, look: &Look) -> Result<Vec<Process>, Error> {
        match look {
            Look::Free => Ok(Vec::new()),
            Look::Locked(file) => inheritors(file).map_err(cannot::<Error>("look for who has", &self.path)),
            Look::Astray(processes) => Ok(processes.clone()),
        }
    }

    /// Takes the lock. Fails if a server is there, or what it left.
    pub fn take(&self) -> Result<Held, Error> {
        let open =
            || regular::open_with(File::options().create(true).truncate(false).read(true).write(true), &self.path);
        let file = open().map_err(cannot::<Error>("open", &self.path))?;
        let still_alive = |process| Error::StillAlive { lock: self.path.clone(), process };
        let begun = Instant::now();
        while is_locked(file.try_lock()).map_err(cannot::<Error>("lock", &self.path))? {
            if begun.elapsed() > LOOKS {
                return Err(still_alive(match noted(&file) {
                    Noted::Postmaster(process) | Noted::Taker(process) => Some(process),
                    Noted::Nobody => None,
                }));
            }
            sleep(PAUSE);
        }
        let own = Process::own().map_err(cannot::<Error>("look at the process that takes", &self.path))?;
        let held = Held { file, path: self.path.clone() };
        // At once: what stands there is about a server that is gone, and who looks would take this one for what it left.
        held.write(&format!("{TAKER}{}", own))?;
        let astray = self.astray()?;
        if let Some(first) = astray.first() {
            return Err(still_alive(Some(postmaster_of(&astray).unwrap_or(*first))));
        }
        Ok(held)
    }

    /// Ends what a server left whose postmaster is gone, at once, and takes the lock. A backend that outlives its
    /// postmaster goes on until its statement is done, and would acknowledge commits into WAL that is sealed already.
    /// Fails where the postmaster lives, or another command has the lock.
    pub fn take_from_the_dead(&self) -> Result<Held, Error> {
        if self.status()? == Status::Orphaned {
            self.end_orphans(Instant::now())?;
        }
        self.take()
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
        loop {
            let (look, now) = (self.look()?, Instant::now());
            if matches!(look, Look::Free) {
                return Ok(());
            }
            if now >= patience {
                let orphans = self.holders(&look)?;
                // Asked after who they are: a server that was started since is not what another one left.
                let is_another = matches!(self.status()?, Status::Running(_) | Status::Held);
                if is_another || (orphans.is_empty() && self.is_held()?) || now > patience + KILLED {
                    return Err(Error::StillAlive { lock: self.path.clone(), process: orphans.first().copied() });
                }
                for orphan in &orphans {
                    orphan.signal(Signal::SIGKILL).map_err(cannot::<Error>("end what a server left on", &self.path))?;
                }
            }
            sleep(PAUSE);
        }
    }

    /// Returns the postmaster, if it lives.
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

fn noted(file: &File) -> Noted {
    let mut text = [0; 100];
    let length = file.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..length]);
    let line = text.lines().next().unwrap_or_default();
    match line.strip_prefix(TAKER) {
        Some(taker) => taker.parse().map_or(Noted::Nobody, Noted::Taker),
        None => line.parse().map_or(Noted::Nobody, Noted::Postmaster),
    }
}

/// Returns the one of a server's processes that started others.
fn postmaster_of(processes: &[Process]) -> Option<Process> {
    let parents: Vec<i32> = processes.iter().filter_map(Process::parent).collect();
    processes.iter().find(|process| parents.contains(&process.pid)).copied()
}

impl Held {
    /// Has the process that `command` starts inherit the lock.
    pub fn hand_to(&self, command: &mut Command) -> Result<(), Error> {
        let io = cannot::<Error>("hand over", &self.path);
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

    /// Returns the processes that inherited it, or were started by one that did.
    pub fn inheritors(&self) -> Result<Vec<Process>, Error> {
        inheritors(&self.file).map_err(cannot::<Error>("look for who has", &self.path))
    }

    /// Notes the postmaster that was started with it, so that others know whom to signal.
    pub fn note(&self, postmaster: Process) -> Result<(), Error> {
        self.write(&postmaster.to_string())
    }

    /// At no time is there no line: who reads none takes the server for one that nobody looks after.
    fn write(&self, line: &str) -> Result<(), Error> {
        let line = format!("{line}\n");
        let written = self.file.write_all_at(line.as_bytes(), 0).and_then(|()| self.file.set_len(line.len() as u64));
        written.map_err(cannot::<Error>("write", &self.path))
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
    // Where there are none at all, as on NFS without a lock daemon, the call fails.
    let is_locked = |attempt| is_locked(attempt).ok();
    Ok(is_locked(file.as_file().try_lock()) == Some(false) && is_locked(other.try_lock_shared()) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive_in(dir: &tempfile::TempDir) -> Alive {
        Alive::of(dir.path().join("alive"), dir.path().join("data"))
    }

    fn sleeper(held: &Held, seconds: &str) -> std::process::Child {
        let mut command = Command::new("sleep");
        command.arg(seconds).current_dir(held.path.parent().unwrap());
        held.hand_to(&mut command).unwrap();
        command.spawn().unwrap()
    }

    #[test]
    fn the_lock_is_held_as_long_as_any_child_lives_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let alive = alive_in(&dir);
        assert_eq!(alive.status().unwrap(), Status::Stopped);
        let held = alive.take().unwrap();
        assert_eq!(alive.status().unwrap(), Status::Held);
        assert!(matches!(alive.take(), Err(Error::StillAlive { .. })));
        let mut child = sleeper(&held, "60");
        let process = Process::of(child.id() as i32).unwrap();
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
        let alive = alive_in(&dir);
        let held = alive.take().unwrap();
        let mut postmaster = sleeper(&held, "60");
        let mut backend = sleeper(&held, "60");
        held.note(Process::of(postmaster.id() as i32).unwrap()).unwrap();
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
    fn a_server_that_was_started_since_is_not_ended_for_what_another_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let alive = alive_in(&dir);
        let held = alive.take().unwrap();
        let mut child = sleeper(&held, "60");
        let process = Process::of(child.id() as i32).unwrap();
        let end_orphans = || alive.end_orphans(Instant::now());
        assert!(matches!(end_orphans(), Err(Error::StillAlive { .. })), "its starter has not noted it yet");
        held.note(process).unwrap();
        drop(held);
        assert!(matches!(end_orphans(), Err(Error::StillAlive { .. })));
        assert_eq!(alive.status().unwrap(), Status::Running(process));
        child.kill().unwrap();
        child.wait().unwrap();
        end_orphans().unwrap();
    }

    #[test]
    fn a_server_that_was_not_noted_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let alive = alive_in(&dir);
        let held = alive.take().unwrap();
        let mut child = sleeper(&held, "60");
        // Its starter is there and will note it.
        assert_eq!(alive.status().unwrap(), Status::Held);
        assert!(matches!(alive.take_from_the_dead(), Err(Error::StillAlive { .. })));
        held.write("by 999999999 1").unwrap();
        drop(held);
        assert_eq!(alive.status().unwrap(), Status::Orphaned);
        drop(alive.take_from_the_dead().unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn a_server_whose_file_was_removed_is_found_by_where_it_works() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Alive::of(dir.path().join("alive"), dir.path().to_owned());
        let held = alive.take().unwrap();
        let mut child = sleeper(&held, "60");
        // Somebody's shell is no server.
        let mut shell = Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        drop(held);
        for replace in [false, true] {
            fs::remove_file(alive.path()).unwrap();
            if replace {
                fs::write(alive.path(), "").unwrap();
            }
            assert_eq!(alive.status().unwrap(), Status::Orphaned);
            assert!(matches!(alive.take(), Err(Error::StillAlive { .. })));
        }
        drop(alive.take_from_the_dead().unwrap());
        assert!(!child.wait().unwrap().success());
        assert!(shell.try_wait().unwrap().is_none());
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn looks_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let alive = alive_in(&dir);
        drop(alive.take().unwrap());
        let file = File::open(alive.path()).unwrap();
        file.lock_shared().unwrap();
        assert!(!alive.is_held().unwrap());
        assert!(keeps_locks(dir.path()).unwrap());
    }
}
