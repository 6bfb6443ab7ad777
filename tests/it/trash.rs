//! INVARIANT 7: what PostgreSQL wrote is not deleted; it goes to the trash and comes back from there.

use std::time::Duration;

use crate::support::Env;

#[test]
fn a_deleted_branch_comes_back_from_the_trash() {
    let env = Env::init();
    env.run(["branch", "try", "main"]).ok();
    env.run(["start", "try"]).ok();
    env.sql("try", "create table t as select 42 as answer");
    env.run(["stop", "try"]).ok();
    let tip = env.run(["rev-parse", "try"]).ok();
    env.run(["branch", "-d", "try"]).ok();
    env.run(["rev-parse", "try"]).fails(1, &[]);
    let rows = env.json(["trash", "--json"]);
    let row = &rows.as_array().unwrap()[0];
    assert_eq!((row["what"].as_str(), row["branch"].as_str()), (Some("timeline"), Some("try")), "{rows}");
    assert_eq!((&row["commits"], row["why"].as_str()), (&true.into(), Some("branch: deleted")));
    assert_eq!(env.json(["fsck", "--json"])["faults"].as_array().unwrap().len(), 0);
    let id = row["id"].as_str().unwrap();
    env.run(["trash", "restore", &id[..4], "back"]).ok();
    assert_eq!(env.run(["rev-parse", "back"]).ok(), tip);
    assert_eq!(env.json(["trash", "--json"]).as_array().unwrap().len(), 0);
    env.run(["start", "back"]).ok();
    assert_eq!(env.sql("back", "select answer from t"), "42");
}

#[test]
fn the_trash_is_emptied_for_good_but_keeps_what_others_need() {
    let env = Env::init();
    env.run(["branch", "try", "main"]).ok();
    env.run(["start", "try"]).ok();
    env.sql("try", "create table t as select 42 as answer");
    env.run(["stop", "try"]).ok();
    let tip = env.run(["rev-parse", "try"]).ok();
    env.run(["branch", "child", "try"]).ok();
    // The child's history has it still: it is not dropped.
    env.run(["branch", "-d", "try"]).ok();
    assert_eq!(env.json(["trash", "--json"]).as_array().unwrap().len(), 0);
    env.run(["branch", "-d", "child"]).ok();
    let rows = env.json(["trash", "--json"]);
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["commits"], true, "{rows}");
    env.run(["trash", "restore", "nothing"]).fails(1, &["the trash has no 'nothing'", "zenith trash"]);
    env.run(["trash", "empty", rows[0]["id"].as_str().unwrap()]).ok();
    env.run(["rev-parse", &tip[..32]]).fails(1, &[]);
    env.run(["rev-parse", "main"]).ok();
    env.run(["fsck"]).ok();
}

#[test]
fn what_is_old_goes_for_good_and_what_is_too_much_only_without_commits() {
    let env = Env::init();
    for name in ["empty", "full"] {
        env.run(["branch", name, "main"]).ok();
    }
    env.run(["start", "full"]).ok();
    env.sql("full", "create table t as select 1");
    env.run(["stop", "full"]).ok();
    env.run(["branch", "-d", "empty"]).ok();
    env.run(["branch", "-d", "full"]).ok();
    let branches = |env: &Env| {
        let rows = env.json(["trash", "--json"]);
        let names = rows.as_array().unwrap().iter().map(|row| row["branch"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(branches(&env), "empty full");
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(branches(&env), "full");
    env.run(["config", "gc.trash", "14 days"]).ok();
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(branches(&env), "full");
    env.run(["config", "gc.trash", "1"]).ok();
    std::thread::sleep(Duration::from_millis(1100));
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(branches(&env), "");
}

#[test]
fn the_data_directory_of_a_server_that_was_not_shut_down_goes_to_the_trash() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    env.run(["stop", "--mode", "immediate"]).ok();
    let rows = env.json(["trash", "--json"]);
    assert_eq!(rows[0]["what"], "data-directory", "{rows}");
    let path = std::path::Path::new(rows[0]["path"].as_str().unwrap()).join("datadir");
    assert!(path.join("local/journal").exists() || path.join("data/PG_VERSION").exists(), "{}", path.display());
    env.run(["trash", "restore", rows[0]["id"].as_str().unwrap()]).fails(1, &["files"]);
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select answer from t"), "42");
    env.run(["stop"]).ok();
    env.run(["trash", "empty"]).ok();
    assert!(!path.exists());
    assert_eq!(env.json(["trash", "--json"]).as_array().unwrap().len(), 0);
}

#[test]
fn what_a_command_sets_aside_it_does_not_remove_and_commits_never_go_by_the_way() {
    let env = Env::init();
    env.run(["branch", "full", "main"]).ok();
    env.run(["start", "full"]).ok();
    env.sql("full", "create table t as select 1");
    env.run(["stop", "full"]).ok();
    env.run(["branch", "-d", "full"]).ok();
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    env.run(["stop", "--mode", "immediate"]).ok();
    let what = |env: &Env| {
        let rows = env.json(["trash", "--json"]);
        let what = rows.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap().to_owned());
        what.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(what(&env), "timeline data-directory");
    // As after a jump of the clock: all of it is old.
    env.run(["config", "gc.trash", "1"]).ok();
    std::thread::sleep(Duration::from_millis(1100));
    env.run(["start"]).ok();
    env.sql("main", "insert into t values (43)");
    env.run(["stop"]).ok();
    assert_eq!(what(&env), "timeline");
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(what(&env), "");
}
