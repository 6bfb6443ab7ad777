//! Processes that are asked for by more than their number, which another one may have by now.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process: its number, and when it began, in clock ticks since the machine did (0 where the system does not tell).
/// Written as both with a space between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pub pid: i32,
    began: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.began)
    }
}

/// Returns the path of the running program. Where an upgrade has replaced it since it began, that is the path of the new one: the
/// system says then that its own is deleted.
pub fn own_program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let replaced = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.filter(|path| path.is_file() && !program.exists()).unwrap_or(program))
}

/// A text that names no process.
#[derive(Debug, PartialEq, Eq)]
pub struct NoProcess;

impl FromStr for Process {
    type Err = NoProcess;

    fn from_str(text: &str) -> Result<Process, NoProcess> {
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|word| word.parse().ok()).filter(|pid| *pid > 1).ok_or(NoProcess)?;
        let began = words.next().and_then(|word| word.parse().ok()).ok_or(NoProcess)?;
        Ok(Process { pid, began })
    }
}

/// What the kernel tells of a process (proc(5), `/proc/PID/stat`, fields 3, 4 and 22).
struct Stat {
    state: char,
    parent: i32,
    began: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name before it may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent, began: fields.nth(17)?.parse().ok()? })
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

impl Process {
    /// Returns the process that has the number `pid` now.
    pub fn of(pid: i32) -> Process {
        Process { pid, began: stat(pid).map_or(0, |stat| stat.began) }
    }

    /// Returns this process.
    pub fn own() -> Process {
        Process::of(std::process::id() as i32) // pids are i32
    }

    /// Returns the number of the process that started it, or that took it over from that.
    pub fn parent(&self) -> Option<i32> {
        stat(self.pid).filter(|stat| stat.began == self.began).map(|stat| stat.parent)
    }

    /// Returns the words that it was started with, where the system tells.
    pub fn command(&self) -> Option<String> {
        let words = fs::read(format!("/proc/{}/cmdline", self.pid)).ok().filter(|_| self.is_alive())?;
        let mut words = words.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next()?.rsplit('/').next()?.to_owned();
        Some(words.fold(program, |line, word| line + " " + &word).trim_end().to_owned())
    }

    /// Returns whether it has not ended.
    pub fn is_alive(&self) -> bool {
        if !has_proc() {
            return kill(Pid::from_raw(self.pid), None) != Err(Errno::ESRCH);
        }
        stat(self.pid).is_some_and(|stat| stat.began == self.began && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Returns whether a signal has suspended it, where the system tells: it reacts to SIGKILL and SIGCONT only.
    pub fn is_suspended(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.began == self.began && stat.state == 'T')
    }

    /// Sends it a signal; one that has ended is success.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.send(signal) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            sent => sent,
        }
    }

    /// Between the look and the signal the number cannot become another process's.
    #[cfg(target_os = "linux")]
    fn send(&self, signal: Signal) -> io::Result<()> {
        use rustix::process::{Pid, PidfdFlags, Signal as Raw, pidfd_open, pidfd_send_signal};
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        if !self.is_alive() {
            return Ok(());
        }
        let signal = Raw::from_named_raw(signal as i32).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_send_signal(handle, signal)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn send(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.pid), signal)?)
    }
}

/// Returns the processes that were handed `file` by the one that started them, or by an ancestor: their descriptors
/// outlive an exec, unlike those of whoever opened the file by its name. Empty where the system does not tell.
///
/// Looks at every descriptor there is, so it follows none: behind one may lie a file system that does not answer.
pub fn inheritors(file: &File) -> io::Result<Vec<Process>> {
    let own = Process::own().pid;
    let Some(wanted) = Opened::of(own, &file.as_raw_fd().to_string()) else { return Ok(Vec::new()) };
    Ok(all()?.filter(|process| has_inherited(process.pid, &wanted)).collect())
}

fn all() -> io::Result<impl Iterator<Item = Process>> {
    let pids = fs::read_dir("/proc")?.flatten();
    Ok(pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).map(Process::of))
}

/// Returns the processes that work in the folder `dir` and were handed a file with a lock as `descriptor`, whatever that
/// file is called by now. Empty where the system does not tell. Does not look at `dir` itself: what is mounted there may
/// not answer.
pub fn lockers_in(dir: &Path, descriptor: i32) -> io::Result<Vec<Process>> {
    let parent = dir.parent().and_then(|parent| fs::canonicalize(parent).ok());
    let Some((parent, name)) = parent.zip(dir.file_name()).filter(|_| has_proc()) else { return Ok(Vec::new()) };
    let dir = parent.join(name);
    let works_there = |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
    let is_locked = |pid| Opened::of(pid, &descriptor.to_string()).is_some_and(|it| it.is_locked && !it.closes_on_exec);
    Ok(all()?.filter(|process| works_there(process.pid) && is_locked(process.pid)).collect())
}

/// Returns the processes that have a lock on the file `path` which keeps off others, or themselves share it. Empty where the
/// system does not tell; it tells nothing of other users' processes.
pub fn lockers(path: &Path) -> io::Result<Vec<Process>> {
    let file = File::open(path)?;
    let own = Process::own().pid;
    let Some(wanted) = Opened::of(own, &file.as_raw_fd().to_string()) else { return Ok(Vec::new()) };
    let has_locked = |process: &Process| {
        let mut opened = opened_by(process.pid);
        opened.any(|opened| opened.is_locked && opened.is_same_file(&wanted))
    };
    Ok(all()?.filter(has_locked).collect())
}

fn has_inherited(pid: i32, wanted: &Opened) -> bool {
    opened_by(pid).any(|opened| opened.is_same_file(wanted) && !opened.closes_on_exec)
}

fn opened_by(pid: i32) -> impl Iterator<Item = Opened> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(move |descriptor| Opened::of(pid, &descriptor.file_name().to_string_lossy()))
}

/// What the kernel tells of an open file without asking its file system: `/proc/PID/fdinfo/FD`, and the text of the link
/// `/proc/PID/fd/FD` (proc(5)).
struct Opened {
    /// Where it is mounted, and its inode; Linux before 5.14 does not tell the latter.
    mount: u64,
    inode: Option<u64>,
    link: PathBuf,
    closes_on_exec: bool,
    /// By flock(2), through this descriptor or one that it was copied from or to.
    is_locked: bool,
}

impl Opened {
    fn of(pid: i32, descriptor: &str) -> Option<Opened> {
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
        Some(Opened {
            mount: field("mnt_id:")?.parse().ok()?,
            inode: field("ino:").and_then(|inode| inode.parse().ok()),
            link: fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?,
            closes_on_exec: flags & nix::libc::O_CLOEXEC != 0,
            is_locked: field("lock:").is_some_and(|lock| lock.contains("FLOCK")),
        })
    }

    fn is_same_file(&self, other: &Opened) -> bool {
        self.mount == other.mount && self.inode == other.inode && (self.inode.is_some() || self.link == other.link)
    }
}

/// Lets this process, and those that it starts, open as many files as the system lets it have.
pub fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // then there are fewer
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_number_that_began_at_another_time_is_another_process() {
        let own = Process::own();
        assert!(own.is_alive());
        assert_eq!(own.to_string().parse(), Ok(own));
        let other = Process { began: own.began + 1, ..own };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
        assert_eq!("1 5".parse::<Process>(), Err(NoProcess));
        assert_eq!("".parse::<Process>(), Err(NoProcess));
    }

    #[test]
    fn only_who_was_handed_a_file_has_inherited_it() {
        let file = tempfile::tempfile().unwrap();
        let stdin = Stdio::from(file.as_fd().try_clone_to_owned().unwrap());
        let mut child = Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
        let process = Process::of(child.id() as i32);
        let found = inheritors(&file).unwrap();
        process.signal(Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(found, [process]);
        assert!(!process.is_alive());
        assert_eq!(inheritors(&file).unwrap(), []);
    }

    #[test]
    fn who_has_a_lock_is_found_and_who_only_looks_at_the_file_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (locked, _opened) = (open(), open());
        assert_eq!(lockers(file.path()).unwrap(), []);
        for lock in [File::lock, File::lock_shared] {
            lock(&locked).unwrap();
            assert_eq!(lockers(file.path()).unwrap(), [Process::own()]);
        }
    }
}
