//! A moment of the past is a database at rest, whichever way its branch came to be.

mod matrix;

use crate::support::{Env, majors};

/// Starts a moment and returns what SQL on it prints.
#[track_caller]
fn shown(env: &Env, revision: &str, sql: &str) -> String {
    env.run(["start", "--read-only", revision]).ok();
    let printed = env.sql(revision, sql);
    env.run(["stop", revision]).ok();
    printed
}

#[test]
fn a_branch_of_a_running_server_shows_its_moments_on_every_version() {
    for (major, bin) in majors() {
        println!("PostgreSQL {major}");
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        env.run(["start", "main"]).ok();
        env.sql("main", "create table t (i int)");
        env.run(["branch", "b", "main"]).ok();
        let fork = env.run(["rev-parse", "b"]).ok();
        env.run(["start", "b"]).ok();
        env.sql("b", "insert into t values (1)");
        let now = "b@{0 seconds ago}";
        assert_eq!(shown(&env, now, "select count(*) from t"), "1", "PostgreSQL {major}");
        // The same where a branch was moved to an LSN.
        env.run(["stop", "--all"]).ok();
        let lsn = fork.split_once('@').unwrap().1;
        env.run(["branch", "-f", "main", &format!("main@{lsn}")]).ok();
        env.run(["start", "main"]).ok();
        env.sql("main", "insert into t values (2), (3)");
        assert_eq!(shown(&env, "main@{0 seconds ago}", "select sum(i) from t"), "5", "PostgreSQL {major}");
        refuses_writes(&env, now);
    }
}

/// Whatever a client says, a moment takes no writes: they would vanish with it.
#[track_caller]
fn refuses_writes(env: &Env, revision: &str) {
    env.run(["start", "--read-only", revision]).ok();
    let says = |sql: &[&str]| {
        let commands = sql.iter().flat_map(|sql| ["-c", sql]);
        env.run(["psql", revision, "--", "-XqAt", "-v", "ON_ERROR_STOP=1"].into_iter().chain(commands))
    };
    says(&["begin read write"]).fails(1, &["cannot set transaction read-write mode during recovery"]);
    says(&["set default_transaction_read_only = off", "insert into t values (7)"]).fails(1, &["read-only"]);
    says(&["set transaction_read_only = off"]).fails(1, &["during recovery"]);
    says(&["vacuum t"]).fails(1, &["during recovery"]);
    // A standby that is promoted would take them: the server ends before that.
    let promoted = says(&["select pg_promote()", "insert into t values (7)"]);
    assert_ne!(promoted.code, 0, "{}", promoted.out);
    let inserted = says(&["insert into t values (7)"]);
    assert_ne!(inserted.code, 0, "{}", inserted.out);
    env.run(["start", "--read-only", revision]).ok();
    assert_eq!(env.sql(revision, "select count(*) from t where i = 7"), "0");
    env.run(["stop", revision]).ok();
}

#[test]
fn a_table_is_readable_at_each_point_of_its_drop() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let position = "select pg_current_wal_insert_lsn()";
    let lsns = env.run([
        "psql",
        "main",
        "--",
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        position,
        "-c",
        "begin",
        "-c",
        "lock table t in access exclusive mode",
        "-c",
        position,
        "-c",
        "drop table t",
        "-c",
        position,
        "-c",
        "commit",
    ]);
    for lsn in lsns.ok().lines() {
        // Whoever is locked out waits for ever: no limit is too short for that, and none too long for a busy machine.
        let sql = "set statement_timeout = '60s'; select i from t";
        assert_eq!(shown(&env, &format!("main@{lsn}"), sql), "1", "at {lsn}");
    }
    assert_eq!(shown(&env, "main@{0 seconds ago}", "select to_regclass('t') is null"), "t");
}

#[test]
fn a_moment_leaves_nothing_behind() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 10000) i");
    let at = env.run(["seal-wal", "main"]).ok();
    let revision = format!("main@{at}");
    let listed = |folder: &str| {
        let entries = std::fs::read_dir(env.repo().join(folder)).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let log = || env.run(["cat-timeline", "main"]).ok();
    let before = (listed("timelines"), listed("datadirs"), listed("instances"), log());
    assert_eq!(shown(&env, &revision, "select count(*) from t"), "10000");
    assert_eq!((listed("timelines"), listed("datadirs"), listed("instances"), log()), before);
    // One that is killed goes on from nothing.
    env.run(["start", "--read-only", &revision]).ok();
    crate::support::checked(std::process::Command::new("kill").args(["-9", &env.postmaster(&revision).to_string()]));
    assert_eq!(shown(&env, &revision, "select count(*) from t"), "10000");
    assert_eq!((listed("timelines"), listed("datadirs"), listed("instances"), log()), before);
}
