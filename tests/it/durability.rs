//! INVARIANT 8: what a command acknowledges is durable, and what it relies on too. Each sync is counted, so that one
//! that gets lost, or comes on top, is noticed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::support::{Env, NOBODY, is_root};

/// Runs a command. Returns the paths of what it synced, a line each.
fn trace(env: &Env, args: &[&str]) -> String {
    let trace = env.path().join("trace");
    let _ = fs::remove_file(&trace);
    let output = env.command(args).env("ZENITH_TRACE_SYNC", &trace).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(&trace).unwrap_or_default()
}

/// Runs a command. Returns how often it synced what: the path in the repository, without ids and unfinished names.
fn syncs(env: &Env, args: &[&str]) -> BTreeMap<String, usize> {
    let trace = trace(env, args);
    let repo = env.repo().canonicalize().unwrap();
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        let path = line.strip_prefix(&format!("{}", repo.display())).unwrap_or(line).trim_start_matches('/');
        let is_id = |part: &str| part.len() > 20 && part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let name = |part: &str| match part {
            _ if part.starts_with("timeline-") => "new".to_owned(),
            _ if is_id(part.split('.').next().unwrap_or_default()) => "ID".to_owned(),
            _ => part.to_owned(),
        };
        let parts: Vec<String> = path.split('/').map(name).collect();
        let name = match parts[0].as_str() {
            "" => "repository".to_owned(),
            "tmp" if parts.iter().any(|part| part == "new") => "tmp/timeline".to_owned(),
            "tmp" => "tmp".to_owned(),
            "objects" if parts.len() > 1 && parts[1].len() == 2 => "objects/fan".to_owned(),
            _ => parts.join("/"),
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

/// Makes the folders of all objects: which one an object would make is a matter of its hash.
fn have_all_fans(env: &Env) {
    let fans = (0..256).map(|fan| env.repo().join(format!("objects/{fan:02x}")));
    fans.for_each(|fan| fs::create_dir_all(fan).unwrap());
}

/// Checks what a command syncs: names and how often, in any order.
#[track_caller]
fn assert_syncs(env: &Env, args: &[&str], expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(syncs(env, args), expected, "{args:?}");
}

#[test]
fn each_command_syncs_what_it_says_and_what_it_relies_on() {
    let env = Env::init();
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let timeline = timeline.as_str();
    // It is to be had by another branch, and its deletion keeps nothing.
    env.run(["branch", "keep"]).ok();
    env.run(["update-ref", "-d", "refs/branches/main"]).ok();
    let set = ["update-ref", "refs/branches/x", timeline];
    let relied_on = [("timelines", 1), ("timelines/ID/log", 1), ("timelines/ID/snapshots", 1)];
    let check = |args: &[&str], own: &[(&str, usize)], relied_on: &[(&str, usize)]| {
        assert_syncs(&env, args, &[own, relied_on].concat());
    };
    // The ref and its log, each with its folder, and the folder above, in which that may be new.
    let log = [("logs/refs", 1), ("logs/refs/branches", 1), ("logs/refs/branches/x", 1)];
    check(&set, &[&log[..], &[("refs", 1), ("refs/branches", 1), ("tmp", 1)]].concat(), &relied_on);
    // It is so already, but whoever did it may not have synced it.
    check(&set, &[("refs/branches", 1)], &relied_on);
    check(&["update-ref", "-d", "refs/branches/x"], &[&log[..], &[("refs/branches", 1)]].concat(), &[]);
    check(&["update-ref", "-d", "refs/branches/x"], &[("refs/branches", 1)], &[]);
    env.run(["update-ref", "refs/branches/main", timeline]).ok();
    let log = [("logs", 1), ("logs/refs", 1), ("logs/refs/tags", 1), ("logs/refs/tags/v1", 1)];
    let tag = [&log[..], &[("refs", 1), ("refs/tags", 1), ("tmp", 1)]].concat();
    check(&["update-ref", "refs/tags/v1", "main"], &tag, &relied_on);
    check(&["symbolic-ref", "refs/branches/x"], &[("logs/HEAD", 1), ("repository", 2), ("tmp", 1)], &[]);
    check(&["symbolic-ref", "refs/branches/x"], &[("repository", 1)], &[]);
    env.run(["symbolic-ref", "refs/branches/main"]).ok();
    // A timeline is six syncs in tmp/, and one of the folder that gets it.
    let new = [("repository", 1), ("timelines", 1), ("tmp", 4), ("tmp/timeline", 6)];
    assert_syncs(&env, &["fork-timeline", "main"], &[&new[..], &[("timelines", 2)], &relied_on[1..]].concat());
    let log = [("logs/refs", 1), ("logs/refs/branches", 1), ("logs/refs/branches/y", 1)];
    let branch = [&log[..], &[("refs", 1), ("refs/branches", 1), ("tmp", 5), ("timelines", 3)], &relied_on[1..]];
    assert_syncs(&env, &["branch", "y"], &[&new[..], &branch.concat()].concat());
    let log = [("logs/refs", 2), ("logs/refs/branches", 2), ("logs/refs/branches/z", 1)];
    check(&["branch", "-m", "y", "z"], &[&log[..], &[("refs", 1), ("refs/branches", 2), ("tmp", 2)]].concat(), &[]);
    check(&["config", "proxy.max_instances", "3"], &[("repository", 1), ("tmp", 1)], &[]);
    check(&["rev-parse", "main"], &[], &[]);
    // Two objects of WAL and a pack, a timeline, its log with the WAL, and its snapshot.
    env.run(["restore", "main", "out"]).ok();
    have_all_fans(&env);
    let stored = [("objects", 3), ("objects/fan", 2), ("objects/pack", 2), ("tmp", 6), ("timelines/ID/log", 3)];
    let own = [("repository", 1), ("timelines", 1), ("tmp/timeline", 6), ("timelines/ID/snapshots", 1)];
    check(&["write-snapshot", "out"], &stored, &own);
}

#[test]
fn a_new_repository_has_a_name_that_is_durable() {
    let env = Env::new();
    let synced = trace(&env, &["init", "new/shop"]);
    let top = env.path().canonicalize().unwrap();
    for folder in [top.clone(), top.join("new"), top.join("new/shop")] {
        assert_eq!(synced.lines().filter(|line| Path::new(line) == folder).count(), 1, "{folder:?}:\n{synced}");
    }
}

/// As /home is on many machines.
#[test]
fn a_new_repository_may_lie_below_a_folder_that_cannot_be_read() {
    if !is_root() {
        return;
    }
    let env = Env::of_user(NOBODY);
    let closed = env.path().join("closed");
    fs::create_dir_all(closed.join("mine")).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o711)).unwrap();
    chown(closed.join("mine"), Some(NOBODY), Some(NOBODY)).unwrap();
    env.run(["init", "closed/mine/new"]).ok();
    env.run(["restore", "main", "closed/mine/restored"]).ok();
}

#[test]
fn wal_that_is_stored_already_is_made_durable() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    let wal = env.repo().join("timelines").join(&env.run(["rev-parse", "main"]).ok()[..32]).join("wal");
    let name = fs::read_dir(&wal).unwrap().flatten().find(|entry| entry.file_name().len() == 24).unwrap();
    fs::copy(name.path(), env.path().join("segment")).unwrap();
    have_all_fans(&env);
    let object = [("objects", 1), ("objects/fan", 1)];
    assert_syncs(&env, &["hash-wal", "-w", "segment"], &[&object[..], &[("tmp", 1)]].concat());
    assert_syncs(&env, &["hash-wal", "-w", "segment"], &object);
    env.run(["seal-wal", "main"]).ok();
    env.sql("main", "insert into t values (1)");
    // The list of snapshots too is made durable by who locks the log.
    let sealed = [&object[..], &[("timelines/ID/log", 2), ("timelines/ID/snapshots", 1), ("tmp", 1)]].concat();
    assert_syncs(&env, &["seal-wal", "main"], &sealed);
    // "Sealed" is not said on the word of a line that nobody may have synced.
    assert_syncs(&env, &["seal-wal", "main"], &[("timelines/ID/log", 1), ("timelines/ID/snapshots", 1)]);
}

#[test]
fn files_that_were_restored_are_durable_before_a_server_runs_on_them() {
    let env = Env::init();
    let synced = syncs(&env, &["start", "--eager"]);
    let count = |path: &str| synced.get(path).copied().unwrap_or_default();
    for path in ["PG_VERSION", "global/pg_control", "base/1/1259", "base/1", "base", ""] {
        let path = format!("datadirs/ID/data/{path}");
        assert_eq!(count(path.trim_end_matches('/')), 1, "{path}: {synced:?}");
    }
    env.run(["stop"]).ok();
}

#[test]
fn what_is_put_away_and_packed_is_durable() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 1000) i");
    env.run(["branch", "x"]).ok();
    env.run(["start", "x"]).ok();
    env.sql("x", "insert into t values (0)");
    env.run(["stop", "--all"]).ok();
    let id = || env.json(["trash", "--json"])[0]["id"].as_str().unwrap().to_owned();
    let log = |branch| [("logs/refs", 1), ("logs/refs/branches", 1), (branch, 1), ("refs/branches", 1), ("trash", 1)];
    let (x, y) = (log("logs/refs/branches/x"), log("logs/refs/branches/y"));
    // The entry, before the ref goes; and the instance.
    let entry = [("repository", 1), ("tmp", 7), ("instances/pg2", 1)];
    assert_syncs(&env, &["branch", "-d", "x"], &[&x[..], &entry].concat());
    assert_syncs(&env, &["trash"], &[]);
    // The ref and what it relies on, before the entry goes.
    let relied_on = [("timelines", 1), ("timelines/ID/log", 1), ("timelines/ID/snapshots", 1)];
    let restored = [&y[..], &[("refs", 1), ("tmp", 1)], &relied_on].concat();
    assert_syncs(&env, &["trash", "restore", &id(), "y"], &restored);
    assert_syncs(&env, &["branch", "-d", "y"], &[&y[..], &[("repository", 1), ("tmp", 5)]].concat());
    // The entry, then the timeline that nothing else needs.
    assert_syncs(&env, &["trash", "empty", &id()], &[("timelines", 1), ("trash", 1)]);
    // The new pack, its index and the index of all, before anything is removed.
    assert_syncs(&env, &["repack"], &[("objects", 2), ("objects/pack", 9), ("tmp", 3)]);
    // As cp does, but for the name of pg_control: the repository has it all.
    assert_syncs(&env, &["read-snapshot", "main", "out"], &[("tmp", 1)]);
}
