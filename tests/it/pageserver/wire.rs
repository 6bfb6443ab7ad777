//! What breaks the protocol, and what uses all of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, geteuid, setfsuid};

use super::Daemon;
use crate::support::{checked, pg_program};

fn answer(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(daemon.listen).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn packets_that_are_none_are_answered_and_start_nothing() {
    let daemon = Daemon::new(&[]);
    let packet =
        |code: u32, body: &[u8]| [&(8 + body.len() as u32).to_be_bytes()[..], &code.to_be_bytes(), body].concat();
    let has = |answer: Vec<u8>, code: &str| {
        assert!(String::from_utf8_lossy(&answer).contains(code), "{:?} lacks {code}", String::from_utf8_lossy(&answer));
    };
    has(answer(&daemon, &[0, 0, 0, 1, 0, 0, 0, 0]), "08P01");
    has(answer(&daemon, &u32::MAX.to_be_bytes()), "08P01");
    has(answer(&daemon, b"GET / HTTP/1.1\r\n\r\n"), "08P01");
    has(answer(&daemon, &packet(2 << 16, b"")), "0A000");
    has(answer(&daemon, &packet(3 << 16, b"user\0postgres\0")), "08P01");
    has(answer(&daemon, &packet(3 << 16, b"user\0postgres\0branch\0nope\0\0")), "3D000");
    has(answer(&daemon, &packet(3 << 16, b"user\0postgres\0branch\0\xff\xfe\0\0")), "3D000");
    // A key that nobody has.
    assert_eq!(answer(&daemon, &packet(80_877_102, &[7; 8])), b"");
    // Encryption again and again.
    let gss = packet(80_877_104, b"");
    has(answer(&daemon, &gss.repeat(5)), "08P01");
    assert_eq!(daemon.running(), Vec::<String>::new());
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("main".into()));
}

#[test]
fn a_flood_of_silent_clients_is_bounded_and_ends() {
    let daemon = Daemon::new(&[]);
    daemon.ask("main", "select 1").unwrap();
    let pid = daemon.env.json(["pageserver", "status", "--json"])["pid"].as_i64().unwrap();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let before = memory();
    let begun = Instant::now();
    // Each has said how long its packet is, and sends a byte of it now and then.
    let mut flood: Vec<TcpStream> = (0..700).map(|_| TcpStream::connect(daemon.listen).unwrap()).collect();
    flood.iter_mut().for_each(|stream| drop(stream.write_all(&10_000u32.to_be_bytes())));
    std::thread::sleep(Duration::from_millis(500));
    let grown = memory().saturating_sub(before);
    assert!(grown < (700 * 20) << 10, "{grown} bytes for 700 clients");
    // Who is known is served beside them.
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("main".into()));
    let mut last = flood.pop().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = last.read(&mut [0]);
    assert!(begun.elapsed() < Duration::from_secs(20), "they are never sent away");
}

#[test]
fn of_others_only_so_many_may_be_about_to_speak() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can connect as somebody else");
        return;
    }
    let daemon = Daemon::new(&[]);
    let listen = daemon.listen;
    let flood = std::thread::spawn(move || {
        // Of this thread alone: whose the sockets are that it makes.
        setfsuid(Uid::from_raw(65534));
        (0..700).map(|_| TcpStream::connect(listen).unwrap()).collect::<Vec<_>>()
    });
    let flood = flood.join().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let sent_away = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert_eq!(flood.iter().filter(|stream| sent_away(stream)).count(), 700 - 512);
    assert_eq!(daemon.metric("zenith_refused_total{sqlstate=\"53300\"}"), f64::from(700 - 512));
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("main".into()));
}

#[test]
fn copy_replication_and_notifications_come_through() {
    let daemon = Daemon::new(&["try"]);
    let port = daemon.listen.port().to_string();
    let program = |name: &str| {
        let mut command = pg_program(name);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", &port).env("PGUSER", "postgres");
        command.env("PGOPTIONS", "-c branch=try").env("PGSSLMODE", "disable");
        command
    };
    // Half a gigabyte each way.
    let copy = "copy (select repeat('x', 999) from generate_series(1, 500000)) to stdout";
    let mut source = program("psql").args(["-Xqc", copy, "postgres"]).stdout(Stdio::piped()).spawn().unwrap();
    checked(program("psql").args(["-Xqc", "create table big (t text)", "postgres"]));
    checked(program("psql").args(["-Xqc", "copy big from stdin", "postgres"]).stdin(source.stdout.take().unwrap()));
    assert!(source.wait().unwrap().success());
    assert_eq!(daemon.ask("try", "select count(*) || ' ' || sum(length(t)) from big").unwrap(), "500000 499500000");
    let backup = daemon.env.path().join("backup");
    let take_backup = || {
        let mut command = program("pg_basebackup");
        command.args(["-X", "stream", "-c", "fast", "-D"]).arg(&backup);
        command
    };
    let output = take_backup().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("takes no physical replication") && said.contains("branch.try.replication true"), "{said}");
    daemon.env.run(["config", "branch.try.replication", "true"]).ok();
    daemon.env.run(["stop", "try"]).ok();
    checked(&mut take_backup());
    assert!(backup.join("PG_VERSION").exists());
    for arguments in [["-i", "-q"], ["-n", "-t100"]] {
        checked(program("pgbench").args(arguments).arg("postgres"));
    }
    // psql cancels with Ctrl-C.
    let mut psql = program("psql");
    psql.args(["-Xqc", "select pg_sleep(60)", "postgres"]).stderr(Stdio::piped());
    let child = psql.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(800));
    let begun = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("canceling statement"), "{output:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}
