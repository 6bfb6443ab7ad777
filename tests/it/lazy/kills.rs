//! kill -9 of the server, of its file system, of both: nothing acknowledged is lost, nothing is damaged.

use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{assert_lazy, client, with_checksums};
use crate::support::{Env, Random, is_alive, pg_program};

/// Kills server and file system under pgbench, again and again; checks every page and index after each.
fn rounds(count: u64) {
    let env = with_checksums();
    env.run(["start"]).ok();
    client(&env, "main", "pgbench", &["-i", "-q", "-s", "3"]);
    env.sql("main", "create extension amcheck");
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut acknowledged = 0;
    for round in 0..count {
        let log = env.path().join("pgbench.log");
        let mut load = pg_program("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-T", "60", "-P", "1", "-l", "--log-prefix"])
            .arg(env.path().join("tx"))
            .envs(env.server_env("main"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150 + random.below(900)));
        let (server, files) = (env.postmaster("main"), env.file_system("main"));
        let victims: &[i32] = match random.below(4) {
            0 => &[server],
            1 => &[files],
            2 => &[files, server],
            _ => &[server, files],
        };
        for victim in victims {
            kill(Pid::from_raw(*victim), Signal::SIGKILL).unwrap();
        }
        env.run(["start"]).ok();
        load.wait().unwrap();
        assert_lazy(&env, "main");
        // pgbench writes a line for each transaction whose commit was confirmed.
        acknowledged += logged(&env);
        let history: u64 = env.sql("main", "select count(*) from pgbench_history").parse().unwrap();
        assert!(history >= acknowledged, "round {round}: {acknowledged} were acknowledged, {history} are there");
        let balance = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
                       and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
        assert_eq!(env.sql("main", balance), "t", "round {round}");
        client(&env, "main", "pg_amcheck", &["--all", "--heapallindexed"]);
        client(&env, "main", "pg_dump", &["-f", "/dev/null"]);
        if random.below(4) == 0 {
            env.run(["stop"]).ok();
            assert_eq!(env.mounts(), Vec::<String>::new());
            env.run(["start"]).ok();
        }
    }
    assert!(acknowledged > count * 20, "only {acknowledged} transactions were acknowledged");
    env.run(["stop"]).ok();
    env.run(["fsck"]).ok();
    println!("{count} rounds, {acknowledged} acknowledged transactions, none lost");
}

/// Counts and removes pgbench's logs.
fn logged(env: &Env) -> u64 {
    let mut count = 0;
    for entry in std::fs::read_dir(env.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tx.") {
            count += std::fs::read_to_string(entry.path()).unwrap().lines().count() as u64;
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    count
}

#[test]
fn kills_of_server_and_file_system_damage_nothing() {
    rounds(6);
}

#[test]
#[ignore = "takes minutes: make kills"]
fn fifty_kills() {
    rounds(50);
}

#[test]
fn a_file_system_without_its_server_goes_away() {
    let env = Env::init();
    env.run(["start"]).ok();
    let files = env.file_system("main");
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGTERM).unwrap();
    let patience = std::time::Instant::now() + Duration::from_secs(90);
    while !env.mounts().is_empty() || is_alive(files) {
        assert!(std::time::Instant::now() < patience, "it is still there: {:?}", env.mounts());
        std::thread::sleep(Duration::from_millis(200));
    }
    // Nothing is lost: the next start goes on with what it left.
    env.run(["start"]).ok();
    assert_lazy(&env, "main");
}

/// Returns the process that another one has begun for a data directory.
fn begun_by(pid: u32) -> Option<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        children.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    let is_one = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(13).any(|word| word == b"mount-datadir"))
    };
    pids.into_iter().find(is_one).map(Pid::from_raw)
}

/// Begins a start, and suspends the process of its file system as soon as that is there. Returns both.
fn start_with_suspended_file_system(env: &Env) -> (Child, Pid) {
    let mut start = env.command(["start"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let files = loop {
        if let Some(files) = begun_by(start.id()) {
            break files;
        }
        assert!(start.try_wait().unwrap().is_none(), "it began none");
    };
    kill(files, Signal::SIGSTOP).unwrap();
    (start, files)
}

#[test]
fn a_file_system_whose_start_is_killed_before_it_mounts_does_not_stay() {
    let env = Env::init();
    for _ in 0..5 {
        let (mut start, files) = start_with_suspended_file_system(&env);
        start.kill().unwrap();
        start.wait().unwrap();
        let next = env.command(["start"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        kill(files, Signal::SIGCONT).unwrap();
        assert!(next.wait_with_output().unwrap().status.success());
        assert_eq!(env.mounts().len(), 1);
        env.run(["stop"]).ok();
        assert_eq!(env.mounts(), Vec::<String>::new());
        let left = std::fs::read_dir(env.repo().join("datadirs")).unwrap().count();
        assert_eq!((left, is_alive(files.as_raw())), (0, false));
    }
}

#[test]
fn a_stop_leaves_no_temporary_folder() {
    let env = Env::init();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select 1"), "1");
    env.run(["stop"]).ok();
    assert_eq!(std::fs::read_dir(env.repo().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_file_system_that_is_suspended_before_it_mounts_does_not_hold_up_its_start() {
    let env = Env::init();
    let (mut start, files) = start_with_suspended_file_system(&env);
    crate::support::wait_until("the start ends", || start.try_wait().unwrap().is_some());
    // If it was mounted before the signal came, its guardian ends it.
    crate::support::wait_until("it is gone", || !is_alive(files.as_raw()));
    env.run(["start"]).ok();
    env.sql("main", "select 1");
}
