//! Who gets in. The attacks are those of another OS user of the machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Daemon, query, startup};
use crate::support::{Env, NOBODY, is_root, of_user};

const SESSION: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];

/// Returns psql of somebody else, not run yet.
fn psql(daemon: &Daemon, branch: &str, password: Option<&str>, sql: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(crate::support::pg_bin().join("psql"));
    command.args(["-w", "-XqAt", "-h", "127.0.0.1", "-p"]).arg(daemon.listen.port().to_string());
    command.args(["-U", "postgres", "-c", sql, &format!("postgres@{branch}")]);
    command.env_remove("PGPASSWORD").current_dir("/");
    password.map(|password| command.env("PGPASSWORD", password));
    command
}

/// Asks a branch for its name as somebody else. Returns the answer and the error.
fn as_nobody(daemon: &Daemon, branch: &str, password: Option<&str>) -> (String, String) {
    let output = psql(daemon, branch, password, "select name from whoami").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Lets others in who know the password of the role postgres.
fn let_others_in(daemon: &Daemon) {
    daemon.env.run(["config", "proxy.others", "scram"]).ok();
    daemon.ask("main", "alter role postgres password 'secret'").unwrap();
    daemon.env.run(["stop", "--all"]).ok();
}

/// Sends a session and a query at once as another user and goes, a hundred times; returns how many rows that left.
fn hit_and_run(daemon: &Daemon, owner: u32) -> String {
    of_user(owner, || daemon.ask("main", "select 1").unwrap());
    let all = [startup(&SESSION), query("insert into whoami values ('mine')")].concat();
    of_user(NOBODY, || {
        for _ in 0..100 {
            TcpStream::connect(daemon.listen).unwrap().write_all(&all).unwrap();
        }
    });
    // Whoever came has been served or sent away by the time that as many others have.
    for _ in 0..100 {
        let mut stream = of_user(NOBODY, || TcpStream::connect(daemon.listen).unwrap());
        stream.write_all(&startup(&SESSION)).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    of_user(owner, || daemon.ask("main", "select count(*) - 1 from whoami").unwrap())
}

/// The kernel knows no owner of a socket that its process has closed, and says root.
#[test]
fn who_closes_the_connection_at_once_is_not_root() {
    if is_root() {
        assert_eq!(hit_and_run(&Daemon::new(&[]), 0), "0");
    }
}

#[test]
fn nor_is_it_an_ordinary_user() {
    if is_root() {
        // One that every system has: initdb asks for its name.
        let user = 1;
        let daemon = Daemon::of(Env::of_user(user), &[]);
        assert_eq!(hit_and_run(&daemon, user), "0");
        let (out, err) = as_nobody(&daemon, "main", None);
        assert!(out.is_empty() && err.contains("only the operating-system user"), "{out} {err}");
        // Root is not the owner here, although nothing could keep it out.
        assert!(daemon.ask("main", "select 1").unwrap_err().starts_with("28000 "));
        assert!(daemon.get("/status", "localhost").starts_with("HTTP/1.1 403"));
    }
}

#[test]
fn others_are_sent_away_and_start_nothing() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&["heikki"]);
    for branch in ["main", "heikki", "hekki", "main@{1 hour ago}"] {
        let (out, err) = as_nobody(&daemon, branch, None);
        assert!(out.is_empty() && err.contains("only the operating-system user"), "{out} {err}");
        assert!(!err.contains("heikki") || branch == "heikki", "{err}");
    }
    assert_eq!(daemon.running(), Vec::<String>::new());
    // The log says who it was, and from where.
    let log = daemon.env.run(["pageserver", "logs", "-n", "1000"]).ok();
    assert!(log.contains("65534") && log.contains("127.0.0.1:"), "{log}");
    // Servers listen nowhere where others come by.
    daemon.ask("main", "select 1").unwrap();
    assert_eq!(daemon.ask("main", "show listen_addresses"), Ok(String::new()));
}

#[test]
fn others_who_are_let_in_need_a_password_and_start_little() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&["a", "b", "c"]);
    let_others_in(&daemon);
    let (out, err) = as_nobody(&daemon, "main", None);
    assert!(out.is_empty() && err.contains("no password supplied"), "{out} {err}");
    // Nobody has authenticated, so nothing has to run.
    daemon.wait_until_running(&[]);
    daemon.ask("main", "select 1").unwrap();
    let (out, err) = as_nobody(&daemon, "main", Some("wrong"));
    assert!(out.is_empty() && err.contains("password authentication failed"), "{out} {err}");
    assert_eq!(as_nobody(&daemon, "main", Some("secret")).0, "main");
    // What the cluster itself would let in does not count.
    let (out, err) = as_nobody(&daemon, "a", None);
    assert!(out.is_empty() && !err.is_empty(), "{err}");
    // To look for a revision may cost as much as a start: of many that come at once, few are admitted.
    let mut asked: Vec<TcpStream> = of_user(NOBODY, || {
        let ask = |number: u32| {
            let mut stream = TcpStream::connect(daemon.listen).unwrap();
            let parameters = [SESSION[0], SESSION[1], ("branch", &format!("main@0/{number}"))];
            stream.write_all(&startup(&parameters)).unwrap();
            stream
        };
        (1..=30).map(ask).collect()
    });
    let mut answers = asked.iter_mut().map(|stream| {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert!(answers.any(|answer| answer.contains("have not authenticated")));
    assert!(daemon.metric("zenith_anonymous_starts_total") >= 1.0);
    assert!(daemon.metric("zenith_anonymous_starts_refused_total") >= 1.0);
    // They learn no names.
    std::thread::sleep(Duration::from_secs(2));
    let (_, err) = as_nobody(&daemon, "mian", None);
    assert!(err.contains("no such branch") && !err.contains("\"main\"") && !err.contains("nearest"), "{err}");
}

#[test]
fn what_others_do_takes_nothing_from_the_owner() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&["a", "b"]);
    let_others_in(&daemon);
    for (name, value) in [("max_instances", "1"), ("others_instances", "1"), ("others_sessions", "1")] {
        daemon.env.run(["config", &format!("proxy.{name}"), value]).ok();
    }
    let mut other =
        psql(&daemon, "main", Some("secret"), "select pg_sleep(600)").stdout(Stdio::null()).spawn().unwrap();
    daemon.wait_until_running(&["main"]);
    // The one server that the owner may have runs beside it, and the owner's sessions are not theirs.
    assert_eq!(daemon.ask("a", "select name from whoami"), Ok("a".into()));
    let (_, err) = as_nobody(&daemon, "main", Some("secret"));
    assert!(err.contains("proxy.others_sessions"), "{err}");
    daemon.env.run(["config", "proxy.others_sessions", "9"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    let (_, err) = as_nobody(&daemon, "b", Some("secret"));
    assert!(err.contains("proxy.others_instances"), "{err}");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn who_has_not_authenticated_keeps_no_server_running() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&[]);
    let_others_in(&daemon);
    daemon.ask("main", "select 1").unwrap();
    let mut stream = of_user(NOBODY, || TcpStream::connect(daemon.listen).unwrap());
    stream.write_all(&startup(&SESSION)).unwrap();
    let mut demand = [0; 1];
    stream.read_exact(&mut demand).unwrap();
    assert_eq!(&demand, b"R");
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    daemon.wait_until_running(&[]);
}

#[test]
fn a_port_that_somebody_else_took_keeps_nobody_but_others_out() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&[]);
    let_others_in(&daemon);
    let port = daemon.env.json(["pg", "list", "--json"])[0]["port"].as_u64().unwrap() as u16;
    let address = zenith::plumbing::postgres::settings::own_loopback(&daemon.env.repo());
    let _listener = of_user(NOBODY, || std::net::TcpListener::bind((address, port)).unwrap());
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("main".into()));
    let (_, err) = as_nobody(&daemon, "main", Some("secret"));
    assert!(err.contains("takes no connections from other users"), "{err}");
}

#[test]
fn pages_are_for_the_owner_and_who_has_the_token() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&["secret-plan"]);
    for path in ["/", "/status", "/metrics", "/status?token=", "/status?token=0"] {
        let answer = of_user(NOBODY, || daemon.get(path, "localhost"));
        assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("secret-plan"), "{path}: {answer}");
    }
    let page = daemon.env.json(["pageserver", "status", "--json"])["page"].as_str().unwrap().to_owned();
    let token = page.split("/?token=").nth(1).unwrap();
    assert_eq!(token.len(), 32);
    let answer = of_user(NOBODY, || daemon.get(&format!("/status?token={token}"), "localhost"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("secret-plan"), "{answer}");
    assert!(daemon.get("/status", "localhost").starts_with("HTTP/1.1 200"));
}

#[test]
fn half_sent_requests_are_bounded_and_end() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::new(&[]);
    let pid = daemon.env.json(["pageserver", "status", "--json"])["pid"].as_i64().unwrap();
    let files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = files();
    let flood: Vec<TcpStream> = of_user(NOBODY, || {
        let half = || {
            let mut stream = TcpStream::connect(daemon.http).unwrap();
            let _ = stream.write_all(b"GET /status HTTP/1.1\r\nHost: loc");
            stream
        };
        (0..500).map(|_| half()).collect()
    });
    // The owner is served beside them, and all that they hold is a few places.
    assert!(daemon.get("/status", "localhost").starts_with("HTTP/1.1 200"));
    assert!(files() < before + 100, "{} files rather than {before}", files());
    let patience = Instant::now() + Duration::from_secs(120);
    for mut stream in flood {
        stream.set_read_timeout(Some(patience.saturating_duration_since(Instant::now()))).unwrap();
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(!matches!(ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "one stays");
    }
}

#[test]
fn other_machines_are_let_in_only_on_demand() {
    let daemon = Daemon::new(&[]);
    let pid = daemon.env.json(["pageserver", "status", "--json"])["pid"].clone();
    for addresses in [["0.0.0.0:0", "127.0.0.1:0"], ["127.0.0.1:0", "0.0.0.0:0"]] {
        let words = ["--listen", addresses[0], "--http", addresses[1]];
        // What is refused does not cost the one that runs.
        daemon.env.run(["pageserver", "restart"].iter().chain(&words)).fails(1, &["--allow-remote"]);
        assert_eq!(daemon.env.json(["pageserver", "status", "--json"])["pid"], pid);
    }
    daemon.env.run(["pageserver", "stop"]).ok();
    let words = ["pageserver", "start", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"];
    daemon.env.run(words).fails(1, &["--allow-remote"]);
    let ran = daemon.env.run(words.iter().chain(&["--allow-remote"]));
    assert!(ran.err.contains("warning") && ran.err.contains("proxy.others"), "{}", ran.err);
    ran.ok();
}
