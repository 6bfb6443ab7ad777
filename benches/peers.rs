//! Compares zenith with what people use today, side by side in one run: `make bench`.
//!
//! Absolute times say little on a shared machine; the ratios do. Needs `tar` and `zstd`, and uses
//! `pgbackrest` and `restic` where they are installed. Variables: `BENCH_SCALE` (pgbench's, 100),
//! `BENCH_SECONDS` (of pgbench between the snapshots, 60), `BENCH_TPS` (its rate, 2100), `BENCH_DIR`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let parent = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("zenith-bench-").tempdir_in(parent).unwrap();
    let bench = Bench { dir: dir.path().to_owned() };
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

struct Bench {
    dir: PathBuf,
}

/// What a command took.
#[derive(Clone, Copy)]
struct Took {
    time: Duration,
    /// The most memory that the process itself had at a time, bytes.
    peak: u64,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn shell(&self, script: &str) -> Took {
        measure(Command::new("bash").args(["-c", &format!("set -eo pipefail; {script}")]).current_dir(&self.dir))
    }

    fn zenith(&self, words: &[&str]) -> (Took, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zenith"));
        let output = self.path("out.txt");
        command.args(words).current_dir(&self.dir).stdout(fs::File::create(&output).unwrap()).stderr(Stdio::null());
        let took = measure(&mut command);
        (took, fs::read_to_string(output).unwrap().trim().to_owned())
    }

    fn server(&self, action: &str) {
        let bin = pg_bin();
        let root = nix::unistd::geteuid().is_root();
        let run = if root { "unshare --user --map-user=1000 --map-group=1000 --" } else { "" };
        let options =
            "-c unix_socket_directories=$PWD -c listen_addresses= -c max_wal_size=4GB -c shared_buffers=512MB";
        let script = match action {
            "init" => format!(
                "{run} {bin}/initdb -D cluster -U postgres -k -E UTF8 --locale=C.UTF-8 -A trust --no-instructions",
                bin = bin.display()
            ),
            "start" => {
                format!("{run} {bin}/pg_ctl -D cluster -w -l server.log -o \"{options}\" start", bin = bin.display())
            }
            _ => format!("{run} {bin}/pg_ctl -D cluster -w stop", bin = bin.display()),
        };
        self.shell(&format!("({script}) > /dev/null"));
    }

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

    /// Removes the segments that a clean start does not need: the peers would copy them.
    fn trim_wal(&self) {
        let controldata = pg_bin().join("pg_controldata");
        let needed = format!("{} cluster | sed -n 's/.*REDO WAL file: *//p'", controldata.display());
        self.shell(&format!("needed=$({needed}); test -n \"$needed\"; cd cluster/pg_wal; for f in 0*; do [ $f = $needed ] || rm $f; done"));
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

fn pg_bin() -> PathBuf {
    let search = zenith::plumbing::postgres::find::Search { path: std::env::var_os("PATH"), ..Default::default() };
    zenith::plumbing::postgres::find::find(&search).expect("PostgreSQL").dir
}

fn row(what: &str, ours: Took, theirs: Took) {
    let (ours, theirs) = (ours.time.as_secs_f64(), theirs.time.as_secs_f64());
    println!("| {what} | {ours:.2} | {theirs:.2} | {:.2} |", ours / theirs);
}

fn sizes(what: &str, ours: u64, theirs: u64) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("| {what} (MB) | {:.1} | {:.1} | {:.2} |", mb(ours), mb(theirs), ours as f64 / theirs as f64);
}

/// Runs a command that must succeed, and watches its memory.
fn measure(command: &mut Command) -> Took {
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}");
            return Took { time: start.elapsed(), peak };
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Makes every run begin cold, where that is allowed.
fn drop_caches() {
    let _ = Command::new("sync").status();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

fn installed(program: &str) -> bool {
    let found = Command::new("which").arg(program).stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        println!("| SKIPPED: {program} is not installed | - | - | - |");
    }
    found
}

fn file_size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn tree_size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { tree_size(&entry.path()) } else { file_size(&entry.path()) }).sum()
}

/// Returns by how much the packs grew; loose objects are WAL.
fn pack_growth(objects: &Path, before: u64) -> u64 {
    let mut packs: Vec<_> = fs::read_dir(objects.join("pack")).unwrap().flatten().map(|entry| entry.path()).collect();
    packs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let newest = packs.iter().rev().take(2).map(|path| file_size(path)).sum::<u64>();
    newest.min(tree_size(objects) - before)
}
