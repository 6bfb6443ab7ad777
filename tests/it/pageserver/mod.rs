//! The page server, with real clients.

mod access;
mod clients;
mod life;
mod pages;
mod sessions;
mod setup;
mod strings;
mod wire;

use std::net::SocketAddr;

use crate::support::Env;

/// A page server of its own, on free ports.
struct Daemon {
    env: Env,
    listen: SocketAddr,
    http: SocketAddr,
}

impl Daemon {
    /// A repository in which main and the branches `names` each know what they are called, and its page server.
    fn new(names: &[&str]) -> Daemon {
        Daemon::of(Env::init(), names)
    }

    fn of(env: Env, names: &[&str]) -> Daemon {
        env.run(["start"]).ok();
        env.sql("main", "create table whoami as select 'main' as name");
        for name in names {
            env.run(["branch", name]).ok();
            env.run(["start", name]).ok();
            env.sql(name, &format!("update whoami set name = '{name}'"));
        }
        env.run(["stop", "--all"]).ok();
        let mut daemon = Daemon { env, listen: ([0, 0, 0, 0], 0).into(), http: ([0, 0, 0, 0], 0).into() };
        daemon.start(&[]);
        daemon
    }

    fn start(&mut self, more: &[&str]) {
        let words = ["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        self.env.run(words.iter().chain(more)).ok();
        self.find();
    }

    /// Notes where it listens.
    fn find(&mut self) {
        let status = self.env.json(["pageserver", "status", "--json"]);
        self.listen = status["listen"].as_str().unwrap().parse().unwrap();
        self.http = status["http"].as_str().unwrap().parse().unwrap();
    }

    /// Asks a branch over TCP. Returns the answer or the error, with its SQLSTATE before it.
    fn ask(&self, branch: &str, sql: &str) -> Result<String, String> {
        let mut client = self.connect(branch).map_err(told)?;
        let rows = client.simple_query(sql).map_err(told)?;
        let value = |row: &postgres::SimpleQueryMessage| match row {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(rows.iter().find_map(value).unwrap_or_default())
    }

    fn connect(&self, branch: &str) -> Result<postgres::Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.listen.port()).user("postgres").dbname("postgres");
        config.options(&format!("-c zenith.branch={}", branch.replace(' ', "\\ "))).connect(postgres::NoTls)
    }

    /// Asks for a page over HTTP, and returns status and body.
    fn get(&self, path: &str, host: &str) -> String {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics", "localhost");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("0").trim().parse().unwrap()
    }

    /// Returns the branches and revisions whose servers run, sorted.
    fn running(&self) -> Vec<String> {
        let rows = self.env.json(["pg", "list", "--json"]);
        let running = rows.as_array().unwrap().iter().filter(|row| row["running"] == true);
        let mut names: Vec<String> = running.map(|row| row["branch"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn wait_until_running(&self, expected: &[&str]) {
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.running() != expected {
            assert!(std::time::Instant::now() < patience, "{:?} run, not {expected:?}", self.running());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Returns the packet that begins a session with these parameters.
fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let text: String = parameters.iter().map(|(name, value)| format!("{name}\0{value}\0")).collect();
    [&(9 + text.len() as u32).to_be_bytes()[..], &(3u32 << 16).to_be_bytes(), text.as_bytes(), b"\0"].concat()
}

/// Returns the message that asks for `sql`.
fn query(sql: &str) -> Vec<u8> {
    [b"Q", &(5 + sql.len() as u32).to_be_bytes()[..], sql.as_bytes(), b"\0"].concat()
}

fn told(error: postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {} {}", error.code().code(), error.message(), error.hint().unwrap_or_default()),
        None => error.to_string(),
    }
}
