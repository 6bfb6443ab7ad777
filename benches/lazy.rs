//! The lazy data directory against a native one, and a start against what people do instead: `make bench`.
//!
//! All pairs are measured side by side in one run; the ratios count. Variables: `BENCH_SCALES` (pgbench's,
//! three of them: "20 200 670", which is 0.3, 3 and 10 GB), `BENCH_SECONDS` (of each pgbench run, 10),
//! `BENCH_DIR`. Needs root for the loop mount with XFS, without which that comparison is skipped.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use support::{Bench, By, Took, drop_caches, installed, median, row, tree_size};

fn main() {
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let scales = std::env::var("BENCH_SCALES").unwrap_or_else(|_| "20 200 670".into());
    let scales: Vec<u32> = scales.split_whitespace().map(|scale| scale.parse().unwrap()).collect();
    println!("| what | zenith | peer | ratio |\n| --- | --- | --- | --- |");
    for (number, scale) in scales.iter().enumerate() {
        let dir = support::folder();
        let lazy = Lazy { bench: Bench { dir: dir.path().to_owned() }, scale: *scale };
        lazy.make();
        lazy.first_query();
        if number == 1 {
            lazy.against_copies();
            lazy.pgbench();
            lazy.ten_branches();
        }
        if number == scales.len() - 1 {
            lazy.memory();
        }
        lazy.zenith(&["stop", "--all", "--mode", "immediate"]);
    }
}

struct Lazy {
    bench: Bench,
    scale: u32,
}

impl std::ops::Deref for Lazy {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

fn timed(work: impl FnOnce()) -> Took {
    let start = Instant::now();
    work();
    Took { time: start.elapsed(), peak: 0 }
}

fn figures(what: &str, ours: f64, theirs: f64) {
    println!("| {what} | {ours:.0} | {theirs:.0} | {:.2} |", ours / theirs);
}

/// One row by its key: index and table.
const QUERY: &str = "select abalance from pgbench_accounts where aid = 77777";

impl Lazy {
    fn gigabytes(&self) -> String {
        format!("{:.1} GB", tree_size(&self.path("cluster")) as f64 / 1e9)
    }

    fn make(&self) {
        self.server("init");
        self.server("start");
        let (scale, load) = (self.scale, "pgbench -h $PWD -U postgres -q -i");
        self.shell(&format!("{load} -s {scale} postgres 2> /dev/null"));
        self.shell("psql -qAt -h $PWD -U postgres -c 'vacuum freeze' -c checkpoint postgres");
        self.server("stop");
        self.trim_wal();
        self.zenith(&["init", "--from", "cluster"]);
        // Only what is measured is to happen.
        let config = fs::read_to_string(self.path(".zenith/config")).unwrap();
        fs::write(self.path(".zenith/config"), config.replace("wal_threshold = 67108864", "wal_threshold = 0"))
            .unwrap();
    }

    fn lazy_start(&self, branch: &str) -> Took {
        timed(|| {
            self.zenith(&["start", branch]);
            self.query(branch, QUERY);
        })
    }

    fn query(&self, branch: &str, sql: &str) -> String {
        self.zenith(&["psql", branch, "--", "-qAtc", sql]).1
    }

    fn first_query(&self) {
        let (mut ours, mut pg_ctl, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let clean = || {
            // Of a clean shutdown, as the branch.
            self.server("start");
            self.server("stop");
        };
        for _ in 0..7 {
            clean();
            pg_ctl.push(self.native_start("cluster", By::PgCtl, QUERY));
            clean();
            bare.push(self.native_start("cluster", By::Postgres, QUERY));
            ours.push(self.lazy_start("main"));
            self.zenith(&["stop", "main"]);
        }
        clean();
        let (ours, what) = (median(ours), format!("start and first query, {}", self.gigabytes()));
        row(&format!("{what}, against pg_ctl start, s"), ours, median(pg_ctl));
        row(&format!("{what}, against postgres alone, s"), ours, median(bare));
    }

    /// A new branch, its start and first query, against copies of the directory and a native start on those.
    fn against_copies(&self) {
        self.shell("tar -C cluster -cf cluster.tar .");
        let mut number = 0;
        let mut branch = || {
            number += 1;
            let name = format!("copy{number}");
            drop_caches();
            let took = timed(|| {
                self.zenith(&["branch", &name]);
                self.lazy_start(&name);
            });
            self.zenith(&["stop", &name]);
            took
        };
        let copy = |script: &str| {
            let _ = fs::remove_dir_all(self.path("copy"));
            drop_caches();
            let copied = self.shell(script);
            let started = self.native_start("copy", By::PgCtl, QUERY);
            Took { time: copied.time + started.time, peak: 0 }
        };
        row(
            "branch, start, first query, cold, against tar x, s",
            branch(),
            copy("mkdir -m 700 copy; tar -C copy -xf cluster.tar"),
        );
        row("the same against cp -a, s", branch(), copy("cp -a cluster copy"));
        if installed("pgbackrest") {
            let dir = self.dir.display();
            let pgbackrest = |path: &str| {
                format!(
                    "pgbackrest --stanza=bench --log-level-console=error --log-path={dir} --lock-path={dir} \
                     --pg1-path={dir}/{path} --repo1-path={dir}/backrest"
                )
            };
            let options = "--no-online --compress-type=zst --compress-level=3 --process-max=2";
            let (create, cluster) = (pgbackrest("cluster"), pgbackrest("cluster"));
            self.shell(&format!("{create} --no-online stanza-create; {cluster} {options} --type=full backup"));
            let restore =
                format!("mkdir -m 700 copy; {} --process-max=2 --type=none restore > /dev/null", pgbackrest("copy"));
            row("the same against pgbackrest restore, s", branch(), copy(&restore));
            let _ = fs::remove_dir_all(self.path("backrest"));
        }
        let _ = fs::remove_dir_all(self.path("copy"));
        fs::remove_file(self.path("cluster.tar")).unwrap();
        self.against_reflinks();
    }

    /// On XFS, where a copy shares its blocks.
    fn against_reflinks(&self) {
        let mount = "truncate -s 20G xfs.img && mkfs.xfs -q xfs.img && mkdir xfs && mount -o loop xfs.img xfs";
        if !installed("mkfs.xfs")
            || !Command::new("sh").args(["-c", mount]).current_dir(&self.dir).status().unwrap().success()
        {
            println!("| SKIPPED: no XFS to be had | - | - | - |");
            return;
        }
        let inner = Lazy { bench: Bench { dir: self.path("xfs") }, scale: self.scale };
        self.shell("cp -a cluster .zenith xfs/");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 0..5 {
            drop_caches();
            let copied = inner.shell("cp -a --reflink=always cluster copy");
            let started = inner.native_start("copy", By::PgCtl, QUERY);
            theirs.push(Took { time: copied.time + started.time, peak: 0 });
            fs::remove_dir_all(inner.path("copy")).unwrap();
            drop_caches();
            let name = format!("link{number}");
            ours.push(timed(|| {
                inner.zenith(&["branch", &name]);
                inner.lazy_start(&name);
            }));
            inner.zenith(&["stop", &name]);
        }
        row("the same against cp --reflink on XFS, s", median(ours), median(theirs));
        self.shell("umount xfs; rm xfs.img");
    }

    fn tps(&self, branch: &str, arguments: &str) -> f64 {
        let seconds = std::env::var("BENCH_SECONDS").unwrap_or_else(|_| "10".into());
        let (_, url) = self.zenith(&["url", branch]);
        self.shell(&format!("pgbench -n -c 8 -j 2 -T {seconds} {arguments} '{url}' > tps.txt 2>&1"));
        let text = fs::read_to_string(self.path("tps.txt")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
        line.split(' ').next().unwrap().parse().unwrap()
    }

    fn scan(&self, branch: &str) -> Took {
        timed(|| {
            drop(self.query(branch, "set max_parallel_workers_per_gather = 0; select count(*) from pgbench_accounts"))
        })
    }

    /// The same branch twice: on a lazy data directory, and restored into a native one.
    fn pgbench(&self) {
        for branch in ["lazy", "native"] {
            self.zenith(&["branch", branch, "main"]);
        }
        self.zenith(&["start", "lazy"]);
        self.zenith(&["start", "native", "--eager"]);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            drop_caches();
            ours.push(self.scan("lazy"));
            drop_caches();
            theirs.push(self.scan("native"));
        }
        row("cold sequential scan against a native directory, s", median(ours), median(theirs));
        self.shell("cat .zenith/datadirs/*/data/base/*/* > /dev/null");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            ours.push(self.scan("lazy"));
            theirs.push(self.scan("native"));
        }
        row("warm sequential scan, s", median(ours), median(theirs));
        for (what, arguments) in [("select-only, transactions a second", "-S"), ("TPC-B, transactions a second", "")] {
            let (mut ours, mut theirs) = (0.0, 0.0);
            for _ in 0..3 {
                ours += self.tps("lazy", arguments) / 3.0;
                theirs += self.tps("native", arguments) / 3.0;
            }
            figures(&format!("pgbench {what}, warm"), ours, theirs);
        }
        self.zenith(&["stop", "lazy"]);
        self.zenith(&["stop", "native"]);
    }

    /// Bytes on disk, whatever the files' lengths, without what is mounted.
    fn disk(&self, path: &str) -> u64 {
        let script = format!("sync; du -xs --block-size=1 {path} 2> /dev/null | cut -f1 > disk.txt");
        self.shell(&script);
        fs::read_to_string(self.path("disk.txt")).unwrap().trim().parse().unwrap()
    }

    fn ten_branches(&self) {
        let before = self.disk(".zenith");
        // One row in every hundredth block.
        let update = "update pgbench_accounts set abalance = abalance + 1 where aid % 6100 = 1";
        for number in 0..10 {
            let branch = format!("ten{number}");
            self.zenith(&["branch", &branch, "main"]);
            self.zenith(&["start", &branch]);
            self.query(&branch, update);
            self.query(&branch, "checkpoint");
        }
        let (all, one) = (self.disk(".zenith"), self.disk("cluster"));
        let mb = |bytes: u64| bytes as f64 / 1e6;
        figures(
            "disk of the repository with ten branches, 1 % changed in each, against one native copy, MB",
            mb(all),
            mb(one),
        );
        println!("| of that, ten branches added, MB | {:.0} | - | - |", mb(all - before));
        let (stored, layers) = (self.disk(".zenith/objects"), self.disk(".zenith/datadirs"));
        println!("| objects; local blocks; MB | {:.0}; {:.0} | - | - |", mb(stored), mb(layers));
        self.zenith(&["stop", "--all", "--mode", "immediate"]);
    }

    /// What the file system's process takes, after all was read, in order and at random, and much was written.
    fn memory(&self) {
        self.zenith(&["start", "main"]);
        self.scan("main");
        self.tps("main", "-S");
        self.tps("main", "");
        let locks: Vec<PathBuf> = fs::read_dir(self.path(".zenith/datadirs"))
            .unwrap()
            .flatten()
            .map(|entry| entry.path().join("lock"))
            .collect();
        let pid = locks.iter().find_map(|lock| fs::read_to_string(lock).ok()).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        println!("| most memory of the file system's process, {}, MiB | {} | - | - |", self.gigabytes(), peak >> 10);
    }
}
