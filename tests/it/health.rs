//! What will stop the servers is shown before it does.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use zenith::objects::pg::crc::crc32c;
use zenith::plumbing::postgres::account::Account;

use crate::support::{Env, checked, pg_bin};

#[test]
fn wal_that_cannot_be_sealed_is_shown_by_status_and_the_page_server() {
    let env = Env::init();
    env.run(["start"]).ok();
    assert!(!env.run(["status"]).err.contains("cannot be sealed"));
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let dir = env.repo().join("timelines").join(&timeline);
    // Sealing waits for the log, for as long as this has it.
    let log = File::options().read(true).write(true).open(dir.join("log")).unwrap();
    log.lock().unwrap();
    env.sql("main", "create table t as select g from generate_series(1, 1000) g");
    env.sql("main", "select pg_switch_wal()");
    let ready = || {
        let names = std::fs::read_dir(dir.join("wal/archive_status")).unwrap().flatten().map(|entry| entry.path());
        names.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "ready"))
    };
    let patience = Instant::now() + Duration::from_secs(60);
    let ready = loop {
        if let Some(path) = ready() {
            break path;
        }
        assert!(Instant::now() < patience, "PostgreSQL hands over no segment");
        std::thread::sleep(Duration::from_millis(20));
    };
    let past = SystemTime::now() - Duration::from_secs(300);
    File::options().write(true).open(ready).unwrap().set_modified(past).unwrap();
    let said = "the WAL of 'main' cannot be sealed: 1 segments wait";
    assert!(env.run(["status"]).err.contains(said));
    let health = env.json(["status", "--json"])["health"].clone();
    assert_eq!(health["unsealed"][0]["branch"], "main", "{health}");
    env.run(["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).ok();
    let address = env.json(["pageserver", "status", "--json"])["http"].as_str().unwrap().to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get("/status").contains(said), "{}", get("/status"));
    let metrics = get("/metrics");
    assert!(metrics.contains("zenith_wal_unsealed_segments{branch=\"main\"} 1"), "{metrics}");
    assert!(metrics.contains("zenith_disk_free_bytes"), "{metrics}");
    let log_of_daemon = std::fs::read_to_string(env.repo().join("pageserver/log")).unwrap();
    assert!(log_of_daemon.contains(said), "{log_of_daemon}");
    drop(log);
}

#[test]
fn a_slot_that_keeps_much_wal_is_shown_by_status() {
    let env = Env::new();
    let cluster = env.path().join("cluster");
    let account = Account::detect().unwrap();
    let bin = pg_bin();
    checked(account.command(&bin.join("initdb")).args(["-U", "postgres", "-A", "trust", "-D"]).arg(&cluster));
    // Its WAL goes on from 8 GiB.
    checked(account.command(&bin.join("pg_resetwal")).args(["-l", "000000010000000200000001", "-D"]).arg(&cluster));
    env.run(["init", "--from", "cluster"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "select pg_create_physical_replication_slot('gone', true)");
    env.sql("main", "select pg_create_physical_replication_slot('present', true)");
    assert!(!env.run(["status"]).err.contains("replication slot"));
    // As if nobody had read from it since the WAL was at 16 MiB; and its segments are still there.
    let age = |state: &Path| {
        let mut bytes = std::fs::read(state).unwrap();
        bytes[96..104].copy_from_slice(&(16_u64 << 20).to_le_bytes());
        let checksum = crc32c(&[&bytes[8..]]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(state, bytes).unwrap();
    };
    age(&env.datadir("main").join("data/pg_replslot/gone/state"));
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let dir = env.repo().join("timelines").join(&timeline);
    let segment = dir.join("wal/000000010000000000000001");
    File::create(&segment).unwrap();
    let said = "the replication slot 'gone' of 'main' keeps 81";
    assert!(env.run(["status"]).err.contains(said), "{}", env.run(["status"]).err);
    std::fs::remove_file(segment).unwrap();
    env.run(["stop"]).ok();
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    age(&env.repo().join("timelines").join(timeline).join("slots/replslot/gone/state"));
    let slots = env.json(["status", "--json"])["health"]["slots"].clone();
    assert_eq!((slots.as_array().unwrap().len(), &slots[0]["slot"]), (1, &"gone".into()), "{slots}");
}

#[test]
fn a_branch_whose_timeline_is_missing_hides_nothing_else_from_status() {
    let env = Env::init();
    env.run(["branch", "gone", "main"]).ok();
    env.run(["start", "gone"]).ok();
    env.sql("gone", "create table t as select 1 i");
    env.run(["stop", "gone"]).ok();
    let timeline = env.run(["rev-parse", "gone"]).ok()[..32].to_owned();
    std::fs::remove_dir_all(env.repo().join("timelines").join(&timeline)).unwrap();
    assert!(env.run(["status"]).ok().contains("On branch main"));
    std::fs::write(env.repo().join("refs/branches/gone"), "damaged").unwrap();
    assert!(env.run(["status"]).ok().contains("On branch main"));
}
