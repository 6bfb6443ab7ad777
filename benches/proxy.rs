//! The proxy against direct connections and pgbouncer, and what it takes to connect to a branch that does not run:
//! `make bench`.
//!
//! All pairs are measured side by side in one run; the ratios count. Variables: `BENCH_SCALE` (pgbench's, 200, which is
//! 3 GB), `BENCH_SECONDS` (of each pgbench run, 10), `BENCH_DIR`.

mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Bench, By, installed, median, pg_bin, row};

const PASSWORD: &str = "bench";

fn main() {
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let dir = support::folder();
    let proxy = Proxy::new(Bench { dir: dir.path().to_owned() });
    println!("| what | zenith | peer | ratio |\n| --- | --- | --- | --- |");
    proxy.cold();
    proxy.pgbench();
    proxy.idle();
    proxy.zenith(&["pageserver", "stop"]);
    proxy.zenith(&["stop", "--all", "--mode", "immediate"]);
}

struct Proxy {
    bench: Bench,
    socket_dir: String,
    port: u16,
}

impl std::ops::Deref for Proxy {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

/// Where pgbench connects.
struct Way {
    name: &'static str,
    host: String,
    port: u16,
}

fn figures(what: &str, ours: f64, theirs: f64) {
    println!("| {what} | {ours:.0} | {theirs:.0} | {:.2} |", ours / theirs);
}

impl Proxy {
    fn new(bench: Bench) -> Proxy {
        let scale = std::env::var("BENCH_SCALE").unwrap_or_else(|_| "200".into());
        bench.server("init");
        // The same for all: what a server allocates is a part of its start.
        bench.shell("printf 'max_connections = 2100\\nshared_buffers = 512MB\\n' >> cluster/postgresql.conf");
        bench.server("start");
        bench.shell(&format!("pgbench -h $PWD -U postgres -q -i -s {scale} postgres 2> /dev/null"));
        bench.shell("psql -qAt -h $PWD -U postgres -c 'vacuum freeze' -c checkpoint postgres");
        bench
            .shell(&format!("psql -qAt -h $PWD -U postgres -c \"alter role postgres password '{PASSWORD}'\" postgres"));
        bench.server("stop");
        bench.trim_wal();
        bench.zenith(&["init", "--from", "cluster"]);
        for (key, value) in
            [("proxy.listen", "127.0.0.1:0"), ("proxy.http", "127.0.0.1:0"), ("snapshot.wal_threshold", "0")]
        {
            bench.zenith(&["config", key, value]);
        }
        bench.zenith(&["pageserver", "start"]);
        let (_, status) = bench.zenith(&["pageserver", "status", "--json"]);
        let field = |name: &str| {
            let rest = status.split_once(&format!("\"{name}\":\"")).unwrap().1;
            rest.split('"').next().unwrap().to_owned()
        };
        let port = field("listen").rsplit(':').next().unwrap().parse().unwrap();
        Proxy { socket_dir: field("socket_dir"), port, bench }
    }

    /// Connects to a branch that does not run, against starting PostgreSQL on a copy.
    fn cold(&self) {
        let query = "select abalance from pgbench_accounts where aid = 77777";
        let bin = pg_bin();
        let (mut ours, mut pg_ctl, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..7 {
            self.shell("sync");
            let (dir, port, bin) = (&self.socket_dir, self.port, bin.display());
            ours.push(
                self.shell(&format!(
                    "{bin}/psql -qAt -h {dir} -p {port} -U postgres -c '{query}' postgres > /dev/null"
                )),
            );
            self.zenith(&["stop", "main"]);
            for (by, times) in [(By::PgCtl, &mut pg_ctl), (By::Postgres, &mut bare)] {
                self.server("start");
                self.server("stop");
                self.shell("sync");
                times.push(self.native_start("cluster", by, query));
            }
        }
        self.server("start");
        self.server("stop");
        let ours = median(ours);
        row("connect to a stopped branch, first result, 3 GB, against pg_ctl start, s", ours, median(pg_ctl));
        row("the same against postgres alone, s", ours, median(bare));
    }

    fn tps(&self, way: &Way, arguments: &str) -> f64 {
        let seconds = std::env::var("BENCH_SECONDS").unwrap_or_else(|_| "10".into());
        let Way { host, port, .. } = way;
        self.shell(&format!(
            "PGPASSWORD={PASSWORD} PGSSLMODE=disable pgbench -n -c 16 -j 2 -T {seconds} {arguments} -h {host} -p {port} -U postgres postgres > tps.txt 2>&1"
        ));
        let text = fs::read_to_string(self.path("tps.txt")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
        line.split(' ').next().unwrap().parse().unwrap()
    }

    /// Starts pgbouncer before the instance at `port`. Its connections to the server are not kept for the next
    /// client: one that has run before has its page tables filled, and is faster by that, whoever is in between.
    fn pgbouncer(&self, port: u16) -> Option<(Child, Vec<Way>)> {
        if !installed("pgbouncer") {
            return None;
        }
        let (dir, bouncer) = (self.dir.display(), port + 1000);
        fs::write(
            self.path("bouncer.ini"),
            format!(
                "[databases]\npostgres = host={} port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {bouncer}\nunix_socket_dir = {dir}\nauth_type = any\npool_mode = session\nserver_lifetime = 0\n\
                 default_pool_size = 100\nmax_client_conn = 3000\nlogfile = {dir}/bouncer.log\nlog_connections = 0\nlog_disconnections = 0\n",
                self.socket_dir
            ),
        )
        .unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-user=1000", "--map-group=1000", "--", "pgbouncer", "-q"])
            .arg(self.path("bouncer.ini"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(self.path(&format!(".s.PGSQL.{bouncer}"))).is_err() {
            assert!(Instant::now() < patience, "pgbouncer does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let way = |name, host| Way { name, host, port: bouncer };
        Some((child, vec![way("unix socket", dir.to_string()), way("TCP", "127.0.0.1".to_owned())]))
    }

    fn pgbench(&self) {
        self.zenith(&["start", "main", "--tcp"]);
        let (_, list) = self.zenith(&["pg", "list", "--json"]);
        let port: u16 = list.split_once("\"port\":").unwrap().1.split(',').next().unwrap().parse().unwrap();
        let way = |name, host: &str, port| Way { name, host: host.to_owned(), port };
        let direct = [way("unix socket", &self.socket_dir, port), way("TCP", "127.0.0.1", port)];
        let ours = [way("unix socket", &self.socket_dir, self.port), way("TCP", "127.0.0.1", self.port)];
        let bouncer = self.pgbouncer(port);
        // All blocks in memory, so that nobody waits for what somebody else has read.
        let warm = "create extension if not exists pg_prewarm; select pg_prewarm(oid::regclass) from pg_class where relname like 'pgbench%'";
        self.shell(&format!(
            "psql -qAt -h {} -p {port} -U postgres -c \"{warm}\" postgres > /dev/null",
            self.socket_dir
        ));
        for (number, direct) in direct.iter().enumerate() {
            let ways = [Some(direct), Some(&ours[number]), bouncer.as_ref().map(|(_, ways)| &ways[number])];
            let ways: Vec<&Way> = ways.into_iter().flatten().collect();
            for (what, arguments, rounds) in
                [("select-only", "-S", 6), ("TPC-B", "", 3), ("select-only, a connection each", "-S -C", 3)]
            {
                // What the run before left, such as hint bits to be set, is the first one's: that one does not count.
                self.tps(direct, arguments);
                let mut sums = vec![0.0; ways.len()];
                for round in 0..rounds {
                    // Each is first, second and third as often as the others.
                    for turn in 0..ways.len() {
                        let turn = (turn + round) % ways.len();
                        sums[turn] += self.tps(ways[turn], arguments);
                    }
                }
                let means: Vec<f64> = sums.iter().map(|sum| sum / rounds as f64).collect();
                let what = format!("{what}, 16 clients, {}, transactions a second", direct.name);
                figures(&format!("{what}, against direct"), means[1], means[0]);
                if let Some(bounced) = means.get(2) {
                    figures(&format!("{what}, against pgbouncer"), means[1], *bounced);
                    figures(&format!("{what}, pgbouncer against direct"), *bounced, means[0]);
                }
            }
        }
        if let Some((mut child, _)) = bouncer {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What sessions cost that do nothing.
    fn idle(&self) {
        let (_, status) = self.zenith(&["pageserver", "status", "--json"]);
        let pid = status.split_once("\"pid\":").unwrap().1.split(',').next().unwrap().to_owned();
        let resident = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        let mut config = postgres::Config::new();
        config.host_path(&self.socket_dir).port(self.port).user("postgres").dbname("postgres");
        let clients: Vec<_> = (0..2000).map(|_| config.connect(postgres::NoTls).unwrap()).collect();
        let each = (resident() - before) as f64 / clients.len() as f64;
        println!("| memory of the daemon for each of 2,000 idle connections, KiB | {each:.1} | - | - |");
        println!("| memory of the daemon before, MiB | {} | - | - |", before >> 10);
    }
}
