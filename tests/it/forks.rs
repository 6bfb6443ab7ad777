//! A branch at any LSN holds exactly the transactions that had committed by then.

use std::collections::BTreeSet;
use std::process::Stdio;

use zenith::objects::pg::Lsn;

use crate::support::{Env, Random, pg_program};

/// A commit, as `pg_waldump` reports it: the transaction, and where the next record begins.
struct Commit {
    xid: u64,
    start: Lsn,
    next: Lsn,
}

#[test]
fn twenty_random_lsns_of_a_busy_pgbench_run() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table done (xid xid8 primary key, at timestamptz)");
    let script = env.path().join("insert.sql");
    std::fs::write(&script, "insert into done values (pg_current_xact_id(), clock_timestamp());\n").unwrap();
    let mut pgbench = pg_program("pgbench");
    pgbench.envs(env.server_env("main")).args(["-n", "-c", "4", "-j", "2", "-T", "6", "-f"]).arg(&script);
    let mut load = pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Branches made while it runs are at positions that nobody chose.
    std::thread::sleep(std::time::Duration::from_secs(2));
    env.run(["branch", "live", "main"]).ok();
    assert!(load.wait().unwrap().success());
    env.run(["seal-wal", "main"]).ok();

    let commits = commits(&env);
    assert!(commits.len() > 500, "{} commits", commits.len());
    let mut random = Random(0x5DEE_CE66_D123_4567);
    let (first, last) = (commits[5].start, commits[commits.len() - 1].next);
    for number in 0..20 {
        let lsn = Lsn(first.0 + random.below(last.since(first)));
        let name = format!("fork{number}");
        env.run(["branch", &name, &format!("main@{lsn}")]).ok();
        check(&env, &name, &commits, lsn);
    }
    let tip = env.run(["rev-parse", "live"]).ok();
    check(&env, "live", &commits, tip.split_once('@').unwrap().1.parse().unwrap());
}

#[test]
fn a_time_on_a_branch_that_forked_amid_an_interval_is_what_had_committed_there() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.sql("main", "insert into t values (1)");
    let fork = env.sql("main", "select pg_current_wal_insert_lsn()");
    // What main wrote after that is of the same interval, and longer than all that the branch will write.
    env.sql("main", "insert into t select 2 from generate_series(1, 50000)");
    env.run(["stop"]).ok();
    env.run(["branch", "dev", &format!("main@{fork}")]).ok();
    env.run(["start", "dev"]).ok();
    let mut times = Vec::new();
    for row in 10..14 {
        env.sql("dev", &format!("insert into t values ({row})"));
        times.push((env.sql("dev", "select clock_timestamp()"), row));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    env.run(["stop", "dev"]).ok();
    for (time, last) in times {
        env.run(["branch", "--force", "then", &format!("dev@{{{time}}}")]).ok();
        env.run(["start", "then"]).ok();
        let expected: Vec<String> = std::iter::once(1).chain(10..=last).map(|row| row.to_string()).collect();
        assert_eq!(env.sql("then", "select i from t order by 1"), expected.join("\n"), "at {time}");
        env.run(["stop", "then", "--mode", "immediate"]).ok();
    }
}

/// Starts a branch and compares its rows with the commits up to `lsn`.
#[track_caller]
fn check(env: &Env, branch: &str, commits: &[Commit], lsn: Lsn) {
    env.run(["start", branch]).ok();
    let rows = env.sql(branch, "select xid from done");
    let found: BTreeSet<u64> = rows.lines().map(|line| line.parse().unwrap()).collect();
    // A commit that ends at the end of its page ends before the next record begins, behind a page header.
    let ends = |commit: &&Commit| commit.next <= lsn || (lsn.0.is_multiple_of(8192) && commit.next.since(lsn) <= 40);
    let expected: BTreeSet<u64> = commits.iter().filter(ends).map(|commit| commit.xid).collect();
    assert_eq!(found, expected, "{branch} at {lsn}");
    env.run(["stop", branch, "--mode", "immediate"]).ok();
}

/// Asks `pg_waldump`, which knows nothing of zenith, for the commits of transactions on the table.
fn commits(env: &Env) -> Vec<Commit> {
    let dir = env.path().join("wal");
    std::fs::create_dir(&dir).unwrap();
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let mut segments: Vec<_> =
        std::fs::read_dir(env.repo().join("timelines").join(timeline).join("wal")).unwrap().flatten().collect();
    segments.retain(|entry| entry.file_name().len() == 24);
    segments.sort_by_key(|entry| entry.file_name());
    let first = segments[0].file_name();
    let mut waldump = pg_program("pg_waldump");
    // It ends with an error where the WAL does.
    let output = waldump.arg("-p").arg(segments[0].path().parent().unwrap()).arg(first).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let known: BTreeSet<u64> =
        env.sql("main", "select xid from done").lines().map(|line| line.parse().unwrap()).collect();
    let mut commits: Vec<Commit> = Vec::new();
    let mut waiting = false;
    for line in text.lines() {
        let field = |name: &str| {
            line.split(name).nth(1).map(|rest| rest.trim_start().split([',', ' ']).next().unwrap().to_owned())
        };
        let lsn: Lsn = field("lsn:").unwrap().parse().unwrap();
        if waiting && let Some(commit) = commits.last_mut() {
            commit.next = lsn;
            waiting = false;
        }
        let xid: u64 = field("tx:").unwrap().parse().unwrap();
        if line.contains("desc: COMMIT") && known.contains(&xid) {
            commits.push(Commit { xid, start: lsn, next: Lsn::MAX });
            waiting = true;
        }
    }
    if waiting {
        commits.pop();
    }
    commits
}

#[test]
fn what_a_client_saw_is_in_a_branch_that_is_made_then() {
    let env = Env::init();
    // A commit that its own client does not wait for.
    env.run(["config", "branch.main.postgres.wal_writer_delay", "500ms"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    for round in 0..3 {
        env.sql("main", "set synchronous_commit = off; insert into t values (1)");
        let seen = env.sql("main", "select count(*) from t");
        let name = format!("b{round}");
        env.run(["branch", &name]).ok();
        env.run(["start", &name]).ok();
        assert_eq!(env.sql(&name, "select count(*) from t"), seen);
        env.run(["stop", &name, "--mode", "immediate"]).ok();
    }
}

#[test]
fn a_branch_has_what_others_saw_committed_however_late_that_is_flushed() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.sql("main", "alter system set wal_writer_delay = '10s'");
    env.sql("main", "select pg_reload_conf()");
    env.sql("main", "set synchronous_commit = off; insert into t select generate_series(1, 100)");
    env.run(["branch", "b"]).ok();
    env.run(["start", "b"]).ok();
    assert_eq!(env.sql("b", "select count(*) from t"), "100");
}
