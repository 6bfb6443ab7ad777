//! What a start makes of files that were copied while their server ran, of unlogged tables, and of a crashed
//! repository that was copied.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::objects::Repo;
use zenith::plumbing::instance::seal::seal_active;
use zenith::plumbing::instance::{self, mount};
use zenith::plumbing::postgres::account::Account;
use zenith::plumbing::postgres::server::Backup;
use zenith::plumbing::write_snapshot::{Options, Source, write_snapshot};
use zenith::progress::Hidden;

use crate::support::{Env, checked, has_strace, majors};

/// A repository of a cluster without data checksums, in which hint bits and visibility are not in the WAL as whole
/// pages.
fn without_checksums(major: u32, bin: &Path) -> Env {
    let env = Env::with_bin(bin);
    let (cluster, account) = (env.path().join("cluster"), Account::detect().unwrap());
    std::fs::create_dir(&cluster).unwrap();
    account.own(&cluster).unwrap();
    let mut initdb = account.command(&bin.join("initdb"));
    initdb.args(["-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C"]);
    initdb.args((major >= 18).then_some("--no-data-checksums"));
    checked(initdb.arg("-D").arg(&cluster));
    env.run(["init", "--from", "cluster"]).ok();
    env
}

#[test]
fn a_table_that_is_dropped_before_a_snapshot_copies_it_does_not_keep_the_branch_from_starting() {
    for (major, bin) in majors() {
        let env = without_checksums(major, &bin);
        env.run(["start"]).ok();
        env.sql("main", "create table kept as select generate_series(1, 100) i");
        env.sql("main", "create table t as select generate_series(1, 10000) i");
        let repo = Repo::open(&env.repo()).unwrap();
        let server = instance::of_branch(&repo, "main").unwrap().unwrap();
        let timeline = server.timeline().unwrap();
        let mut backup = Some(Backup::begin(&server.endpoint(&repo).unwrap(), &Hidden).unwrap());
        // The vacuum writes about pages of which the WAL has no image, and the drop cuts the file before it is copied.
        env.sql("main", "vacuum t");
        env.sql("main", "drop table t");
        let (options, data) =
            (Options { timeline: Some(timeline), ..Options::default() }, repo.datadir(timeline).join("data"));
        fs::write(data.join("own"), "before the end").unwrap();
        let mut end_backup = || {
            let ended = backup.take().unwrap().end(&Hidden)?;
            // What is read from now on may be newer than the end.
            fs::write(data.join("own"), "after").unwrap();
            seal_active(&repo, timeline)?;
            Ok(ended)
        };
        let outcome = write_snapshot(&repo, Source::Live(&data, &mut end_backup), &options, 0, &Hidden).unwrap();
        let files = env.path().join(format!("files-{major}"));
        env.run(["read-snapshot", &outcome.snapshot.to_string(), files.to_str().unwrap()]).ok();
        assert_eq!(fs::read_to_string(files.join("own")).unwrap(), "before the end");
        env.sql("main", "insert into kept values (101)");
        env.run(["branch", "early"]).ok();
        env.sql("main", "insert into kept values (102)");
        env.run(["branch", "late"]).ok();
        for (branch, rows) in [("early", "101"), ("late", "102")] {
            env.run(["start", branch]).ok();
            assert_eq!(env.sql(branch, "select count(*) from kept"), rows, "PostgreSQL {major}");
            env.run(["stop", branch]).ok();
        }
        // Crash recovery of the same from its own WAL, without its files.
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        env.discard_datadirs();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from kept"), "102", "PostgreSQL {major}");
    }
}

#[test]
fn unlogged_tables_come_back_empty() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        env.run(["start"]).ok();
        env.sql("main", "create unlogged table u (i int primary key, t text)");
        env.sql("main", "create index on u using gin (to_tsvector('simple', t))");
        env.sql("main", "insert into u select g, repeat('x', 5000) from generate_series(1, 500) g");
        for round in 0..2 {
            env.run(["stop"]).ok();
            env.run(["branch", "--force", "other"]).ok();
            for branch in ["main", "other"] {
                env.run(["start", branch]).ok();
                assert_eq!(env.sql(branch, "select count(*) from u"), "0", "PostgreSQL {major}, {branch}, {round}");
                env.sql(branch, "insert into u values (1, 'a b'), (2, repeat('y', 100000))");
                assert_eq!(env.sql(branch, "select i from u where to_tsvector('simple', t) @@ 'b'"), "1");
            }
            env.run(["stop", "other"]).ok();
        }
    }
}

/// Returns all that the active WAL of a timeline holds.
fn wal_of(repo: &Path, timeline: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(repo.join("timelines").join(timeline).join("wal")).unwrap();
    let files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn a_copy_of_a_crashed_repository_leaves_the_original_alone() {
    for as_earlier_versions in [false, true] {
        let env = Env::init();
        env.run(["start"]).ok();
        env.sql("main", "create table t as select 1 i");
        let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
        let dir = env.repo().join("datadirs").join(&timeline);
        let begun = Instant::now();
        while !mount::is_prepared(&dir).unwrap() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (link, wal) = (dir.join("data/pg_wal"), env.repo().join("timelines").join(&timeline).join("wal"));
        assert!(std::fs::read_link(&link).unwrap().is_relative());
        assert_eq!(link.canonicalize().unwrap(), wal.canonicalize().unwrap());
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        if as_earlier_versions {
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(&wal, &link).unwrap();
        }
        mount::unmount(&dir).unwrap();

        let copy = Env::new();
        checked(Command::new("cp").arg("-a").arg(env.repo()).arg(copy.path()));
        let before = wal_of(&env.repo(), &timeline);
        copy.run(["start"]).ok();
        copy.sql("main", "insert into t select 2 from generate_series(1, 1000)");
        copy.run(["stop"]).ok();
        assert!(wal_of(&env.repo(), &timeline) == before, "a server of the copy wrote the original's WAL");
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from t"), "1");
        copy.run(["start"]).ok();
        assert_eq!(copy.sql("main", "select count(*) from t"), "1001");
    }
}

#[test]
fn a_snapshot_is_made_although_the_segment_of_its_start_was_recycled_meanwhile() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let control = env.datadir("main").join("data/global/pg_control");
    let zenith = env.command(["snapshot", "main"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-P"]).arg(&control).args(["-e", "trace=openat"]);
    strace.args(["-e", "inject=openat:delay_enter=5000000:when=1"]).arg(zenith.get_program()).args(zenith.get_args());
    let mut running = strace.current_dir(env.path()).spawn().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        env.sql("main", "insert into t values (2)");
        env.sql("main", "select pg_switch_wal()");
        env.sql("main", "checkpoint");
    }
    assert!(running.wait().unwrap().success());
    let rows = env.sql("main", "select count(*) from t");
    env.run(["stop", "--mode", "immediate"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from t"), rows);
}

#[test]
fn wal_goes_into_the_servers_own_repository_although_that_was_moved_and_a_copy_is_in_its_place() {
    let env = Env::init();
    let [first, backup, moved] = ["first", "backup", "moved"].map(|name| env.path().join(name));
    let run = |dir: &Path, args: &[&str]| {
        let ran = env.command(args).current_dir(dir).output().unwrap();
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let sql = |dir: &Path, sql: &str| run(dir, &["psql", "main", "--", "-XqAtc", sql]);
    fs::create_dir(&first).unwrap();
    run(&first, &["init"]);
    run(&first, &["start"]);
    sql(&first, "create table t as select generate_series(1, 1000) i");
    checked(Command::new("cp").arg("-a").arg(&first).arg(&backup));
    fs::rename(&first, &moved).unwrap();
    fs::rename(&backup, &first).unwrap();
    run(&first, &["start"]);
    sql(&first, "insert into t values (0)");
    // Of the one that was moved, whose socket the other one's server has.
    let archived = |dir: &Path| {
        let timeline = &run(dir, &["rev-parse", "main"])[..32];
        fs::read_to_string(dir.join(format!(".zenith/timelines/{timeline}/log"))).unwrap().lines().count()
    };
    let before = archived(&moved);
    run(&first, &["stop", "main"]);
    run(&moved, &["stop", "main"]);
    assert!(archived(&moved) > before);
    run(&moved, &["start"]);
    assert_eq!(sql(&moved, "select count(*) from t").trim(), "1000");
    run(&moved, &["stop", "main"]);
    run(&first, &["start"]);
    assert_eq!(sql(&first, "select count(*) from t").trim(), "1001");
    run(&first, &["stop", "main"]);
    run(&moved, &["fsck"]);
}
