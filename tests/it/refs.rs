//! Refs mean what they say, and nothing of a branch is lost when its name or the config changes.

use std::process::Stdio;

use crate::support::Env;

#[test]
fn a_branch_is_a_whole_timeline_and_head_a_branch() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    let amid = format!("main@{}", env.sql("main", "select pg_current_wal_insert_lsn()"));
    env.sql("main", "insert into t values (1)");
    env.run(["stop"]).ok();
    let [timeline, another] = [(); 2].map(|()| env.run(["fork-timeline", "main"]).ok());
    env.run(["update-ref", "refs/branches/try", &amid]).fails(1, &["whole timeline", "fork-timeline"]);
    env.run(["update-ref", "refs/branches/try", &timeline]).ok();
    env.run(["update-ref", "refs/branches/try", &another, &amid]).fails(1, &["whole timeline"]);
    env.run(["update-ref", "refs/tags/v1", &amid]).ok();
    env.run(["symbolic-ref", "refs/tags/v1"]).fails(1, &["HEAD names a branch", "refs/tags/v1"]);
    assert_eq!(env.run(["symbolic-ref"]).ok(), "refs/branches/main");
    // Some commands would take the name for the one, and some for the other.
    env.run(["tag", "main", "v1"]).fails(1, &["a branch named 'main' already exists"]);
    env.run(["tag", "-f", "try", &amid]).fails(1, &["a branch named 'try'"]);
    env.run(["branch", "v1"]).fails(1, &["a tag named 'v1' already exists"]);
    env.run(["config", "branch.try.live", "true"]).ok();
    env.run(["branch", "-m", "try", "v1"]).fails(1, &["a tag named 'v1'"]);
    env.run(["config", "branch.v1.live"]).fails(1, &["not set"]);
    env.run(["update-ref", "refs/branches/v1", &another]).fails(1, &["a tag named 'v1'"]);
}

#[test]
fn the_past_of_a_branch_names_only_what_is_there() {
    let env = Env::init();
    env.run(["branch", "x"]).ok();
    env.run(["start", "x"]).ok();
    env.sql("x", "create table t (i int)");
    env.run(["stop", "x"]).ok();
    let first = env.run(["rev-parse", "x"]).ok();
    env.run(["branch", "-f", "x", "main"]).ok();
    let second = env.run(["rev-parse", "x"]).ok();
    // A run leaves nothing in the log.
    env.run(["start", "x"]).ok();
    env.sql("x", "create table u (i int)");
    env.run(["stop", "x"]).ok();
    assert_eq!(env.run(["rev-parse", "x@{0}"]).ok()[..32], second[..32]);
    let second = env.run(["rev-parse", "x"]).ok();
    assert_eq!(env.run(["rev-parse", "x", "x@{1}"]).ok(), format!("{second}\n{first}"));
    env.run(["rev-parse", "x@{9}"]).fails(1, &["the log of"]);
    let log = env.json(["reflog", "x", "--json"]);
    let rows = log.as_array().unwrap();
    assert_eq!((rows[0]["new"].as_str().unwrap(), rows[0]["old"].as_str().unwrap()), (&second[..32], &first[..32]));
}

#[test]
fn a_renamed_branch_keeps_its_settings_and_its_log() {
    let env = Env::init();
    env.run(["branch", "try"]).ok();
    env.run(["config", "branch.try.postgres.work_mem", "8MB"]).ok();
    let log = env.json(["reflog", "try", "--json"]).as_array().unwrap().len();
    env.run(["branch", "-m", "try", "better"]).ok();
    assert_eq!(env.run(["config", "branch.better.postgres.work_mem"]).ok(), "8MB");
    env.run(["config", "branch.try.postgres.work_mem"]).fails(1, &["not set"]);
    assert_eq!(env.json(["reflog", "better", "--json"]).as_array().unwrap().len(), log + 1);
    env.run(["start", "better"]).ok();
    assert_eq!(env.sql("better", "show work_mem"), "8MB");
}

#[test]
fn settings_that_are_changed_at_once_are_all_kept() {
    let env = Env::init();
    let key = |number: usize| format!("branch.b{number}.idle_timeout");
    let set = |number: usize| {
        env.command(["config", &key(number), "1h"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for number in 0..24 {
        env.run(["branch", &format!("b{number}")]).ok();
    }
    let commands: Vec<_> = (0..24).map(set).collect();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let list = env.run(["config", "--list"]).ok();
    let lost: Vec<usize> = (0..24).filter(|number| !list.contains(&key(*number))).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}
