//! Every delta against a native copy of the files at the same LSN, block by block.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{assert_lazy, client, with_checksums};
use crate::support::{Env, Random};

/// What a running server changes without a transaction, or what is no part of a snapshot.
const VOLATILE: [&str; 6] =
    ["global/pg_control", "postmaster.pid", "postmaster.opts", "backup_label.old", "pg_logical", "pg_stat"];

/// Reads the files of a data directory that a snapshot holds.
fn read_all(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let is_left_out = zenith::plumbing::datadir::exclude::is_excluded(name.as_bytes());
            if is_left_out || name == "pg_wal" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Compares a snapshot with a copy of the files that it was made of.
fn assert_same(env: &Env, snapshot: &str, native: &BTreeMap<String, Vec<u8>>, live: bool, what: &str) {
    let out = env.path().join("compared");
    let _ = fs::remove_dir_all(&out);
    env.run(["read-snapshot", snapshot, "compared"]).ok();
    let stored = read_all(&out);
    let is_volatile = |name: &str| live && VOLATILE.iter().any(|volatile| name.starts_with(volatile));
    let mut compared = 0;
    for (name, bytes) in native.iter().filter(|(name, _)| !is_volatile(name)) {
        // Unlogged relations are not in a snapshot: only the workload's own, and it makes none.
        let stored = stored.get(name).unwrap_or_else(|| panic!("{what}: {name} is missing"));
        assert_eq!(stored.len(), bytes.len(), "{what}: {name} has another length");
        for (number, (own, native)) in stored.chunks(8192).zip(bytes.chunks(8192)).enumerate() {
            assert!(own == native, "{what}: block {number} of {name} differs");
            compared += 1;
        }
    }
    for name in stored.keys().filter(|name| !is_volatile(name)) {
        assert!(native.contains_key(name), "{what}: {name} is in the snapshot only");
    }
    assert!(compared > 1000, "{what}: only {compared} blocks were compared");
    fs::remove_dir_all(&out).unwrap();
}

/// Does something random to the database.
fn work(env: &Env, random: &mut Random, round: u64) {
    for _ in 0..1 + random.below(4) {
        let table = format!("t{}", random.below(4));
        let rows = 1 + random.below(20_000);
        let statement = match random.below(13) {
            0..=2 => format!(
                "create table if not exists {table} (n bigint, filler text);
                 insert into {table} select g, md5(g::text || {round}) from generate_series(1, {rows}) g"
            ),
            3 | 4 => format!(
                "create table if not exists {table} (n bigint, filler text);
                 update {table} set filler = repeat('z', 40) where n % 97 = {}",
                random.below(97)
            ),
            5 => format!("create table if not exists {table} (n bigint, filler text); create index on {table} (n)"),
            6 => format!("drop table if exists {table}"),
            7 => format!("create table if not exists {table} (n bigint, filler text); truncate {table}"),
            8 => {
                format!("create table if not exists {table} (n bigint, filler text); delete from {table} where n > 100")
            }
            9 => "vacuum full".to_owned(),
            10 => "vacuum".to_owned(),
            11 => format!("drop database if exists d{0}; create database d{0}", round % 2),
            _ => {
                format!("alter table if exists {table} rename to r{}; reindex database postgres", random.below(1 << 40))
            }
        };
        for part in statement.split(';') {
            env.sql("main", part);
        }
    }
}

/// Returns how many blocks there are that an earlier copy does not have under the same name and number.
fn new_blocks(before: &BTreeMap<String, Vec<u8>>, now: &BTreeMap<String, Vec<u8>>) -> u64 {
    let count = |(name, bytes): (&String, &Vec<u8>)| {
        let old = before.get(name).map(Vec::as_slice).unwrap_or_default();
        let differs = |(number, block): &(usize, &[u8])| old.chunks(8192).nth(*number) != Some(*block);
        bytes.chunks(8192).enumerate().filter(differs).count() as u64
    };
    now.iter().map(count).sum()
}

fn newest_snapshot(env: &Env) -> String {
    let text = env.run(["log", "main"]).ok();
    text.lines().find_map(|line| line.strip_prefix("Snapshot: ")).unwrap().trim().to_owned()
}

fn pack_bytes(env: &Env) -> u64 {
    let packs = fs::read_dir(env.repo().join("objects/pack")).unwrap();
    packs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn every_delta_of_a_random_workload_is_what_a_native_copy_is() {
    let env = with_checksums();
    // Some that come by themselves, too: what follows builds on them.
    let config = env.repo().join("config");
    let text = fs::read_to_string(&config).unwrap();
    let start = text.find("wal_threshold").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    fs::write(&config, format!("{}wal_threshold = 16777216{}", &text[..start], &text[end..])).unwrap();

    let mut random = Random(0xD1B5_4A32_D192_ED03);
    env.run(["start"]).ok();
    // Something large that hardly changes, and that does not compress: a delta must not hold it again.
    env.sql("main", "create table large as select g, sha512(g::text::bytea) a from generate_series(1, 100000) g");
    env.run(["stop"]).ok();
    env.run(["read-snapshot", &newest_snapshot(&env), "first"]).ok();
    let mut before = read_all(&env.path().join("first"));
    let (mut live, mut stopped) = (0, 0);
    for round in 0..10 {
        env.run(["start"]).ok();
        assert_lazy(&env, "main");
        work(&env, &mut random, round);
        if random.below(2) == 0 {
            // One of the running server, while nobody writes.
            env.sql("main", "checkpoint");
            let made = env.json(["snapshot", "--json"]);
            let native = read_all(&env.datadir("main").join("data"));
            let statistics = &made["statistics"];
            let number = |name: &str| statistics[name].as_u64().unwrap();
            let changed = new_blocks(&before, &native);
            // Small files are stored as a whole.
            assert!(number("changed_blocks") <= changed + 200, "round {round}: {changed} changed, not a delta: {made}");
            let most = (number("changed_blocks") * 2 + 1500) * 8192;
            assert!(number("read_bytes") <= most.max(number("bytes") / 2), "round {round}: too much was read: {made}");
            assert_same(&env, made["snapshot"].as_str().unwrap(), &native, true, &format!("round {round}, running"));
            before = native;
            work(&env, &mut random, round + 100);
            live += 1;
        }
        // The server shuts down by itself; then its files are copied, and then zenith makes the snapshot.
        let pid = env.postmaster("main");
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        let data = env.datadir("main").join("data");
        while data.join("postmaster.pid").exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let native = read_all(&data);
        let packed = pack_bytes(&env);
        env.run(["stop"]).ok();
        let (grown, changed) = (pack_bytes(&env) - packed, new_blocks(&before, &native));
        assert!(grown < (changed + 200) * 8192, "round {round}: {changed} blocks changed, {grown} bytes are no delta");
        before = native.clone();
        assert_same(&env, &newest_snapshot(&env), &native, false, &format!("round {round}, stopped"));
        stopped += 1;
    }
    assert!(live >= 3 && stopped == 10, "{live} of running and {stopped} of stopped servers");
    env.run(["start"]).ok();
    client(&env, "main", "psql", &["-qc", "create extension amcheck"]);
    client(&env, "main", "pg_amcheck", &["--all"]);
    env.run(["stop"]).ok();
    env.run(["fsck"]).ok();
}
