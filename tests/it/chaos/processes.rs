//! The processes of a test's repository, and what they are doing. Nobody else's is ever touched: what is signalled is
//! held by a pidfd, and was seen to name the test's folder while it was.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::schedule::Victim;

/// What zenith starts, and itself.
const PROGRAMS: [&str; 6] = ["zenith", "postgres", "sh", "unshare", "setpriv", "fusermount3"];

/// A process that belongs to the repository.
pub struct Process {
    pub pid: i32,
    pub kind: Victim,
    /// The instance whose log it writes to.
    pub instance: Option<String>,
    line: String,
    fd: OwnedFd,
}

impl Process {
    /// Returns process `pid` if it belongs to what lies in `root`.
    fn of(pid: i32, root: &Path) -> Option<Process> {
        let fd = pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let dir = format!("/proc/{pid}");
        // A test's own program does not count, nor does that of somebody who looks into the folder.
        let name = fs::read_to_string(format!("{dir}/comm")).ok()?;
        if !PROGRAMS.contains(&name.trim()) || has_ended(&dir) {
            return None;
        }
        let links = links(&dir);
        let names_root = |text: &[u8]| {
            text.split(|byte| b"\0='".contains(byte)).any(|word| Path::new(bytes(word)).starts_with(root))
        };
        let is_ours = links.iter().any(|link| Path::new(link).starts_with(root))
            || fs::read(format!("{dir}/cmdline")).is_ok_and(|line| names_root(&line))
            || fs::read(format!("{dir}/environ")).is_ok_and(|text| names_root(&text));
        if !is_ours {
            return None;
        }
        let line = fs::read(format!("{dir}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let instances = root.join(".zenith/instances");
        let instance = links.iter().find_map(|link| {
            let rest = Path::new(link).strip_prefix(&instances).ok()?;
            Some(rest.components().next()?.as_os_str().to_str()?.to_owned())
        });
        Some(Process { pid, kind: kind(&dir, &line), instance, line, fd })
    }

    /// Returns whether it merges packs in the background, which takes as long as everybody else leaves it no processor; or ends
    /// at this moment, when nothing tells any more what it did.
    pub fn merges(&self) -> bool {
        self.line.is_empty() || self.line.contains(" repack --auto")
    }

    /// Sends a signal. Returns whether it was there.
    pub fn signal(&self, signal: Signal) -> bool {
        let signal = rustix::process::Signal::from_named_raw(signal as i32).expect("signals have the same numbers");
        pidfd_send_signal(&self.fd, signal).is_ok()
    }
}

fn bytes(word: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(word)
}

/// Returns what a process has open and where it works. Links only: nothing that it has open is touched.
fn links(dir: &str) -> Vec<std::ffi::OsString> {
    let open = fs::read_dir(format!("{dir}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = open.chain([format!("{dir}/cwd").into()]);
    all.filter_map(|link| fs::read_link(link).ok()).map(|path| path.into_os_string()).collect()
}

fn has_ended(dir: &str) -> bool {
    let stat = fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

fn kind(dir: &str, line: &str) -> Victim {
    let name = fs::read_to_string(format!("{dir}/comm")).unwrap_or_default();
    let has = |word: &str| line.split(' ').any(|known| known == word);
    match name.trim() {
        "postgres" if has("-D") => Victim::Postmaster,
        "postgres" => Victim::Backend,
        _ if has("guard-datadir") => Victim::Guardian,
        _ if has("mount-datadir") => Victim::FileSystem,
        _ if has("pageserver") && has("--daemon") => Victim::PageServer,
        _ => Victim::Command,
    }
}

/// Returns all processes that belong to what lies in `root`, but this one.
pub fn all(root: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| Process::of(pid, root)).collect()
}

/// Returns where something is mounted below `root`.
pub fn mounts(root: &Path) -> Vec<String> {
    // Others may have mounts whose names are no UTF-8.
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(root)).map(str::to_owned).collect()
}

/// Detaches all that is mounted below `root`; with `force` its file system is not asked any more.
pub fn detach(root: &Path, force: bool) {
    let forced = if force { MntFlags::MNT_FORCE } else { MntFlags::empty() };
    for point in mounts(root) {
        let _ = umount2(point.as_str(), forced | MntFlags::MNT_DETACH); // it may be gone this instant
    }
}

/// Returns what each process is doing, thread by thread; and its children, whoever they are.
pub fn autopsy(root: &Path) -> String {
    let mut text = String::new();
    for process in all(root) {
        let Process { pid, kind, instance, line, .. } = &process;
        text += &format!("{pid} {kind:?} {} {}\n", instance.as_deref().unwrap_or("-"), line.trim_end());
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            text += &format!("    {}\n", doing(&thread.path()));
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                text += &format!("        its child {child}: {}\n", doing(&Path::new("/proc").join(child)));
            }
        }
    }
    for mount in mounts(root) {
        text += &format!("mounted: {mount}\n");
    }
    text
}

/// Returns what a process waits for, and its children.
pub fn waits(pid: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for thread in threads {
        all.push(state(&thread.path()));
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(
            children.split_whitespace().map(|child| format!("its child: {}", state(&Path::new("/proc").join(child)))),
        );
    }
    all.join("; ")
}

/// Returns a thread's state, its name, and what in the kernel it waits for.
fn state(dir: &Path) -> String {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let stat = read("stat");
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
    format!("{state} {} {}", read("comm").trim(), read("wchan"))
}

/// Returns the same, and how it got there.
fn doing(dir: &Path) -> String {
    let stack = fs::read_to_string(dir.join("stack")).unwrap_or_default();
    let stack: Vec<&str> = stack.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    format!("{} {}", state(dir), stack.join(" "))
}
