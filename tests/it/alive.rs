//! Who is alive: whatever dies, stops or lies, the rest is ended, nothing acknowledged is lost, and the next start works.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use zenith::plumbing::instance::mount;

use crate::support::{Env, checked, has_strace, is_alive, is_root, pg_program, traced, wait_until};

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A repository whose server runs and has acknowledged a row.
fn with_row() -> Env {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env
}

/// Returns the children of a process whose command line has a word.
fn children(pid: i32, word: &str) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    let has = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(word));
    pids.into_iter().filter(has).collect()
}

fn guardian(env: &Env, branch: &str) -> i32 {
    let files = env.file_system(branch);
    wait_until("there is a guardian", || !children(files, "guard-datadir").is_empty());
    children(files, "guard-datadir")[0]
}

/// Kills the process that serves a branch's files and its guardian in one instant: neither does anything about the other's end.
pub fn kill_file_system_and_guardian(env: &Env, branch: &str) {
    kill_both([guardian(env, branch), env.file_system(branch)]);
}

fn kill_both(both: [i32; 2]) {
    both.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    both.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    wait_until("both have ended", || !both.iter().any(|pid| is_alive(*pid)));
}

/// Returns the file whose lock the server of a branch holds.
fn lock_file(env: &Env, branch: &str) -> PathBuf {
    env.repo().join("timelines").join(env.datadir(branch).file_name().unwrap()).join("alive")
}

/// Checks that nothing is left of a server, and that the branch goes on with its row.
#[track_caller]
fn ends_and_starts_again(env: &Env, server: i32) {
    wait_until("the server has ended", || !is_alive(server));
    wait_until("nothing is mounted", || env.mounts().is_empty());
    let begun = Instant::now();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    assert!(begun.elapsed() < Duration::from_secs(30));
    env.run(["stop"]).ok();
    assert_eq!(env.mounts(), Vec::<String>::new());
    env.run(["fsck"]).ok();
}

/// Runs SQL that takes long, and returns once the server has begun it.
fn busy(env: &Env, sql: &str) -> Child {
    let child = pg_program("psql")
        .args(["-Xqc", sql])
        .envs(env.server_env("main"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let active = "select count(*) from pg_stat_activity where backend_type = 'client backend' and state = 'active'";
    wait_until("it is busy", || env.sql("main", active) == "2");
    child
}

#[test]
fn a_server_whose_file_system_is_killed_ends_at_once() {
    let env = with_row();
    let server = env.postmaster("main");
    send(env.file_system("main"), Signal::SIGKILL);
    ends_and_starts_again(&env, server);
}

#[test]
fn a_file_system_that_is_told_to_end_stops_its_server_first() {
    let env = with_row();
    let (server, files) = (env.postmaster("main"), env.file_system("main"));
    send(files, Signal::SIGTERM);
    wait_until("the file system has ended", || !is_alive(files));
    let log = fs::read_to_string(env.repo().join("instances/pg1/log")).unwrap();
    assert!(log.contains("received fast shutdown request") && log.contains("database system is shut down"), "{log}");
    ends_and_starts_again(&env, server);
}

#[test]
fn a_file_system_that_does_not_move_is_ended_with_its_server() {
    let env = with_row();
    let (server, files) = (env.postmaster("main"), env.file_system("main"));
    send(files, Signal::SIGSTOP);
    // Whoever waits for it gets an answer.
    let begun = Instant::now();
    assert!(fs::metadata(env.datadir("main").join("data/base/never-looked-at")).is_err());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    ends_and_starts_again(&env, server);
    assert!(!is_alive(files));
}

/// The guardian's last means, where a process cannot even be killed.
#[test]
fn a_mount_that_is_aborted_answers_nobody_and_its_server_is_ended() {
    if !is_root() {
        return;
    }
    let env = with_row();
    let (server, files, data) = (env.postmaster("main"), env.file_system("main"), env.datadir("main").join("data"));
    send(files, Signal::SIGSTOP);
    // Each of its threads stops when it comes to it.
    std::thread::sleep(Duration::from_secs(1));
    let reader = {
        let file = data.join("base/never-looked-at");
        std::thread::spawn(move || fs::metadata(file))
    };
    std::thread::sleep(Duration::from_secs(1));
    if reader.is_finished() {
        panic!("who looked was answered: {:?}", reader.join().unwrap());
    }
    mount::abort(&data).unwrap();
    assert!(reader.join().unwrap().is_err());
    send(files, Signal::SIGCONT);
    ends_and_starts_again(&env, server);
    mount::abort(&env.path().join("nothing")).unwrap();
}

/// As by killall -STOP: nobody is left who would end the file system, for which whoever looks at its files waits.
#[test]
fn a_file_system_and_a_guardian_that_do_not_move_hold_up_nobody_for_long() {
    for command in [["status"], ["start"], ["stop"]] {
        let env = with_row();
        let processes = [env.file_system("main"), guardian(&env, "main")];
        processes.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
        let begun = Instant::now();
        // Whatever it says.
        let _ = env.run(command);
        assert!(begun.elapsed() < Duration::from_secs(40), "{command:?}: {:?}", begun.elapsed());
        // The last of its threads ends a little after the mount has answered.
        wait_until("the file system has ended", || !is_alive(processes[0]));
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select sum(i) from t"), "1");
        env.run(["stop"]).ok();
    }
}

#[test]
fn a_repository_is_not_made_where_locks_do_not_work() {
    if !has_strace() {
        return;
    }
    let env = Env::new();
    // There are none, as on NFS without a lock daemon; or they are everybody's.
    for answer in ["error=ENOLCK", "error=EOPNOTSUPP", "retval=0"] {
        let init = env.command(["init"]);
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", "trace=flock", "-e", &format!("inject=flock:{answer}")]);
        strace.arg(init.get_program()).args(init.get_args()).current_dir(env.path());
        let refused = strace.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{answer}: {said}");
        assert!(said.contains("does not keep locks") && said.contains("use a local file system"), "{answer}: {said}");
        let mut left = fs::read_dir(env.path()).unwrap().flatten().map(|entry| entry.file_name());
        assert!(!left.any(|name| name.to_string_lossy().starts_with(".zenith")), "{answer}");
    }
}

#[test]
fn a_file_system_that_pauses_for_a_moment_goes_on() {
    let env = with_row();
    let files = env.file_system("main");
    send(files, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    send(files, Signal::SIGCONT);
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    assert!(is_alive(files));
}

#[test]
fn a_guardian_that_is_killed_is_replaced() {
    let env = with_row();
    let (server, first) = (env.postmaster("main"), guardian(&env, "main"));
    send(first, Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(is_alive(first), "it goes when its file system goes, not before");
    send(first, Signal::SIGKILL);
    wait_until("there is another guardian", || guardian(&env, "main") != first);
    send(env.file_system("main"), Signal::SIGKILL);
    ends_and_starts_again(&env, server);
}

/// As after somebody removed the folder, and the next start has mounted in a new one.
#[test]
fn a_guardian_leaves_alone_what_another_process_serves_by_then() {
    let env = with_row();
    let (server, files, dir) = (env.postmaster("main"), env.file_system("main"), env.datadir("main"));
    let mut late = env.command(["guard-datadir", "--with-server"]);
    late.arg(lock_file(&env, "main")).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut late = late.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    drop(late.stdin.take());
    assert!(late.wait().unwrap().success());
    assert!(is_alive(server) && is_alive(files));
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    // Nor does it touch files that were restored there.
    env.run(["stop"]).ok();
    env.run(["start", "--eager"]).ok();
    let (server, dir) = (env.postmaster("main"), env.datadir("main"));
    env.run(["guard-datadir".as_ref(), "--with-server".as_ref(), lock_file(&env, "main").as_os_str(), dir.as_os_str()])
        .ok();
    assert!(is_alive(server));
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
}

/// Somebody tidied up: a lock that is not there says nothing of who had it.
#[test]
fn a_file_system_whose_lock_was_removed_is_gone_before_the_next_one_comes() {
    let env = with_row();
    let (server, files, guardian) = (env.postmaster("main"), env.file_system("main"), guardian(&env, "main"));
    for name in ["lock", "guard.lock"] {
        fs::remove_file(env.datadir("main").join(name)).unwrap();
    }
    // They are slow to end.
    [files, guardian].iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    send(server, Signal::SIGKILL);
    wait_until("the server has ended", || !is_alive(server));
    env.run(["start"]).ok();
    assert!(!is_alive(files) && !is_alive(guardian));
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
}

/// Returns the postmaster that `start` has noted, as soon as it has.
fn noted(env: &Env, start: &mut Child) -> i32 {
    let text = |folder: fs::DirEntry| fs::read_to_string(folder.path().join("alive")).ok();
    while start.try_wait().unwrap().is_none() {
        let folders = fs::read_dir(env.repo().join("timelines")).unwrap().flatten();
        let pid = folders.filter_map(text).find_map(|text| text.split(' ').next()?.parse().ok());
        if let Some(pid) = pid.filter(|pid| is_alive(*pid)) {
            return pid;
        }
    }
    panic!("the start has ended without a server");
}

#[test]
fn a_start_of_a_server_that_is_suspended_ends_and_says_why() {
    let env = Env::init();
    // It has much to set up before it is ready.
    env.run(["config", "branch.main.postgres.shared_buffers", "2GB"]).ok();
    env.run(["config", "branch.main.postgres.huge_pages", "off"]).ok();
    let mut start = env.command(["start"]);
    let mut start = start.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let server = noted(&env, &mut start);
    send(server, Signal::SIGSTOP);
    let begun = Instant::now();
    let refused = start.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("is suspended"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(!is_alive(server));
    env.run(["start"]).ok();
    env.sql("main", "select 1");
}

#[test]
fn a_backend_that_outlives_its_postmaster_is_ended_before_the_next_start() {
    let env = with_row();
    env.sql("main", "alter system set work_mem = '1MB'");
    // One that only notices at the end of its statement, and then leaves a temporary file.
    let mut client = busy(&env, "select count(*) from generate_series(1, 1000000000)");
    wait_until("it has one", || env.sql("main", "select count(*) > 0 from pg_ls_tmpdir()") == "t");
    wait_until("its files are ready for a crash", || env.datadir("main").join("prepared").exists());
    let server = env.postmaster("main");
    let backends: Vec<i32> = children(server, "postgres");
    send(server, Signal::SIGKILL);
    assert!(backends.iter().any(|pid| is_alive(*pid)), "it does not outlive it, so this shows nothing");
    let started = env.run(["start"]);
    assert!(started.err.contains("went on after a crash"), "{started:?}");
    started.ok();
    assert_eq!(env.sql("main", "show work_mem"), "1MB");
    assert!(backends.iter().all(|pid| !is_alive(*pid)), "the old server's process is there beside the new server");
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    let _ = client.wait();
}

#[test]
fn a_backend_that_outlives_its_postmaster_is_ended_without_a_command() {
    let env = with_row();
    let mut client = busy(&env, "select count(*) from generate_series(1, 1000000000)");
    let server = env.postmaster("main");
    let backends = children(server, "postgres");
    send(server, Signal::SIGKILL);
    wait_until("all of them have ended", || backends.iter().all(|pid| !is_alive(*pid)));
    let _ = client.wait();
}

#[test]
fn what_a_program_of_the_server_left_behind_delays_a_stop_but_does_not_prevent_it() {
    let env = with_row();
    let marker = env.path().join("left behind");
    // It reads what it is given: who is not read from fails.
    let program = format!("cat > /dev/null; exec sleep 987654 & echo $! > \"{}\"", marker.display());
    env.sql("main", &format!("copy t to program '{program}'"));
    let pid = fs::read_to_string(marker).unwrap().trim().parse().unwrap();
    assert!(is_alive(pid));
    env.run(["stop"]).ok();
    assert!(!is_alive(pid));
    assert_eq!(env.mounts(), Vec::<String>::new());
}

#[test]
fn what_stands_in_files_proves_nothing() {
    let env = with_row();
    let data = env.datadir("main").join("data");
    // The server minds after a minute only.
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    let alive = lock_file(&env, "main");
    assert!(env.run(["start"]).ok().is_empty() || is_alive(env.file_system("main")));
    assert_eq!(env.json(["pg", "list", "--json"])[0]["running"], true);
    // A server that was not noted is found and ended rather than overlooked.
    fs::write(&alive, "").unwrap();
    let files = env.file_system("main");
    env.run(["stop"]).ok();
    assert!(!is_alive(files));
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
}

#[test]
fn a_server_without_file_system_and_guardian_is_ended_by_whoever_looks() {
    let env = with_row();
    for look in [["start", "main"], ["branch", "b"], ["stop", "main"]] {
        env.run(["start"]).ok();
        let server = env.postmaster("main");
        kill_file_system_and_guardian(&env, "main");
        assert!(is_alive(server), "somebody else ended it, so this shows nothing");
        env.run(look).ok();
        assert!(!is_alive(server), "{look:?} left it alone");
    }
    assert_eq!(env.mounts(), Vec::<String>::new());
    // What a user cleared away by hand is as much gone.
    env.run(["start"]).ok();
    let (server, data) = (env.postmaster("main"), env.datadir("main").join("data"));
    kill_file_system_and_guardian(&env, "main");
    zenith::plumbing::instance::mount::detach(&data).unwrap();
    env.run(["start"]).ok();
    assert!(!is_alive(server));
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    // So is what has lost all else: the mount stays, and nobody serves it.
    let (server, dir) = (env.postmaster("main"), env.datadir("main"));
    let both = [guardian(&env, "main"), env.file_system("main")];
    for entry in fs::read_dir(&dir).unwrap().flatten().filter(|entry| entry.file_name() != "data") {
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
    kill_both(both);
    env.run(["stop"]).ok();
    assert!(!is_alive(server));
    assert_eq!(env.mounts(), Vec::<String>::new());
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    // And what has lost its locks.
    for name in ["lock", "guard.lock"] {
        let (server, dir) = (env.postmaster("main"), env.datadir("main"));
        let both = [guardian(&env, "main"), env.file_system("main")];
        fs::remove_file(dir.join(name)).unwrap();
        env.run(["status"]).ok();
        assert!(is_alive(server) && both.iter().all(|pid| is_alive(*pid)), "{name}: those who had it live");
        kill_both(both);
        env.run(["start"]).ok();
        assert!(!is_alive(server), "{name}");
    }
    env.run(["fsck"]).ok();
}

/// A slot's folder may be called like a file of a temporary table.
#[test]
fn a_slot_outlives_a_file_system_that_is_killed_whatever_its_name() {
    let env = with_row();
    env.sql(
        "main",
        "select pg_create_physical_replication_slot(name, true) from (values ('s1'), ('t1_2')) slots (name)",
    );
    env.sql("main", "checkpoint");
    wait_until("its files are ready for a crash", || env.datadir("main").join("prepared").exists());
    kill_file_system_and_guardian(&env, "main");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select string_agg(slot_name, ' ' order by 1) from pg_replication_slots"), "s1 t1_2");
}

/// As after an error of the disk.
#[test]
fn a_stop_on_a_disk_that_nobody_can_write_to_leaves_nothing_behind() {
    let env = Env::new();
    let (image, dir) = (env.path().join("image"), env.path().join("disk"));
    fs::create_dir(&dir).unwrap();
    fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().is_ok_and(|status| status.success());
    let mounted = made
        && Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&dir)
            .status()
            .is_ok_and(|status| status.success());
    if !mounted {
        println!("SKIPPED: no file system can be mounted here");
        return;
    }
    env.run(["init", "disk"]).ok();
    env.run(["--repo", "disk/.zenith", "start"]).ok();
    checked(Command::new("mount").args(["-o", "remount,abort"]).arg(&dir));
    env.run(["--repo", "disk/.zenith", "stop", "--mode", "immediate"]).fails(1, &["Read-only file system"]);
    let data = dir.join(".zenith/datadirs").to_string_lossy().into_owned();
    let is_mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&data);
    let begun = Instant::now();
    while is_mounted() && begun.elapsed() < Duration::from_secs(90) {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!is_mounted());
    // What was acknowledged is there once it can be written to again.
    wait_until("it can be unmounted", || Command::new("umount").arg(&dir).status().unwrap().success());
    checked(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir));
    env.run(["--repo", "disk/.zenith", "start"]).ok();
    env.run(["--repo", "disk/.zenith", "stop"]).ok();
    checked(Command::new("umount").arg(&dir));
}

#[test]
fn a_server_whose_lock_file_was_removed_or_replaced_is_still_found() {
    for how in [&["start"][..], &["start", "--eager"]] {
        let env = Env::init();
        env.run(how).ok();
        env.sql("main", "create table t as select 1 i");
        let (server, alive) = (env.postmaster("main"), lock_file(&env, "main"));
        fs::remove_file(&alive).unwrap();
        env.run(["start"]).ok();
        assert!(is_alive(server));
        assert_eq!(env.postmaster("main"), server, "a second server runs on the same timeline");
        env.sql("main", "insert into t values (2)");
        fs::write(&alive, "").unwrap();
        assert_eq!(env.json(["pg", "list", "--json"])[0]["running"], true);
        env.run(["branch", "b"]).ok();
        assert!(is_alive(server));
        env.run(["stop"]).ok();
        assert!(!is_alive(server));
        env.run(["start", "b"]).ok();
        assert_eq!(env.sql("b", "select sum(i) from t"), "3");
        env.run(how).ok();
        assert_eq!(env.sql("main", "select sum(i) from t"), "3");
    }
}

#[test]
fn a_server_whose_lock_file_was_removed_ends_with_its_file_system() {
    let env = with_row();
    fs::remove_file(lock_file(&env, "main")).unwrap();
    let server = env.postmaster("main");
    send(env.file_system("main"), Signal::SIGKILL);
    ends_and_starts_again(&env, server);
}

#[test]
fn a_damaged_instance_is_in_nobodys_way_and_is_stopped_by_its_name() {
    let env = with_row();
    env.run(["branch", "other"]).ok();
    env.run(["start", "other"]).ok();
    let (main, other) = (env.postmaster("main"), env.postmaster("other"));
    fs::write(env.repo().join("instances/pg1/config"), "branch = \"ma").unwrap();
    assert_eq!(env.sql("other", "select i from t"), "1");
    let status = env.run(["status"]);
    assert!(status.out.contains("damaged") && status.err.contains("zenith stop pg1"), "{status:?}");
    env.run(["stop", "pg1"]).ok();
    assert!(!is_alive(main) && is_alive(other));
    // A log that has grown large is put away.
    let log = fs::File::options().write(true).open(env.repo().join("instances/pg1/log")).unwrap();
    log.set_len(11 << 20).unwrap();
    env.run(["start", "main"]).ok();
    assert_eq!(env.sql("main", "select i from t"), "1");
    assert_eq!(fs::metadata(env.repo().join("instances/pg1/log.1")).unwrap().len(), 11 << 20);
    // One that does not run is forgotten.
    env.run(["stop"]).ok();
    fs::write(env.repo().join("instances/pg1/config"), b"\xff").unwrap();
    env.run(["stop", "pg1"]).ok();
    env.run(["start", "main"]).ok();
    // Nor is one whose config is no file at all.
    for make in ["mkfifo", "mkdir"] {
        env.run(["start", "other"]).ok();
        let instances = fs::read_dir(env.repo().join("instances")).unwrap().flatten().map(|entry| entry.path());
        let of_main = instances
            .filter(|path| path.is_dir())
            .find(|path| fs::read_to_string(path.join("config")).is_ok_and(|text| text.contains("branch = \"main\"")));
        let config = of_main.unwrap().join("config");
        fs::remove_file(&config).unwrap();
        checked(std::process::Command::new(make).arg(&config));
        env.run(["stop", "--all"]).ok();
        assert!(env.mounts().is_empty());
        env.run(["start", "main"]).ok();
        assert_eq!(env.sql("main", "select i from t"), "1");
    }
}

#[test]
fn servers_that_no_instance_knows_are_taken_up_again() {
    let env = with_row();
    env.run(["branch", "other"]).ok();
    env.run(["start", "other"]).ok();
    let (main, other, main_env) = (env.postmaster("main"), env.postmaster("other"), env.server_env("main"));
    fs::remove_dir_all(env.repo().join("instances")).unwrap();
    assert!(env.run(["status"]).err.contains("zenith stop --all"));
    // Acknowledged, and flushed no earlier than it must be.
    checked(pg_program("psql").args(["-Xqc", "insert into t values (2)"]).envs(main_env));
    env.run(["branch", "third", "main"]).ok();
    env.run(["start", "main"]).ok();
    assert_eq!(env.postmaster("main"), main);
    assert_eq!(env.sql("main", "select sum(i) from t"), "3");
    fs::remove_dir_all(env.repo().join("instances")).unwrap();
    env.run(["stop", "--all"]).ok();
    assert!(!is_alive(main) && !is_alive(other));
    assert_eq!(env.mounts(), Vec::<String>::new());
    env.run(["start", "third"]).ok();
    assert_eq!(env.sql("third", "select sum(i) from t"), "3");
    env.run(["fsck"]).ok();
}

#[test]
fn who_waits_for_another_command_is_told_for_whom_and_may_give_up() {
    let env = with_row();
    let mut client = busy(&env, "select pg_sleep(100)");
    let mut stop = env.command(["stop", "--mode", "smart"]).spawn().unwrap();
    let lock = fs::File::open(env.repo().join("instances/pg1/lock")).unwrap();
    wait_until("it has the instance", || lock.try_lock_shared().map(|()| lock.unlock().unwrap()).is_err());
    let told = format!("process {} (zenith stop --mode smart)", stop.id());
    env.run(["stop", "--timeout", "1"]).fails(1, &["another command", &told]);
    let mut start = env.command(["start"]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let has_ended = |child: &mut Child| child.try_wait().unwrap().is_some();
    assert!(!has_ended(&mut start), "it did not wait, so this shows nothing");
    send(start.id() as i32, Signal::SIGINT);
    let patience = Instant::now() + Duration::from_secs(20);
    while !has_ended(&mut start) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    let gave_up = has_ended(&mut start);
    for child in [&mut start, &mut client, &mut stop] {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert!(gave_up, "it is deaf");
}

#[test]
fn commands_that_a_server_runs_do_not_count_as_its_life() {
    let env = with_row();
    let program = assert_cmd::cargo::cargo_bin("zenith");
    let fifo = env.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _writer = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    // It waits for input, and outlives the server that started it.
    let (program, dir, input) = (program.display(), env.path().display(), fifo.display());
    env.sql("main", &format!("copy t to program 'exec \"{program}\" read-ahead \"{dir}\" < \"{input}\" & sleep 0.3'"));
    env.run(["stop"]).ok();
    let arguments = format!("read-ahead\0{dir}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_it =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&arguments));
    let left = pids.find(is_it).expect("it ended with the server, so this shows nothing");
    send(left, Signal::SIGKILL);
}

#[test]
fn who_serves_a_mount_has_nothing_of_it_open() {
    let env = with_row();
    env.sql("main", "create table wide as select repeat(md5(i::text), 20) x from generate_series(1, 60000) i");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    let (files, data) = (env.file_system("main"), env.datadir("main").join("data"));
    // Reads at random, so that it reads ahead.
    let mut client =
        busy(&env, "select count(*), max(x) from wide tablesample system (20) where x > ''; select pg_sleep(20)");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for entry in fs::read_dir(format!("/proc/{files}/fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert!(!target.starts_with(&data), "{} is open", target.display());
        }
    }
    let _ = client.kill();
    let _ = client.wait();
}

#[test]
fn who_has_a_lock_is_found_beside_a_file_system_that_does_not_answer() {
    let env = with_row();
    let path = env.datadir("main").join("data/postgresql.conf");
    let mut file = fs::File::options().append(true).open(path).unwrap();
    // The kernel would have to ask for its size.
    std::io::Write::write_all(&mut file, b"\n").unwrap();
    send(env.file_system("main"), Signal::SIGSTOP);
    let mut holder = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let other = tempfile::tempfile().unwrap();
        let _ = sender.send(zenith::plumbing::postgres::process::inheritors(&other).unwrap().len());
    });
    // Its guardian ends it after ten seconds.
    assert_eq!(receiver.recv_timeout(Duration::from_secs(8)), Ok(0));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_server_that_does_not_come_to_the_end_of_its_shutdown_is_ended_by_a_start() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let server = env.server_env("main");
    let mut config = postgres::Config::new();
    config.host_path(&server[0].1).port(server[1].1.parse().unwrap()).user("postgres").dbname("postgres");
    // Told to shut down by somebody who does not wait, and held up by a client.
    let _client = config.connect(postgres::NoTls).unwrap();
    let first = env.postmaster("main");
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    env.run(["start"]).ok();
    assert_ne!(env.postmaster("main"), first);
    assert_eq!(env.sql("main", "insert into t values (2) returning (select count(*) from t)"), "1");
}

#[test]
fn a_start_in_another_container_is_refused_and_changes_nothing() {
    const APART: [&str; 4] = ["--mount", "--pid", "--fork", "--mount-proc"];
    if !Command::new("unshare").args(APART).arg("true").status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: nobody may have processes of his own here");
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    let inner = env.command(["start"]);
    let mut command = Command::new("unshare");
    command.args(APART).arg(inner.get_program()).args(inner.get_args());
    let ran = command.current_dir(env.path()).env("HOME", env.path()).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && told.contains("another container"), "{told}");
    assert_eq!(env.sql("main", "select 1"), "1");
}

/// PostgreSQL 15 and later wait for their checkpointer for ever where they are told to shut down while they recover from the death of a
/// child.
#[test]
fn a_server_that_cannot_end_since_it_recovers_is_ended_by_a_stop() {
    let env = with_row();
    for _ in 0..6 {
        env.run(["start"]).ok();
        let launcher = "select pid from pg_stat_activity where backend_type = 'autovacuum launcher'";
        wait_until("there is a launcher", || !env.sql("main", launcher).is_empty());
        let server = env.postmaster("main");
        send(env.sql("main", launcher).parse().unwrap(), Signal::SIGKILL);
        env.run(["stop", "--timeout", "40"]).ok();
        assert!(!is_alive(server));
    }
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
}

#[test]
fn a_snapshot_does_not_wait_for_a_checkpointer_that_is_suspended() {
    let env = with_row();
    let checkpointer = env.sql("main", "select pid from pg_stat_activity where backend_type = 'checkpointer'");
    send(checkpointer.parse().unwrap(), Signal::SIGSTOP);
    let ran = env.run(["snapshot"]);
    send(checkpointer.parse().unwrap(), Signal::SIGCONT);
    ran.fails(1, &["is suspended", &format!("kill -CONT {checkpointer}")]);
    env.run(["snapshot"]).ok();
}

#[test]
fn a_server_that_shows_the_past_may_take_its_time_to_stop() {
    let env = with_row();
    env.run(["stop"]).ok();
    env.run(["start", "--read-only", "main"]).ok();
    let mut client = env.command(["psql", "main", "--", "-Xqc", "select pg_sleep(9)"]);
    let mut client = client.stdout(Stdio::null()).spawn().unwrap();
    wait_until("it is busy", || {
        env.sql("main", "select count(*) from pg_stat_activity where query like 'select pg_sleep%'") == "1"
    });
    env.run(["stop", "main", "--mode", "smart", "--timeout", "40"]).ok();
    assert!(client.wait().unwrap().success());
}

#[test]
fn an_end_that_is_accepted_by_a_command_that_is_killed_is_accepted_by_the_next() {
    if !has_strace() {
        return;
    }
    let env = with_row();
    env.sql("main", "select pg_switch_wal()");
    env.sql("main", "insert into t values (2)");
    let timeline = env.repo().join("timelines").join(env.datadir("main").file_name().unwrap());
    env.crash("main");
    // The segment that it wrote to is lost.
    wait_until("nothing is mounted", || env.mounts().is_empty());
    let segments = fs::read_dir(timeline.join("wal")).unwrap().flatten().map(|entry| entry.path());
    let mut segments: Vec<PathBuf> = segments.filter(|path| path.file_name().unwrap().len() == 24).collect();
    segments.sort();
    segments.iter().for_each(|path| fs::remove_file(path).unwrap());
    let refused = env.run(["stop"]);
    let hint = refused.err.lines().find(|line| line.contains("--accept-end")).unwrap_or_else(|| panic!("{refused:?}"));
    let end = hint.split("--accept-end ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mark = timeline.join("run");
    let kill = ["-P", mark.to_str().unwrap(), "-e", "inject=unlink,unlinkat:signal=SIGKILL"];
    let (code, _) = traced(&env, &kill, &["stop", "--accept-end", &end, "main"], |_| {});
    assert!(code.is_none() || code != Some(0));
    assert!(mark.is_file(), "it was killed there");
    env.run(["stop", "--accept-end", &end, "main"]).ok();
    env.run(["start"]).ok();
    env.run(["branch", "x"]).ok();
}
