//! How sessions begin and end when something else happens at the same time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Daemon, startup, told};
use crate::support::{checked, pg_program};

/// Begins a session on the branch of HEAD, and reads until it is ready.
fn session(daemon: &Daemon) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.listen).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&startup(&[("user", "postgres"), ("database", "postgres")])).unwrap();
    let (mut answer, mut byte) = (Vec::new(), [0; 1]);
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    stream
}

#[test]
fn a_restart_tells_the_clients() {
    let daemon = Daemon::new(&[]);
    let mut sessions: Vec<TcpStream> = (0..3).map(|_| session(&daemon)).collect();
    daemon.env.run(["pageserver", "restart", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).ok();
    for stream in &mut sessions {
        let mut last = Vec::new();
        stream.read_to_end(&mut last).unwrap();
        let last = String::from_utf8_lossy(&last);
        assert!(last.starts_with('E') && last.contains("57P01"), "{last:?}");
    }
    // The server itself goes on.
    assert_eq!(daemon.running(), ["main"]);
}

#[test]
fn a_stop_by_hand_makes_new_clients_wait() {
    let daemon = Daemon::new(&[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            let mut asked = 0;
            while !is_over.load(Ordering::Relaxed) {
                match daemon.connect("main") {
                    Ok(mut client) => drop(client.simple_query("select 1")), // a stop ends it
                    Err(error) => panic!("{}", told(error)),
                }
                asked += 1;
            }
            asked
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        for _ in 0..4 {
            // It may have been stopped a moment ago.
            let _ = daemon.env.run(["stop", "main"]);
            std::thread::sleep(Duration::from_millis(300));
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(clients.into_iter().map(|client| client.join().unwrap()).sum::<u32>() >= 4);
    });
}

/// A server takes a queue of twice as many clients as may be connected.
#[test]
fn more_clients_at_once_than_the_server_queues_wait_for_it() {
    let daemon = Daemon::new(&[]);
    daemon.env.run(["config", "branch.main.postgres.max_connections", "20"]).ok();
    daemon.ask("main", "select 1").unwrap();
    let postmaster = Pid::from_raw(daemon.env.postmaster("main"));
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let mut clients: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(daemon.listen).unwrap()).collect();
    let packet = startup(&[("user", "postgres"), ("database", "postgres")]);
    clients.iter_mut().for_each(|client| client.write_all(&packet).unwrap());
    std::thread::sleep(Duration::from_secs(2));
    kill(postmaster, Signal::SIGCONT).unwrap();
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = [0; 200];
        let count = client.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        // Whoever is let in, and whoever is one too many, hears so from PostgreSQL.
        assert!(answer.starts_with('R') || answer.contains("C53300"), "{answer:?}");
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

#[test]
fn the_last_of_several_names_wins_in_any_case() {
    let daemon = Daemon::new(&["try"]);
    let mut psql = pg_program("psql");
    psql.args(["-XqAt", "-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(daemon.listen.port().to_string());
    psql.args(["-c", "select name || ' ' || current_setting('zenith.branch') from whoami", "postgres"]);
    psql.env("PGOPTIONS", "-c zenith.branch=main -c ZENITH.BRANCH=try");
    assert_eq!(checked(&mut psql).trim(), "try try");
}

#[test]
fn a_cancel_over_tls_ends_as_tls_does() {
    let daemon = Daemon::new(&[]);
    // A key that nobody has: the answer is the end of the connection all the same.
    let program = "import ssl, socket, struct, sys\n\
        context = ssl.create_default_context()\n\
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n\
        plain = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n\
        stream = context.wrap_socket(plain, server_hostname='localhost', suppress_ragged_eofs=False)\n\
        stream.sendall(struct.pack('!IIII', 16, 80877102, 1, 2))\n\
        print(stream.recv(10))";
    let said = checked(Command::new("python3").args(["-c", program, &daemon.listen.port().to_string()]));
    assert_eq!(said.trim(), "b''");
}

#[test]
#[cfg(target_os = "linux")]
fn a_client_that_vanishes_is_noticed() {
    let daemon = Daemon::new(&[]);
    let stream = session(&daemon);
    // Local and remote address, state, queues, and the kind of timer: 2 is that of keepalives.
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ends = (daemon.listen.port(), stream.local_addr().unwrap().port());
    let line = ours.into_iter().find(|line| (port(line[1]), port(line[2])) == ends).unwrap();
    assert!(line[5].starts_with("02:"), "{line:?}");
}

#[test]
fn branches_that_are_gone_leave_no_metrics() {
    let daemon = Daemon::new(&["try"]);
    let label = "{branch=\"try\"}";
    assert!(daemon.get("/metrics", "localhost").contains(label));
    daemon.env.run(["branch", "-d", "try"]).ok();
    assert!(!daemon.get("/metrics", "localhost").contains(label));
}
