//! A repository of format 2, made by the program as it was, becomes one of format 3.
//!
//! `tests/data/format-2.tar.zst` has a cluster of PostgreSQL 15 with branches, tags, a branch in the trash, forks of forks without WAL of
//! their own, and a branch whose server was killed with its file system, so that its last commit is in the active WAL alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Env, checked, has_strace};

/// What the program that made it showed, read-only.
const MOMENTS: [(&str, &str); 14] = [
    ("main", "1,2,4,5,6"),
    ("v1", "1"),
    ("v2", "1,2,3,33"),
    ("dev", "1,2,3,33"),
    ("old", "1,7"),
    ("c1", "1,2,3,33"),
    ("c2", "1,2,3,33"),
    ("c3", "1,2,3,8,33"),
    ("main~1", "1,2,4"),
    ("c3~1", "1,2,3,33"),
    ("c3~2", "1,2,3,33"),
    ("old~1", "1"),
    ("main@{1}", "1,2,4"),
    ("dev@0/1B7BCD8", "1,2,3"),
];
const ROWS: &str = "select string_agg(i::text, ',' order by i) from t";

/// Unpacks it into a folder.
fn unpack(into: &Path) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-2.tar.zst");
    let packed = zstd::Decoder::new(File::open(packed).unwrap()).unwrap();
    tar::Archive::new(packed).unpack(into).unwrap();
}

/// Returns the files of the timelines, and the config, but for who writes to them: each migration makes a clone.
fn what_became(repo: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let folders = fs::read_dir(repo.join("timelines")).unwrap().flatten().map(|entry| entry.path());
    for folder in folders.filter(|path| path.is_dir()) {
        for path in fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.lines().filter(|line| !line.starts_with("writer ")).collect::<Vec<_>>().join("\n");
            found.insert(path.strip_prefix(repo).unwrap().to_owned(), text);
        }
    }
    found.insert("config".into(), fs::read_to_string(repo.join("config")).unwrap());
    found
}

#[test]
fn every_moment_is_what_it_was() {
    let env = Env::new();
    unpack(env.path());
    // Whoever does not migrate is told.
    for words in [&["log"][..], &["start"], &["fsck"], &["branch", "x"]] {
        env.run(words).fails(1, &["format version 2", "zenith migrate"]);
    }
    assert!(env.run(["migrate"]).ok().contains("format 3 now; timelines: "));
    assert!(env.run(["migrate"]).err.contains("has format 3 already"));
    assert!(env.repo().join("format-2/config").is_file());
    assert!(fs::read_dir(env.repo().join("tmp")).unwrap().next().is_none());
    // The server that was killed left its WAL, and its files.
    env.run(["start", "crashed"]).ok();
    assert_eq!(env.sql("crashed", ROWS), "1,2,4,5,6,10");
    assert_eq!(env.sql("crashed", "show work_mem"), "77MB");
    env.run(["stop", "crashed"]).ok();
    for (revision, rows) in MOMENTS {
        env.run(["start", "--read-only", revision]).ok();
        assert_eq!(env.sql(revision, ROWS), rows, "{revision}");
        env.run(["stop", revision]).ok();
    }
    assert_eq!(env.run(["fsck"]).ok(), "");
    // History goes on, also from what was in the trash.
    let trash = env.json(["trash", "--json"]);
    let gone = trash.as_array().unwrap().iter().find(|entry| entry["branch"] == "gone").unwrap();
    env.run(["trash", "restore", gone["id"].as_str().unwrap()]).ok();
    for (branch, rows) in [("gone", "1,2,4,5,6,9,100"), ("c3", "1,2,3,8,33,100"), ("main", "1,2,4,5,6,100")] {
        env.run(["start", branch]).ok();
        env.sql(branch, "insert into t values (100)");
        env.run(["stop", branch]).ok();
        env.run(["start", branch]).ok();
        assert_eq!(env.sql(branch, ROWS), rows);
        env.run(["stop", branch]).ok();
    }
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn a_damaged_timeline_is_left_as_it_is_until_it_is_mended() {
    let env = Env::new();
    unpack(env.path());
    let id = fs::read_to_string(env.repo().join("refs/branches/old")).unwrap().trim().to_owned();
    let dir = env.repo().join("timelines").join(&id);
    let (history, log) = (fs::read(dir.join("history")).unwrap(), fs::read(dir.join("log")).unwrap());
    // As a call that was killed left it, before that was damaged.
    for name in ["origin", "log.new", "snapshots"] {
        fs::write(dir.join(name), "of another time").unwrap();
    }
    fs::create_dir(env.repo().join(".migrate-killed")).unwrap();
    // What format 2 refused, too.
    fs::write(dir.join("history"), "").unwrap();
    env.run(["migrate"]).fails(3, &["stay as they are: 1", "zenith fsck"]);
    assert_eq!(fs::read(dir.join("log")).unwrap(), log);
    assert!(!dir.join("origin").exists() && !dir.join("log.new").exists());
    assert!(!env.repo().join(".migrate-killed").exists());
    assert!(env.run(["fsck"]).out.contains(&id));
    // It is in nobody's way.
    let timelines = || fs::read_dir(env.repo().join("timelines")).unwrap().count();
    let before = timelines();
    env.run(["start"]).ok();
    env.run(["stop"]).ok();
    assert_eq!(timelines(), before, "nothing was committed");
    fs::write(dir.join("history"), history).unwrap();
    env.run(["migrate"]).ok();
    env.run(["start", "--read-only", "old"]).ok();
    assert_eq!(env.sql("old", ROWS), "1,7");
    env.run(["stop", "old"]).ok();
    env.run(["stop", "--all"]).ok();
    assert_eq!(env.run(["fsck"]).ok(), "");
    assert!(env.run(["migrate"]).err.contains("has format 3 already"));
    // One that comes again later, from a backup, and is another timeline's: nothing says which of them is right.
    fs::write(dir.join("history"), format!("{} 0/1\n", "7".repeat(32))).unwrap();
    env.run(["migrate"]).fails(3, &["stay as they are: 1"]);
    assert!(dir.join("history").is_file());
    env.run(["start", "--read-only", "old"]).ok();
    assert_eq!(env.sql("old", ROWS), "1,7");
}

#[test]
fn a_repository_in_use_is_not_touched() {
    let env = Env::new();
    unpack(env.path());
    let before = what_became(&env.repo());
    let alive = fs::read_dir(env.repo().join("timelines")).unwrap().flatten().map(|entry| entry.path().join("alive"));
    let alive = alive.into_iter().find(|path| path.is_file()).unwrap();
    let lock = File::options().write(true).open(alive).unwrap();
    lock.lock().unwrap();
    env.run(["migrate"]).fails(1, &["in use", "alive", "zenith stop --all"]);
    assert_eq!(what_became(&env.repo()), before);
    drop(lock);
    env.run(["migrate"]).ok();
}

#[test]
fn a_migration_that_is_killed_anywhere_goes_on() {
    if !has_strace() {
        return;
    }
    let env = Env::new();
    unpack(env.path());
    let original = env.path().join("original");
    fs::rename(env.repo(), &original).unwrap();
    // It looks at nothing else.
    let fresh = || {
        let _ = fs::remove_dir_all(env.repo());
        fs::create_dir(env.repo()).unwrap();
        for name in ["config", "HEAD", "refs", "timelines", "tmp"] {
            checked(Command::new("cp").arg("-a").arg(original.join(name)).arg(env.repo()));
        }
    };
    fresh();
    env.run(["migrate"]).ok();
    let expected = what_became(&env.repo());
    let calls = "rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,mkdir";
    let (mut number, mut under_way) = (0, 0);
    loop {
        number += 1;
        fresh();
        let plain = env.command(["migrate"]);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject={calls}:signal=SIGKILL:when={number}"));
        traced.arg(plain.get_program()).args(plain.get_args()).current_dir(env.path());
        traced.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if traced.output().unwrap().status.success() {
            break;
        }
        let looked = env.run(["log"]);
        let is_done = !looked.err.contains("zenith migrate");
        under_way += usize::from(looked.err.contains("did not come to its end"));
        env.run(["migrate"]).ok();
        assert_eq!(what_became(&env.repo()), expected, "killed at call {number}, {is_done}");
    }
    assert!(number > 100 && under_way > 20, "{number} calls, {under_way} amid the change");
}
