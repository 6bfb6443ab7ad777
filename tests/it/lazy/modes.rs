//! Read-only instances, and data directories that are not lazy, or not any more.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use zenith::objects::pg::Lsn;

use super::assert_lazy;
use crate::support::{Env, checked};

#[test]
fn read_only_instances_show_the_past_beside_the_present() {
    let env = Env::init();
    env.run(["start"]).ok();
    let count = |name: &str| env.run(["psql", name, "--", "-XqAt", "-c", "select count(*) from t"]).ok();
    env.sql("main", "create table t (i int)");
    env.sql("main", "insert into t values (1)");
    env.run(["tag", "v1"]).ok();
    std::thread::sleep(Duration::from_millis(1200));
    let moment = env.sql("main", "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
    std::thread::sleep(Duration::from_millis(50));
    env.sql("main", "insert into t values (2)");
    // In this one, the WAL to replay begins in a backup of a running server.
    env.run(["snapshot"]).ok();
    env.sql("main", "insert into t values (3)");
    let lsn = env.sql("main", "select pg_current_wal_flush_lsn()");
    env.sql("main", "insert into t values (4)");

    let (at, time) = (format!("main@{lsn}"), format!("main@{{{moment}+00:00}}"));
    for (revision, rows) in [("v1", "1"), (&at, "3"), (&time, "1")] {
        env.run(["start", "--read-only", revision]).ok();
        assert_eq!(count(revision), rows, "{revision}");
        let refused = env.run(["psql", revision, "--", "-Xc", "insert into t values (9)"]);
        refused.fails(1, &["read-only transaction"]);
    }
    env.sql("main", "insert into t values (5)");
    assert_eq!(count("main"), "5");
    assert_eq!((count("v1"), count(&at), count(&time)), ("1".into(), "3".into(), "1".into()));
    // The same again is the same server; each has a name of its own too.
    let again = env.json(["start", "--read-only", "v1", "--json"]);
    assert_eq!((again["started"].as_bool(), again["instance"].as_str()), (Some(false), Some("pg2")));
    assert_eq!(count("pg2"), "1");
    assert!(env.run(["status"]).ok().contains("read-only"));
    // At the end of the WAL, right after a snapshot.
    env.run(["snapshot"]).ok();
    env.run(["start", "--read-only", "main"]).ok();
    assert_eq!(count("pg5"), "5");
    env.run(["stop", "v1"]).ok();
    env.run(["psql", "v1"]).fails(1, &["not a branch", "--read-only"]);
    env.run(["stop", "--all"]).ok();
    assert_eq!(env.mounts(), Vec::<String>::new());
    assert_eq!(env.json(["pg", "list", "--json"]).as_array().unwrap().len(), 1, "they leave nothing behind");
    env.run(["start", "--read-only", "nonsense"]).fails(1, &["unknown revision"]);
}

#[test]
fn eager_restores_and_says_nothing_of_it() {
    let env = Env::init();
    let started = env.json(["start", "--eager", "--json"]);
    assert_eq!(started["lazy"], false);
    assert_eq!(env.mounts(), Vec::<String>::new());
    env.sql("main", "create table t as select 1");
    env.run(["snapshot"]).ok();
    env.sql("main", "insert into t select 2");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_lazy(&env, "main");
    assert_eq!(env.sql("main", "select count(*) from t"), "2");
}

#[test]
fn without_fuse_all_is_restored_and_the_reason_told() {
    let env = Env::init();
    let run = |args: &[&str]| {
        let inner = env.command(args);
        let hidden = "mount -t tmpfs none /mnt && cp -a /dev/null /dev/zero /dev/urandom /mnt && mkdir /mnt/shm && \
                      mount -t tmpfs none /mnt/shm && mount --bind /mnt /dev && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", hidden, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(env.path()).env("HOME", env.path()).output().unwrap()
    };
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root can hide /dev/fuse");
        return;
    }
    let started = run(&["start"]);
    let told = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(started.status.success(), "{told}");
    assert!(told.contains("all files were restored first") && told.contains("/dev/fuse"), "{told}");
    env.sql("main", "create table t as select 1");
    assert_eq!(env.mounts(), Vec::<String>::new());
    // A layer would say that the files are in it, pg_control too.
    assert!(!env.datadir("main").join("local").exists());
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_lazy(&env, "main");
    assert_eq!(env.sql("main", "select count(*) from t"), "1");
}

#[test]
fn restored_copies_share_their_blocks_where_the_file_system_can() {
    let env = Env::new();
    let (image, dir) = (env.path().join("image"), env.path().join("xfs"));
    fs::create_dir(&dir).unwrap();
    fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
    let made = Command::new("mkfs.xfs").arg("-q").arg(&image).status().is_ok_and(|status| status.success());
    if !made || !Command::new("mount").args(["-o", "loop"]).args([&image, &dir]).status().unwrap().success() {
        println!("SKIPPED: no XFS to be had: mkfs.xfs and loop mounts are needed");
        return;
    }
    let run = |args: &[&str]| env.run([&["-C", "xfs"], args].concat());
    let used = || {
        checked(&mut Command::new("sync"));
        let text = checked(Command::new("df").args(["--output=used", "-k"]).arg(&dir));
        text.lines().last().unwrap().trim().parse::<u64>().unwrap()
    };
    run(&["init"]).ok();
    run(&["start"]).ok();
    run(&[
        "psql",
        "main",
        "--",
        "-qc",
        "create table t as select sha512(g::text::bytea) from generate_series(1, 1200000) g",
    ])
    .ok();
    // Or every reader would write hint bits to all of its pages.
    run(&["psql", "main", "--", "-qc", "vacuum freeze t"]).ok();
    run(&["stop"]).ok();
    run(&["branch", "b1"]).ok();
    run(&["start", "--eager", "b1"]).ok();
    let first = used();
    for branch in ["b2", "b3"] {
        run(&["branch", branch, "main"]).ok();
        run(&["start", "--eager", branch]).ok();
        assert_eq!(run(&["psql", branch, "--", "-Atc", "select count(*) from t"]).ok(), "1200000");
    }
    // The table alone is 120 MB. What a branch has of its own is three segments of WAL, and pages that its
    // server wrote.
    let each = (used() - first) / 2;
    assert!(each < 65_000, "each further branch takes {each} KiB");
    run(&["stop", "--all"]).ok();
    checked(Command::new("umount").arg("-l").arg(&dir));
}

#[test]
fn a_hydrated_directory_needs_the_repository_no_more() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select sha512(g::text::bytea) a from generate_series(1, 30000) g");
    env.run(["stop"]).ok();
    env.run(["start", "--hydrate"]).ok();
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let status = env.json(["status", "--json"]);
        let lazy = &status["instances"][0]["lazy"];
        assert!(lazy["hydrating_bytes"].as_u64().unwrap() > 10_000_000, "{status}");
        if lazy["remote_bytes"] == 0 {
            break;
        }
        assert!(Instant::now() < patience, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(env.run(["status"]).ok().contains("fetched 100 %"));
    let (objects, hidden) = (env.repo().join("objects"), env.repo().join("hidden"));
    fs::rename(&objects, &hidden).unwrap();
    assert_eq!(env.sql("main", "select count(a) from t"), "30000");
    fs::rename(&hidden, &objects).unwrap();
    env.run(["stop"]).ok();
    env.run(["fsck"]).ok();
}

#[test]
fn a_start_fetches_what_the_last_one_read() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select sha512(g::text::bytea) a from generate_series(1, 3000) g");
    // The first reader writes hint bits, which are kept; the second one leaves its list to the snapshot that it began from.
    for _ in 0..2 {
        env.run(["stop"]).ok();
        env.run(["start"]).ok();
        env.sql("main", "select count(a) from t");
    }
    let path = env.sql("main", "select pg_relation_filepath('t')");
    env.run(["stop"]).ok();
    let lists = fs::read_dir(env.repo().join("prefetch")).unwrap().map(|entry| entry.unwrap().path());
    assert!(
        lists.map(|list| fs::read_to_string(list).unwrap()).any(|text| text.contains(&path)),
        "{path} is in no list"
    );
    env.run(["start"]).ok();
    // Nobody has asked for the table yet.
    let file = env.datadir("main").join("data").join(&path);
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let cached = checked(Command::new("fincore").args(["-nbo", "RES,SIZE"]).arg(&file));
        let numbers: Vec<u64> = cached.split_whitespace().map(|word| word.parse().unwrap()).collect();
        // The kernel takes the advice as far as it likes; without it nothing is there.
        if numbers[0] > numbers[1] / 2 {
            break;
        }
        assert!(Instant::now() < patience, "of {path} only {numbers:?} bytes are there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_start_completes_the_segment_that_it_begins_in() {
    let env = Env::init();
    let log = env.run(["cat-timeline", "main"]).ok();
    let intervals: Vec<Vec<&str>> =
        log.lines().filter_map(|line| Some(line.strip_prefix("wal ")?.split(' ').collect())).collect();
    let lsn = |text: &str| text.parse::<Lsn>().unwrap();
    // What initdb wrote is long, so its last page lies apart, for a start to begin with.
    let last = intervals.last().unwrap();
    assert_eq!((intervals.len(), lsn(last[0]).0 % 8192), (2, 0), "{log}");
    assert!(lsn(last[1]).since(lsn(last[0])) <= 16384, "{log}");
    env.run(["start"]).ok();
    let sealed = env.command(["cat-wal", "main"]).output().unwrap().stdout;
    // The server did not wait for it.
    let patience = Instant::now() + Duration::from_secs(20);
    while !env.datadir("main").join("prepared").exists() {
        assert!(Instant::now() < patience, "the segment is never completed");
        std::thread::sleep(Duration::from_millis(20));
    }
    let wal_dir = fs::canonicalize(env.datadir("main").join("data/pg_wal")).unwrap();
    let segment = fs::read(wal_dir.join("000000010000000000000001")).unwrap();
    assert!(sealed.len() > 1 << 20 && segment.len() == 16 << 20);
    assert!(segment.starts_with(&sealed), "what lies before the start is not what was sealed");
}

#[test]
fn segments_that_are_archived_at_once_are_whole() {
    let env = Env::init();
    for round in 0..4 {
        env.run(["start"]).ok();
        // The first segment is sealed and recycled as soon as may be, while it is being completed.
        for table in ["a", "b", "c"] {
            env.sql("main", &format!("create table {table}{round} as select generate_series(1, 9000) g"));
            env.sql("main", "select pg_switch_wal()");
            env.sql("main", "checkpoint");
        }
        env.run(["stop", "--mode", "immediate"]).ok();
    }
    env.run(["fsck"]).ok();
    env.run(["start"]).ok();
    for round in 0..4 {
        for table in ["a", "b", "c"] {
            assert_eq!(env.sql("main", &format!("select count(*) from {table}{round}")), "9000");
        }
    }
}

#[test]
fn a_server_with_many_files_starts_where_few_may_be_open() {
    let env = Env::init();
    let few = |args: &str| {
        let script = format!("ulimit -Sn 256; exec \"$0\" {args}");
        let zenith = env.command([""; 0]);
        let mut sh = Command::new("sh");
        let ran = sh.args(["-c", &script]).arg(zenith.get_program()).current_dir(env.path()).output().unwrap();
        assert!(ran.status.success(), "{args}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    few("start main");
    env.sql(
        "main",
        "do $$ begin for i in 1..400 loop execute format('create table t%s (i int primary key)', i); end loop; end $$",
    );
    env.sql("main", "checkpoint");
    env.run(["stop"]).ok();
    few("start main");
    assert_eq!(env.sql("main", "select count(*) from pg_class where relname like 't%' and relkind = 'r' and relnamespace = 'public'::regnamespace"), "400");
}
