//! INVARIANT 4: what was acknowledged is there again, from the repository alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};

use crate::support::{Env, Random};

fn connect(env: &Env) -> Option<Client> {
    let env = env.server_env("main");
    let value = |name: &str| env.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let mut config = Client::configure();
    config.host_path(value("PGHOST")).port(value("PGPORT").parse().unwrap()).user("postgres").dbname("postgres");
    config.connect(NoTls).ok()
}

#[test]
fn twenty_kills_under_load_lose_no_acknowledged_transaction() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table acknowledged (n bigint primary key, filler text)");
    let acknowledged: Arc<Mutex<Vec<i64>>> = Arc::default();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut next = 0;
    for round in 0..20 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let mut client = connect(&env).unwrap();
                let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
                let start = next + writer * 1_000_000;
                std::thread::spawn(move || {
                    let mut n = start;
                    while !stop.load(Ordering::Relaxed) {
                        // An update of older rows makes full-page images and dirty blocks all over.
                        let insert = "insert into acknowledged values ($1, repeat('x', 300))";
                        if client.execute(insert, &[&n]).is_err() {
                            return;
                        }
                        acknowledged.lock().unwrap().push(n);
                        let _ = client.execute("update acknowledged set filler = 'y' where n = $1", &[&(n - 50)]);
                        n += 1;
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50 + random.below(250)));
        let pid = env.postmaster("main");
        if round % 5 == 4 {
            // Amid a checkpoint.
            let _ = connect(&env).map(|mut client| client.batch_execute("set statement_timeout = 5; checkpoint"));
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        // The backends outlive their postmaster for a while, and acknowledge on.
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_dir_all(env.repo().join("datadirs")).ok();
        env.run(["start"]).ok();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let expected = {
            let mut all = acknowledged.lock().unwrap().clone();
            all.sort_unstable();
            all
        };
        let rows = env.sql("main", "select n from acknowledged");
        let found: std::collections::HashSet<i64> = rows.lines().map(|line| line.parse().unwrap()).collect();
        let lost: Vec<i64> = expected.iter().copied().filter(|n| !found.contains(n)).collect();
        assert!(
            lost.is_empty(),
            "round {round}: lost {} of {}: {:?}",
            lost.len(),
            expected.len(),
            &lost[..lost.len().min(5)]
        );
        next += 10_000_000;
    }
    assert!(acknowledged.lock().unwrap().len() > 500);
    env.run(["stop"]).ok();
    env.run(["fsck"]).ok();
}

#[test]
fn a_command_that_is_killed_leaves_the_repository_sound() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g, repeat(md5(g::text), 4) from generate_series(1, 60000) g");
    env.run(["stop"]).ok();
    // The first readers of what was committed leave hint bits, which are kept.
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from t"), "60000");
    env.run(["stop"]).ok();
    let before = env.run(["rev-parse", "main"]).ok();
    let mut random = Random(77);
    for round in 0..12 {
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            let args: &[&str] = match round % 3 {
                0 => &["start", "main"],
                1 => &["branch", "x"],
                _ => &["restore", "main", "out"],
            };
            let mut child = env
                .command(args)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(random.below(120)));
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
            child.wait().unwrap();
            // The next command works, whatever the last one had done.
            env.run(["status"]).ok();
            env.run(["fsck"]).ok();
            env.run(["start", "main"]).ok();
            assert_eq!(env.sql("main", "select count(*) from t"), "60000");
            env.run(["stop", "main"]).ok();
            assert_eq!(env.run(["rev-parse", "main"]).ok(), before, "round {round} {signal}");
            let _ = env.run(["branch", "-d", "x"]);
            let _ = std::fs::remove_dir_all(env.path().join("out"));
        }
    }
    // What a killed process left, the next one that writes removes.
    env.run(["branch", "last"]).ok();
    assert_eq!(std::fs::read_dir(env.repo().join("tmp")).unwrap().count(), 0);
}
