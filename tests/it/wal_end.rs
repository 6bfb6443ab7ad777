//! INVARIANT 6: the end of the WAL is believed only when it is proven.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::objects::Repo;
use zenith::objects::pg::{Lsn, segment};
use zenith::objects::refs::Signature;
use zenith::objects::timeline::{Position, TimelineId};
use zenith::objects::trash::{Entry, What};
use zenith::plumbing::datadir::wal_end;
use zenith::plumbing::instance::trash::keep_beyond;

use crate::support::{Env, checked, has_strace, pg_program};

const SEGMENT: u32 = 16 << 20;

/// Returns the folder of the active WAL of a branch.
fn wal_dir(env: &Env, branch: &str) -> PathBuf {
    let timeline = env.run(["rev-parse", branch]).ok()[..32].to_owned();
    env.repo().join("timelines").join(timeline).join("wal")
}

/// Returns the segment files of a folder, the oldest first.
fn segments(dir: &std::path::Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().flatten();
    let mut paths: Vec<_> = names.filter(|entry| entry.file_name().len() == 24).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Returns a process and all that it started.
fn family(pid: i32) -> Vec<i32> {
    let children = std::process::Command::new("pgrep").arg("-P").arg(pid.to_string()).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let below = children.lines().flat_map(|child| family(child.parse().unwrap()));
    std::iter::once(pid).chain(below.collect::<Vec<_>>()).collect()
}

/// Kills a server with all that it started, as a crash does.
fn crash(env: &Env, branch: &str) {
    for pid in family(env.postmaster(branch)) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// A branch that crashed with committed WAL in several segments, none of which was sealed. Returns the folder.
fn crashed_with_segments(env: &Env) -> PathBuf {
    env.run(["start"]).ok();
    let dir = wal_dir(env, "main");
    // Nobody seals as long as this has the log.
    let log = File::options().read(true).write(true).open(dir.with_file_name("log")).unwrap();
    log.lock().unwrap();
    env.sql("main", "create table t as select g from generate_series(1, 1000) g");
    for _ in 0..3 {
        env.sql("main", "insert into t select g from generate_series(1, 10) g");
        env.sql("main", "select pg_switch_wal()");
    }
    env.sql("main", "checkpoint");
    env.sql("main", "insert into t values (-1)");
    crash(env, "main");
    dir
}

#[test]
fn a_missing_segment_is_no_end_of_the_wal() {
    let env = Env::init();
    let dir = crashed_with_segments(&env);
    let missing = segments(&dir)[1].clone();
    let kept = env.path().join("kept");
    std::fs::rename(&missing, &kept).unwrap();
    let before = segments(&dir);
    for args in [&["start"][..], &["stop"], &["tag", "now"], &["seal-wal", "main"], &["branch", "b", "main"]] {
        let said = ["is missing or cut short", "nothing was removed", "zenith stop --accept-end"];
        env.run(args).fails(3, &said);
    }
    assert_eq!(segments(&dir), before);
    // With the segment, all of it is there again.
    std::fs::rename(&kept, &missing).unwrap();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from t where g = -1"), "1");
}

#[test]
fn a_shorter_end_is_accepted_knowingly_and_the_rest_kept() {
    let env = Env::init();
    let dir = crashed_with_segments(&env);
    // All segments but the first are gone: only pg_control knows that there was more.
    for path in &segments(&dir)[1..] {
        std::fs::remove_file(path).unwrap();
    }
    let refused = env.run(["stop"]);
    assert!(refused.err.contains("pg_control says that there was WAL up to"), "{}", refused.err);
    let command = refused.err.split("zenith stop --accept-end ").nth(1).unwrap();
    let end = command.split_whitespace().next().unwrap().to_owned();
    env.run(["stop", "--accept-end", "0/1"]).fails(3, &["seems to end at"]);
    env.run(["stop", "--accept-end", &end]).ok();
    let rows = env.json(["trash", "--json"]);
    let mut what: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    what.sort_unstable();
    assert_eq!(what, ["data-directory", "wal"], "{rows}");
    assert!(env.run(["rev-parse", "main"]).ok().ends_with(&end));
    // Either may hold commits, and stays when the trash is full.
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table later as select 1");
    env.run(["stop"]).ok();
    assert_eq!(env.json(["trash", "--json"]), rows);
    env.run(["fsck"]).ok();
}

/// The stop was killed when the epoch was closed and its WAL not removed yet, and then the folder of the WAL was lost.
#[test]
fn an_end_is_accepted_of_an_epoch_that_was_closed() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 7 as i");
    let dir = wal_dir(&env, "main");
    let run = std::fs::read(dir.with_file_name("run")).unwrap();
    env.run(["stop"]).ok();
    std::fs::write(dir.with_file_name("run"), run).unwrap();
    // Its instance is lost, too.
    std::fs::remove_dir_all(env.repo().join("instances/pg1")).unwrap();
    let refused = env.run(["start"]);
    let command = refused.err.split("zenith stop --accept-end ").nth(1).expect(&refused.err);
    let end = command.split_whitespace().next().unwrap().to_owned();
    env.run(["stop", "--accept-end", &end]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select i from t"), "7");
    env.run(["stop"]).ok();
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn wal_behind_a_flipped_bit_goes_to_the_trash_before_it_is_overwritten() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (g int)");
    env.sql("main", "checkpoint");
    let at: Lsn = env.sql("main", "select pg_current_wal_insert_lsn()").parse().unwrap();
    env.sql("main", "insert into t select g from generate_series(1, 3000) g");
    let dir = wal_dir(&env, "main");
    crash(&env, "main");
    let path = dir.join(segment::file_name(1, at, SEGMENT));
    let mut bytes = std::fs::read(&path).unwrap();
    let offset = at.segment_offset(SEGMENT) as usize + 30_000;
    bytes[offset] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let kept = || {
        let rows = env.json(["trash", "--json"]);
        let rows = rows.as_array().unwrap().iter().filter(|row| row["what"] == "wal").cloned();
        rows.collect::<Vec<_>>()
    };
    // A crash after the entry was made, and before it had the files.
    let timeline: TimelineId = env.run(["rev-parse", "main"]).ok()[..32].parse().unwrap();
    let repo = Repo::open(&env.repo()).unwrap();
    let end = wal_end::find(&repo, timeline, None).unwrap().unwrap();
    let entry = Entry {
        what: What::Wal,
        branch: "main".into(),
        position: Position { timeline, lsn: end },
        commits: true,
        bytes: 0,
        message: None,
        who: "me".into(),
        time_us: 1,
        why: "a crash".into(),
    };
    repo.trash().put(repo.tmp().unwrap(), entry, |_| Ok(())).unwrap();
    // Behind the same end there may have been another tail.
    let keep = |time_us| {
        let signature = Signature { who: "me".into(), time_us, why: "a crash".into() };
        keep_beyond(&repo, "main", Position { timeline, lsn: end }, &signature).unwrap()
    };
    let mut other = bytes.clone();
    other[offset + 50_000] ^= 1;
    std::fs::write(&path, &other).unwrap();
    assert_eq!([keep(2), keep(2)], [true, false]);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!([keep(3), keep(3)], [true, false]);
    drop(repo);
    env.run(["start"]).ok();
    let rows = kept();
    let row = rows.last().unwrap();
    let copy = PathBuf::from(row["path"].as_str().unwrap()).join("wal").join(path.file_name().unwrap());
    let copy = std::fs::read(copy).unwrap();
    assert_eq!(copy.len(), bytes.len());
    assert!(copy[offset..] == bytes[offset..]);
    env.run(["stop"]).ok();
}

#[test]
fn wal_that_nobody_flushed_is_durable_before_it_is_sealed() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (g int)");
    let dir = wal_dir(&env, "main");
    let mut psql = pg_program("psql");
    psql.envs(env.server_env("main")).args(["-Xq"]).stdin(Stdio::piped());
    let mut session = psql.spawn().unwrap();
    use std::io::Write;
    let input = session.stdin.as_mut().unwrap();
    writeln!(input, "begin; insert into t select g from generate_series(1, 5000) g; select pg_sleep(600);").unwrap();
    let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and wait_event = 'PgSleep'";
    while env.sql("main", running) == "0" {}
    crash(&env, "main");
    let _ = session.kill();
    let _ = session.wait();
    let trace = env.path().join("trace");
    let zenith = env.command(["tag", "crashed", "main"]);
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,linkat", "-o"]).arg(&trace);
    strace.arg(zenith.get_program()).args(zenith.get_args()).current_dir(env.path());
    checked(&mut strace);
    let text = std::fs::read_to_string(&trace).unwrap();
    let stored = text.lines().position(|line| line.contains("/objects/")).expect("it stores WAL");
    let synced = |path: &std::path::Path| {
        let name = format!("{}>", path.display());
        text.lines().position(|line| line.contains("sync(") && line.contains(&name)).is_some_and(|at| at < stored)
    };
    let end: Lsn = env.run(["rev-parse", "crashed"]).ok().split_once('@').unwrap().1.parse().unwrap();
    assert!(synced(&dir.join(segment::file_name(1, end, SEGMENT))), "{text}");
    assert!(synced(&dir), "{text}");
}

#[test]
fn a_folder_without_any_segment_is_no_end_of_the_wal() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table before as select 1");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    // Nothing of this epoch is sealed yet.
    env.sql("main", "create table t as select 42 as answer");
    let dir = wal_dir(&env, "main");
    crash(&env, "main");
    let kept = env.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    for path in segments(&dir) {
        std::fs::rename(&path, kept.join(path.file_name().unwrap())).unwrap();
    }
    for args in [&["start"][..], &["stop"], &["tag", "now"], &["branch", "b", "main"]] {
        env.run(args).fails(3, &["is missing or cut short", "zenith stop --accept-end"]);
    }
    for path in segments(&kept) {
        std::fs::rename(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select answer from t"), "42");
    // The same where the WAL that it was started with ends with a segment.
    loop {
        env.sql("main", "select pg_switch_wal()");
        env.run(["stop", "--mode", "immediate"]).ok();
        if env.run(["rev-parse", "main"]).ok().ends_with("000000") {
            break;
        }
        env.run(["start"]).ok();
        env.sql("main", "create table another (i int); drop table another");
    }
    env.run(["start"]).ok();
    env.sql("main", "create table at_a_boundary as select 1");
    let dir = wal_dir(&env, "main");
    crash(&env, "main");
    for path in segments(&dir) {
        std::fs::remove_file(&path).unwrap();
    }
    env.run(["start"]).fails(3, &["is missing or cut short", "zenith stop --accept-end"]);
}

#[test]
fn a_pg_control_that_cannot_be_read_leaves_the_end_in_doubt() {
    let env = Env::init();
    env.run(["start", "--eager"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let path = env.repo().join("datadirs").join(timeline).join("data/global/pg_control");
    crash(&env, "main");
    let kept = std::fs::read(&path).unwrap();
    let mut damaged = kept.clone();
    damaged[100] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    for command in ["start", "stop"] {
        env.run([command]).fails(3, &["pg_control, which could know of more, cannot be read", "--accept-end"]);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    env.run(["stop"]).fails(3, &["pg_control, which could know of more, cannot be read"]);
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &kept).unwrap();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select answer from t"), "42");
}
