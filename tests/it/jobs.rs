//! Any number of commands work in one repository at once, and what one of them is refused, it leaves as it was.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::plumbing::postgres::process::Process;

use crate::support::{Env, has_strace, traced};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < patience, "waited for {what}");
        sleep(PAUSE);
    }
}

#[test]
fn four_jobs_of_fifteen_cycles_do_not_disturb_each_other() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["stop"]).ok();
    let over = AtomicBool::new(false);
    let run = |words: &[&str]| {
        let ran = env.run(words);
        if ran.code == 0 { Ok(()) } else { Err(format!("{words:?}: {}{}", ran.out, ran.err)) }
    };
    let job = |number: u32| {
        (0..15).try_for_each(|cycle| {
            let name = format!("job{number}-{cycle}");
            run(&["branch", &name, "main"])?;
            run(&["start", &name])?;
            run(&["stop", &name, "--mode", "immediate"])?;
            run(&["branch", "-d", &name])
        })
    };
    // Whoever only looks, sees what there is.
    let look = || {
        let words = [&["pg", "list"][..], &["branch", "-v"], &["status"], &["rev-list", "--all"], &["log", "--graph"]];
        while !over.load(Ordering::Relaxed) {
            words.iter().try_for_each(|words| run(words))?;
        }
        Ok::<_, String>(())
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(look);
        let jobs: Vec<_> = (0..4).map(|number| scope.spawn(move || job(number))).collect();
        let done: Vec<Result<(), String>> = jobs.into_iter().map(|job| job.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        assert_eq!(done, vec![Ok(()); 4]);
        assert_eq!(looking.join().unwrap(), Ok(()));
    });
    let rows = env.json(["pg", "list", "--json"]);
    let branches: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["branch"].as_str().unwrap()).collect();
    assert_eq!(branches, ["main"]);
    assert_eq!(std::fs::read_dir(env.repo().join("datadirs")).unwrap().count(), 0);
    env.run(["fsck"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select i from t"), "1");
}

#[test]
fn jobs_that_share_a_branch_and_a_moment_all_get_its_server() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let moment = format!("main@{}", env.run(["seal-wal", "main"]).ok());
    env.run(["stop"]).ok();
    let cycle = |words: &[&str], stop: &str| {
        for _ in 0..5 {
            env.run(words).ok();
            let ran = env.run(["stop", stop]);
            // Another one was faster.
            assert!(ran.code == 0 || ran.err.contains("is not running") || ran.err.contains("not a branch"), "{ran:?}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| cycle(&["start", "main"], "main"));
            scope.spawn(|| cycle(&["start", "--read-only", &moment], &moment));
        }
    });
    let rows = env.json(["pg", "list", "--json"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["running"] == false && row["crashed"] == false), "{rows}");
}

#[test]
fn a_port_that_was_refused_is_not_kept() {
    let env = Env::init();
    env.run(["branch", "try"]).ok();
    let port = |args: &[&str]| env.json(args.iter().chain(&["--json"]))["port"].to_string();
    let main = port(&["start", "main"]);
    env.run(["start", "try", "--port", &main]).fails(1, &["is taken"]);
    let own = port(&["start", "try"]);
    assert_ne!(own, main);
    env.run(["stop", "try"]).ok();
    env.run(["start", "try", "--port", &main]).fails(1, &["is taken"]);
    assert_eq!(port(&["start", "try"]), own);
    env.run(["stop", "try"]).ok();
    // Somebody else has it by now: who did not ask for that one gets another one.
    env.run(["branch", "other"]).ok();
    assert_eq!(port(&["start", "other", "--port", &own]), own);
    assert_ne!(port(&["start", "try"]), own);
}

#[test]
fn all_that_can_be_deleted_is() {
    let env = Env::init();
    for name in ["a", "b", "c"] {
        env.run(["branch", name]).ok();
        env.run(["tag", &format!("v{name}")]).ok();
    }
    env.run(["start", "b"]).ok();
    let ran = env.run(["branch", "-d", "a", "b", "c", "none"]);
    assert!(ran.out.contains("deleted branch a") && ran.out.contains("deleted branch c"), "{ran:?}");
    ran.fails(1, &["'b' is running", "stop it first: zenith stop b", "none", "2 of 4 branches were not deleted"]);
    assert_eq!(env.run(["branch"]).ok(), "  b\n* main");
    env.run(["tag", "-d", "va", "none", "vc"]).fails(1, &["none", "1 of 3 tags were not deleted"]);
    assert_eq!(env.run(["tag"]).ok(), "vb");
}

#[test]
fn head_is_no_name_for_a_branch() {
    let env = Env::init();
    env.run(["branch", "HEAD"]).fails(1, &["'HEAD' is not a valid name"]);
    env.run(["branch", "-m", "main", "HEAD"]).fails(1, &["'HEAD' is not a valid name"]);
    env.run(["update-ref", "refs/branches/HEAD", "main"]).fails(1, &["'HEAD' is not a valid name"]);
    assert_eq!(env.run(["branch"]).ok(), "* main");
}

#[test]
fn quiet_says_nothing_and_json_is_json() {
    let env = Env::init();
    assert_eq!(env.run(["branch", "-q", "a"]).ok(), "");
    let made = env.json(["branch", "--json", "b"]);
    assert_eq!(made["name"], "b");
    assert_eq!(env.json(["branch", "--json", "-m", "b", "c"])["name"], "c");
    assert_eq!(env.json(["branch", "--json", "-m", "c", "c"])["name"], "c");
    assert_eq!(env.json(["tag", "--json", "v"])["name"], "v");
    assert_eq!(env.json(["tag", "--json", "-d", "v"])[0]["name"], "v");
    let ran = env.run(["start", "-q", "a"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    assert_eq!(env.run(["stop", "-q", "a"]).ok(), "");
    assert_eq!(env.run(["branch", "-q", "-d", "a"]).ok(), "");
    let entry = env.json(["trash", "--json"])[0]["id"].as_str().unwrap().to_owned();
    for words in [
        &["trash", "restore", "-q", &entry][..],
        &["branch", "-q", "-d", "a"],
        &["trash", "empty", "-q"],
        &["init", "-q", "other"],
        &["restore", "-q", "main", "plain"],
        &["service-file", "-q", "--install"],
        &["pageserver", "start", "-q", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        &["pageserver", "start", "-q"],
        &["pageserver", "stop", "-q"],
    ] {
        let ran = env.run(words);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""), "{words:?}");
    }
    assert_eq!(env.json(["branch", "--json", "-d", "c"])[0]["name"], "c");
    assert_eq!(env.run(["branch"]).ok(), "* main");
}

#[test]
fn what_is_made_of_a_server_that_shuts_down_waits_for_it() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    // A smart shutdown lets its clients go on, and new ones out.
    let mut client = env.command(["psql", "main", "--", "-c", "select pg_sleep(4)"]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a client", || env.sql("main", "select count(*) from pg_stat_activity where query ~ 'sleep.4'") == "1");
    let mut stop = env.command(["stop", "--mode", "smart"]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the shutdown", || env.run(["psql", "main", "--", "-c", "select 1"]).err.contains("is shutting down"));
    env.run(["branch", "late"]).ok();
    env.run(["tag", "v"]).ok();
    assert!(client.wait().unwrap().success());
    assert!(stop.wait().unwrap().success());
    env.run(["start", "late"]).ok();
    assert_eq!(env.sql("late", "select i from t"), "1");
    env.run(["snapshot", "main"]).fails(1, &["'main' is not running"]);
    // Nor is a server refused that is about to start.
    let lock = std::fs::File::open(env.repo().join("instances/pg1/lock")).unwrap();
    let mut start = env.command(["start", "main"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("somebody starts it", || lock.try_lock_shared().map(|()| lock.unlock().unwrap()).is_err());
    env.run(["snapshot", "main"]).ok();
    assert!(start.wait().unwrap().success());
}

/// It would keep all others waiting for good.
#[test]
fn a_snapshot_that_is_suspended_is_not_waited_for() {
    let env = Env::init();
    env.run(["start"]).ok();
    let path = env.datadir("main").join("snapshot.lock");
    let lock = std::fs::File::create(&path).unwrap();
    lock.lock().unwrap();
    let mut other = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let pid = Pid::from_raw(other.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    std::fs::write(&path, Process::of(pid.as_raw()).unwrap().to_string()).unwrap();
    let hint = format!("kill -CONT {pid}");
    env.run(["snapshot"]).fails(1, &["another command is taking a snapshot", "is suspended", &hint]);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_name_that_changes_hands_has_one_server() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["branch", "y"]).ok();
    // A start, of a branch without an instance, that has come as far as the refs when the branch gets another name.
    let refs =
        std::fs::File::options().write(true).create(true).truncate(false).open(env.repo().join("refs.lock")).unwrap();
    refs.lock().unwrap();
    let mut start = env.command(["start", "y"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the start's instance", || env.repo().join("instances/pg2/config").is_file());
    let mut rename =
        env.command(["branch", "-m", "y", "z"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    drop(refs);
    let (started, renamed) = (start.wait().unwrap().success(), rename.wait().unwrap().success());
    assert_ne!(started, renamed, "one of them comes first");
    env.run(["stop", "--all"]).ok();

    // A server whose branch was deleted as a ref has the name until it is stopped.
    env.run(["branch", "x", "main"]).ok();
    env.run(["branch", "w", "main"]).ok();
    env.run(["start", "x"]).ok();
    env.sql("x", "insert into t values (2)");
    env.run(["update-ref", "-d", "refs/branches/x"]).ok();
    env.run(["branch", "-m", "w", "x"]).fails(1, &["'x' is running"]);
    env.run(["branch", "x", "main"]).fails(1, &["'x' is running"]);
    assert_eq!(env.sql("x", "select count(*) from t"), "2");
    env.run(["stop", "x"]).ok();
    env.run(["branch", "-m", "w", "x"]).ok();
    env.run(["start", "x"]).ok();
    assert_eq!(env.sql("x", "select count(*) from t"), "1");
    assert_eq!(
        env.json(["pg", "list", "--json"]).as_array().unwrap().iter().filter(|one| one["branch"] == "x").count(),
        1
    );
}

#[test]
fn a_branch_gets_another_name_only_while_no_timeline_is_removed() {
    let env = Env::init();
    let removal = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(env.repo().join("timelines/lock"))
        .unwrap();
    removal.lock().unwrap();
    let mut rename = env.command(["branch", "-m", "main", "prod"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    // Whoever removes one looks at the names of all branches, and then at each.
    assert!(env.repo().join("refs/branches/main").is_file());
    assert!(rename.try_wait().unwrap().is_none());
    drop(removal);
    assert!(rename.wait().unwrap().success());
    assert!(env.repo().join("refs/branches/prod").is_file());
}

#[test]
fn files_that_include_each_other_again_and_again_are_read_a_bounded_number_of_times() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let conf = env.path().join("dir/postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap() + &"include 'postgresql.conf'\n".repeat(12);
    std::fs::write(&conf, text).unwrap();
    let begun = Instant::now();
    env.run(["init", "--from", "dir", "other"]).ok();
    assert!(begun.elapsed() < PATIENCE);
    let started = env.run(["-C", "other", "start"]);
    assert!(begun.elapsed() < PATIENCE && started.code == 1, "{started:?}");
}

#[test]
fn a_flush_waits_for_no_standby() {
    let env = Env::init();
    env.run(["config", "branch.main.live", "true"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t(i int)");
    for setting in ["synchronous_standby_names = 'nobody'", "wal_writer_delay = '10s'"] {
        env.sql("main", &format!("alter system set {setting}"));
    }
    env.sql("main", "select pg_reload_conf()");
    wait_until("the setting", || env.sql("main", "show synchronous_standby_names") == "nobody");
    env.sql("main", "set synchronous_commit = off; insert into t values (1)");
    env.run(["branch", "y"]).ok();
    assert_eq!(env.sql("main", "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"), "0");
}

#[test]
fn a_program_that_was_replaced_goes_on_with_the_new_one() {
    let env = Env::init();
    let program = env.path().join("zenith");
    let installed = |to: &std::path::Path| std::fs::copy(env.command(["version"]).get_program(), to).unwrap();
    installed(&program);
    let run = |words: &[&str]| {
        let plain = env.command(words);
        let mut command = std::process::Command::new(&program);
        command.args(words).current_dir(env.path());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        crate::support::checked(&mut command)
    };
    run(&["start"]);
    let guardian =
        || std::process::Command::new("pgrep").arg("-f").arg(format!("{} .*guard-datadir", program.display())).output();
    let guardian =
        || String::from_utf8(guardian().unwrap().stdout).unwrap().lines().next().and_then(|pid| pid.parse().ok());
    wait_until("a guardian", || guardian().is_some());
    let new = env.path().join("new");
    installed(&new);
    std::fs::rename(new, &program).unwrap();
    let first: i32 = guardian().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_until("another guardian", || guardian().is_some_and(|pid| pid != first));
    run(&["stop"]);
}

#[test]
fn a_server_that_is_suspended_is_asked_in_vain_not_waited_for() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    // Of another one a command has the lock, which sees to what it left and takes its time.
    env.run(["branch", "other"]).ok();
    env.run(["start", "other"]).ok();
    let id = env.datadir("other").file_name().unwrap().to_owned();
    kill(Pid::from_raw(env.postmaster("other")), Signal::SIGKILL).unwrap();
    let lock = std::fs::File::options().write(true).open(env.repo().join("timelines").join(id).join("alive")).unwrap();
    wait_until("the server's end", || lock.try_lock().is_ok());
    lock.set_len(0).unwrap();
    let postmaster = Pid::from_raw(env.postmaster("main"));
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let (is_over, over) = mpsc::channel::<()>();
    let wake = thread::spawn(move || {
        // Whoever waits for it gets what he wants, which the test does not.
        let _ = over.recv_timeout(PATIENCE);
        kill(postmaster, Signal::SIGCONT).unwrap();
    });
    let wanted = ["another command is starting or stopping the server of timeline", "zenith status"];
    thread::scope(|scope| {
        for args in [&["seal-wal", "main"][..], &["branch", "late"], &["snapshot"], &["start"]] {
            let env = &env;
            scope.spawn(move || env.run(args).fails(1, &["has given no answer for 20 seconds", "kill -CONT"]));
        }
        scope.spawn(|| env.run(["branch", "of-other", "other"]).fails(1, &wanted));
    });
    drop(is_over);
    wake.join().unwrap();
    drop(lock);
    env.run(["branch", "of-other", "other"]).ok();
    env.run(["branch", "late"]).ok();
    env.run(["snapshot"]).ok();
    assert_eq!(env.sql("main", "select i from t"), "1");
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let stopped = env.run(["stop", "--timeout", "1"]);
    kill(postmaster, Signal::SIGCONT).unwrap();
    stopped.fails(1, &["did not stop within 1 seconds", &format!("kill -CONT {postmaster}")]);
}

#[test]
fn servers_stop_side_by_side_and_are_told_in_order() {
    let env = Env::init();
    let names: Vec<String> = (1..=6).map(|number| format!("b{number}")).collect();
    for name in &names {
        env.run(["branch", name]).ok();
        env.run(["start", name]).ok();
    }
    env.sql("b3", "create table t as select 3 i");
    // Each is waited for in vain; one after the other would take half a minute.
    let servers: Vec<Pid> = names.iter().map(|name| Pid::from_raw(env.postmaster(name))).collect();
    servers.iter().for_each(|server| kill(*server, Signal::SIGSTOP).unwrap());
    let begun = Instant::now();
    env.run(["stop", "--all", "--timeout", "5"]).fails(1, &["6 of 6 servers did not stop"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    servers.iter().for_each(|server| kill(*server, Signal::SIGCONT).unwrap());
    let told = env.run(["stop", "--all"]).ok();
    let branches: Vec<&str> = told.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(branches, names);
    let rows = env.json(["pg", "list", "--json"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["running"] == false && row["crashed"] == false), "{rows}");
    env.run(["start", "b3"]).ok();
    assert_eq!(env.sql("b3", "select i from t"), "3");
}

#[test]
fn a_stop_waits_for_another_command_no_longer_than_for_the_server() {
    let env = Env::init();
    env.run(["start"]).ok();
    let lock = std::fs::File::open(env.repo().join("instances/pg1/lock")).unwrap();
    lock.lock().unwrap();
    env.run(["stop", "--timeout", "1"]).fails(1, &["another command is starting or stopping 'main'"]);
    drop(lock);
    // Nor for a snapshot that is being taken.
    let lock = std::fs::File::create(env.datadir("main").join("snapshot.lock")).unwrap();
    lock.lock().unwrap();
    env.run(["stop", "--timeout", "1"]).fails(1, &["another command is taking a snapshot of timeline"]);
    drop(lock);
    // Nor for whoever has the timeline's log, and has it for long: it may be suspended.
    let id = env.datadir("main").file_name().unwrap().to_owned();
    let lock = std::fs::File::open(env.repo().join("timelines").join(id).join("log")).unwrap();
    lock.lock().unwrap();
    let told = format!("process {} (", std::process::id());
    env.run(["stop", "--timeout", "1"]).fails(1, &["waited 5 seconds", "/log'", &told]);
    drop(lock);
    env.run(["stop"]).ok();
    // And who waits for the lock of all timelines may give up.
    let path = env.repo().join("timelines/lock");
    let lock = std::fs::File::open(&path).unwrap();
    lock.lock().unwrap();
    let mut tag = env.command(["tag", "v1"]).stderr(Stdio::null()).spawn().unwrap();
    let is_open = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok_and(|file| file == path);
    let files = format!("/proc/{}/fd", tag.id());
    wait_until("it to wait", || std::fs::read_dir(&files).unwrap().flatten().any(is_open));
    sleep(Duration::from_millis(300));
    kill(Pid::from_raw(tag.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(tag.wait().unwrap().code(), Some(130));
    drop(lock);
    env.run(["tag", "v1"]).ok();
}

#[test]
fn a_stop_does_not_hold_up_the_snapshot_that_it_waits_for() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let timeline = std::fs::read_dir(env.repo().join("datadirs")).unwrap().next().unwrap().unwrap().path();
    let lock = std::fs::File::create(timeline.join("snapshot.lock")).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| env.run(["stop"]));
        wait_until("the server's end", || env.json(["pg", "list", "--json"])[0]["running"] == false);
        // As a snapshot does at its end.
        env.run(["seal-wal", "main"]).ok();
        assert!(!stop.is_finished());
        // And others have the server's lock for as long as it takes to seal.
        let id = timeline.file_name().unwrap();
        let alive = std::fs::File::open(env.repo().join("timelines").join(id).join("alive")).unwrap();
        alive.lock().unwrap();
        drop(lock);
        sleep(Duration::from_secs(1));
        drop(alive);
        stop.join().unwrap().ok();
    });
}

#[test]
fn a_file_system_at_rest_takes_little_memory() {
    let env = Env::init();
    env.run(["start"]).ok();
    let repo = env.repo().display().to_string();
    let is_ours = |command: &str| command.contains("mount-datadir") && command.contains(&repo);
    let commands = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        Some((std::fs::read_to_string(entry.path().join("cmdline")).ok()?, entry.path().join("smaps_rollup")))
    });
    let Some((_, rollup)) = commands.into_iter().find(|(command, _)| is_ours(command)) else {
        println!("SKIPPED: no file systems can be mounted here");
        return;
    };
    // Its share of memory, kB.
    let takes = || {
        let text = std::fs::read_to_string(&rollup).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    wait_until("memory to be given back", || takes() <= 12 << 10);
}

#[test]
fn fsck_takes_nothing_for_damage_that_is_made_while_it_reads() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.run(["tag", "before"]).ok();
    // Between its look at the timelines and that at the tags.
    let tags = env.repo().join("refs/tags");
    let delay = ["-P", tags.to_str().unwrap(), "-e", "trace=openat", "-e", "inject=openat:delay_enter=3000000:when=1"];
    let (code, _) = traced(&env, &delay, &["fsck"], |_| {
        sleep(Duration::from_millis(1500));
        env.sql("main", "insert into t select generate_series(1, 20000)");
        env.run(["tag", "meanwhile"]).ok();
    });
    assert_eq!(code, Some(0));
    env.run(["stop"]).ok();
}
