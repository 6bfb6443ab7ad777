//! What becomes of an epoch: one that changed anything is kept, whoever stops it and however its start ends.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use zenith::objects::pg::wal::WalReader;
use zenith::objects::pg::{Lsn, segment};
use zenith::objects::store::index::Index;
use zenith::objects::{ObjectId, Repo};
use zenith::plumbing::postgres::process::Process;

use crate::support::{Env, checked, has_strace, majors, pg_program, traced, wait_until};

#[test]
fn branches_and_tags_made_beside_stop_name_timelines_that_are_there() {
    let env = Env::init();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for kind in ["branch", "tag"] {
            let (env, over) = (&env, &over);
            scope.spawn(move || {
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let made = env.run([kind, &format!("{kind}{number}"), "main"]);
                    // One that comes amid a start or a stop may be refused, never half made.
                    assert!(made.code == 0 || made.code == 1 && !made.err.contains("timeline"), "{made:?}");
                }
            });
        }
        for _ in 0..8 {
            env.run(["start"]).ok();
            env.run(["stop"]).ok();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(env.run(["show-ref", "--branches"]).ok().lines().count() > 2);
    env.run(["log", "--graph", "--oneline"]).ok();
    env.run(["rev-list", "--all"]).ok();
    env.run(["fsck"]).ok();
}

#[test]
fn a_ref_to_a_missing_timeline_does_not_hide_the_others() {
    let env = Env::init();
    env.run(["branch", "gone", "main"]).ok();
    env.run(["branch", "sound", "main"]).ok();
    let timeline = env.run(["rev-parse", "gone"]).ok()[..32].to_owned();
    std::fs::remove_dir_all(env.repo().join("timelines").join(&timeline)).unwrap();
    for args in [&["log", "--graph", "--oneline"][..], &["log", "--all", "--json"], &["rev-list", "--all"], &["branch"]]
    {
        let ran = env.run(args);
        let sound = env.run(["rev-parse", "sound"]).ok();
        assert!(ran.out.contains("sound") || ran.out.contains(&sound[..32]), "{ran:?}");
        ran.fails(3, &["refs/branches/gone", &timeline, "zenith update-ref -d refs/branches/gone"]);
    }
    env.run(["fsck"]).fails(3, &[]);
    env.run(["update-ref", "-d", "refs/branches/gone"]).ok();
    env.run(["log", "--graph"]).ok();
    // Nor does one that is damaged keep the others from working.
    std::fs::write(env.repo().join("refs/branches/sound"), "").unwrap();
    env.run(["start"]).ok();
    env.run(["stop"]).ok();
    env.run(["branch", "-d", "sound"]).fails(3, &["refs/branches/sound", "logs/"]);
}

#[test]
fn an_epoch_that_changed_anything_is_kept_although_nothing_was_committed() {
    let env = Env::init();
    env.run(["config", "branch.main.postgres.max_prepared_transactions", "5"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g from generate_series(1, 20000) g");
    env.sql("main", "begin; insert into t values (-1); prepare transaction 'p'");
    env.run(["stop"]).ok();
    // A prepared transaction is undone.
    env.run(["start"]).ok();
    env.sql("main", "rollback prepared 'p'");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from pg_prepared_xacts"), "0");
    // Hint bits are written once, not by every epoch again.
    env.sql("main", "select count(*) from t");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "select count(*) from t");
    let stopped = env.run(["stop"]).ok();
    assert!(stopped.contains("nothing was committed"), "{stopped}");
    // A frozen table stays frozen.
    env.run(["start"]).ok();
    env.sql("main", "vacuum freeze t");
    let frozen = env.sql("main", "select relfrozenxid from pg_class where relname = 't'");
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select relfrozenxid from pg_class where relname = 't'"), frozen);
}

#[test]
fn what_a_client_commits_before_a_start_fails_is_kept() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (n int)");
    let server = env.server_env("main");
    env.run(["stop"]).ok();
    for round in 0.. {
        assert!(round < 20, "the start is never caught before it looks");
        let mut start = env.command(["start"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(start.id() as i32);
        let socket = server.iter().find(|(name, _)| *name == "PGHOST").unwrap().1.clone();
        let port = server.iter().find(|(name, _)| *name == "PGPORT").unwrap().1.clone();
        let socket = std::path::Path::new(&socket).join(format!(".s.PGSQL.{port}"));
        let patience = Instant::now() + Duration::from_secs(60);
        while !socket.exists() && start.try_wait().unwrap().is_none() && Instant::now() < patience {}
        let _ = kill(pid, Signal::SIGSTOP);
        let mut insert = pg_program("psql");
        insert.envs(server.clone()).args(["-Xqc", "insert into t values (42)"]).stderr(Stdio::null());
        while !insert.status().unwrap().success() {
            assert!(Instant::now() < patience, "the server does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill(pid, Signal::SIGINT);
        let _ = kill(pid, Signal::SIGCONT);
        let failed = start.wait().unwrap().code() == Some(130);
        env.run(["start"]).ok();
        let rows = env.sql("main", "select count(*) from t");
        assert_eq!(rows, (round + 1).to_string(), "failed: {failed}");
        env.run(["stop"]).ok();
        if failed {
            return;
        }
    }
}

/// What every server writes by itself, by the names of `pg_waldump`. A checkpoint is told from its redo point by version.
const NOISE: [&str; 9] = [
    "XLOG CHECKPOINT_SHUTDOWN",
    "XLOG CHECKPOINT_ONLINE",
    "XLOG CHECKPOINT_REDO",
    "XLOG NOOP",
    "XLOG SWITCH",
    "XLOG PARAMETER_CHANGE",
    "XLOG FPW_CHANGE",
    "XLOG END_OF_RECOVERY",
    "Standby RUNNING_XACTS",
];

#[test]
fn the_records_that_change_nothing_are_those_of_the_list() {
    for (major, bin) in majors() {
        if !bin.join("pg_waldump").exists() {
            println!("SKIPPED: PostgreSQL {major} here has no pg_waldump");
            continue;
        }
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        env.run(["start"]).ok();
        env.sql("main", "alter system set max_connections = 77");
        // A segment that is sealed would be used again.
        env.sql("main", "alter system set wal_keep_size = '1GB'");
        env.run(["restart", "main"]).ok();
        env.sql("main", "create table t as select g from generate_series(1, 1000) g");
        env.sql("main", "begin; lock table t; insert into t values (1); rollback");
        env.sql("main", "checkpoint");
        env.sql("main", "select count(*) from t");
        env.sql("main", "vacuum freeze t");
        env.sql("main", "select pg_create_restore_point('here')");
        env.sql("main", "select pg_switch_wal()");
        env.sql("main", "checkpoint");
        env.sql("main", "insert into t values (1)");
        let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
        let dir = env.repo().join("timelines").join(&timeline).join("wal");
        // Then the first segment is whole too.
        let (prepared, patience) = (env.repo().join("datadirs").join(&timeline).join("prepared"), Instant::now());
        while !prepared.exists() && patience.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let names = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter(|name| name.len() == 24).collect();
        names.sort();
        let repo = Repo::open(&env.repo()).unwrap();
        let size = repo.config().wal_segment_size;
        let start = segment::parse_file_name(names[0].to_str().unwrap(), size).unwrap().1;
        let source = repo.active_segments(timeline.parse().unwrap(), 1);
        let expected = repo.expected_wal();
        let text = String::from_utf8(
            std::process::Command::new(bin.join("pg_waldump"))
                .arg("-p")
                .arg(&dir)
                .args(&names)
                .output()
                .unwrap()
                .stdout,
        );
        let text = text.unwrap();
        let word = |line: &str, after: &str| {
            line.split(after).nth(1).unwrap().trim_start().split([',', ' ']).next().unwrap().to_owned()
        };
        let theirs: std::collections::BTreeMap<Lsn, bool> = text
            .lines()
            .map(|line| {
                let name = format!("{} {}", word(line, "rmgr:"), word(line, "desc:"));
                (word(line, "lsn:").parse().unwrap(), NOISE.contains(&name.as_str()))
            })
            .collect();
        let first = theirs.first_key_value().map_or(start, |(lsn, _)| *lsn);
        let mut reader = WalReader::new(source, expected, first);
        let mut seen = [0, 0];
        while let Ok(record) = reader.read() {
            let Some(is_noise) = theirs.get(&record.start) else { break };
            assert_eq!(record.changes_nothing(), *is_noise, "PostgreSQL {major}, at {}", record.start);
            seen[usize::from(*is_noise)] += 1;
        }
        assert!(seen[0] > 20 && seen[1] > 2, "PostgreSQL {major}: {seen:?}");
    }
}

/// Kills a server, its file system and the guardian of that, as a power cut does. Returns the folder of the data directory.
fn cut_power(env: &Env, branch: &str) -> std::path::PathBuf {
    let timeline = env.run(["rev-parse", branch]).ok()[..32].to_owned();
    let dir = env.repo().join("datadirs").join(timeline);
    let postmaster = env.postmaster(branch);
    let of_lock = |name: &str| Some(std::fs::read_to_string(dir.join(name)).ok()?.parse::<Process>().ok()?.pid);
    for pid in [of_lock("guard.lock"), of_lock("lock"), Some(postmaster)].into_iter().flatten() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    dir
}

/// Returns the entries of the trash that are data directories.
fn datadirs_in_trash(env: &Env) -> Vec<serde_json::Value> {
    let rows = env.json(["trash", "--json"]);
    rows.as_array().unwrap().iter().filter(|row| row["what"] == "data-directory").cloned().collect()
}

#[test]
fn files_that_cannot_be_shown_are_kept() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "alter system set work_mem = '77MB'");
    let dir = cut_power(&env, "main");
    assert!(dir.join("local").is_dir());
    // As a crash before it was prepared, or of a file system that cannot be mounted.
    let _ = std::fs::remove_file(dir.join("prepared"));
    let started = env.run(["start"]);
    assert!(started.err.contains("warning: the files of the last server of 'main' cannot be shown"), "{started:?}");
    started.ok();
    let kept = datadirs_in_trash(&env);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let layer = std::path::Path::new(kept[0]["path"].as_str().unwrap()).join("datadir/local");
    let holds = |path: std::path::PathBuf| std::fs::read(path).unwrap().windows(4).any(|bytes| bytes == b"77MB");
    assert!(std::fs::read_dir(layer).unwrap().flatten().any(|entry| holds(entry.path())));
    // Where nobody sees a warning, it is logged.
    let dir = cut_power(&env, "main");
    let _ = std::fs::remove_file(dir.join("prepared"));
    env.run(["pageserver", "start", "--listen", "127.0.0.1:0"]).ok();
    let status = env.json(["pageserver", "status", "--json"]);
    let port = status["listen"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let mut client = pg_program("psql");
    client.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-Xqc", "select 1", "postgres"]);
    checked(&mut client);
    let log = std::fs::read_to_string(env.repo().join("pageserver/log")).unwrap();
    assert!(log.contains("the files of the last server of 'main' cannot be shown"), "{log}");
}

/// Damages an object in its pack.
fn damage(env: &Env, id: &str) {
    let id: ObjectId = id.parse().unwrap();
    for entry in std::fs::read_dir(env.repo().join("objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        let Some(place) = Index::open(&path).ok().and_then(|index| index.find(&id)) else { continue };
        let pack = path.with_extension("pack");
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[place.offset as usize + place.length as usize - 1] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    }
}

#[test]
fn a_start_on_files_that_are_damaged_leaves_nothing_behind_and_says_what_to_look_at() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["stop"]).ok();
    let listed = env.run(["ls-snapshot", "main"]).ok();
    let line = listed.lines().find(|line| line.ends_with(" postgresql.conf")).unwrap();
    let id = line.split_whitespace().nth(2).unwrap();
    damage(&env, id);
    for _ in 0..2 {
        let started = env.run(["start"]);
        assert!(started.code != 0 && started.err.contains("zenith fsck"), "{started:?}");
        assert_eq!(env.mounts(), Vec::<String>::new());
    }
    env.run(["stop"]).fails(1, &["not running"]);
    // With another one in its place it goes on, and what is written then does not build on what is damaged.
    let conf = env.path().join("conf");
    std::fs::write(&conf, "work_mem = '77MB'").unwrap();
    env.run(["start", "--config-file", conf.to_str().unwrap()]).ok();
    assert_eq!(env.sql("main", "insert into t values (2) returning (select sum(i) from t)"), "1");
    env.run(["stop"]).ok();
    let snapshots = env.run(["ls-snapshot", "main"]).ok();
    assert!(!snapshots.contains(id), "{snapshots}");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select sum(i), current_setting('work_mem') from t"), "3|77MB");
}

#[test]
fn what_was_put_away_and_is_damaged_since_is_not_believed() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "alter system set work_mem = '77MB'");
    env.sql("main", "select pg_create_physical_replication_slot('s', true)");
    env.sql("main", "create table t as select 1 i");
    env.run(["stop", "--mode", "immediate"]).ok();
    let timeline = env.repo().join("timelines").join(&env.run(["rev-parse", "main"]).ok()[..32]);
    for name in ["files/written/postgresql.auto.conf", "files/at", "slots/at", "slots/replslot/s/state"] {
        let path = timeline.join(name);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..0], &whole[..whole.len() / 2]] {
            std::fs::write(&path, damaged).unwrap();
            let told = env.run(["fsck"]);
            assert!(told.code == 3 && told.out.contains("is corrupt"), "{name}: {told:?}");
            env.run(["start"]).fails(3, &["is corrupt", timeline.to_str().unwrap()]);
        }
        std::fs::write(&path, whole).unwrap();
    }
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select current_setting('work_mem') || i from t"), "77MB1");
    assert_eq!(env.sql("main", "select count(*) from pg_replication_slots"), "1");
}

/// Where descriptors run out, for instance.
#[test]
fn what_the_system_refuses_is_neither_damage_nor_doubt() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.sql("main", "alter system set work_mem = '77MB'");
    cut_power(&env, "main");
    let packs = std::fs::read_dir(env.repo().join("objects/pack")).unwrap().flatten().map(|entry| entry.path());
    let pack = packs.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "pack")).unwrap();
    let options = ["-P", pack.to_str().unwrap(), "-e", "inject=openat:error=EMFILE"];
    let (code, _) = traced(&env, &options, &["stop"], |_| {});
    assert_eq!(code, Some(1));
    assert_eq!(datadirs_in_trash(&env), Vec::<serde_json::Value>::new());
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select current_setting('work_mem') || i from t"), "77MB1");
}

#[test]
fn what_a_user_wrote_without_a_sync_outlives_the_file_system_a_little_later() {
    let env = Env::init();
    env.run(["start"]).ok();
    let conf = env.datadir("main").join("data/postgresql.conf");
    let mut file = std::fs::File::options().append(true).open(conf).unwrap();
    std::io::Write::write_all(&mut file, b"work_mem = 77MB\n").unwrap();
    drop(file);
    let journal = env.datadir("main").join("local/journal");
    if journal.is_file() {
        let noted = || std::fs::metadata(&journal).unwrap().len();
        let before = noted();
        wait_until("it is noted", || noted() > before);
    }
    kill(Pid::from_raw(env.file_system("main")), Signal::SIGKILL).unwrap();
    wait_until("all is gone", || env.mounts().is_empty());
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
}

#[test]
fn files_that_cannot_be_shown_now_are_not_given_up() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "alter system set work_mem = '77MB'");
    // Before that a crash leaves files that count for nothing.
    let prepared = env.datadir("main").join("prepared");
    crate::support::wait_until("its files are durable", || prepared.is_file());
    cut_power(&env, "main");
    // Such as a process that has too little memory, or no descriptors.
    let limited = |words: &[&str]| {
        let plain = env.command(words);
        let mut command = Command::new("prlimit");
        command.arg("--as=30000000").arg(plain.get_program()).args(words).current_dir(env.path());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
    };
    for words in [&["start"][..], &["stop"]] {
        assert!(!limited(words).status.success());
    }
    for descriptors in [14, 16, 18] {
        let plain = env.command(["stop"]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}")).arg(plain.get_program()).arg("stop").current_dir(env.path());
        let output = command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap();
        assert!(!output.status.success(), "with {descriptors} descriptors: {output:?}");
    }
    assert_eq!(datadirs_in_trash(&env), Vec::<serde_json::Value>::new());
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
}

#[test]
fn files_of_the_user_that_changed_are_kept_although_nothing_was_committed() {
    use std::os::unix::fs::PermissionsExt;
    for start in [&["start"][..], &["start", "--eager"]] {
        let env = Env::init();
        let begin = || {
            env.run(start).ok();
            let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
            env.repo().join("datadirs").join(timeline).join("data")
        };
        let unchanged = || {
            begin();
            let stopped = env.run(["stop"]).ok();
            assert!(stopped.contains("nothing was committed"), "{start:?}: {stopped}");
        };
        // The hint bits of the first server are kept.
        begin();
        env.run(["stop"]).ok();
        unchanged();
        let data = begin();
        std::fs::create_dir(data.join("conf.d")).unwrap();
        std::fs::write(data.join("conf.d/x.conf"), "work_mem = '77MB'").unwrap();
        std::fs::write(data.join("server.key"), "secret").unwrap();
        env.run(["stop"]).ok();
        unchanged();
        // Changed, no longer than before; its mode alone; removed.
        let data = begin();
        std::fs::write(data.join("conf.d/x.conf"), "work_mem = '88MB'").unwrap();
        env.run(["stop"]).ok();
        let data = begin();
        assert_eq!(std::fs::read_to_string(data.join("conf.d/x.conf")).unwrap(), "work_mem = '88MB'");
        std::fs::set_permissions(data.join("server.key"), PermissionsExt::from_mode(0o640)).unwrap();
        env.run(["stop"]).ok();
        let data = begin();
        let mode = std::fs::metadata(data.join("server.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        std::fs::remove_file(data.join("server.key")).unwrap();
        env.run(["stop"]).ok();
        assert!(!begin().join("server.key").exists());
        env.run(["stop"]).ok();
        unchanged();
    }
}

#[test]
fn a_stop_that_cannot_lock_its_data_directory_is_refused() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let lock = env.repo().join("datadirs").join(timeline).join("snapshot.lock");
    let _ = std::fs::remove_file(&lock);
    std::fs::create_dir(&lock).unwrap();
    env.run(["stop"]).fails(1, &["snapshot.lock"]);
    std::fs::remove_dir(&lock).unwrap();
    env.run(["stop"]).ok();
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select answer from t"), "42");
}

#[test]
fn what_the_user_set_outlives_a_server_that_was_not_shut_down() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["restart"]).ok();
    let data = |env: &Env| env.datadir("main").join("data");
    std::fs::create_dir(data(&env).join("conf.d")).unwrap();
    std::fs::write(data(&env).join("conf.d/gone.conf"), "work_mem = '9MB'").unwrap();
    std::fs::write(data(&env).join("server.key"), "secret").unwrap();
    env.run(["restart"]).ok();
    env.sql("main", "alter system set work_mem = '77MB'");
    std::fs::write(data(&env).join("conf.d/x.conf"), "maintenance_work_mem = '88MB'").unwrap();
    std::fs::remove_file(data(&env).join("conf.d/gone.conf")).unwrap();
    for _ in 0..2 {
        env.run(["stop", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "show work_mem"), "77MB");
        assert_eq!(std::fs::read_to_string(data(&env).join("server.key")).unwrap(), "secret");
        let in_folder = std::fs::read_dir(data(&env).join("conf.d")).unwrap().flatten().map(|entry| entry.file_name());
        assert_eq!(in_folder.collect::<Vec<_>>(), ["x.conf"]);
    }
    // A branch is a copy of what was sealed, as it is of a branch that runs.
    env.run(["stop", "--mode", "immediate"]).ok();
    env.run(["branch", "try"]).ok();
    env.run(["start", "try"]).ok();
    assert_eq!(env.sql("try", "show work_mem"), "4MB");
    // From then on the files are those of a snapshot.
    env.run(["start"]).ok();
    env.run(["restart", "main"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
    env.run(["restart", "main"]).ok();
    let stopped = env.run(["stop", "main"]).ok();
    assert!(stopped.contains("nothing was committed"), "{stopped}");
}

#[test]
fn what_was_put_away_outlives_a_start_that_fails() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["restart"]).ok();
    env.sql("main", "alter system set work_mem = '77MB'");
    // At once: no WAL was written.
    env.run(["stop", "--mode", "immediate"]).ok();
    let bad = env.path().join("bad.conf");
    std::fs::write(&bad, "no_such_setting = 1\n").unwrap();
    env.run(["start".as_ref(), "--config-file".as_ref(), bad.as_os_str()]).fails(1, &["no_such_setting"]);
    // Nor is what PostgreSQL refuses kept.
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
}

#[test]
fn what_was_put_away_outlives_a_server_of_whose_files_nothing_is_seen() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.sql("main", "alter system set work_mem = '77MB'");
    env.run(["stop", "--mode", "immediate"]).ok();
    for are_removed in [false, true] {
        env.run(["start"]).ok();
        env.sql("main", "insert into t values (2)");
        let dir = cut_power(&env, "main");
        let _ = std::fs::remove_file(dir.join("prepared"));
        if are_removed {
            zenith::plumbing::instance::mount::remove(&env.repo().join("tmp"), &dir).unwrap();
        }
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "show work_mem"), "77MB", "{are_removed}");
        env.sql("main", "insert into t values (3)");
        env.run(["stop", "--mode", "immediate"]).ok();
    }
}

#[test]
fn a_folder_of_the_user_that_became_a_file_and_a_link_that_leads_nowhere_are_in_nobodys_way() {
    let env = Env::init();
    let data = |env: &Env| env.datadir("main").join("data");
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    std::fs::create_dir(data(&env).join("mine")).unwrap();
    std::fs::write(data(&env).join("mine/a"), "a").unwrap();
    std::fs::write(data(&env).join("key"), "secret").unwrap();
    env.run(["restart"]).ok();
    env.sql("main", "insert into t values (2)");
    std::fs::remove_dir_all(data(&env).join("mine")).unwrap();
    std::fs::write(data(&env).join("mine"), "a file").unwrap();
    env.run(["stop", "--mode", "immediate"]).ok();
    env.run(["start"]).ok();
    assert_eq!(std::fs::read_to_string(data(&env).join("mine")).unwrap(), "a file");
    env.sql("main", "insert into t values (3)");
    env.run(["restart"]).ok();
    std::fs::remove_file(data(&env).join("key")).unwrap();
    std::os::unix::fs::symlink("/nowhere/key", data(&env).join("key")).unwrap();
    env.run(["stop", "--mode", "immediate"]).ok();
    env.run(["start"]).ok();
    assert!(!data(&env).join("key").exists());
}

#[test]
fn a_start_that_was_cut_off_before_the_server_leaves_the_timeline_as_it_was() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 42 as answer");
    env.sql("main", "alter system set work_mem = '77MB'");
    env.run(["stop", "--mode", "immediate"]).ok();
    let timelines =
        || std::fs::read_dir(env.repo().join("timelines")).unwrap().flatten().filter(|it| it.path().is_dir()).count();
    let (before, tip) = (timelines(), env.run(["rev-parse", "main"]).ok());
    // As a power cut once the files are mounted, before the run begins.
    let timeline = &tip[..32];
    for folder in ["local", "data"] {
        std::fs::create_dir_all(env.repo().join("datadirs").join(timeline).join(folder)).unwrap();
    }
    let config = env.repo().join("instances/pg1/config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}timeline = \"{timeline}\"\n")).unwrap();
    let started = env.run(["start"]);
    assert!(!started.err.contains("cannot be shown"), "no server was there: {started:?}");
    started.ok();
    assert_eq!(env.sql("main", "select answer from t"), "42");
    assert_eq!(env.sql("main", "show work_mem"), "77MB", "it was put away with the timeline");
    // Those of the server that was not shut down, and those of the start.
    assert_eq!(datadirs_in_trash(&env).len(), 2);
    env.run(["stop"]).ok();
    assert_eq!(timelines(), before);
}

#[test]
fn files_whose_timeline_is_gone_are_kept() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    let dir = cut_power(&env, "main");
    let timeline = dir.file_name().unwrap().to_str().unwrap();
    std::fs::rename(env.repo().join("timelines").join(timeline), env.path().join("away")).unwrap();
    let _ = env.run(["stop"]);
    assert!(!dir.exists());
    let kept = datadirs_in_trash(&env);
    assert_eq!((kept.len(), &kept[0]["commits"]), (1, &true.into()), "{kept:?}");
    let layer = std::path::Path::new(kept[0]["path"].as_str().unwrap()).join("datadir/local");
    assert!(layer.join("journal").is_file());
}

#[test]
fn a_file_in_the_place_of_a_folder_and_an_empty_folder_are_put_away_too() {
    let env = Env::init();
    env.run(["start"]).ok();
    let data = || env.datadir("main").join("data");
    std::fs::create_dir(data().join("swapped")).unwrap();
    std::fs::write(data().join("swapped/x"), "x").unwrap();
    std::fs::write(data().join("other"), "x").unwrap();
    env.run(["restart"]).ok();
    std::fs::remove_dir_all(data().join("swapped")).unwrap();
    std::fs::write(data().join("swapped"), "a file").unwrap();
    std::fs::remove_file(data().join("other")).unwrap();
    std::fs::create_dir(data().join("other")).unwrap();
    let conf = std::fs::read_to_string(data().join("postgresql.conf")).unwrap();
    std::fs::write(data().join("postgresql.conf"), conf + "\ninclude_dir 'other'\n").unwrap();
    env.sql("main", "create table t as select 1 i");
    for _ in 0..2 {
        env.run(["stop", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        assert_eq!(std::fs::read_to_string(data().join("swapped")).unwrap(), "a file");
        assert!(data().join("other").is_dir());
    }
    env.run(["restart"]).ok();
    assert_eq!(std::fs::read_to_string(data().join("swapped")).unwrap(), "a file");
    assert_eq!(env.sql("main", "select i from t"), "1");
}

/// Waits until strace holds its child back for a while.
fn wait_until_delayed(strace: u32) {
    let is_held = || {
        let children = std::fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", children.trim())).unwrap_or_default();
        stat.contains(") t ")
    };
    let mut times = 0;
    wait_until("it is delayed", || {
        times = if is_held() { times + 1 } else { 0 };
        times > 20
    });
}

/// A repository with a server on main that writes no hint bits, since those before it did.
fn started_without_hint_bits() -> Env {
    let env = Env::init();
    for _ in 0..2 {
        // From then on no hint bits are written.
        env.run(["start"]).ok();
        env.run(["stop"]).ok();
    }
    env.run(["start"]).ok();
    env
}

#[test]
fn a_stop_that_is_killed_while_it_removes_the_files_leaves_all_or_nothing() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 1000) i");
    let inject = ["-e", "trace=unlinkat", "-e", "inject=unlinkat:signal=SIGKILL:when=3"];
    let (code, trace) = traced(&env, &inject, &["stop"], |_| {});
    assert_eq!(code, None, "it was not killed: {trace}");
    // A server goes on with what is left of a layer.
    assert!(!trace.contains("/datadirs/"), "{trace}");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select count(*) from t"), "1000");
}

#[test]
fn what_was_seen_of_files_that_went_out_of_sight_counts_for_nothing() {
    if !has_strace() {
        return;
    }
    let env = started_without_hint_bits();
    env.sql("main", "alter system set work_mem = '77MB'");
    let files = env.file_system("main");
    let listed = env.datadir("main").join("data/");
    // The list of all files is read twice: for what changed, and for the snapshot.
    let looks =
        ["-P", listed.to_str().unwrap(), "-e", "trace=openat", "-e", "inject=openat:delay_enter=3000000:when=1"];
    let (code, trace) = traced(&env, &looks, &["stop"], |strace| {
        wait_until_delayed(strace);
        kill(Pid::from_raw(files), Signal::SIGKILL).unwrap();
    });
    assert_eq!(code, Some(1), "{trace}");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");
}

#[test]
fn what_a_killed_stop_did_not_come_to_is_done_later() {
    if !has_strace() {
        return;
    }
    let env = started_without_hint_bits();
    env.sql("main", "alter system set work_mem = '77MB'");
    // It has its snapshot by then.
    let (code, trace) =
        traced(&env, &["-e", "trace=umount2", "-e", "inject=umount2:signal=SIGKILL"], &["stop"], |_| {});
    assert_eq!(code, None, "{trace}");
    env.run(["start"]).ok();
    let timeline = env.datadir("main").file_name().unwrap().to_owned();
    env.run(["stop"]).ok();
    assert_eq!(segments(&env, &timeline), 0);
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "77MB");

    // And amid the last step.
    env.sql("main", "create table t ()");
    let timeline = env.datadir("main").file_name().unwrap().to_owned();
    let wal = env.repo().join("timelines").join(&timeline).join("wal");
    let options = ["-P", wal.to_str().unwrap(), "-e", "trace=rename", "-e", "inject=rename:signal=SIGKILL"];
    let (code, trace) = traced(&env, &options, &["stop"], |_| {});
    assert_eq!(code, None, "{trace}");
    assert!(segments(&env, &timeline) > 0);
    env.run(["start"]).ok();
    env.sql("main", "table t");
    env.run(["stop"]).ok();
    assert_eq!(segments(&env, &timeline), 0);
}

/// Returns how many segments of WAL a timeline has.
fn segments(env: &Env, timeline: &std::ffi::OsStr) -> usize {
    let wal = env.repo().join("timelines").join(timeline).join("wal");
    let names = std::fs::read_dir(wal).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.len() == 24).count()
}

#[test]
fn a_start_that_cannot_note_where_its_server_listens_starts_none() {
    if !has_strace() {
        return;
    }
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t ()");
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
    let config = env.repo().join("instances/pg1/config");
    let inject = "inject=rename,renameat,renameat2:error=ENOSPC";
    let options = ["-P", config.to_str().unwrap(), "-e", "trace=rename,renameat,renameat2", "-e", inject];
    let (code, trace) = traced(&env, &options, &["start", "--port", "7001"], |_| {});
    assert_eq!(code, Some(1), "{trace}");
    assert!(env.run(["status"]).ok().contains("crashed"));
    env.run(["start"]).ok();
    env.sql("main", "select from t");
}

#[test]
fn a_tag_that_waits_for_a_timeline_that_goes_is_made_of_what_the_branch_is_then() {
    if !has_strace() {
        return;
    }
    let env = started_without_hint_bits();
    env.sql("main", "select pg_switch_wal()");
    let log = env.repo().join("timelines").join(env.datadir("main").file_name().unwrap()).join("log");
    let delay = ["-P", log.to_str().unwrap(), "-e", "trace=flock", "-e", "inject=flock:delay_enter=8000000:when=1"];
    let (code, trace) = traced(&env, &delay, &["tag", "v1", "main"], |strace| {
        wait_until_delayed(strace);
        env.run(["stop"]).ok();
    });
    assert_eq!(code, Some(0), "{trace}");
    assert_eq!(env.run(["fsck"]).ok(), "");
}
