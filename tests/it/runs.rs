//! A timeline has one writer: its branch goes on with it, run after run, and forks only where it must.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Env, checked, has_strace, pg_program, traced, wait_until};

fn timelines(env: &Env) -> usize {
    let entries = fs::read_dir(env.repo().join("timelines")).unwrap().flatten();
    entries.filter(|entry| entry.path().join("origin").exists()).count()
}

fn timeline(env: &Env, branch: &str) -> PathBuf {
    let id = env.run(["rev-parse", branch]).ok()[..32].to_owned();
    env.repo().join("timelines").join(id)
}

fn run(env: &Env, branch: &str, sql: &str) -> String {
    env.run(["start", branch]).ok();
    let said = env.sql(branch, sql);
    env.run(["stop", branch]).ok();
    said
}

/// What the timeline in `dir` is, but its lock.
fn state(dir: &Path) -> (Vec<Vec<u8>>, usize) {
    let files = ["origin", "log", "snapshots"].map(|name| fs::read(dir.join(name)).unwrap());
    let segments = fs::read_dir(dir.join("wal")).unwrap().flatten().filter(|entry| entry.file_name().len() == 24);
    (files.to_vec(), segments.count() + usize::from(dir.join("run").exists()))
}

#[test]
fn a_branch_goes_on_with_its_timeline() {
    let env = Env::init();
    run(&env, "main", "create table t (i int)");
    let reflog = env.json(["reflog", "main", "--json"]).as_array().unwrap().len();
    for number in 0..3 {
        run(&env, "main", &format!("insert into t values ({number})"));
    }
    // Also after a crash, and where the files are restored.
    env.run(["start"]).ok();
    env.sql("main", "insert into t values (3)");
    env.run(["stop", "--mode", "immediate"]).ok();
    env.run(["start", "--eager"]).ok();
    env.sql("main", "insert into t values (4)");
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
    assert_eq!(run(&env, "main", "select count(*) from t"), "5");
    assert_eq!(timelines(&env), 1);
    assert_eq!(env.json(["reflog", "main", "--json"]).as_array().unwrap().len(), reflog);
    // A branch made at any of its snapshots has what was there then.
    let log = fs::read_to_string(timeline(&env, "main").join("snapshots")).unwrap();
    let lsns: Vec<&str> = log.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(lsns.len() >= 5, "{log}");
    env.run(["branch", "x", &format!("main@{}", lsns[3])]).ok();
    assert_eq!(run(&env, "x", "select count(*) from t"), "2");
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn a_run_that_changes_nothing_leaves_no_trace_unless_it_was_named() {
    let env = Env::init();
    // The hint bits of the first ones are kept.
    for _ in 0..2 {
        run(&env, "main", "create table if not exists t as select 42 as answer; select count(*) from t");
    }
    for start in [&["start"][..], &["start", "--eager"]] {
        let dir = timeline(&env, "main");
        let before = state(&dir);
        assert_eq!(before.1, 0, "the last run has ended");
        env.run(start).ok();
        assert_ne!(state(&dir), before);
        let stopped = env.run(["stop"]).ok();
        assert!(stopped.contains("nothing was committed"), "{stopped}");
        assert_eq!(state(&dir), before);
    }
    env.run(["start"]).ok();
    env.sql("main", "checkpoint");
    env.run(["tag", "v1"]).ok();
    let tip = env.run(["rev-parse", "v1"]).ok();
    let stopped = env.run(["stop"]).ok();
    assert!(!stopped.contains("nothing was committed"), "{stopped}");
    env.run(["merge-base", "--is-ancestor", "v1", "main"]).ok();
    assert_eq!(run(&env, "main", "select answer from t"), "42");
    assert_eq!(env.run(["rev-parse", "v1"]).ok(), tip);
    assert_eq!((timelines(&env), env.run(["fsck"]).ok()), (1, String::new()));
}

#[test]
fn a_copy_of_a_repository_forks() {
    let env = Env::init();
    run(&env, "main", "create table t as select 1 i");
    let before = timeline(&env, "main");
    let copy = Env::new();
    checked(Command::new("cp").arg("-a").arg(env.repo()).arg(copy.path()));
    run(&copy, "main", "insert into t values (2)");
    run(&env, "main", "insert into t values (3)");
    assert_ne!(timeline(&copy, "main").file_name(), before.file_name());
    assert_eq!(timeline(&env, "main").file_name(), before.file_name());
    // From then on it goes on with its own.
    let own = timeline(&copy, "main");
    run(&copy, "main", "insert into t values (4)");
    assert_eq!(timeline(&copy, "main"), own);
    for (env, rows) in [(&env, "1,3"), (&copy, "1,2,4")] {
        assert_eq!(run(env, "main", "select string_agg(i::text, ',' order by i) from t"), rows);
        assert_eq!(env.run(["fsck"]).ok(), "");
    }
}

/// WAL that a standby, or an archive, has received is not written anew with something else at the same LSNs.
#[test]
fn a_run_of_which_somebody_may_have_received_wal_is_not_taken_back() {
    let env = Env::init();
    run(&env, "main", "create table t as select 1 i");
    let tip = || env.run(["rev-parse", "main"]).ok();
    let receive = |archive: &Path| {
        fs::create_dir(archive).unwrap();
        let mut receiver = pg_program("pg_receivewal");
        receiver.arg("-n").arg("-D").arg(archive).envs(env.server_env("main")).stderr(Stdio::piped());
        receiver.spawn().unwrap()
    };
    for (mode, is_let_in) in [("fast", true), ("fast", false), ("immediate", false), ("immediate", true)] {
        let last = tip();
        env.run(["config", "branch.main.replication", &is_let_in.to_string()]).ok();
        env.run(["start"]).ok();
        // So that there is something to take back.
        env.sql("main", "checkpoint");
        let archive = env.path().join(format!("archive-{mode}-{is_let_in}"));
        let mut receiver = receive(&archive);
        if is_let_in {
            wait_until("it has received some", || fs::read_dir(&archive).unwrap().count() > 0);
            receiver.kill().unwrap();
        }
        let said = String::from_utf8(receiver.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("no pg_hba.conf entry for replication"), !is_let_in, "{said}");
        env.run(["stop", "--mode", mode]).ok();
        assert_eq!(tip() != last, is_let_in, "{mode}");
    }
    // Let in after a crash, amid a run.
    env.run(["config", "branch.main.replication", "false"]).ok();
    env.run(["start"]).ok();
    let last = tip();
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
    env.run(["config", "branch.main.replication", "true"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "checkpoint");
    env.run(["stop"]).ok();
    assert_ne!(tip(), last);
    assert_eq!(run(&env, "main", "select sum(i) from t"), "1");
    assert_eq!(env.run(["fsck"]).ok(), "");
}

/// Its reader was told of LSNs in it, and asks for what comes behind: a later commit at one of them it would never get.
#[test]
fn a_run_of_a_server_with_a_slot_is_not_taken_back() {
    let env = Env::init();
    let tip = || env.run(["rev-parse", "main"]).ok();
    run(&env, "main", "select pg_create_physical_replication_slot('s', true)");
    for (statement, stays) in
        [("checkpoint", true), ("select pg_drop_replication_slot('s')", true), ("checkpoint", false)]
    {
        let last = tip();
        env.run(["start"]).ok();
        env.sql("main", "checkpoint");
        env.sql("main", statement);
        env.run(["stop"]).ok();
        assert_eq!(tip() != last, stays, "{statement}");
    }
}

#[test]
fn a_start_whose_log_is_a_pipe_is_refused_rather_than_waiting() {
    let env = Env::init();
    run(&env, "main", "create table t as select 1 i");
    let log = env.repo().join("instances/pg1/log");
    fs::remove_file(&log).unwrap();
    checked(Command::new("mkfifo").arg(&log));
    env.run(["start"]).fails(1, &["instances/pg1/log"]);
    fs::remove_file(&log).unwrap();
    assert_eq!(run(&env, "main", "select i from t"), "1");
}

#[test]
fn a_log_that_lost_its_end_is_not_gone_on_with() {
    let env = Env::init();
    run(&env, "main", "create table t as select 1 i");
    run(&env, "main", "insert into t values (2)");
    let log = timeline(&env, "main").join("log");
    let whole = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for left in [0, 1, lines.len() - 2] {
        fs::write(&log, lines[..left].concat()).unwrap();
        assert_eq!(env.run(["fsck"]).code, 3, "with {left} lines");
        env.run(["start"]).fails(3, &["is corrupt", "the lines that follow are lost"]);
    }
    fs::write(&log, &whole).unwrap();
    assert_eq!(env.run(["fsck"]).ok(), "");
    assert_eq!(run(&env, "main", "select sum(i) from t"), "3");
}

/// Files of a data directory that were copied while their server wrote and ended are no state of the cluster.
#[test]
fn a_copy_of_files_that_changed_meanwhile_becomes_no_snapshot() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.sql("main", "checkpoint");
    env.sql("main", "select pg_create_physical_replication_slot('s', true)");
    let copy = Env::new();
    let pack = |what: &str, name: &str| {
        checked(Command::new("tar").arg("-C").arg(env.path()).arg("-cf").arg(copy.path().join(name)).arg(what));
    };
    let base = env.datadir("main").strip_prefix(env.path()).unwrap().join("data/base");
    pack(base.to_str().unwrap(), "first.tar");
    env.sql("main", "insert into t values (2)");
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGINT).unwrap();
    wait_until("it has shut down", || !env.datadir("main").join("data/postmaster.pid").exists());
    pack(".zenith", "second.tar");
    for name in ["second.tar", "first.tar"] {
        checked(Command::new("tar").args(["-xf", name]).current_dir(copy.path()));
    }
    copy.run(["start"]).ok();
    assert_eq!(copy.sql("main", "select sum(i) from t"), "3");
    assert_eq!(copy.sql("main", "select count(*) from pg_replication_slots"), "0");
    let trash = copy.json(["trash", "--json"]);
    assert!(trash.as_array().unwrap().iter().any(|row| row["what"] == "data-directory"), "{trash}");
}

#[test]
fn a_copy_of_a_running_repository_starts_beside_it() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let copy = Env::new();
    // Its sockets and their locks, too; mounted files are not to be copied.
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(env.path()).args(["--exclude=.zenith/datadirs", "-cf", "repository.tar", ".zenith"]);
    // Files of a server that runs change meanwhile, which tar tells by its exit code.
    let packed = pack.current_dir(copy.path()).output().unwrap();
    assert!(matches!(packed.status.code(), Some(0 | 1)), "{packed:?}");
    checked(Command::new("tar").args(["-xf", "repository.tar"]).current_dir(copy.path()));
    assert!(fs::read_dir(copy.repo().join("run")).unwrap().count() > 0);
    copy.run(["start"]).ok();
    assert_eq!(copy.sql("main", "insert into t values (2) returning (select sum(i) from t)"), "1");
    assert_eq!(env.sql("main", "select sum(i) from t"), "1");
    copy.run(["stop"]).ok();
    env.run(["stop"]).ok();
    assert_eq!(run(&copy, "main", "select sum(i) from t"), "3");
}

/// Where a server would write other bytes than those that are sealed.
#[test]
fn a_branch_that_is_sealed_beyond_its_last_whole_record_forks() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int, filler text)");
    env.sql("main", "insert into t values (1, '')");
    env.sql("main", "alter system set work_mem = '77MB'");
    env.sql("main", "select pg_create_physical_replication_slot('kept')");
    // A record of more than a segment, of which the first one is sealed.
    env.sql("main", "select pg_logical_emit_message(false, 'x', repeat('x', 40 << 20))");
    let dir = timeline(&env, "main");
    let log = || fs::read_to_string(dir.join("log")).unwrap();
    wait_until("a segment is sealed amid a record", || {
        let last = log().lines().last().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        last.is_some_and(|fields| fields[2] != fields[4])
    });
    env.crash("main");
    // What PostgreSQL had not flushed is gone.
    let sealed = log().lines().last().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    let name = zenith::objects::pg::segment::file_name(1, sealed, 16 << 20);
    let segment = fs::File::options().write(true).open(dir.join("wal").join(name)).unwrap();
    segment.write_all_at(&vec![0; 16 << 20], 0).unwrap();
    env.run(["stop"]).ok();
    let (before, log_before) = (timeline(&env, "main"), log());
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "insert into t values (2, '') returning (select count(*) from t)"), "1");
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
    assert_eq!(env.sql("main", "select slot_name from pg_replication_slots"), "kept");
    env.run(["stop"]).ok();
    assert_ne!(timeline(&env, "main"), before);
    assert_eq!((log(), timelines(&env)), (log_before, 2));
    assert_eq!(run(&env, "main", "select count(*) from t"), "2");
    assert_eq!(env.run(["fsck"]).ok(), "");
}

/// A copy of a repository, made while a server ran: the notes of its local layer are older than the rest, and its pg_control newer.
#[test]
fn a_copy_goes_by_its_wal_and_not_by_files_that_were_copied_at_different_times() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table l as select g, 'old' f from generate_series(1, 20000) g");
    env.run(["restart"]).ok();
    env.sql("main", "alter system set autovacuum = off");
    wait_until("it can be gone on with", || env.datadir("main").join("prepared").exists());
    let journal = env.datadir("main").join("local/journal");
    let before = fs::read(&journal).unwrap();
    env.sql("main", "update l set f = 'new' where g <= 2000");
    env.sql("main", "checkpoint");
    env.run(["seal-wal", "main"]).ok();
    let copy = Env::new();
    checked(Command::new("cp").arg("-a").arg("--one-file-system").arg(env.repo()).arg(copy.path()));
    let copied = copy.repo().join("datadirs").join(journal.strip_prefix(env.repo().join("datadirs")).unwrap());
    fs::write(copied, before).unwrap();
    env.run(["stop"]).ok();
    copy.run(["start"]).ok();
    assert_eq!(copy.sql("main", "select count(*) filter (where f = 'new') from l"), "2000");
    let kept = copy.json(["trash", "--json"]);
    assert!(kept.as_array().unwrap().iter().any(|row| row["what"] == "data-directory"), "{kept}");
    copy.run(["stop"]).ok();
    assert_eq!(copy.run(["fsck"]).ok(), "");
}

#[test]
fn a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["branch", "x"]).ok();
    env.run(["start", "x"]).ok();
    env.sql("x", "insert into t values (2)");
    env.crash("x");
    let failing = |folder: &Path, args: &[&str]| {
        let inject = ["-e", "trace=getdents64", "-e", "inject=getdents64:error=EIO"];
        traced(&env, &[&["-P", folder.to_str().unwrap()][..], &inject].concat(), args, |_| {})
    };
    for args in [&["stop", "x"][..], &["start", "x"], &["branch", "y", "x"]] {
        let (code, trace) = failing(&timeline(&env, "x").join("wal"), args);
        assert_ne!(code, Some(0), "{args:?}: {trace}");
    }
    env.run(["start", "x"]).ok();
    assert_eq!(env.sql("x", "select count(*) from t"), "2");
    // Nor are the timelines that others fork from.
    env.run(["stop", "--all"]).ok();
    env.run(["branch", "-m", "main", "old"]).ok();
    env.run(["symbolic-ref", "refs/branches/x"]).ok();
    env.run(["branch", "-d", "old"]).ok();
    let (code, trace) = failing(&env.repo().join("timelines"), &["trash", "empty"]);
    assert_ne!(code, Some(0), "{trace}");
    assert_eq!(run(&env, "x", "select count(*) from t"), "2");
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn a_timeline_that_cannot_be_looked_at_once_is_not_taken_for_gone() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    for when in 1..4 {
        env.sql("main", "insert into t values (2)");
        let (dir, inject) = (timeline(&env, "main"), format!("inject=statx:error=ENOMEM:when={when}"));
        // Whether it says so or does it all the same.
        let options = ["-P", dir.to_str().unwrap(), "-e", "trace=statx", "-e", &inject];
        traced(&env, &options, &["stop", "--mode", "immediate"], |_| {});
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from t"), (when + 1).to_string());
    }
}

#[test]
fn a_damaged_note_of_which_clone_it_is_costs_a_fork_and_no_more() {
    let env = Env::init();
    run(&env, "main", "create table t as select 1 i");
    let before = timeline(&env, "main");
    let note = env.repo().join("clone");
    for damage in [&b"\xff\xfe"[..], b"", b"id = 7"] {
        fs::write(&note, damage).unwrap();
        run(&env, "main", "insert into t values (2)");
        assert_ne!(timeline(&env, "main"), before);
    }
    assert_eq!(run(&env, "main", "select count(*) from t"), "4");
    assert_eq!(env.run(["fsck"]).ok(), "");
}
