//! A hermetic environment: a folder of its own, the program under test, and nothing of the user's.

pub mod power;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;
use zenith::plumbing::postgres::process::Process;

/// A folder with a repository, whose servers are stopped at the end.
pub struct Env {
    dir: TempDir,
    pg_bin: Option<PathBuf>,
    /// The OS user who runs the commands, where it is not who runs the tests.
    user: Option<u32>,
}

/// The OS user `nobody`.
pub const NOBODY: u32 = 65534;

/// Returns whether the tests can act as somebody else; says SKIPPED where they cannot.
pub fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: only root can act as another user");
    }
    is_root
}

/// Does something as another OS user: whose the sockets and files are that it makes.
pub fn of_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    let as_user = || {
        // Of this thread alone.
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(user));
        work()
    };
    std::thread::scope(|scope| scope.spawn(as_user).join().unwrap())
}

/// What a command printed.
#[derive(Debug)]
#[must_use]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Ran {
    fn new(output: Output) -> Ran {
        Ran {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// Returns standard output, trimmed, of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out.trim_end().to_owned()
    }

    /// Checks that the command failed with `code` and said all of `texts` on standard error.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not in:\n{}", self.err);
        }
    }
}

impl Env {
    /// An empty folder.
    pub fn new() -> Env {
        Env { dir: tempfile::Builder::new().prefix("zenith-it-").tempdir().unwrap(), pg_bin: None, user: None }
    }

    /// A folder with a fresh repository, both of another OS user.
    pub fn of_user(user: u32) -> Env {
        let mut env = Env::new();
        std::os::unix::fs::chown(env.path(), Some(user), Some(user)).unwrap();
        env.user = Some(user);
        env.run(["init"]).ok();
        env
    }

    /// A folder with a fresh repository.
    pub fn init() -> Env {
        let env = Env::new();
        env.run(["init"]).ok();
        env
    }

    /// A folder whose commands use this PostgreSQL.
    pub fn with_bin(bin: &Path) -> Env {
        let mut env = Env::new();
        env.pg_bin = Some(bin.to_owned());
        env
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn repo(&self) -> PathBuf {
        self.path().join(".zenith")
    }

    /// Returns the program with arguments, not run yet.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let program = cargo_bin("zenith");
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}")]);
                command.args(["--clear-groups", "--"]).arg(program);
                command
            }
        };
        command.args(args).current_dir(self.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path()).env("TZ", "UTC").env("LC_ALL", "C.UTF-8").env("RUST_BACKTRACE", "1");
        if let Some(bin) = &self.pg_bin {
            command.env("ZENITH_PG_BIN", bin);
        }
        command
    }

    /// Runs the program.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::new(self.command(args).output().unwrap())
    }

    /// Runs SQL on a branch and returns what it printed, unaligned.
    #[track_caller]
    pub fn sql(&self, branch: &str, sql: &str) -> String {
        self.run(["psql", branch, "--", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).ok()
    }

    /// Returns what `--json` of a command printed.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> serde_json::Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    /// Returns the environment that reaches the server of a branch: PGHOST and so on.
    pub fn server_env(&self, branch: &str) -> Vec<(&'static str, String)> {
        let rows = self.json(["pg", "list", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == branch).unwrap().clone();
        let url = self.run(["url", branch]).ok();
        let host = url.split("host=").nth(1).unwrap().split('&').next().unwrap();
        let host = percent_encoding::percent_decode_str(host).decode_utf8().unwrap().into_owned();
        vec![
            ("PGHOST", host),
            ("PGPORT", row["port"].to_string()),
            ("PGUSER", "postgres".into()),
            ("PGDATABASE", "postgres".into()),
        ]
    }

    /// Returns the folder of a running branch's data directory, mount point and all.
    pub fn datadir(&self, branch: &str) -> PathBuf {
        let rows = self.json(["pg", "list", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == branch).unwrap().clone();
        self.repo().join("datadirs").join(row["timeline"].as_str().unwrap())
    }

    /// Returns the pid of the process that serves a branch's data directory.
    pub fn file_system(&self, branch: &str) -> i32 {
        let noted = std::fs::read_to_string(self.datadir(branch).join("lock")).unwrap();
        noted.parse::<Process>().unwrap().pid
    }

    /// Returns what is mounted in this folder.
    pub fn mounts(&self) -> Vec<String> {
        let mounts = String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo").unwrap()).into_owned();
        let own = self.path().to_string_lossy().into_owned();
        mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
    }

    /// Returns the pid of the postmaster of a branch.
    pub fn postmaster(&self, branch: &str) -> i32 {
        let rows = self.json(["pg", "list", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == branch).unwrap().clone();
        let pid = self.repo().join("datadirs").join(row["timeline"].as_str().unwrap()).join("data/postmaster.pid");
        std::fs::read_to_string(pid).unwrap().lines().next().unwrap().parse().unwrap()
    }

    /// Kills a branch's server and the process that serves its files.
    pub fn crash(&self, branch: &str) {
        for pid in [self.postmaster(branch), self.file_system(branch)] {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }

    /// Unmounts and removes all data directories; their servers must be gone.
    pub fn discard_datadirs(&self) {
        for entry in std::fs::read_dir(self.repo().join("datadirs")).unwrap() {
            zenith::plumbing::instance::mount::remove(&self.repo().join("tmp"), &entry.unwrap().path()).unwrap();
        }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        if self.repo().exists() {
            let _ = self.command(["pageserver", "stop"]).output();
            let _ = self.command(["stop", "--all", "--mode", "immediate"]).output();
        }
    }
}

/// Returns whether a process has not ended.
pub fn is_alive(pid: i32) -> bool {
    zenith::plumbing::postgres::process::Process::of(pid).unwrap().is_alive()
}

/// Waits until something is so, at most half a minute.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < patience, "not within half a minute: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Runs a command of the program under strace with `options`; returns its exit code, if it was not killed, and the trace.
pub fn traced(env: &Env, options: &[&str], args: &[&str], meanwhile: impl FnOnce(u32)) -> (Option<i32>, String) {
    let (trace, zenith) = (env.path().join("trace"), env.command(args));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-o"]).arg(&trace).args(options).arg(zenith.get_program()).args(zenith.get_args());
    let mut running = strace.current_dir(env.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    meanwhile(running.id());
    (running.wait().unwrap().code(), std::fs::read_to_string(&trace).unwrap())
}

/// Returns whether strace may be used; says so where it may not.
pub fn has_strace() -> bool {
    let has = Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success());
    if !has {
        println!("SKIPPED: there is no strace, or it may trace nothing");
    }
    has
}

/// Returns the folder of the programs of the PostgreSQL that the machine has.
pub fn pg_bin() -> PathBuf {
    let found = zenith::plumbing::postgres::find::find(&zenith::plumbing::postgres::find::Search {
        path: std::env::var_os("PATH"),
        ..Default::default()
    });
    found.expect("the tests need a PostgreSQL server: see scripts/install-deps").dir
}

/// Returns a program of the machine's PostgreSQL.
pub fn pg_program(name: &str) -> Command {
    Command::new(pg_bin().join(name))
}

/// Runs a command that must succeed and returns its output.
#[track_caller]
pub fn checked(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A small source of numbers that look random, the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Returns the PostgreSQL versions to test with: the machine's own, and those that `scripts/test` found.
pub fn majors() -> Vec<(u32, PathBuf)> {
    let own = zenith::plumbing::postgres::find::find(&zenith::plumbing::postgres::find::Search {
        explicit: Some(pg_bin()),
        ..Default::default()
    });
    let own = own.expect("found above");
    let mut found = vec![(own.major, own.dir)];
    for major in [14, 15, 16, 17, 18] {
        match std::env::var_os(format!("ZENITH_TEST_PG{major}")) {
            _ if major == found[0].0 => {}
            Some(bin) => found.push((major, bin.into())),
            None => println!("SKIPPED: PostgreSQL {major}: ZENITH_TEST_PG{major} does not name its programs"),
        }
    }
    found
}
