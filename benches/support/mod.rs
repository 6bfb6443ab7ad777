//! What the benchmarks share: a folder, a cluster, a stopwatch, a table.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder that a benchmark works in.
pub struct Bench {
    pub dir: PathBuf,
}

/// Returns a new folder, in `BENCH_DIR` if that is set.
pub fn folder() -> tempfile::TempDir {
    let parent = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix("zenith-bench-").tempdir_in(parent).unwrap()
}

/// What a command took.
#[derive(Clone, Copy)]
pub struct Took {
    pub time: Duration,
    /// The most memory that the process itself had at a time, bytes.
    pub peak: u64,
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn shell(&self, script: &str) -> Took {
        measure(Command::new("bash").args(["-c", &format!("set -eo pipefail; {script}")]).current_dir(&self.dir))
    }

    pub fn zenith(&self, words: &[&str]) -> (Took, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zenith"));
        let output = self.path("out.txt");
        command.args(words).current_dir(&self.dir).stdout(fs::File::create(&output).unwrap()).stderr(Stdio::null());
        let took = measure(&mut command);
        (took, fs::read_to_string(output).unwrap().trim().to_owned())
    }

    pub fn server(&self, action: &str) {
        let bin = pg_bin();
        let root = nix::unistd::geteuid().is_root();
        let run = if root { "unshare --user --map-user=1000 --map-group=1000 --" } else { "" };
        let options =
            "-c unix_socket_directories=$PWD -c listen_addresses= -c max_wal_size=4GB -c shared_buffers=512MB";
        let script = match action {
            "init" => format!(
                "{run} {bin}/initdb -D cluster -U postgres -k -E UTF8 --locale=C.UTF-8 -A trust --no-instructions",
                bin = bin.display()
            ),
            "start" => {
                format!("{run} {bin}/pg_ctl -D cluster -w -l server.log -o \"{options}\" start", bin = bin.display())
            }
            _ => format!("{run} {bin}/pg_ctl -D cluster -w stop", bin = bin.display()),
        };
        self.shell(&format!("({script}) > /dev/null"));
    }

    /// Starts PostgreSQL itself on `folder`, and asks; stops it again without measuring that.
    pub fn native_start(&self, folder: &str, by: By, query: &str) -> Took {
        let run =
            if nix::unistd::geteuid().is_root() { "unshare --user --map-user=1000 --map-group=1000 --" } else { "" };
        let bin = pg_bin();
        let (bin, options) = (bin.display(), "-c unix_socket_directories=$PWD -c listen_addresses=");
        let start = match by {
            By::PgCtl => format!("{run} {bin}/pg_ctl -D {folder} -w -l native.log -o \"{options}\" start > /dev/null"),
            By::Postgres => format!(
                "{run} {bin}/postgres -D {folder} {options} > native.log 2>&1 & \
                 until grep -qs ready {folder}/postmaster.pid; do sleep 0.002; done"
            ),
        };
        let took =
            self.shell(&format!("{start}; {bin}/psql -qAt -h $PWD -U postgres -c '{query}' postgres > /dev/null"));
        self.shell(&format!("{run} {bin}/pg_ctl -D {folder} -m immediate stop > /dev/null"));
        took
    }

    /// Removes the segments that a clean start does not need: the peers would copy them.
    pub fn trim_wal(&self) {
        let controldata = pg_bin().join("pg_controldata");
        let needed = format!("{} cluster | sed -n 's/.*REDO WAL file: *//p'", controldata.display());
        self.shell(&format!("needed=$({needed}); test -n \"$needed\"; cd cluster/pg_wal; for f in 0*; do [ $f = $needed ] || rm $f; done"));
    }
}

/// How PostgreSQL itself is started.
#[derive(Clone, Copy)]
pub enum By {
    /// As people do; it looks ten times a second whether the server is ready.
    PgCtl,
    /// Bare, with a look every 2 ms.
    Postgres,
}

pub fn median(mut times: Vec<Took>) -> Took {
    times.sort_by_key(|took| took.time);
    times[times.len() / 2]
}

pub fn pg_bin() -> PathBuf {
    let search = zenith::plumbing::postgres::find::Search { path: std::env::var_os("PATH"), ..Default::default() };
    zenith::plumbing::postgres::find::find(&search).expect("PostgreSQL").dir
}

pub fn row(what: &str, ours: Took, theirs: Took) {
    let (ours, theirs) = (ours.time.as_secs_f64(), theirs.time.as_secs_f64());
    println!("| {what} | {ours:.2} | {theirs:.2} | {:.2} |", ours / theirs);
}

pub fn sizes(what: &str, ours: u64, theirs: u64) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("| {what} (MB) | {:.1} | {:.1} | {:.2} |", mb(ours), mb(theirs), ours as f64 / theirs as f64);
}

/// Runs a command that must succeed, and watches its memory.
pub fn measure(command: &mut Command) -> Took {
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}");
            return Took { time: start.elapsed(), peak };
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Makes every run begin cold, where that is allowed.
pub fn drop_caches() {
    let _ = Command::new("sync").status();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

pub fn installed(program: &str) -> bool {
    let found = Command::new("which").arg(program).stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        println!("| SKIPPED: {program} is not installed | - | - | - |");
    }
    found
}

pub fn file_size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

pub fn tree_size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { tree_size(&entry.path()) } else { file_size(&entry.path()) }).sum()
}

/// Returns by how much the packs grew; loose objects are WAL.
pub fn pack_growth(objects: &Path, before: u64) -> u64 {
    let mut packs: Vec<_> = fs::read_dir(objects.join("pack")).unwrap().flatten().map(|entry| entry.path()).collect();
    packs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let newest = packs.iter().rev().take(2).map(|path| file_size(path)).sum::<u64>();
    newest.min(tree_size(objects) - before)
}
