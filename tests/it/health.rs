//! What will stop the servers is shown before it does.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use crate::support::Env;

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
