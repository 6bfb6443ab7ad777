//! Plumbing: stable output, and that it composes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use zenith::objects::pg::Lsn;
use zenith::objects::pg::wal::segment_header;
use zenith::objects::snapshot::{Node, Snapshot};
use zenith::objects::store::Store;
use zenith::objects::store::file::StoredFile;
use zenith::objects::timeline::TimelineId;
use zenith::objects::{Kind, ObjectId};
use zenith::plumbing::datadir::restore::restore;
use zenith::plumbing::datadir::scan::Scan;
use zenith::plumbing::datadir::write::{Statistics, TreeWriter};
use zenith::progress::Hidden;

use crate::support::Env;

fn same(a: &Path, b: &Path) {
    let output = Command::new("diff").arg("-r").arg(a).arg(b).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_snapshot_gives_every_file_back_and_a_delta_is_one() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g, repeat(md5(g::text), 10) m from generate_series(1, 30000) g");
    env.sql("main", "create unlogged table u as select 1; create temp table tmp as select 1");
    env.run(["stop"]).ok();
    // A plain directory, stopped cleanly by PostgreSQL itself, as the source.
    env.run(["restore", "main", "plain"]).ok();
    let plain = env.path().join("plain");
    fs::remove_file(plain.join("backup_label")).unwrap();
    let full = env.json(["write-snapshot", "--json", "plain"]);
    let id = full["snapshot"].as_str().unwrap();
    assert_eq!(env.run(["cat-object", "-t", id]).ok(), "snapshot");
    env.run(["read-snapshot", id, "back"]).ok();
    // What pg_basebackup leaves out is not in it.
    for entry in fs::read_dir(plain.join("pg_wal")).unwrap().flatten() {
        if entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap()
        } else {
            fs::remove_file(entry.path()).unwrap()
        }
    }
    same(&plain, &env.path().join("back"));
    let listing = env.json(["ls-snapshot", id, "--json"]);
    let paths: Vec<&str> = listing.as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert!(paths.is_sorted() && paths.contains(&"global/pg_control") && !paths.contains(&"postmaster.pid"));

    env.run(["start"]).ok();
    env.sql("main", "update t set m = 'x' || substr(m, 2) where g % 100 = 0");
    env.run(["stop"]).ok();
    let timeline = env.run(["cat-timeline", "main"]).ok();
    let delta = timeline
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("snapshot "))
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    let objects = env.run(["rev-list", "--objects", "main"]).ok();
    let frames: Vec<&str> = objects.lines().filter_map(|line| line.strip_prefix("frame ")).collect();
    let based = frames.iter().filter(|id| env.run(["cat-object", "--stored", id]).ok().contains(' ')).take(1).count();
    assert_eq!(based, 1, "no frame is stored against an older one");
    assert!(env.run(["cat-object", "-p", &delta]).ok().contains("\nparent "));
    env.run(["read-snapshot", &delta, "after"]).ok();
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn refs_change_by_compare_and_swap() {
    let env = Env::init();
    let [fork, other] = [(); 2].map(|()| env.run(["fork-timeline", "main"]).ok());
    let zeroes = "0".repeat(32);
    env.run(["update-ref", "refs/branches/x", &fork, &zeroes]).ok();
    env.run(["update-ref", "refs/branches/x", &other, &zeroes]).fails(1, &["already exists"]);
    env.run(["update-ref", "refs/branches/x", &other, "main"]).fails(1, &["is not at"]);
    env.run(["update-ref", "refs/branches/x", &other, &fork]).ok();
    // A timeline is that of one branch, which goes on with it.
    env.run(["update-ref", "refs/branches/y", "x"]).fails(1, &["the branch 'x'", "zenith fork-timeline x"]);
    env.run(["update-ref", "refs/branches/x", "x"]).ok();
    let x = env.run(["rev-parse", "x"]).ok();
    assert!(x.starts_with(&other));
    env.run(["update-ref", "refs/tags/t", "x"]).ok();
    assert!(env.run(["show-ref"]).ok().contains(&format!("{x} refs/tags/t")));
    env.run(["update-ref", "-d", "refs/branches/x", &fork]).fails(1, &["is not at"]);
    env.run(["update-ref", "-d", "refs/branches/x", &other]).ok();
    env.run(["update-ref", "refs/heads/x", "main"]).fails(1, &["refs/branches/"]);
    env.run(["rev-parse", "x"]).fails(1, &["unknown revision 'x'"]);
    assert_eq!(env.run(["symbolic-ref"]).ok(), "refs/branches/main");
    let log = env.run(["reflog", "main"]).ok();
    assert!(log.contains("main@{0}: init"), "{log}");
    env.run(["show-ref", "nope"]).fails(1, &["no such ref"]);
}

#[test]
fn revisions_of_every_form_lead_where_they_say() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    let first = env.run(["branch", "one"]).ok().rsplit(' ').next().unwrap().to_owned();
    let between = env.sql("main", "select clock_timestamp()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    env.sql("main", "insert into t values (1)");
    env.run(["seal-wal", "main"]).ok();
    let sealed = env.run(["rev-parse", "main"]).ok();
    env.run(["seal-wal", "main"]).ok();
    let timeline = sealed[..32].to_owned();
    assert_eq!(
        env.run(["rev-parse", "HEAD", "@", &timeline, &timeline[..8], "refs/branches/main"]).ok(),
        [sealed.as_str(); 5].join("\n")
    );
    let at = env.run(["rev-parse", &format!("main@{first}")]).ok();
    assert_eq!(at, format!("{timeline}@{first}"));
    assert_eq!(env.run(["rev-parse", "one~1", "one~"]).ok(), [at.as_str(); 2].join("\n"));
    env.run(["rev-parse", "main~1"]).fails(1, &["has no past"]);
    // An LSN amid a record is moved back to the end of the last whole one.
    let inside = Lsn(first.parse::<Lsn>().unwrap().0 + 3);
    assert_eq!(
        env.run(["rev-parse", &format!("main@{inside}"), &format!("main@{{{inside}}}")]).ok(),
        format!("{at}\n{at}")
    );
    let by_time: Lsn = env.run(["rev-parse", &format!("main@{{{between}}}")]).ok()[33..].parse().unwrap();
    assert!(by_time >= first.parse().unwrap() && by_time < sealed[33..].parse().unwrap(), "{by_time}");
    assert_eq!(env.run(["rev-parse", "main@{now}"]).ok(), sealed);
    assert_eq!(env.run(["rev-parse", "main@{0}"]).ok(), sealed);
    env.run(["branch", "moved", "one"]).ok();
    let before = env.run(["rev-parse", "moved"]).ok();
    env.run(["branch", "-f", "moved", "main"]).ok();
    assert_eq!(env.run(["rev-parse", "moved@{1}"]).ok(), before);
    assert_eq!(env.run(["merge-base", "main", "one"]).ok(), at);
    env.run(["merge-base", "--is-ancestor", "one~1", "main"]).ok();
    env.run(["merge-base", "--is-ancestor", "main", "one"]).fails(1, &["not an ancestor"]);
    let reachable = env.run(["rev-list", "main"]).ok();
    assert!(reachable.lines().next().unwrap().starts_with(&format!("timeline {timeline}")), "{reachable}");
    assert_eq!(reachable.lines().filter(|line| line.starts_with("snapshot ")).count(), 1);
}

#[test]
fn what_a_restore_reads_is_what_rev_list_lists() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g, repeat(md5(g::text), 10) m from generate_series(1, 30000) g");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "update t set m = 'x' where g % 50 = 0");
    env.run(["stop"]).ok();
    let listed: BTreeSet<String> = env
        .run(["rev-list", "--objects", "main"])
        .ok()
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    let repo = zenith::objects::Repo::open(&env.repo()).unwrap();
    let all: BTreeSet<String> = repo.store().ids().unwrap().iter().map(ToString::to_string).collect();
    assert!(listed.is_subset(&all), "it lists what is not there");
    // Nothing was ever dropped here, so nothing is superfluous.
    assert_eq!(all.difference(&listed).count(), 0);
    let wal = env.command(["cat-wal", "main"]).output().unwrap().stdout;
    assert!(wal.len() > 1 << 20);
    // Bytes come out as they are, escape sequences and all.
    for id in repo.store().ids().unwrap() {
        let object = repo.store().read(&id).unwrap();
        if object.kind == Kind::Wal || object.content.contains(&0x1B) {
            let printed = env.command(["cat-object", &id.to_string()]).output().unwrap().stdout;
            assert_eq!(ObjectId::of(object.kind, &printed), id);
        }
    }
}

#[test]
fn a_branch_is_a_fork_and_a_ref() {
    let env = Env::init();
    env.run(["branch", "porcelain"]).ok();
    let fork = env.run(["fork-timeline", "main"]).ok();
    env.run(["update-ref", "refs/branches/plumbing", &fork]).ok();
    let tree = |branch: &str| {
        let id = env.run(["rev-parse", branch]).ok()[..32].to_owned();
        let dir = env.repo().join("timelines").join(id);
        (
            fs::read_to_string(dir.join("origin")).unwrap().lines().take(4).map(str::to_owned).collect::<Vec<_>>(),
            fs::read(dir.join("log")).unwrap(),
            fs::read(dir.join("snapshots")).unwrap(),
            dir.join("wal/archive_status").is_dir(),
        )
    };
    assert_eq!(tree("porcelain"), tree("plumbing"));
}

/// A change to a tree of files, from one generation to the next.
#[derive(Debug, Clone)]
enum Change {
    /// File, block, seed: a few bytes of a block.
    Touch(u8, u16, u8),
    /// File, block, seed: all of a block.
    Rewrite(u8, u16, u8),
    /// File, bytes: grow or shrink to this length.
    Resize(u8, u32),
    Remove(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let lengths =
        prop_oneof![Just(0), Just(1), Just(8192), Just(262_144), Just(262_145), Just(5 * 262_144), 0u32..3_000_000];
    prop_oneof![
        6 => (0u8..6, any::<u16>(), any::<u8>()).prop_map(|(file, block, seed)| Change::Touch(file, block, seed)),
        3 => (0u8..6, any::<u16>(), any::<u8>()).prop_map(|(file, block, seed)| Change::Rewrite(file, block, seed)),
        3 => (0u8..6, lengths).prop_map(|(file, length)| Change::Resize(file, length)),
        1 => (0u8..6).prop_map(Change::Remove),
    ]
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = crate::support::Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    (0..length).map(|_| random.below(256) as u8).collect()
}

fn apply(dir: &Path, change: &Change) {
    let path = |file: &u8| dir.join(format!("{}", 16384 + u32::from(*file)));
    match change {
        Change::Touch(file, block, seed) | Change::Rewrite(file, block, seed) => {
            let Ok(mut bytes) = fs::read(path(file)) else { return };
            if bytes.is_empty() {
                return;
            }
            let start = usize::from(*block) * 8192 % bytes.len() / 8192 * 8192;
            let length = if matches!(change, Change::Touch(..)) { 40 } else { 8192 };
            let end = (start + length).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise(u64::from(*seed) + 7, end - start));
            fs::write(path(file), bytes).unwrap();
        }
        Change::Resize(file, length) => {
            let mut bytes = fs::read(path(file)).unwrap_or_default();
            let old = bytes.len();
            bytes.resize(*length as usize, 0);
            if old < bytes.len() {
                let fresh = noise(u64::from(*length), bytes.len() - old);
                bytes[old..].copy_from_slice(&fresh);
            }
            fs::write(path(file), bytes).unwrap();
        }
        Change::Remove(file) => drop(fs::remove_file(path(file))),
    }
}

fn write(store: &Store, tmp: &Path, dir: &Path, parent: Option<&Snapshot>) -> (Snapshot, Statistics) {
    let scan = Scan::new(dir, false).unwrap();
    let mut writer = TreeWriter::new(store, store.pack(tmp).unwrap(), parent, 3, &Hidden);
    scan.items(None).for_each(|item| writer.add(item.unwrap()).unwrap());
    let (entries, pack, statistics) = writer.finish().unwrap();
    pack.finish().unwrap();
    store.refresh().unwrap();
    let snapshot = Snapshot {
        timeline: TimelineId::random(),
        start: Lsn(1),
        checkpoint: Lsn(1),
        consistent: Lsn(1),
        time_us: 0,
        system_identifier: 1,
        postgres_major: 15,
        catalog_version: 1,
        postgres_timeline: 1,
        wal_segment_size: 16 << 20,
        parent: None,
        entries,
    };
    (snapshot, statistics)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Generation after generation, deeper than a chain of maps may be: every block of every one comes back,
    /// and a delta has no more changed blocks than changed.
    #[test]
    fn deltas_lose_no_block(generations in proptest::collection::vec(proptest::collection::vec(change(), 0..6), 14)) {
        let home = tempfile::tempdir().unwrap();
        let [objects, tmp, dir] = ["objects", "tmp", "data"].map(|name| home.path().join(name));
        for folder in [&objects.join("pack"), &tmp, &dir] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in 0..6u8 {
            apply(&dir, &Change::Resize(file, [0, 100, 262_144, 262_145, 1_500_000, 2_400_000][usize::from(file)]));
        }
        let store = Store::open(&objects);
        let (mut parent, _) = write(&store, &tmp, &dir, None);
        for (number, changes) in generations.iter().enumerate() {
            changes.iter().for_each(|change| apply(&dir, change));
            let (snapshot, statistics) = write(&store, &tmp, &dir, Some(&parent));
            let (full, whole) = write(&store, &tmp, &dir, None);
            prop_assert!(statistics.changed_blocks <= whole.changed_blocks);
            if changes.is_empty() {
                prop_assert_eq!(statistics.changed_blocks, 0);
                prop_assert_eq!(&snapshot.entries, &parent.entries);
            }
            prop_assert_eq!(snapshot.entries.len(), full.entries.len());
            for entry in &snapshot.entries {
                let path = dir.join(String::from_utf8(entry.path.clone()).unwrap());
                let Node::File { length, .. } = entry.node else { continue };
                let expected = fs::read(&path).unwrap();
                prop_assert_eq!(length, expected.len() as u64);
                let mut read = Vec::new();
                // A store opened anew has no cache to hide behind.
                let fresh = Store::open(&objects);
                StoredFile::of_entry(&fresh, entry).unwrap().unwrap().read(&fresh, 0, u32::MAX, &mut read).unwrap();
                prop_assert!(read == expected, "generation {}: {:?} differs", number, path);
            }
            if number == 13 {
                restore(&store, &snapshot, &home.path().join("out"), &Hidden).unwrap();
                same(&dir, &home.path().join("out"));
            }
            parent = snapshot;
        }
    }
}

#[test]
fn a_snapshot_that_cannot_be_finished_leaves_no_timeline() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let timelines = || fs::read_dir(env.repo().join("timelines")).unwrap().count();
    let before = timelines();
    let (packs, aside) = (env.repo().join("objects/pack"), env.path().join("aside"));
    fs::rename(&packs, &aside).unwrap();
    std::os::unix::fs::symlink("nowhere", &packs).unwrap();
    env.run(["write-snapshot", "dir"]).fails(1, &["cannot write", "objects/pack"]);
    assert_eq!(timelines(), before);
    fs::remove_file(&packs).unwrap();
    fs::rename(&aside, &packs).unwrap();
    env.run(["write-snapshot", "dir"]).ok();
    assert_eq!(timelines(), before + 1);
}

#[test]
fn a_segment_without_any_record_is_no_object() {
    let env = Env::init();
    let repo = zenith::objects::Repo::open(&env.repo()).unwrap();
    let expected = repo.expected_wal();
    let mut bytes = segment_header(&expected, Lsn(u64::from(expected.segment_size)), 1);
    bytes.resize(expected.segment_size as usize, 0);
    fs::write(env.path().join("segment"), bytes).unwrap();
    env.run(["hash-wal", "-w", "segment"]).fails(3, &["unused WAL"]);
    assert_eq!(env.run(["fsck"]).ok(), "");
}
