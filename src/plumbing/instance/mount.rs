//! The mount of a lazy data directory: begins it, finds what a crash left of it, ends it.
//!
//! # Format
//! `datadirs/<timeline>/` holds `data`, the mount point; `local/`, the layer (see `datadir::local`);
//! `lock`, on which the file system's process holds a lock, and which names it (see [`Process`](crate::plumbing::postgres::process::Process)); `guard.lock`, the same for its guardian; and
//! `prepared`, empty, once the directory is one that PostgreSQL can go on from by itself.
//!
//! # What may be asked of a mount
//! Whoever serves a mount, or is waited for by who does, never opens, stats or lists anything below it: killed while it waits
//! for its own answer it could not die, and would hold up everybody else. Where things are mounted is read from the
//! kernel's table. All others may wait for a mount as long as its process takes; should that be dead or not move any
//! more, its guardian (see [`guard_datadir`](crate::plumbing::guard_datadir)) ends it, and the wait with it.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use super::logs;
use super::pid_lock::PidLock;
use crate::error::{Class, CommandError};
use crate::objects::file_error::{FileError, cannot};
use crate::objects::{ObjectId, Repo, durable, regular};
use crate::plumbing::datadir::mounts;
use crate::plumbing::postgres::process::{Process, lockers_of_removed, own_program};
use crate::plumbing::postgres::server;

/// How long a file system's process may take to end once it is unmounted: it writes what is not durable. After that it is
/// killed, and given as long again.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// A data directory cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// FUSE is not to be had here.
    #[error("cannot mount '{}'", dir.display())]
    Refused { dir: PathBuf, source: io::Error },
    /// The process says itself why: what it was to show is damaged, or something that may pass.
    #[error("{said}")]
    Failed { said: String, is_damaged: bool },
    /// Somebody did: that is no reason why it could not be mounted.
    #[error("the file system's process of '{}' was killed", .0.display())]
    Killed(PathBuf),
    #[error("'{}' is mounted already", .0.display())]
    Busy(PathBuf),
    /// What was seen of it counts for nothing.
    #[error("the file system at '{}' ended while its files were looked at; nothing was removed", .0.display())]
    Ended(PathBuf),
    #[error("cannot unmount '{}'", dir.display())]
    Stays { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Io(#[from] FileError),
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        let hint = match &error {
            Error::Refused { .. } => "it needs /dev/fuse, and the program fusermount3 where you are not root",
            Error::Stays { .. } => "see who uses it: fuser -vm",
            Error::Ended(_) => "repeat the command: it is mounted again",
            Error::Busy(_) => "unmount it first: fusermount3 -u",
            _ => return CommandError::new(Class::Refused, error),
        };
        CommandError::new(Class::Refused, error).hint(hint)
    }
}

impl Error {
    /// Returns what turns the failure to mount `dir` into an error.
    pub fn refused(dir: &Path) -> impl FnOnce(io::Error) -> Error {
        let dir = dir.to_owned();
        move |source| Error::Refused { dir, source }
    }
}

/// The lock that the file system's process of a data directory holds as long as it lives, and that of its guardian.
const LOCK: &str = "lock";
const GUARD_LOCK: &str = "guard.lock";

fn open_lock(dir: &Path, name: &str) -> Result<PidLock, Error> {
    let path = dir.join(name);
    PidLock::open(&path).map_err(cannot::<Error>("open", &path))
}

/// Takes the lock of `dir` for this process, unless another one has it that did not hand it over.
pub fn lock(dir: &Path) -> Result<PidLock, Error> {
    let mut lock = open_lock(dir, LOCK)?.or_inherited().map_err(cannot::<Error>("open", &dir.join("lock")))?;
    if !lock.try_take() {
        return Err(Error::Busy(dir.join("data")));
    }
    lock.note().map_err(cannot::<Error>("write", &dir.join("lock")))?;
    Ok(lock)
}

/// Returns whether something is mounted at `data`, even if whoever served it is gone. Asks the kernel, and nothing of
/// what is mounted.
pub fn is_mounted(data: &Path) -> Result<bool, Error> {
    Ok(mounts::device_at(data).map_err(cannot::<Error>("look for what is mounted at", data))?.is_some())
}

/// Returns whether the data directory in `dir` is mounted, and the process that serves it is there.
pub fn is_served(dir: &Path) -> Result<bool, Error> {
    let lock = dir.join(LOCK);
    let is_held = PidLock::is_held(&lock).map_err(cannot::<Error>("look at", &lock))?;
    Ok(is_held == Some(true) && is_mounted(&dir.join("data"))?)
}

/// Returns whether the files of the data directory in `dir` are to be seen: its mount point is empty without the process that
/// serves it. Nothing brings that back unasked: what is in sight after a look was so during it.
pub fn is_in_sight(dir: &Path) -> Result<bool, Error> {
    let data = dir.join("data");
    if is_mounted(&data)? {
        return is_served(dir);
    }
    data.join("PG_VERSION").try_exists().map_err(cannot::<Error>("look at", &data))
}

/// Refuses to go by what was seen of the files in `dir` if they are not in sight any more.
pub fn check_in_sight(dir: &Path) -> Result<(), Error> {
    if is_in_sight(dir)? { Ok(()) } else { Err(Error::Ended(dir.join("data"))) }
}

/// Returns whether a server on the data directory in `dir` has lost its files for good: the process that served them has
/// died, and so has its guardian, which would see to that.
pub fn is_forsaken(dir: &Path) -> bool {
    let is_free = |name: &str| {
        let path = dir.join(name);
        match PidLock::is_held(&path) {
            Ok(Some(is_held)) => !is_held,
            // A lock that is not there proves nothing: who had it may live, and so may all in a folder that was moved.
            Ok(None) => dir.exists() && lockers_of_removed(&path).is_ok_and(|had_it| had_it.is_empty()),
            Err(_) => false,
        }
    };
    // What the kernel gave up stays mounted until somebody unmounts it.
    matches!(is_in_sight(dir), Ok(false)) && is_free(LOCK) && is_free(GUARD_LOCK)
}

/// Notes that the data directory in `dir` is one that PostgreSQL can go on from by itself: its files
/// and what starts their recovery are durable.
pub fn set_prepared(dir: &Path) -> Result<(), Error> {
    let path = dir.join("prepared");
    durable::write_in_place(&path, |_| Ok(())).map_err(cannot::<Error>("write", &path))
}

/// Returns whether it is, as long as its layer is whole.
pub fn is_prepared(dir: &Path) -> Result<bool, Error> {
    let path = dir.join("prepared");
    path.try_exists().map_err(cannot::<Error>("look for", &path))
}

/// Returns a command for a zenith that outlives this one and writes what it has to say to `log`.
pub fn background(repo: &Repo, log: &Path) -> io::Result<Command> {
    let log = logs::make(log)?;
    let mut command = Command::new(own_program()?);
    // Not in this terminal's group, so that Ctrl-C does not reach it.
    command.process_group(0).current_dir("/").env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log).arg("--repo").arg(repo.dir());
    Ok(command)
}

/// How a data directory is mounted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub snapshot: &'a ObjectId,
    /// Make all blocks local in the background.
    pub hydrate: bool,
    /// The file whose lock is held as long as somebody needs the mount.
    pub alive: &'a Path,
    /// Where the process writes what it has to say.
    pub log: &'a Path,
}

/// Mounts a snapshot at `dir/data`, in a process of its own that outlives this one; in another one if that is killed meanwhile.
pub fn mount(repo: &Repo, dir: &Path, wanted: &Wanted) -> Result<(), Error> {
    match mount_once(repo, dir, wanted) {
        Err(Error::Killed(_)) => {
            unmount(dir)?;
            mount_once(repo, dir, wanted)
        }
        mounted => mounted,
    }
}

fn mount_once(repo: &Repo, dir: &Path, wanted: &Wanted) -> Result<(), Error> {
    let log_start = fs::metadata(wanted.log).map_or(0, |metadata| metadata.len());
    let program = Path::new("zenith");
    let mut command = background(repo, wanted.log).map_err(cannot::<Error>("run", program))?;
    command.args(["mount-datadir", "--with-server"]).arg(wanted.alive).args(wanted.hydrate.then_some("--hydrate"));
    command.arg(wanted.snapshot.to_string()).arg(dir).stdout(Stdio::piped());
    // It has the lock from its first instant on: should this process die now, the next one finds that one.
    command.stdin(lock_before_mounting(dir)?.hand_over());
    // Frames come and go on all of its threads: with a heap for each, glibc keeps twice the memory.
    command.env("MALLOC_ARENA_MAX", "2");
    // Those of its threads' buffers that it takes from memory used before are cleared, and then they are there as a whole.
    command.env("MALLOC_MMAP_THRESHOLD_", "4194304");
    let mut child = command.spawn().map_err(cannot::<Error>("run", program))?;
    let answer = answer_of(&mut child).map_err(cannot::<Error>("read from", program))?;
    if answer.trim() == "ready" {
        server::let_run(child);
        return Ok(());
    }
    let status = child.wait().ok();
    if status.is_some_and(|status| status.signal() == Some(Signal::SIGKILL as i32)) {
        return Err(Error::Killed(dir.join("data")));
    }
    let is_damaged = status.and_then(|status| status.code()) == Some(Class::Corrupt as i32);
    let said = server::tail(wanted.log, log_start).trim_start_matches("error: ").replace('\n', "; ");
    Err(Error::Failed { said, is_damaged })
}

/// Takes the lock of `dir` for a process that is to serve it. The guardian of one that served there before may have it for a moment.
fn lock_before_mounting(dir: &Path) -> Result<PidLock, Error> {
    let (lock, begun) = (open_lock(dir, LOCK)?, Instant::now());
    while !lock.try_take() {
        if begun.elapsed() > PATIENCE {
            return Err(Error::Busy(dir.join("data")));
        }
        sleep(PAUSE);
    }
    Ok(lock)
}

/// Returns the line that a process in the background answers with once it is ready, however long it takes: that of a file system
/// may have much to read. One that is suspended, and has no guardian yet that would see it, is killed.
pub fn answer_of(child: &mut Child) -> io::Result<String> {
    let output = child.stdout.take().expect("invariant: it is piped");
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        // Nobody waits any more once it was killed.
        let _ = answer.send(read.map(|_| line));
    });
    let process = Process::of(child.id() as i32).inspect_err(|_| drop(child.kill()))?; // pids are i32
    let mut suspended = None;
    loop {
        match answered.recv_timeout(PAUSE * 50) {
            Ok(line) => return line,
            Err(_) if !process.is_suspended() => suspended = None,
            Err(_) if suspended.get_or_insert_with(Instant::now).elapsed() > PATIENCE => child.kill()?,
            Err(_) => {}
        }
    }
}

/// Detaches what is mounted at `data`: no new access finds it, and it ends with the last one.
pub fn detach(data: &Path) -> Result<(), Error> {
    if !is_mounted(data)? {
        return Ok(());
    }
    let stays = |source| Error::Stays { dir: data.to_owned(), source };
    if geteuid().is_root() {
        return match umount2(data, MntFlags::MNT_DETACH) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(error) => Err(stays(error.into())),
        };
    }
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(data).output().map_err(stays)?;
    if output.status.success() || !is_mounted(data)? {
        return Ok(());
    }
    Err(stays(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
}

/// Has the kernel give up the file system that is mounted at `data`: whoever waits for it gets an error, now and later.
/// (`/sys/fs/fuse/connections`, Documentation/filesystems/fuse.rst of Linux.)
pub fn abort(data: &Path) -> io::Result<()> {
    let Some(device) = mounts::device_at(data)? else { return Ok(()) };
    let control = format!("/sys/fs/fuse/connections/{}/abort", device.minor);
    // Forced alone it gives up the connection, and then complains of who uses the mount.
    regular::write(Path::new(&control), "1").or_else(|_| Ok(umount2(data, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)?))
}

/// Returns the processes that serve or guard the data directory in `dir`, and whose lock somebody has removed.
fn removed_locks(dir: &Path) -> Result<Vec<Process>, Error> {
    let mut found = Vec::new();
    for path in [LOCK, GUARD_LOCK].map(|name| dir.join(name)) {
        if !path.try_exists().map_err(cannot::<Error>("look for", &path))? {
            found.extend(lockers_of_removed(&path).map_err(cannot::<Error>("look for who has", &path))?);
        }
    }
    Ok(found)
}

/// Unmounts `dir/data`, if it is mounted, and waits until its process has made everything durable and
/// is gone. What a killed process left is cleared away as well.
pub fn unmount(dir: &Path) -> Result<(), Error> {
    if !dir.try_exists().map_err(cannot::<Error>("look for", dir))? {
        return Ok(());
    }
    let data = dir.join("data");
    let begun = Instant::now();
    // A lock that is not there says nothing of who had it.
    let removed = removed_locks(dir)?;
    let locks = [open_lock(dir, LOCK)?, open_lock(dir, GUARD_LOCK)?];
    loop {
        // The process may be about to mount.
        detach(&data)?;
        if !is_mounted(&data)?
            && locks.iter().all(PidLock::try_take)
            && removed.iter().all(|process| !process.is_alive())
        {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            break;
        }
        sleep(PAUSE);
    }
    if is_mounted(&data)? {
        return Err(Error::Stays { dir: data, source: io::ErrorKind::ResourceBusy.into() });
    }
    // A reader that holds on keeps it alive; what was acknowledged is durable without its help.
    let begun = Instant::now();
    while !locks.iter().all(PidLock::try_take) || removed.iter().any(Process::is_alive) {
        let holders = locks.iter().map(PidLock::holders).collect::<Result<Vec<_>, _>>();
        let holders = holders.map_err(cannot::<Error>("look for who serves", &data))?.concat();
        for process in holders.iter().chain(&removed) {
            process.signal(Signal::SIGKILL).map_err(cannot::<Error>("end what serves", &data))?;
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Stays { dir: data, source: io::ErrorKind::ResourceBusy.into() });
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Starts the guardian of the data directory in `dir`, which this process serves: a process that has none of this
/// one's descriptors, and ends the server should this one die or stop moving. Returns it, with the pipe for the signs
/// of life.
pub fn guard(repo: &Path, dir: &Path, alive: &Path) -> io::Result<Child> {
    let lock = PidLock::open(&dir.join(GUARD_LOCK))?;
    if !lock.try_take() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let mut command = Command::new(own_program()?);
    command.process_group(0).current_dir("/").env("NO_COLOR", "1").arg("--repo").arg(repo);
    command.args(["guard-datadir", "--with-server"]).arg(alive).arg(dir);
    // Who unmounts waits for it too, and so for all that it has to do then.
    command.stdin(Stdio::piped()).stdout(lock.hand_over()).spawn()
}

/// Notes this process in the lock that it was handed, as the guardian of the data directory in `dir`.
pub fn note_guardian(dir: &Path) -> io::Result<()> {
    let Some(mut lock) = PidLock::handed_on_stdout()? else { return Ok(()) };
    // Who runs it by hand may have standard output in any file.
    if lock.is_at(&dir.join(GUARD_LOCK))? == Some(true) { lock.note() } else { Ok(()) }
}

/// Lets the guardian of the data directory in `dir` go on if a signal has suspended it. Nobody else ends a file system that does not
/// move, for which whoever looks at its files would wait without end.
pub fn wake_guardian(dir: &Path) {
    let guardian = PidLock::noted_at(&dir.join(GUARD_LOCK));
    if let Some(guardian) = guardian.filter(Process::is_suspended) {
        // One that has ended is replaced.
        let _ = guardian.signal(Signal::SIGCONT);
    }
}

/// Nobody mounts anything in a folder as long as this lives, if the folder is there.
#[must_use = "somebody may mount there once this is dropped"]
pub struct Abandoned(#[expect(dead_code)] Option<PidLock>);

/// Returns whether nobody serves or shows files in `dir` any more, once the process that did is gone. `None` where somebody else
/// does, or is about to, or unmounts: the folder, or what is mounted there, is another one by now.
pub fn abandoned(dir: &Path) -> Result<Option<Abandoned>, Error> {
    let lock = match open_lock(dir, LOCK) {
        // Without a folder there is no mount either.
        Err(Error::Io(error)) if error.source.kind() == io::ErrorKind::NotFound => None,
        lock => Some(lock?),
    };
    let is_anothers = lock.as_ref().is_some_and(|lock| !lock.try_share()) || is_in_sight(dir)?;
    Ok((!is_anothers).then_some(Abandoned(lock)))
}

/// Returns the process that serves the data directory in `dir`, if it lives.
pub fn serving(dir: &Path) -> Option<Process> {
    PidLock::noted_at(&dir.join(LOCK))
}

/// Starts a process that reads what it is told to from the data directory `data`: see
/// [`read_ahead`](crate::plumbing::read_ahead). Nobody waits for its pipe.
pub fn reader(data: &Path) -> io::Result<Child> {
    let mut command = Command::new(own_program()?);
    command.process_group(0).current_dir("/").arg("read-ahead").arg(data);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    if let Some(pipe) = &child.stdin {
        rustix::io::ioctl_fionbio(pipe, true)?;
    }
    Ok(child)
}

/// Unmounts and removes a data directory with all that it holds: a crash leaves all of it or nothing, since a server would go on
/// with what is left of a layer. `tmp` is the repository's folder for unfinished files.
pub fn remove(tmp: &Path, dir: &Path) -> Result<(), Error> {
    unmount(dir)?;
    durable::discard_dir(tmp, dir).map_err(cannot::<Error>("remove", dir))
}
