//! INVARIANT 7: what PostgreSQL wrote is not deleted; it goes to the trash and comes back from there.

use std::time::Duration;

use crate::support::Env;

/// A repository with main, and a branch that has a table of its own.
fn with_branch(name: &str) -> Env {
    let env = Env::init();
    env.run(["branch", name, "main"]).ok();
    let config = format!("branch.{name}.postgres.max_prepared_transactions");
    env.run(["config", &config, "2"]).ok();
    write(&env, name, "create table t as select 42 as answer");
    env
}

/// Starts the server of a branch, has it do something, and stops it.
fn write(env: &Env, branch: &str, sql: &str) {
    env.run(["start", branch]).ok();
    env.sql(branch, sql);
    env.run(["stop", branch]).ok();
}

/// Returns what the trash holds, in words.
fn held(env: &Env, key: &str) -> String {
    let rows = env.json(["trash", "--json"]);
    let words = rows.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap_or_default().to_owned());
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the id of the only entry, which has to be of a kind and hold commits.
#[track_caller]
fn only(env: &Env, what: &str) -> String {
    let rows = env.json(["trash", "--json"]);
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert_eq!((rows[0]["what"].as_str(), &rows[0]["commits"]), (Some(what), &true.into()), "{rows}");
    rows[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_deleted_branch_comes_back_from_the_trash() {
    let env = with_branch("try");
    let tip = env.run(["rev-parse", "try"]).ok();
    env.run(["branch", "-d", "try"]).ok();
    assert!(
        !env.run(["config", "--list"]).ok().contains("branch.try"),
        "a new one of that name would have its settings"
    );
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
    let env = with_branch("try");
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
    let env = with_branch("full");
    env.run(["branch", "empty", "main"]).ok();
    env.run(["branch", "-d", "empty"]).ok();
    env.run(["branch", "-d", "full"]).ok();
    let branches = |env: &Env| held(env, "branch");
    assert_eq!(branches(&env), "empty full");
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(branches(&env), "full");
    env.run(["config", "gc.trash", "14 days"]).ok();
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(branches(&env), "full");
    env.run(["config", "gc.trash", "1s"]).ok();
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
    // Its size was noted when it came: a look at the repository's health walks no files.
    let bytes = rows[0]["bytes"].as_u64().unwrap();
    std::fs::write(path.join("more"), vec![1; 1 << 20]).unwrap();
    assert!(bytes > 0);
    assert_eq!(env.json(["status", "--json"])["health"]["trash_bytes"], bytes);
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
    let env = with_branch("full");
    env.run(["branch", "-d", "full"]).ok();
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    env.run(["stop", "--mode", "immediate"]).ok();
    let what = |env: &Env| held(env, "what");
    assert_eq!(what(&env), "timeline data-directory");
    // As after a jump of the clock: all of it is old.
    env.run(["config", "gc.trash", "1s"]).ok();
    std::thread::sleep(Duration::from_millis(1100));
    env.run(["start"]).ok();
    env.sql("main", "insert into t values (43)");
    env.run(["stop"]).ok();
    assert_eq!(what(&env), "timeline");
    env.run(["trash", "empty", "--expired"]).ok();
    assert_eq!(what(&env), "");
}

#[test]
fn what_a_ref_was_goes_to_the_trash_if_no_other_ref_leads_there() {
    let env = with_branch("try");
    let amid = env.run(["rev-parse", "try"]).ok();
    write(&env, "try", "insert into t values (43)");
    let tip = env.run(["rev-parse", "try"]).ok();
    env.run(["branch", "fork", &amid]).ok();
    let restored = |what: &str, name: &str, at: &str| {
        env.run(["trash", "restore", &only(&env, what), name]).ok();
        assert_eq!(env.run(["rev-parse", name]).ok(), at, "{name}");
    };
    // The fork has only some of it.
    env.run(["branch", "-d", "try"]).ok();
    restored("timeline", "back", &tip);
    env.run(["tag", "v1", "back", "-m", "some text"]).ok();
    env.run(["branch", "-f", "back", &amid]).ok();
    // Only the tag has all of it now.
    assert_eq!(held(&env, "what"), "");
    env.run(["tag", "-d", "v1"]).ok();
    restored("tag", "v2", &tip);
    assert_eq!(env.json(["tag", "--json"])[0]["message"], "some text");
    env.run(["tag", "-f", "v2", "main"]).ok();
    restored("tag", "v3", &tip);
    env.run(["update-ref", "-d", "refs/tags/v3"]).ok();
    restored("tag", "v4", &tip);
    env.run(["update-ref", "refs/branches/raw", &tip[..32]]).ok();
    env.run(["tag", "-d", "v4"]).ok();
    assert_eq!(held(&env, "what"), "", "the branch names the same timeline");
    env.run(["update-ref", "refs/branches/raw", &env.run(["fork-timeline", "main"]).ok()]).ok();
    restored("timeline", "again", &tip);
    env.run(["update-ref", "-d", "refs/branches/again"]).ok();
    restored("timeline", "again", &tip);
    // What goes on from where it was has all of it.
    env.run(["branch", "-f", "again", "again"]).ok();
    assert_eq!(held(&env, "what"), "");
    env.run(["fsck"]).ok();
}

#[test]
fn commits_are_looked_for_when_an_entry_is_about_to_go() {
    let env = with_branch("try");
    let tip = env.run(["rev-parse", "try"]).ok();
    env.run(["branch", "child", "try"]).ok();
    env.run(["branch", "only-prepared", "main"]).ok();
    env.run(["config", "branch.only-prepared.postgres.max_prepared_transactions", "2"]).ok();
    write(&env, "only-prepared", "begin; create table p (); prepare transaction 'p'");
    env.run(["branch", "-d", "child"]).ok();
    assert_eq!(env.json(["trash", "--json"])[0]["commits"], false, "it has none of its own, and try those of try");
    env.run(["branch", "-d", "try"]).ok();
    env.run(["branch", "-d", "only-prepared"]).ok();
    env.run(["branch", "none", "main"]).ok();
    env.run(["branch", "-d", "none"]).ok();
    let rows = env.json(["trash", "--json"]);
    let commits = rows.as_array().unwrap().iter().map(|row| row["commits"].as_bool().unwrap());
    assert_eq!(held(&env, "branch"), "child try only-prepared none");
    assert_eq!(commits.collect::<Vec<_>>(), [true, true, true, false], "{rows}");
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["config", "gc.trash", "1s"]).ok();
    std::thread::sleep(Duration::from_millis(1100));
    // Whatever tidies up takes nothing that has some.
    env.run(["branch", "another", "main"]).ok();
    env.run(["branch", "-d", "another"]).ok();
    assert_eq!(held(&env, "branch"), "child try only-prepared another");
    // By what is left of the one the commits of the other are reached still.
    env.run(["trash", "empty", rows[1]["id"].as_str().unwrap()]).ok();
    env.run(["branch", "another", "main"]).ok();
    env.run(["branch", "-d", "another"]).ok();
    assert_eq!(held(&env, "branch"), "child only-prepared another");
    env.run(["trash", "restore", rows[0]["id"].as_str().unwrap()]).ok();
    assert_eq!(env.run(["rev-parse", "child~1"]).ok(), tip);
    env.run(["start", "child"]).ok();
    assert_eq!(env.sql("child", "select answer from t"), "42");
}

#[test]
fn a_damaged_entry_stops_nothing_but_what_would_go_for_good() {
    let env = with_branch("try");
    env.run(["branch", "sound", "try"]).ok();
    env.run(["branch", "-d", "sound"]).ok();
    env.run(["branch", "-d", "try"]).ok();
    let rows = env.json(["trash", "--json"]);
    let [sound, damaged] = [0, 1].map(|number| rows[number]["id"].as_str().unwrap());
    let file = env.repo().join("trash").join(damaged).join("entry");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    env.run(["config", "gc.trash_limit", "0"]).ok();
    env.run(["status"]).ok();
    write(&env, "main", "create table m ()");
    env.run(["branch", "other", "main"]).ok();
    env.run(["branch", "-d", "other"]).ok();
    assert_eq!(held(&env, "what"), "damaged timeline timeline", "nothing goes by the way");
    let shown = env.run(["trash"]).ok();
    assert!(shown.contains(damaged) && shown.contains("is damaged") && shown.contains("sound"), "{shown}");
    env.run(["fsck"]).fails(3, &[]);
    let hint = format!("zenith trash empty {damaged}");
    env.run(["trash", "restore", damaged]).fails(3, &["is damaged"]);
    env.run(["trash", "empty"]).fails(3, &["is damaged", &hint]);
    env.run(["trash", "empty", sound]).fails(3, &["is damaged", &hint]);
    std::fs::write(&file, text).unwrap();
    env.run(["fsck"]).ok();
    std::fs::write(&file, "").unwrap();
    env.run(["trash", "empty", damaged]).ok();
    env.run(["trash", "empty"]).ok();
    assert_eq!(held(&env, "what"), "");
    env.run(["fsck"]).ok();
}

#[test]
fn what_a_server_may_still_commit_is_had_by_no_other_ref() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    // These have all that there is so far.
    env.run(["tag", "v1", "main"]).ok();
    env.run(["branch", "copy", "v1"]).ok();
    env.run(["update-ref", "-d", "refs/branches/main"]).ok();
    assert_eq!(held(&env, "branch"), "main");
    assert_eq!(held(&env, "what"), "timeline");
}

#[test]
fn what_a_server_commits_after_its_branch_was_deleted_is_in_the_trash() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.run(["update-ref", "-d", "refs/branches/main"]).ok();
    env.run(["trash", "empty"]).ok();
    // By its socket, as a client that was there before.
    let rows = env.json(["pg", "list", "--json"]);
    let port = rows[0]["port"].as_u64().unwrap().to_string();
    let mut psql = std::process::Command::new("psql");
    psql.args(["-XqAt", "-U", "postgres", "-p", &port, "-h"]).arg(env.repo().join("run"));
    crate::support::checked(psql.args(["-c", "insert into t values (6)", "postgres"]));
    env.run(["stop", "--all"]).ok();
    let rows = env.json(["trash", "--json"]);
    let id = rows[0]["id"].as_str().unwrap().to_owned();
    env.run(["trash", "restore", &id, "back"]).ok();
    env.run(["start", "back"]).ok();
    assert_eq!(env.sql("back", "select i from t"), "6");
}

#[test]
fn what_a_server_commits_after_its_branch_was_moved_is_not_taken_for_nothing() {
    let env = Env::init();
    env.run(["config", "gc.trash", "1s"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["branch", "x"]).ok();
    let other = env.run(["fork-timeline", "x"]).ok();
    env.run(["update-ref", "refs/branches/main", &other]).ok();
    env.sql("main", "insert into t values (2)");
    std::thread::sleep(Duration::from_millis(1100));
    env.run(["stop", "main"]).ok();
    let rows = env.json(["trash", "--json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == "main").unwrap();
    assert_eq!(row["commits"], true, "{rows}");
    env.run(["trash", "restore", row["id"].as_str().unwrap(), "back"]).ok();
    env.run(["start", "back"]).ok();
    assert_eq!(env.sql("back", "select count(*) from t"), "2");
}
