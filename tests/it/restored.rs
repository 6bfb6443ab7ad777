//! A directory that `zenith restore` made is a data directory like any other: it can be stored again.

use std::fs;
use std::process::Stdio;

use crate::it::walkthrough::with_plain_postgresql;
use crate::support::{Env, checked, has_strace, pg_program, traced};

/// Stores a restored directory, makes it the branch `name`, and returns how many rows a server on it has.
fn rows_of(env: &Env, name: &str, written: &serde_json::Value) -> String {
    env.run(["update-ref", &format!("refs/branches/{name}"), written["timeline"].as_str().unwrap()]).ok();
    env.run(["start", name]).ok();
    let rows = env.sql(name, "select count(*) from t");
    env.sql(name, "insert into t values (0)");
    env.run(["stop", name]).ok();
    env.run(["start", name]).ok();
    assert_eq!(env.sql(name, "select count(*) from t").parse(), rows.parse::<u32>().map(|rows| rows + 1));
    env.run(["stop", name]).ok();
    rows
}

#[test]
fn write_snapshot_takes_what_restore_made() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g i from generate_series(1, 1000) g");
    env.run(["snapshot"]).ok();
    env.sql("main", "insert into t select g from generate_series(1, 100) g");
    env.run(["tag", "running"]).ok();
    env.sql("main", "insert into t select g from generate_series(1, 10) g");
    env.run(["stop"]).ok();
    env.run(["tag", "stopped"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "insert into t values (1)");
    env.run(["tag", "later"]).ok();
    env.run(["stop", "--mode", "immediate"]).ok();
    for (tag, rows) in [("running", "1100"), ("stopped", "1110"), ("later", "1111")] {
        env.run(["restore", tag, tag]).ok();
        let written = env.json(["write-snapshot", "--json", tag]);
        assert_eq!(rows_of(&env, &format!("from-{tag}"), &written), rows, "{tag}");

        let mut tar = std::process::Command::new("tar");
        let mut tar =
            tar.args(["-C", tag, "-cf", "-", "."]).current_dir(env.path()).stdout(Stdio::piped()).spawn().unwrap();
        let stream = tar.stdout.take().unwrap();
        let written = checked(env.command(["write-snapshot", "--json", "-"]).stdin(stream));
        assert!(tar.wait().unwrap().success());
        assert_eq!(rows_of(&env, &format!("tar-{tag}"), &serde_json::from_str(&written).unwrap()), rows, "{tag}");
    }
    env.run(["fsck"]).ok();
}

#[test]
fn a_snapshot_is_added_to_a_timeline_only_if_its_files_are_of_that() {
    let env = Env::init();
    env.run(["config", "branch.main.replication", "true"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g i from generate_series(1, 1000) g");
    env.run(["stop"]).ok();
    for dir in ["same", "other"] {
        env.run(["restore", "main", dir]).ok();
    }
    // main's WAL goes beyond that of the others, at the same LSNs.
    env.run(["start"]).ok();
    env.sql("main", "insert into t select g from generate_series(1, 100000) g");
    let mut backup = pg_program("pg_basebackup");
    backup.arg("-D").arg(env.path().join("base")).args(["-X", "fetch", "-c", "fast"]);
    checked(backup.envs(env.server_env("main")));
    env.sql("main", "insert into t select g from generate_series(1, 100000) g");
    env.run(["stop"]).ok();
    let change = |dir: &str| with_plain_postgresql(&env, &env.path().join(dir), "insert into t values (0)");
    change("other");
    let add = |dir: &str| env.run(["write-snapshot", "--timeline", "main", dir]);
    add("other").fails(1, &["'", "other' is not of timeline", "the WAL at", "without --timeline"]);
    add("same").ok();
    add("base").ok();
    // A backup without its WAL says nothing of whose it is.
    fs::remove_dir_all(env.path().join("base/pg_wal")).unwrap();
    fs::create_dir(env.path().join("base/pg_wal")).unwrap();
    add("base").fails(1, &["the end of the backup is not in its WAL"]);
    env.run(["write-snapshot", "other"]).ok();
    assert_eq!(env.run(["fsck"]).ok(), "");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from t"), "201000");
}

#[test]
fn write_snapshot_refuses_files_that_a_server_began_to_change() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let label = env.path().join("dir/backup_label");
    let text = fs::read_to_string(&label).unwrap();
    // As if the checkpoint that it names were another.
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.split_once(": ") {
            Some(("START WAL LOCATION" | "CHECKPOINT LOCATION", _)) => {
                format!("{}: 0/1000028", line.split_once(": ").unwrap().0)
            }
            _ => line.to_owned(),
        })
        .collect();
    fs::write(&label, lines.join("\n") + "\n").unwrap();
    env.run(["write-snapshot", "dir"]).fails(1, &["was not cleanly shut down"]);
}

#[test]
fn nothing_is_restored_into_the_repository() {
    let env = Env::init();
    for place in [".zenith/x", ".zenith/tmp/x/y", ".zenith/refs/branches/x"] {
        env.run(["restore", "main", place]).fails(1, &["lies in the repository", "outside"]);
        env.run(["read-snapshot", "main", place]).fails(1, &["lies in the repository"]);
    }
    env.run(["fsck"]).ok();
    // What lies beside it does not.
    env.run(["restore", "main", "x"]).ok();
}

/// It would start on a part of the files, or of the WAL, without a word.
#[test]
fn no_server_starts_on_what_is_not_restored_to_its_end() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 1000) i");
    env.run(["stop"]).ok();
    env.run(["restore", "main", "whole"]).ok();
    let segments = fs::read_dir(env.path().join("whole/pg_wal")).unwrap().flatten();
    let last = segments.map(|entry| entry.file_name()).filter(|name| name.len() == 24).max().unwrap();
    for name in [&format!("pg_wal/{}", last.to_str().unwrap()), "backup_label"] {
        let out = env.path().join("out");
        let at = out.join(name);
        let kill = ["-P", at.to_str().unwrap(), "-e", "inject=openat:signal=SIGKILL"];
        let (code, _) = traced(&env, &kill, &["restore", "main", "out"], |_| {});
        assert_ne!(code, Some(0), "{name}");
        assert!(out.join("PG_VERSION").exists() && !out.join("global/pg_control").exists(), "{name}");
        fs::remove_dir_all(&out).unwrap();
    }
}
