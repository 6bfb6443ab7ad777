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

use crate::objects::file_error::is_want;
use crate::objects::regular;

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

/// What the kernel tells of a process (proc(5), `/proc/PID/stat`, fields 3, 4, 20 and 22).
struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    began: u64,
}

/// Returns what is told of something. A process that is gone, or another user's, tells nothing; where the system refuses to tell
/// for a want of memory or descriptors, that says nothing about the process.
fn told<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if is_want(&error) => Err(error),
        answer => Ok(answer.ok()),
    }
}

fn stat(pid: i32) -> io::Result<Option<Stat>> {
    Ok(told(fs::read(format!("/proc/{pid}/stat")))?.and_then(|text| Stat::parse(&String::from_utf8_lossy(&text))))
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name before it may hold anything.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Stat {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            began: field(22)?.parse().ok()?,
        })
    }

    /// Returns whether all of it has ended. As long as one of its threads lives its files are open, though the first one is a zombie.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

impl Process {
    /// Returns the process that has the number `pid` now; one that began at 0 if none has. Fails where that cannot be found out now:
    /// somebody who noted another one for it would take it for dead.
    pub fn of(pid: i32) -> io::Result<Process> {
        Ok(Process { pid, began: stat(pid)?.map_or(0, |stat| stat.began) })
    }

    /// Returns this process.
    pub fn own() -> io::Result<Process> {
        Process::of(own_pid())
    }

    /// Returns the number of the process that started it, or that took it over from that.
    pub fn parent(&self) -> Option<i32> {
        stat(self.pid).ok()?.filter(|stat| stat.began == self.began).map(|stat| stat.parent)
    }

    /// Returns the words that it was started with, where the system tells.
    pub fn command(&self) -> Option<String> {
        let words = fs::read(format!("/proc/{}/cmdline", self.pid)).ok().filter(|_| self.is_alive())?;
        let mut words = words.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next()?.rsplit('/').next()?.to_owned();
        Some(words.fold(program, |line, word| line + " " + &word).trim_end().to_owned())
    }

    /// Returns whether it has not ended. Where that cannot be found out now, one with its number counts.
    pub fn is_alive(&self) -> bool {
        let has_number = || kill(Pid::from_raw(self.pid), None) != Err(Errno::ESRCH);
        match stat(self.pid) {
            Ok(Some(stat)) => stat.began == self.began && !stat.has_ended(),
            Ok(None) => !has_proc() && has_number(),
            Err(_) => has_number(),
        }
    }

    /// Returns whether a signal has suspended it, where the system tells: it reacts to SIGKILL and SIGCONT only.
    pub fn is_suspended(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.is_some_and(|stat| stat.began == self.began && stat.state == 'T'))
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

/// Returns the processes that have the lock on `file` since they were handed it by the one that started them, or by an ancestor: their
/// descriptors outlive an exec, unlike those of whoever opened the file by its name. Empty where the system does not tell.
///
/// Looks at every descriptor there is, so it follows none: behind one may lie a file system that does not answer.
pub fn inheritors(file: &File) -> io::Result<Vec<Process>> {
    let Some(wanted) = Opened::of(own_pid(), &file.as_raw_fd().to_string())? else { return Ok(Vec::new()) };
    all_that(|pid| has_open(pid, |opened| opened.is_inherited_lock() && opened.is_same_file(&wanted)))
}

/// Returns the processes that work in the folder `dir` and were handed a file with a lock as `descriptor`, whatever that
/// file is called by now. Empty where the system does not tell. Does not look at `dir` itself: what is mounted there may
/// not answer.
pub fn lockers_in(dir: &Path, descriptor: i32) -> io::Result<Vec<Process>> {
    let Some(dir) = as_told(dir)? else { return Ok(Vec::new()) };
    all_that(|pid| {
        let works_there = told(fs::read_link(format!("/proc/{pid}/cwd")))?.is_some_and(|cwd| cwd == dir);
        let opened = if works_there { Opened::of(pid, &descriptor.to_string())? } else { None };
        Ok(opened.is_some_and(|opened| opened.is_inherited_lock()))
    })
}

/// Returns the processes that have a lock on the file `path` which keeps off others, or themselves share it. Empty where the
/// system does not tell; it tells nothing of other users' processes.
pub fn lockers(path: &Path) -> io::Result<Vec<Process>> {
    let file = regular::open(path)?;
    let Some(wanted) = Opened::of(own_pid(), &file.as_raw_fd().to_string())? else { return Ok(Vec::new()) };
    all_that(|pid| has_open(pid, |opened| opened.is_locked && opened.is_same_file(&wanted)))
}

/// Returns the processes that were handed a file with a lock which was at `path`, and has been removed since. Empty where the system does
/// not tell.
pub fn lockers_of_removed(path: &Path) -> io::Result<Vec<Process>> {
    let Some(path) = as_told(path)? else { return Ok(Vec::new()) };
    let mut link = path.into_os_string();
    // As proc(5) has it.
    link.push(" (deleted)");
    all_that(|pid| has_open(pid, |opened| opened.is_inherited_lock() && opened.link.as_os_str() == link))
}

/// Returns a path as the system tells it, without symbolic links; its last part is not looked at. `None` where the system does not
/// tell, or the folder is not there.
fn as_told(path: &Path) -> io::Result<Option<PathBuf>> {
    let parent = path.parent().map(fs::canonicalize).map(told).transpose()?.flatten();
    Ok(parent.zip(path.file_name()).map(|(parent, name)| parent.join(name)).filter(|_| has_proc()))
}

fn own_pid() -> i32 {
    std::process::id() as i32 // pids are i32
}

/// Returns the processes of whose number that is true.
fn all_that(is_wanted: impl Fn(i32) -> io::Result<bool>) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Which process it is comes first: should another one get the number meanwhile, that is not meant.
        let process = Process::of(pid)?;
        if is_wanted(pid)? {
            found.push(process);
        }
    }
    Ok(found)
}

/// Returns whether the process has such a file open.
fn has_open(pid: i32, is_wanted: impl Fn(&Opened) -> bool) -> io::Result<bool> {
    let Some(descriptors) = told(fs::read_dir(format!("/proc/{pid}/fd")))? else { return Ok(false) };
    for descriptor in descriptors {
        // The process may end meanwhile.
        let Some(descriptor) = told(descriptor)? else { continue };
        if Opened::of(pid, &descriptor.file_name().to_string_lossy())?.as_ref().is_some_and(&is_wanted) {
            return Ok(true);
        }
    }
    Ok(false)
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
    fn of(pid: i32, descriptor: &str) -> io::Result<Option<Opened>> {
        let info = told(fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")))?;
        let link = told(fs::read_link(format!("/proc/{pid}/fd/{descriptor}")))?;
        Ok(info.zip(link).and_then(|(info, link)| Opened::parse(&info, link)))
    }

    fn parse(info: &str, link: PathBuf) -> Option<Opened> {
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
        Some(Opened {
            mount: field("mnt_id:")?.parse().ok()?,
            inode: field("ino:").and_then(|inode| inode.parse().ok()),
            link,
            closes_on_exec: flags & nix::libc::O_CLOEXEC != 0,
            is_locked: field("lock:").is_some_and(|lock| lock.contains("FLOCK")),
        })
    }

    /// Returns whether a process that has it was started with it, and its lock.
    fn is_inherited_lock(&self) -> bool {
        self.is_locked && !self.closes_on_exec
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
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        assert_eq!(own.to_string().parse(), Ok(own));
        let other = Process { began: own.began + 1, ..own };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
        assert_eq!("1 5".parse::<Process>(), Err(NoProcess));
        assert_eq!("".parse::<Process>(), Err(NoProcess));
    }

    #[test]
    fn a_process_of_which_a_thread_lives_has_not_ended() {
        let stat = |state: char, threads: u32| {
            let text = format!("7 (a) b) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 99 0 0");
            Stat::parse(&text).unwrap()
        };
        assert_eq!((stat('S', 1).parent, stat('S', 3).threads, stat('S', 1).began), (1, 3, 99));
        assert!(stat('Z', 1).has_ended() && !stat('Z', 2).has_ended() && !stat('S', 1).has_ended());
    }

    #[test]
    fn only_who_was_handed_a_file_has_inherited_it() {
        let file = tempfile::tempfile().unwrap();
        let stdin = || Stdio::from(file.as_fd().try_clone_to_owned().unwrap());
        let mut other = Command::new("sleep").arg("60").stdin(stdin()).spawn().unwrap();
        assert_eq!(inheritors(&file).unwrap(), [], "it has no lock");
        other.kill().unwrap();
        other.wait().unwrap();
        file.lock().unwrap();
        let stdin = stdin();
        let mut child = Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
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
            assert_eq!(lockers(file.path()).unwrap(), [Process::own().unwrap()]);
        }
    }
}
