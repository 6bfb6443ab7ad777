//! Compares zenith with what people use today, side by side in one run: `make bench`.
//!
//! Absolute times say little on a shared machine; the ratios do. Needs `tar` and `zstd`, and uses
//! `pgbackrest` and `restic` where they are installed. Variables: `BENCH_SCALE` (pgbench's, 100),
//! `BENCH_SECONDS` (of pgbench between the snapshots, 60), `BENCH_TPS` (its rate, 2100), `BENCH_DIR`.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Bench, Took, drop_caches, file_size, installed, pack_growth, row, sizes, tree_size};

fn main() {
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let dir = support::folder();
    let bench = Peers { bench: Bench { dir: dir.path().to_owned() } };
    println!("| what | zenith | peer | ratio |\n| --- | --- | --- | --- |");
    bench.make_cluster();
    bench.full();
    bench.restore();
    bench.run_pgbench();
    bench.delta();
    bench.names();
}

/// As quick and as small as it gets on two cores.
const PGBACKREST: &str = "--compress-type=zst --compress-level=3 --process-max=2";

struct Peers {
    bench: Bench,
}

/// What all benchmarks have.
impl std::ops::Deref for Peers {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Peers {
    fn make_cluster(&self) {
        let scale = std::env::var("BENCH_SCALE").unwrap_or_else(|_| "100".into());
        self.server("init");
        self.server("start");
        self.shell(&format!("pgbench -h $PWD -U postgres -q -i -s {scale} postgres 2> /dev/null"));
        let rows = scale.parse::<u64>().unwrap() * 12_000;
        let sql = format!(
            "create table texts as select i, md5(i::text) || repeat(' lorem ipsum dolor sit amet', 5) || md5((i * 3)::text) as t, \
             jsonb_build_object('id', i, 'name', 'user' || i, 'tags', jsonb_build_array(i % 7, md5((i % 1000)::text)), 'score', random()) as j \
             from generate_series(1, {rows}) i; checkpoint; select pg_switch_wal(); checkpoint"
        );
        self.shell(&format!("psql -qAt -h $PWD -U postgres -c \"{sql}\" postgres > /dev/null"));
        self.server("stop");
        self.trim_wal();
    }

    fn full(&self) {
        drop_caches();
        let tar = self.shell("tar -C cluster -cf - . | zstd -q -3 -T2 > cluster.tar.zst");
        drop_caches();
        let (full, _) = self.zenith(&["init", "--from", "cluster"]);
        row("full snapshot against tar | zstd -3 -T2, s", full, tar);
        sizes("the same, bytes", tree_size(&self.path(".zenith/objects")), file_size(&self.path("cluster.tar.zst")));
        println!("| peak memory of the full snapshot, MiB | {} | - | - |", full.peak >> 20);
        if installed("restic") {
            let init = "export RESTIC_PASSWORD=x; restic -q -r restic init";
            self.shell(init);
            drop_caches();
            let restic = self.shell("RESTIC_PASSWORD=x restic -q -r restic backup cluster");
            row("full snapshot against restic, s", full, restic);
        }
        if installed("pgbackrest") {
            self.shell(&format!("{} stanza-create", self.pgbackrest()));
            drop_caches();
            let backup = self.shell(&format!("{} backup --type=full {PGBACKREST}", self.pgbackrest()));
            row("full snapshot against pgbackrest, s", full, backup);
        }
    }

    fn pgbackrest(&self) -> String {
        let dir = self.dir.display();
        format!(
            "pgbackrest --stanza=bench --no-online --log-level-console=error --log-path={dir} --lock-path={dir} \
             --pg1-path={dir}/cluster --repo1-path={dir}/backrest"
        )
    }

    fn restore(&self) {
        drop_caches();
        let tar = self.shell("mkdir x; zstd -qdc cluster.tar.zst | tar -C x -xf - ; sync -f x");
        fs::remove_dir_all(self.path("x")).unwrap();
        drop_caches();
        let (restore, _) = self.zenith(&["restore", "main", "y"]);
        fs::remove_dir_all(self.path("y")).unwrap();
        row("restore against tar x, both synced, s", restore, tar);
    }

    fn run_pgbench(&self) {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        self.server("start");
        let (seconds, rate) = (variable("BENCH_SECONDS", "60"), variable("BENCH_TPS", "2100"));
        self.shell(&format!(
            "pgbench -h $PWD -U postgres -n -c 8 -j 2 -T {seconds} -R {rate} postgres > pgbench.txt 2>&1"
        ));
        self.shell("psql -qAt -h $PWD -U postgres -c checkpoint postgres");
        self.server("stop");
        self.trim_wal();
        let text = fs::read_to_string(self.path("pgbench.txt")).unwrap();
        let line = text.lines().find(|line| line.contains("actually processed")).unwrap_or_default();
        println!("| pgbench in between | {} | - | - |", line.trim());
    }

    fn delta(&self) {
        let (_, listing) = self.zenith(&["rev-list", "main"]);
        let parent = listing
            .lines()
            .find_map(|line| line.strip_prefix("snapshot "))
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        let before = tree_size(&self.path(".zenith/objects"));
        drop_caches();
        let (delta, id) = self.zenith(&["write-snapshot", "--parent", &parent, "cluster"]);
        // Without the WAL, which the peers do not store either.
        let stored = pack_growth(&self.path(".zenith/objects"), before);
        if installed("pgbackrest") {
            let before = tree_size(&self.path("backrest"));
            drop_caches();
            let incr = self.shell(&format!("{} backup --type=incr {PGBACKREST}", self.pgbackrest()));
            row("delta snapshot against pgbackrest incr, s", delta, incr);
            sizes("the same, bytes added", stored, tree_size(&self.path("backrest")) - before);
        }
        if installed("restic") {
            let before = tree_size(&self.path("restic"));
            drop_caches();
            let restic = self.shell("RESTIC_PASSWORD=x restic -q -r restic backup cluster");
            row("delta snapshot against restic, s", delta, restic);
            sizes("the same, bytes added", stored, tree_size(&self.path("restic")) - before);
        }
        println!("| peak memory of the delta snapshot, MiB | {} | - | - |", delta.peak >> 20);
        // The store itself, without a file system to write to: fsck reads every object once, so read files.
        let read = |id: &str| {
            let repo = zenith::objects::Repo::open(&self.path(".zenith")).unwrap();
            let snapshot = repo.store().snapshot(&repo.store().resolve_prefix(id).unwrap()).unwrap();
            let start = Instant::now();
            let mut buffer = Vec::new();
            for entry in &snapshot.entries {
                let Some(file) = zenith::objects::store::file::StoredFile::of_entry(repo.store(), entry).unwrap()
                else {
                    continue;
                };
                for block in (0..file.length().div_ceil(8192) as u32).step_by(512) {
                    buffer.clear();
                    file.read(repo.store(), block, 512, &mut buffer).unwrap();
                }
            }
            Took { time: start.elapsed(), peak: 0 }
        };
        read(&parent);
        let (whole, delta) = (read(&parent), read(&id));
        row("reading the delta's blocks against reading whole frames, s", delta, whole);
    }

    fn names(&self) {
        for count in [10, 10_000] {
            let made = fs::read_dir(self.path(".zenith/refs/branches")).unwrap().count();
            for number in made..count {
                let name = format!("b{number}");
                // By plumbing functions would be faster, but a user has only the program.
                self.zenith(&["branch", &name]);
            }
            let median = |words: &dyn Fn(usize) -> Vec<String>| {
                let mut times: Vec<Duration> = (0..15)
                    .map(|number| {
                        let words = words(number);
                        self.zenith(&words.iter().map(String::as_str).collect::<Vec<_>>()).0.time
                    })
                    .collect();
                times.sort_unstable();
                times[7].as_secs_f64() * 1e3
            };
            let branch = median(&|number| vec!["branch".into(), format!("m{count}-{number}")]);
            let tag = median(&|number| vec!["tag".into(), format!("t{count}-{number}")]);
            let parse = median(&|_| vec!["rev-parse".into(), "main".into()]);
            println!("| branch, tag, rev-parse at {count} branches, ms | {branch:.1}, {tag:.1}, {parse:.1} | - | - |");
        }
    }
}
