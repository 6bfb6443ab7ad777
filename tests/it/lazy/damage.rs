//! What goes wrong below a running server, and who else looks at its files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::plumbing::postgres::process::Process;

use super::{assert_lazy, client, with_checksums};
use crate::support::{Env, checked, is_alive, wait_until};

#[test]
fn a_corrupt_frame_is_an_error_for_its_blocks_and_no_others() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table sound as select g from generate_series(1, 1000) g");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    // Does not compress: the middle of its pack is the middle of the table.
    env.sql("main", "create table hurt as select sha512(g::text::bytea) a from generate_series(1, 60000) g");
    env.run(["stop"]).ok();
    let packs = fs::read_dir(env.repo().join("objects/pack")).unwrap().map(|entry| entry.unwrap().path());
    let packs = packs.filter(|path| path.extension().is_some_and(|extension| extension == "pack"));
    let pack = packs.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap();
    let middle = fs::metadata(&pack).unwrap().len() / 2;
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();

    env.run(["start"]).ok();
    assert_lazy(&env, "main");
    let failed = env.run(["psql", "main", "--", "-Atc", "select count(a) from hurt"]);
    failed.fails(1, &["could not read block", "Input/output error"]);
    assert_eq!(env.sql("main", "select count(*) from sound"), "1000");
    assert_ne!(env.sql("main", "select count(*) from (select 1 from hurt limit 100) x"), "0");
    env.sql("main", "create table later as select 1");
    // Both say which object it is, and fsck says the same.
    let status = env.json(["status", "--json"]);
    let damage = status["instances"][0]["lazy"]["damages"][0].as_str().unwrap().to_owned();
    let text = env.run(["status"]).ok();
    assert!(text.contains(&damage), "{text}");
    let id = damage.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500)); // the log is written once a second
    let log = fs::read_to_string(env.repo().join("instances/pg1/log")).unwrap();
    assert!(log.contains(id), "{log}");
    let checked = env.run(["fsck"]);
    assert!(checked.code == 3 && checked.out.contains(id), "{}{}", checked.out, checked.err);
    // The rest is kept.
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from later"), "1");
}

/// A small file system for the repository.
struct Small<'a>(&'a Env);

impl Small<'_> {
    fn mount(env: &Env) -> Option<Small<'_>> {
        let dir = env.path().join("small");
        fs::create_dir_all(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=600m", "tmpfs"]).arg(&dir).status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("SKIPPED: cannot mount a file system here");
            return None;
        }
        Some(Small(env))
    }

    fn resize(&self, kilobytes: u64) {
        let option = format!("remount,size={kilobytes}k");
        checked(Command::new("mount").args(["-o", &option]).arg(self.0.path().join("small")));
    }

    fn used(&self) -> u64 {
        let text = checked(Command::new("df").args(["--output=used", "-k"]).arg(self.0.path().join("small")));
        text.lines().last().unwrap().trim().parse().unwrap()
    }

    fn run(&self, args: &[&str]) -> crate::support::Ran {
        self.0.run([&["-C", "small"], args].concat())
    }

    fn sql(&self, sql: &str) -> crate::support::Ran {
        self.run(&["psql", "main", "--", "-XqAt", "-c", sql])
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = self.run(&["stop", "--all", "--mode", "immediate"]);
        let _ = Command::new("umount").arg("-l").arg(self.0.path().join("small")).status();
    }
}

#[test]
fn a_full_disk_below_a_running_server_is_an_error_and_never_a_loss() {
    let env = Env::new();
    let Some(small) = Small::mount(&env) else { return };
    small.run(&["init"]).ok();
    small.run(&["start"]).ok();
    small.sql("create table kept as select g, md5(g::text) m from generate_series(1, 100000) g").ok();
    small.sql("checkpoint").ok();
    small.resize(small.used() + 4_000);
    // No room for the table; WAL may run out first, and then the server stops: both are no silence.
    let failed = small.sql("create table large as select sha512(g::text::bytea) a from generate_series(1, 400000) g");
    assert_ne!(failed.code, 0, "{}", failed.out);
    small.resize(600_000);
    small.run(&["start"]).ok();
    assert_eq!(small.sql("select count(*), count(distinct m) from kept").ok(), "100000|100000");
    small.sql("create table large as select sha512(g::text::bytea) a from generate_series(1, 40000) g").ok();
    small.run(&["stop"]).ok();
    small.run(&["start"]).ok();
    assert_eq!(small.sql("select count(*) from kept k, (select count(*) from large) l").ok(), "100000");
    small.run(&["stop"]).ok();
    small.run(&["fsck"]).ok();
}

#[test]
fn others_may_look_at_the_mount_and_write_to_it() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g from generate_series(1, 50000) g");
    env.sql("main", "checkpoint");
    let data = env.datadir("main").join("data");
    let files = checked(Command::new("find").arg(&data).args(["-type", "f"])).lines().count();
    assert!(files > 900, "only {files} files");
    checked(Command::new("tar").args(["-C"]).arg(&data).args(["-cf", "/dev/null", "--warning=none", "base"]));
    let df = checked(Command::new("df").arg(&data));
    assert!(df.contains("zenith"), "{df}");
    checked(Command::new("du").arg("-s").arg(&data));
    // While somebody reads and writes there, the server does too.
    checked(Command::new("cp").arg("-a").arg(data.join("base")).arg(data.join("foreign")));
    checked(Command::new("diff").arg("-r").arg(data.join("base/1")).arg(data.join("foreign/1")));
    fs::write(data.join("foreign/note"), "hello").unwrap();
    fs::rename(data.join("foreign/note"), data.join("foreign/renamed")).unwrap();
    assert_eq!(fs::read_to_string(data.join("foreign/renamed")).unwrap(), "hello");
    assert_eq!(env.sql("main", "select count(*) from t"), "50000");
    fs::remove_dir_all(data.join("foreign")).unwrap();
    assert!(!data.join("foreign").exists());
    client(&env, "main", "pg_dump", &["-f", "/dev/null"]);
    env.run(["stop"]).ok();
    assert_eq!(env.mounts(), Vec::<String>::new());
}

#[test]
fn a_verified_workload_of_random_writes_reads_back() {
    let env = Env::init();
    env.run(["start"]).ok();
    let data = env.datadir("main").join("data");
    if Command::new("fio").arg("--version").output().is_err() {
        println!("SKIPPED: fio is not installed");
        return;
    }
    let random = ["--name=v", "--rw=randwrite", "--bsrange=512-64k", "--size=48m", "--fsync=64", "--numjobs=2"];
    let mapped = ["--name=m", "--rw=randrw", "--bs=8k", "--size=24m", "--ioengine=mmap"];
    for job in [&random[..], &mapped[..]] {
        let mut fio = Command::new("fio");
        // It leaves its state where it runs.
        fio.current_dir(env.path()).arg(format!("--directory={}", data.display())).args(job);
        checked(fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fallocate=none"]));
    }
    // What is in the snapshot is what was verified.
    for name in ["v.0.0", "v.1.0", "m.0.0"] {
        fs::rename(data.join(name), data.join("base").join(name)).unwrap();
    }
    let before = fs::read(data.join("base/v.1.0")).unwrap();
    env.sql("main", "create table t as select 1");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert!(fs::read(env.datadir("main").join("data/base/v.1.0")).unwrap() == before);
}

#[test]
fn data_directories_can_be_thrown_away_after_a_stop() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g from generate_series(1, 1000) g");
    env.run(["stop"]).ok();
    fs::remove_dir_all(env.repo().join("datadirs")).unwrap();
    env.run(["start"]).ok();
    assert_lazy(&env, "main");
    assert_eq!(env.sql("main", "select count(*) from t"), "1000");
}

/// Kills the processes of a branch's server, its file system and its guardian at once, and waits until they are gone.
fn cut_power(env: &Env, branch: &str) {
    let dir = env.datadir(branch);
    wait_until("the data directory is prepared", || dir.join("prepared").exists());
    let of_lock = |name: &str| Some(fs::read_to_string(dir.join(name)).ok()?.parse::<Process>().ok()?.pid);
    let pids = [of_lock("guard.lock"), of_lock("lock"), Some(env.postmaster(branch))];
    let pids: Vec<i32> = pids.into_iter().flatten().collect();
    for pid in &pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    wait_until("all of it is gone", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_journal_that_lost_what_was_durable_is_set_aside_and_the_wal_has_all() {
    let env = with_checksums();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int primary key, filler text)");
    for (round, kept) in [50, 95, 100].into_iter().enumerate() {
        for step in 0..4 {
            env.sql("main", &format!("insert into t select {round} * 10000 + {step} * 1000 + g, repeat('x', 300) from generate_series(1, 1000) g"));
            env.sql("main", "update t set filler = 'y' where i % 7 = 0");
            env.sql("main", &format!("create table t{round}_{step} as select 1 i"));
            env.sql("main", "checkpoint");
        }
        env.sql("main", &format!("insert into t values (-{round} - 1)"));
        cut_power(&env, "main");
        let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
        let journal = env.repo().join("datadirs").join(timeline).join("local/journal");
        // Amid it, near its end, and a few bytes before the end.
        let length = fs::metadata(&journal).unwrap().len();
        let cut = (length * kept / 100).min(length - 5);
        fs::File::options().write(true).open(&journal).unwrap().set_len(cut).unwrap();
        env.run(["start"]).ok();
        let rows = (round + 1) * 4001;
        assert_eq!(env.sql("main", "select count(*) from t"), rows.to_string(), "cut to {cut} of {length} bytes");
        client(&env, "main", "pg_dump", &["-f", "/dev/null"]);
        let aside = env.json(["trash", "--json"]).as_array().unwrap().len();
        assert_eq!(aside, round + 1, "cut to {cut} of {length} bytes");
    }
    env.sql("main", "create extension amcheck");
    client(&env, "main", "pg_amcheck", &["--all", "--heapallindexed"]);
}
