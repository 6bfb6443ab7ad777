//! What goes wrong is said clearly, with the right exit code, and loses nothing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Env, Random, checked, majors};

/// A pipe has no end, and neither have some devices.
#[test]
fn what_is_no_file_is_neither_waited_for_nor_read_without_end() {
    let env = Env::init();
    env.run(["restore", "main", "plain"]).ok();
    for name in ["PG_VERSION", "global/pg_control"] {
        let (path, kept) = (env.path().join("plain").join(name), env.path().join("kept"));
        fs::rename(&path, &kept).unwrap();
        checked(Command::new("mkfifo").arg(&path));
        env.run(["init", "--from", "plain", "x"]).fails(1, &[name]);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        env.run(["init", "--from", "plain", "x"]).fails(1, &[name]);
        fs::remove_file(&path).unwrap();
        fs::rename(&kept, &path).unwrap();
    }
    env.run(["hash-wal", "/dev/zero"]).fails(1, &["it has more than 1073741824 bytes"]);
    let pipe = |path: &str| checked(Command::new("mkfifo").arg(env.path().join(path)));
    // What a lazy data directory would say of its difference to a snapshot.
    let parent = env.run(["write-snapshot", "plain"]).ok();
    pipe("plain/.zenith.mark");
    env.run(["write-snapshot", "--parent", &parent, "plain"]).fails(1, &["it is no regular file"]);
    pipe(".pg_service.conf");
    env.run(["service-file", "--install"]).fails(1, &["it is no regular file"]);
    fs::create_dir_all(env.repo().join("pageserver")).unwrap();
    pipe(".zenith/pageserver/log");
    assert_eq!(env.run(["pageserver", "logs"]).ok(), "");
    pipe(".zenith/instances/pg_hba.alone.conf");
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "select 1"), "1");
}

#[test]
fn a_repository_that_is_named_is_that_one_or_none() {
    let env = Env::init();
    fs::create_dir_all(env.path().join("child/.zenith")).unwrap();
    for named in ["child", "child/.zenith", "no/such", ".zenith/objects"] {
        env.run(["--repo", named, "branch", "x"]).fails(1, &["not a zenith repository", named]);
    }
    env.run(["--repo", ".", "branch", "y"]).ok();
    env.run(["--repo", "child/../.zenith", "branch", "z"]).ok();
    assert_eq!(env.run(["branch"]).ok(), "* main\n  y\n  z");
}

#[test]
fn no_repository() {
    let env = Env::new();
    for command in ["status", "start", "log", "fsck", "show-ref"] {
        env.run([command]).fails(1, &["not a zenith repository", "zenith init"]);
    }
    env.run(["--repo", "/nowhere", "status"]).fails(1, &["/nowhere"]);
}

#[test]
fn formats_that_this_program_does_not_know() {
    let env = Env::init();
    let config = env.repo().join("config");
    let good = fs::read_to_string(&config).unwrap();
    for (change, said) in [
        (good.replace("format_version = 3", "format_version = 4"), "format version 4"),
        (format!("extensions = [\"cold\"]\n{good}"), "cold"),
        ("nonsense".to_owned(), "not valid"),
        (good.replace("wal_segment_size = 16777216", "wal_segment_size = 3"), "wal_segment_size"),
    ] {
        fs::write(&config, change).unwrap();
        env.run(["status"]).fails(1, &[said]);
    }
    fs::write(&config, good).unwrap();
    env.run(["status"]).ok();
}

#[test]
fn programs_that_are_missing_or_of_another_version() {
    let env = Env::init();
    let empty = env.path().join("empty");
    fs::create_dir(&empty).unwrap();
    env.run(["--pg-bin".as_ref(), empty.as_os_str(), "start".as_ref()])
        .fails(1, &["empty", "apt-get install postgresql-"]);
    let fake = env.path().join("fake");
    fs::create_dir(&fake).unwrap();
    for name in ["postgres", "initdb"] {
        fs::write(fake.join(name), "#!/bin/sh\necho 'postgres (PostgreSQL) 14.1'\n").unwrap();
        fs::set_permissions(fake.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    env.run(["--pg-bin".as_ref(), fake.as_os_str(), "start".as_ref()])
        .fails(1, &["holds PostgreSQL 14", "apt-get install"]);
    fs::write(fake.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 11.1'\n").unwrap();
    let other = Env::new();
    other.run(["--pg-bin".as_ref(), fake.as_os_str(), "init".as_ref()]).fails(1, &["14 to 18"]);
    assert!(!other.repo().exists());
    for (major, bin) in majors().into_iter().skip(1).take(1) {
        env.run(["--pg-bin".as_ref(), bin.as_os_str(), "start".as_ref()])
            .fails(1, &[&format!("holds PostgreSQL {major}")]);
    }
}

#[test]
fn names_that_are_taken_or_impossible() {
    let env = Env::init();
    env.run(["branch", "a/b"]).ok();
    env.run(["branch", "a/b"]).fails(1, &["already exists"]);
    env.run(["branch", "a"]).fails(1, &["cannot be"]);
    env.run(["branch", "a/b/c"]).fails(1, &["cannot be"]);
    env.run(["tag", "v1"]).ok();
    env.run(["tag", "v1"]).fails(1, &["already exists"]);
    for name in ["a b", "a..b", "a~1", ".a", "a/", "x.lock", "a:b", "a@{1}", "a\\b"] {
        env.run(["branch", name]).fails(1, &["not a valid name"]);
        env.run(["tag", name]).fails(1, &["not a valid name"]);
    }
    env.run(["branch", "-d", "main"]).fails(1, &["HEAD names it"]);
    env.run(["branch", "-d", "nope"]).fails(1, &["unknown revision"]);
    env.run(["tag", "-d", "nope"]).fails(1, &["no tag named"]);
    env.run(["init"]).fails(1, &["repository already"]);
    env.run(["branch", "1", "2", "3"]).fails(2, &[]);
    env.run(["start", "--port", "99999"]).fails(2, &["99999"]);
}

#[test]
fn revisions_that_lead_nowhere() {
    let env = Env::init();
    env.run(["branch", "feature"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.run(["start", "featur"]).fails(1, &["unknown revision 'featur'", "did you mean feature"]);
    env.run(["branch", "x", "main@FFFFFFFF/0"]).fails(1, &["ends at", "newest position"]);
    env.run(["branch", "x", "main@0/1"]).fails(1, &["begins at", "oldest position"]);
    env.run(["branch", "x", "main@{2001-01-01}"]).fails(1, &["before the oldest state"]);
    env.run(["branch", "x", "main@{soon}"]).fails(1, &["neither an LSN nor a time"]);
    env.run(["branch", "x", "main~9"]).fails(1, &["no past"]);
    env.run(["branch", "x", "main@{99}"]).fails(1, &["entries"]);
    env.run(["branch", "x", "main@{0/1"]).fails(1, &["'}' is missing"]);
    env.run(["cat-object", "abcdef"]).fails(1, &["no object 'abcdef'"]);
    // Two timelines whose ids begin alike.
    let timelines = env.repo().join("timelines");
    let old = &env.run(["rev-parse", "feature"]).ok()[..32];
    for id in ["76cf0000000000000000000000000001", "76cf1000000000000000000000000002"] {
        let status = Command::new("cp").arg("-a").arg(timelines.join(old)).arg(timelines.join(id)).status().unwrap();
        assert!(status.success());
    }
    env.run(["rev-parse", "76cf"]).fails(1, &["ambiguous", "76cf0000", "76cf1000"]);
    assert!(env.run(["rev-parse", "76cf1"]).ok().starts_with("76cf1"));
}

#[test]
fn a_port_that_is_taken() {
    let env = Env::init();
    env.run(["branch", "x"]).ok();
    let port = env.json(["start", "main", "--tcp", "--json"])["port"].to_string();
    env.run(["start", "x", "--port", &port]).fails(1, &["is taken", "--port"]);
    env.run(["start", "x", "--port", "0"]).fails(2, &["0 is not in 1..=65535"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port().to_string();
    env.run(["start", "x", "--tcp", "--port", &taken]).fails(1, &["is taken"]);
    // The first server of a fresh cluster writes hint bits, which are kept.
    env.run(["start", "x", "--port", &taken]).ok();
    env.run(["stop", "x"]).ok();
    let before = env.run(["rev-parse", "x"]).ok();
    env.run(["start", "x", "--port", &taken]).ok();
    env.run(["stop", "x"]).ok();
    assert_eq!(env.run(["rev-parse", "x"]).ok(), before);
}

#[test]
fn a_server_that_does_not_start_shows_its_log_and_leaves_the_branch_alone() {
    let env = Env::init();
    let good = env.run(["rev-parse", "main"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "alter system set shared_preload_libraries = 'no_such_library'");
    env.run(["stop"]).ok();
    let before = env.run(["rev-parse", "main"]).ok();
    env.run(["start"]).fails(1, &["did not start", "no_such_library"]);
    assert_eq!(env.run(["rev-parse", "main"]).ok(), before);
    assert_eq!(fs::read_dir(env.repo().join("datadirs")).unwrap().count(), 0);
    // The state before is there.
    env.run(["branch", "good", &good]).ok();
    env.run(["start", "good"]).ok();
}

#[test]
fn a_branch_whose_configuration_is_wrong_starts_with_another() {
    let env = Env::init();
    env.run(["start"]).ok();
    let file = PathBuf::from(env.sql("main", "show config_file"));
    env.sql("main", "create table kept ()");
    let good = env.path().join("good.conf");
    fs::copy(&file, &good).unwrap();
    fs::write(&file, "work_mem = lots\n").unwrap();
    env.run(["start", "--config-file", good.to_str().unwrap()]).fails(1, &["is running", "zenith stop main"]);
    env.run(["stop"]).ok();
    env.run(["start"]).fails(1, &["work_mem", "contains errors", "--config-file", "zenith restore"]);
    fs::write(&good, format!("{}work_mem = 7MB\n", fs::read_to_string(&good).unwrap())).unwrap();
    env.run(["start", "--config-file", good.to_str().unwrap()]).ok();
    // From now on.
    env.run(["restart"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "7MB");
    env.sql("main", "select from kept");
}

#[test]
fn status_shows_what_runs_although_the_history_of_head_is_gone() {
    let env = Env::init();
    env.run(["branch", "x"]).ok();
    env.run(["start", "x"]).ok();
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let (origin, aside) = (env.repo().join("timelines").join(timeline).join("origin"), env.path().join("aside"));
    fs::rename(&origin, &aside).unwrap();
    env.run(["log", "main"]).fails(3, &["origin", "zenith fsck"]);
    let status = env.run(["status"]);
    assert!(status.err.contains("cannot tell where main is") && status.err.contains("zenith fsck"), "{}", status.err);
    assert!(status.ok().contains("running"));
    fs::rename(&aside, &origin).unwrap();
    env.run(["stop", "x"]).ok();
    assert_eq!(env.run(["fsck"]).ok(), "");
}

#[test]
fn what_a_repository_has_lost_is_named() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t ()");
    env.run(["stop"]).ok();
    env.run(["tag", "v1"]).ok();
    let dir = env.repo().join("timelines").join(&env.run(["rev-parse", "main"]).ok()[..32]);
    let without = |path: &Path, what: &[u8], look: &dyn Fn()| {
        let text = fs::read(path).unwrap();
        fs::write(path, what).unwrap();
        look();
        fs::write(path, text).unwrap();
    };
    let fsck_names = |fault: &str| {
        let ran = env.run(["fsck"]);
        assert!(ran.code == 3 && ran.out.contains(fault), "{ran:?}");
    };
    without(&dir.join("log"), b"", &|| {
        fsck_names("but that timeline ends at");
        fsck_names("the lines that follow are lost");
    });
    without(&dir.join("origin"), b"", &|| {
        env.run(["start"]).fails(3, &["expected the depth", "zenith fsck"]);
        fsck_names("expected the depth");
    });
    for (name, hint) in [("HEAD", "ref: refs/branches/NAME"), ("config", "bring that file back")] {
        let (file, aside) = (env.repo().join(name), env.path().join("aside"));
        fs::rename(&file, &aside).unwrap();
        env.run(["status"]).fails(3, &[&format!("it has no {name}"), hint]);
        fs::rename(&aside, &file).unwrap();
    }
    assert_eq!(env.run(["fsck"]).ok(), "");
    env.run(["start"]).ok();
    env.sql("main", "select from t");
}

#[test]
fn data_directories_may_be_on_a_file_system_of_their_own() {
    let env = Env::init();
    let dir = env.repo().join("datadirs");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&dir).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no file system can be mounted here");
        return;
    }
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int)");
    env.run(["stop"]).ok();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    let in_trash = || env.json(["trash", "--json"]).as_array().unwrap().len();
    // What was not shut down goes to the trash, which is on the other one.
    env.run(["start"]).ok();
    env.sql("main", "insert into t values (1)");
    env.run(["stop", "--mode", "immediate"]).ok();
    assert_eq!((fs::read_dir(&dir).unwrap().count(), in_trash()), (0, 1));
    env.run(["start", "--eager"]).ok();
    env.sql("main", "insert into t values (2)");
    kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
    env.run(["start"]).ok();
    let files = |item: fs::DirEntry| item.path().join("datadir/data");
    let kept: Vec<_> = fs::read_dir(env.repo().join("trash")).unwrap().flatten().map(files).collect();
    assert_eq!((kept.len(), in_trash()), (2, 2));
    let eager: Vec<_> = kept.iter().filter(|data| data.join("PG_VERSION").is_file()).collect();
    assert!(eager.len() == 1 && eager[0].join("pg_wal").is_symlink(), "{kept:?}");
    assert_eq!(env.sql("main", "select count(*) from t"), "2");
    env.run(["stop"]).ok();
    // What a file system that clones files would clone from.
    assert!(fs::read_dir(&dir).unwrap().flatten().all(|entry| entry.file_name() == "copies"));
    assert!(Command::new("umount").arg(&dir).status().unwrap().success());
    env.run(["start"]).ok();
    env.sql("main", "select from t");
}

#[test]
fn a_stop_may_be_given_all_the_time_there_is() {
    let env = Env::init();
    env.run(["start"]).ok();
    let longest = u64::MAX.to_string();
    assert!(env.run(["stop", "--timeout", &longest]).ok().contains("stopped"));
}

#[test]
fn a_running_branch_is_not_pulled_away() {
    let env = Env::init();
    env.run(["branch", "x"]).ok();
    env.run(["start", "x"]).ok();
    env.run(["branch", "-d", "x"]).fails(1, &["running", "zenith stop x"]);
    env.run(["branch", "-m", "x", "y"]).fails(1, &["running"]);
    env.run(["branch", "-f", "x", "main"]).fails(1, &["running"]);
    env.run(["psql", "main"]).fails(1, &["not running", "zenith start main"]);
    env.run(["stop", "main"]).fails(1, &["not running"]);
    assert!(env.run(["start", "x"]).ok().contains("running already"));
}

#[test]
fn two_commands_at_once() {
    let env = Env::init();
    let race = |count: usize, args: &dyn Fn(usize) -> Vec<String>| -> Vec<i32> {
        let mut children: Vec<_> = (0..count)
            .map(|number| env.command(args(number)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
            .collect();
        children.iter_mut().map(|child| child.wait().unwrap().code().unwrap()).collect()
    };
    for round in 0..5 {
        let codes = race(8, &|_| vec!["branch".into(), format!("b{round}")]);
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        assert!(codes.iter().all(|code| [0, 1].contains(code)), "{codes:?}");
    }
    // Losers leave no timeline behind: main's own, and one for each branch.
    let timelines = fs::read_dir(env.repo().join("timelines")).unwrap().flatten();
    assert_eq!(timelines.filter(|entry| entry.path().is_dir()).count(), 6);
    let zeroes = "0".repeat(32);
    let codes = race(8, &|_| vec!["update-ref".into(), "refs/tags/t".into(), "main".into(), zeroes.clone()]);
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(race(4, &|_| vec!["start".into(), "main".into()]), [0; 4]);
    assert_eq!(env.json(["pg", "list", "--json"]).as_array().unwrap().len(), 1);
    env.sql("main", "create table t as select 1 as x");
    // Whoever comes first, the table is there.
    race(6, &|number| {
        vec![["stop", "start", "branch"][number % 3].into(), ["main", "main", "late"][number % 3].into()]
    });
    env.run(["start", "main"]).ok();
    assert_eq!(env.sql("main", "select x from t"), "1");
    env.run(["fsck"]).ok();
}

/// Flips a bit in the middle of the stored form of an object.
fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    let at = at as usize % bytes.len();
    bytes[at] ^= 0x10;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

#[test]
fn objects_that_are_damaged_or_missing() {
    let env = Env::init();
    let empty = env.run(["rev-parse", "main"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select g, md5(g::text) m from generate_series(1, 100000) g");
    env.run(["stop"]).ok();
    env.run(["fsck"]).ok();
    let objects = env.repo().join("objects");
    let mut random = Random(4711);
    let originals: Vec<(PathBuf, Vec<u8>)> =
        files(&objects).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let mut seen = 0;
    for (path, original) in &originals {
        for _ in 0..3 {
            flip(path, random.below(1 << 40));
            let ran = env.run(["fsck"]);
            assert_eq!(ran.code, 3, "a flipped bit in {} went unseen: {}", path.display(), ran.out);
            // What is read is right, or it is an error; never wrong data.
            let out = env.path().join("out");
            let restored = env.run(["restore".as_ref(), "main".as_ref(), out.as_os_str()]);
            if restored.code != 0 {
                assert_eq!(restored.code, 3, "{}", restored.err);
                assert!(
                    restored.err.contains("corrupt")
                        || restored.err.contains("missing")
                        || restored.err.contains("damaged"),
                    "{}",
                    restored.err
                );
                seen += 1;
            }
            let _ = fs::remove_dir_all(out);
            fs::write(path, original).unwrap();
        }
        fs::remove_file(path).unwrap();
        env.run(["fsck"]).fails(3, &[]);
        fs::write(path, original).unwrap();
    }
    assert!(seen > 1, "{seen}");
    env.run(["fsck"]).ok();
    // One damaged WAL object: its branch is out of reach, others go on.
    env.run(["branch", "x", &empty]).ok();
    let wal = originals.iter().find(|(path, _)| !path.starts_with(objects.join("pack"))).unwrap();
    let log = files(&env.repo().join("timelines"))
        .into_iter()
        .find(|path| path.ends_with("log") && fs::read_to_string(path).unwrap().starts_with("wal"));
    assert!(log.is_some());
    flip(&wal.0, 300);
    env.run(["status"]).ok();
    env.run(["branch"]).ok();
    fs::write(&wal.0, &wal.1).unwrap();
    env.run(["start", "x"]).ok();
}

/// A small file system of its own, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: PathBuf, size: &str) -> Option<Mount> {
        fs::create_dir_all(&dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&dir)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Mount(dir));
        }
        println!("SKIPPED: cannot mount a file system here");
        None
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let env = Env::new();
    let Some(mount) = Mount::new(env.path().join("small"), "12m") else { return };
    let run = |args: &[&str]| {
        let mut all = vec!["-C", mount.0.to_str().unwrap()];
        all.extend(args);
        env.run(all)
    };
    let failed = run(&["init"]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.err.contains("No space left"), "{}", failed.err);
    assert_eq!(fs::read_dir(&mount.0).unwrap().count(), 0, "a failed init leaves nothing");
    mount.remount("size=400m");
    run(&["init"]).ok();
    run(&["start"]).ok();
    run(&["psql", "main", "--", "-qc", "create table t as select g, md5(g::text) m from generate_series(1, 200000) g"])
        .ok();
    let used = Command::new("du").arg("-xsk").arg(&mount.0).output().unwrap();
    let used: u64 = String::from_utf8_lossy(&used.stdout).split_whitespace().next().unwrap().parse().unwrap();
    mount.remount(&format!("size={}k", used + 300));
    let stopped = run(&["stop"]);
    assert_eq!(stopped.code, 1, "{}{}", stopped.out, stopped.err);
    assert!(stopped.err.contains("No space left"), "{}", stopped.err);
    mount.remount("size=400m");
    run(&["stop"]).ok();
    run(&["fsck"]).ok();
    run(&["start"]).ok();
    assert_eq!(run(&["psql", "main", "--", "-Atc", "select count(*) from t"]).ok(), "200000");
    run(&["stop", "--mode", "immediate"]).ok();
    // And read-only: what reads works, what writes says so.
    mount.remount("ro");
    run(&["status"]).ok();
    run(&["log"]).ok();
    run(&["rev-parse", "main"]).ok();
    run(&["branch", "x"]).fails(1, &["Read-only file system"]);
    run(&["start"]).fails(1, &["Read-only file system"]);
    mount.remount("rw");
    run(&["branch", "x"]).ok();
}

#[test]
fn paths_with_spaces_quotes_and_letters_of_all_kinds() {
    let env = Env::new();
    for name in ["with space", "q'uo\"te", "größe 100% ,日本", &"long-".repeat(25)] {
        let dir = env.path().join(name);
        let run = |args: &[&str]| {
            let mut all = vec!["-C", dir.to_str().unwrap()];
            all.extend(args);
            env.run(all)
        };
        fs::create_dir(&dir).unwrap();
        run(&["init"]).ok();
        run(&["start"]).ok();
        run(&["psql", "main", "--", "-qc", "create table t as select generate_series(1, 10) i"]).ok();
        // Segments are handed over by a shell command, which has the path in it.
        for _ in 0..2 {
            run(&["psql", "main", "--", "-qc", "select pg_switch_wal(); insert into t values (1)"]).ok();
        }
        let archived = "select archived_count > 0 and failed_count = 0 from pg_stat_archiver";
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while run(&["psql", "main", "--", "-Atc", archived]).ok() != "t" {
            assert!(std::time::Instant::now() < patience, "{name}: no segment was sealed");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        run(&["branch", "x"]).ok();
        run(&["stop"]).ok();
        run(&["restore", "x", "out put"]).ok();
        run(&["fsck"]).ok();
        run(&["start", "x"]).ok();
        assert_eq!(run(&["psql", "x", "--", "-Atc", "select count(*) from t"]).ok(), "12");
        run(&["stop", "--all"]).ok();
    }
}

#[test]
fn a_path_that_is_no_utf_8_is_refused_with_its_name() {
    let env = Env::new();
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff name");
    env.run(["init".as_ref(), odd]).fails(1, &["odd \\xFF name", "UTF-8"]);
    assert!(!env.path().join(odd).exists());
    // Nor does one that was moved there run without its WAL being sealed.
    env.run(["init", "plain"]).ok();
    fs::rename(env.path().join("plain"), env.path().join(odd)).unwrap();
    env.run(["-C".as_ref(), odd, "start".as_ref()]).fails(1, &["odd \\xFF name", "UTF-8", "mv"]);
}

#[test]
fn output_that_nobody_reads_and_colours_that_nobody_wants() {
    let env = Env::init();
    let mut child = env.command(["help", "-a"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!env.run(["branch", "-v"]).ok().contains('\u{1b}'));
    assert!(env.run(["--color", "always", "branch", "-v"]).ok().contains('\u{1b}'));
}
