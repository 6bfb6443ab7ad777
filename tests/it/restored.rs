//! A directory that `zenith restore` made is a data directory like any other: it can be stored again.

use std::process::Stdio;

use crate::support::{Env, checked};

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
fn write_snapshot_refuses_files_that_a_server_began_to_change() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let label = env.path().join("dir/backup_label");
    let text = std::fs::read_to_string(&label).unwrap();
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
    std::fs::write(&label, lines.join("\n") + "\n").unwrap();
    env.run(["write-snapshot", "dir"]).fails(1, &["was not cleanly shut down"]);
}
