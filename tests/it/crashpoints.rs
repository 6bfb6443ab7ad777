//! Every place where a crash can fall: each command runs on a disk that notes every write, rename, removal and sync,
//! and is stopped before each of them, as if its processes had been killed or the power cut. What is left then
//! is checked: the repository is sound, all that was acknowledged is there, and the next command works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::power::{Disk, Mounted, Recorded, Stop};
use crate::support::{Env, Ran, Random};

/// A folder on a disk whose power can be cut.
struct Place {
    env: Env,
    disk: Option<Mounted>,
}

impl Place {
    /// Mounts `disk`; `None` where there is no FUSE.
    fn new(disk: Disk) -> Option<Place> {
        let env = Env::new();
        std::fs::create_dir(env.path().join("disk")).unwrap();
        match Mounted::new(disk, &env.path().join("disk")) {
            Ok(disk) => Some(Place { env, disk: Some(disk) }),
            Err(error) => {
                println!("SKIPPED: no file system can be mounted here: {error}");
                None
            }
        }
    }

    fn dir(&self) -> PathBuf {
        self.env.path().join("disk")
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.env.run(["-C".as_ref(), self.dir().as_os_str()].into_iter().chain(args.iter().map(AsRef::as_ref)))
    }

    fn sql(&self, sql: &str) -> String {
        self.run(&["psql", "main", "--", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).ok()
    }

    fn disk(&self) -> &Mounted {
        self.disk.as_ref().expect("mounted as long as the place is")
    }

    /// Runs a command that must succeed, and notes what it does to the disk.
    fn watch(&self, args: &[&str]) -> Recorded {
        self.disk().watch(|| drop(self.run(args).ok()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.run(&["stop", "--all", "--mode", "immediate"]);
        drop(self.disk.take());
    }
}

/// A command, and what has to hold wherever it is stopped.
struct Case {
    /// Run before, with `sql:` before what is for the server of main.
    before: &'static [&'static [&'static str]],
    command: &'static [&'static str],
    /// What tells whether it was done; it may fail where the command was not done, and nothing else.
    probe: &'static [&'static str],
    /// Whether a server is concerned: then main has to start, with all rows.
    server: bool,
}

const CASES: &[Case] = &[
    Case { before: &[], command: &["branch", "x"], probe: &["rev-parse", "x"], server: false },
    Case {
        before: &[&["branch", "x"]],
        command: &["branch", "-m", "x", "y"],
        probe: &["rev-parse", "y"],
        server: false,
    },
    Case { before: &[], command: &["tag", "v1", "-m", "text"], probe: &["rev-parse", "v1"], server: false },
    Case {
        before: &[],
        command: &["update-ref", "refs/tags/deep/er", "main"],
        probe: &["rev-parse", "deep/er"],
        server: false,
    },
    Case {
        before: &[&["branch", "x"]],
        command: &["symbolic-ref", "refs/branches/x"],
        probe: &["rev-parse", "--symbolic-full-name", "HEAD"],
        server: false,
    },
    Case {
        before: &[],
        command: &["config", "branch.main.idle_timeout", "1h"],
        probe: &["config", "branch.main.idle_timeout"],
        server: false,
    },
    Case { before: &[], command: &["restore", "main", "out"], probe: &["rev-parse", "main"], server: false },
    Case { before: &[], command: &["repack", "--all"], probe: &["rev-parse", "main"], server: true },
    Case { before: &[], command: &["start"], probe: &["rev-parse", "main"], server: true },
    Case {
        before: &[&["start"], &["sql:insert into t values (2)"]],
        command: &["stop"],
        probe: &["rev-parse", "main"],
        server: true,
    },
    Case {
        before: &[&["start"], &["sql:insert into t values (2)"]],
        command: &["seal-wal", "main"],
        probe: &["rev-parse", "main"],
        server: true,
    },
    Case {
        before: &[&["start"], &["sql:insert into t values (2)"]],
        command: &["snapshot"],
        probe: &["rev-parse", "main"],
        server: true,
    },
];

/// A disk with a repository in which main has a table of one row.
fn prepared() -> Option<Disk> {
    let place = Place::new(Disk::default())?;
    place.run(&["init"]).ok();
    place.run(&["start"]).ok();
    place.sql("create table t as select 1 i");
    place.run(&["stop"]).ok();
    Some(place.disk().disk())
}

fn rows(case: &Case) -> usize {
    1 + case.before.iter().filter(|args| args[0].starts_with("sql:insert")).count()
}

/// Runs the command of a case on `disk`. Returns what happened, and what the probe says then.
fn record(case: &Case, disk: &Disk) -> (Recorded, String) {
    let place = Place::new(disk.clone()).expect("mounted before");
    for args in case.before {
        match args[0].strip_prefix("sql:") {
            Some(sql) => drop(place.sql(sql)),
            None => drop(place.run(args).ok()),
        }
    }
    let recorded = place.watch(case.command);
    (recorded, place.run(case.probe).ok())
}

/// Checks what is left when everything stopped before the change `number` of `recorded`.
fn check(case: &Case, recorded: &Recorded, after: &str, number: usize, stop: Stop, random: &mut Random) {
    let what = format!("{:?}, {stop:?} before {number} of {}", case.command, recorded.len());
    let place = Place::new(recorded.at(number, stop, random)).expect("mounted before");
    let fsck = place.run(&["fsck"]);
    assert_eq!(fsck.code, 0, "{what}: {}{}", fsck.out, fsck.err);
    place.run(&["status"]).ok();
    let probed = place.run(case.probe);
    // What was acknowledged, and that was after the last change, is there.
    if number == recorded.len() && !case.server {
        assert_eq!((probed.code, probed.out.trim_end()), (0, after), "{what}: {}", probed.err);
    }
    assert!([0, 1].contains(&probed.code), "{what}: {}", probed.err);
    if case.server {
        let started = place.run(&["start", "main"]);
        assert_eq!(started.code, 0, "{what}: {}{}", started.out, started.err);
        assert_eq!(place.sql("select count(*) from t"), rows(case).to_string(), "{what}");
        place.sql("insert into t values (9)");
        place.run(&["stop", "main"]).ok();
        let fsck = place.run(&["fsck"]);
        assert_eq!(fsck.code, 0, "{what}: {}{}", fsck.out, fsck.err);
    } else if case.command[0] == "restore" {
        // What was acknowledged, or what PostgreSQL would start on, is whole, and as another one.
        if number == recorded.len() || place.dir().join("out/global/pg_control").exists() {
            place.run(&["restore", "main", "again"]).ok();
            assert!(tree(&place.dir().join("out")) == tree(&place.dir().join("again")), "{what}");
        }
    } else {
        // Once more, or it says that it was done.
        let again = place.run(case.command);
        assert!([0, 1].contains(&again.code), "{what}: {}", again.err);
        let probed = place.run(case.probe);
        assert_eq!(probed.code, 0, "{what}: {}", probed.err);
    }
}

/// Returns the files below `dir`, and what is in them.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(
                tree(&entry.path()).into_iter().map(|(path, bytes)| (Path::new(&entry.file_name()).join(path), bytes)),
            ),
            false => drop(files.insert(entry.file_name().into(), std::fs::read(entry.path()).unwrap())),
        }
    }
    files
}

/// Chooses `most` of all places and ways to stop there, all of them where there are no more; and the end, at which the command
/// was acknowledged.
fn choose(recorded: &Recorded, most: usize, random: &mut Random) -> Vec<(usize, Stop)> {
    let places = recorded.len() + 1;
    let all: Vec<(usize, Stop)> =
        (0..places).flat_map(|number| [Stop::Kill, Stop::Cut, Stop::Partly].map(|stop| (number, stop))).collect();
    let mut chosen: Vec<(usize, Stop)> =
        if all.len() <= most { all } else { (0..most).map(|_| all[random.below(all.len() as u64) as usize]).collect() };
    chosen.push((places - 1, Stop::Cut));
    chosen
}

/// Checks `most` places of each case.
fn crash_everywhere(most: usize, most_with_server: usize, seed: u64) {
    let Some(disk) = prepared() else { return };
    let mut random = Random(seed);
    let mut checked = 0;
    // For who looks at one command.
    let only = std::env::var("ZENITH_CRASHPOINTS").ok().filter(|only| !only.is_empty());
    for case in CASES.iter().filter(|case| only.as_ref().is_none_or(|only| case.command[0] == only)) {
        let (recorded, after) = record(case, &disk);
        let chosen = choose(&recorded, if case.server { most_with_server } else { most }, &mut random);
        println!("{:?}: {} of {} places", case.command, chosen.len(), (recorded.len() + 1) * 3);
        for (number, stop) in &chosen {
            check(case, &recorded, &after, *number, *stop, &mut random);
        }
        checked += chosen.len();
    }
    println!("{checked} crashes");
}

#[test]
fn a_crash_at_a_sample_of_all_places_loses_nothing() {
    crash_everywhere(6, 3, 0x5EED);
}

/// `make crashpoints`: takes hours. `MOST` places of each command, chosen by `SEED`, take less.
#[test]
#[ignore = "all places: make crashpoints"]
fn a_crash_at_any_place_loses_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let most = number("ZENITH_CRASHPOINTS_MOST").unwrap_or(usize::MAX);
    crash_everywhere(most, most, number("ZENITH_CRASHPOINTS_SEED").unwrap_or(1) as u64);
}

/// A command that concerns the commits of the branch x, which no other ref has.
struct Way {
    before: &'static [&'static [&'static str]],
    command: &'static [&'static str],
    /// Once it was done: whether x is where it was, and whether the trash has that.
    leaves: (bool, bool),
}

const WAYS: &[Way] = &[
    Way { before: &[], command: &["branch", "-d", "x"], leaves: (false, true) },
    Way { before: &[], command: &["branch", "-f", "x", "main"], leaves: (false, true) },
    Way { before: &[&["branch", "-d", "x"]], command: &["trash", "restore", ""], leaves: (true, false) },
    Way { before: &[&["branch", "-d", "x"]], command: &["trash", "empty"], leaves: (false, false) },
];

/// Checks `most` places of each way: wherever that stops, x is where it was or the trash has that, unless it was asked to go for
/// good.
fn crash_amid_trash(most: usize, seed: u64) {
    let Some(disk) = prepared() else { return };
    let place = Place::new(disk).expect("mounted before");
    let write = ["psql", "x", "--", "-Xqc", "create table own ()"];
    for args in
        [&["branch", "x"][..], &["config", "branch.x.idle_timeout", "1h"], &["start", "x"], &write, &["stop", "x"]]
    {
        place.run(args).ok();
    }
    let (tip, disk) = (place.run(&["rev-parse", "x"]).ok(), place.disk().disk());
    drop(place);
    let mut random = Random(seed);
    for way in WAYS {
        let place = Place::new(disk.clone()).expect("mounted before");
        way.before.iter().for_each(|args| drop(place.run(args).ok()));
        let id = in_trash(&place).unwrap_or_default();
        let command: Vec<&str> = way.command.iter().map(|word| if word.is_empty() { &id } else { *word }).collect();
        let recorded = place.watch(&command);
        drop(place);
        let chosen = choose(&recorded, most, &mut random);
        println!("{command:?}: {} of {} places", chosen.len(), (recorded.len() + 1) * 3);
        for (number, stop) in chosen {
            let place = Place::new(recorded.at(number, stop, &mut random)).expect("mounted before");
            let what = format!("{command:?}, {stop:?} before {number} of {}", recorded.len());
            check_trash(&place, way, number == recorded.len(), &tip, &what);
        }
    }
}

/// Returns the id of what the trash has of x.
fn in_trash(place: &Place) -> Option<String> {
    let rows: serde_json::Value = serde_json::from_str(&place.run(&["trash", "--json"]).ok()).unwrap();
    let rows = rows.as_array().unwrap();
    rows.iter().find(|row| row["branch"] == "x").map(|row| row["id"].as_str().unwrap().to_owned())
}

fn check_trash(place: &Place, way: &Way, is_done: bool, tip: &str, what: &str) {
    let fsck = || {
        let ran = place.run(&["fsck"]);
        assert_eq!(ran.code, 0, "{what}: {}{}", ran.out, ran.err);
    };
    fsck();
    let is_at_tip = |name: &str| {
        let ran = place.run(&["rev-parse", name]);
        ran.code == 0 && ran.out.trim_end() == tip
    };
    let (is_there, kept) = (is_at_tip("x"), in_trash(place));
    if is_done {
        assert_eq!((is_there, kept.is_some()), way.leaves, "{what}");
    }
    let is_to_go = way.command == ["trash", "empty"];
    assert!(is_there || kept.is_some() || is_to_go, "{what}: it is lost");
    if let Some(id) = kept.filter(|_| !is_there) {
        place.run(&["trash", "restore", &id, "back"]).ok();
        assert!(is_at_tip("back"), "{what}");
    }
    place.run(&["trash", "empty"]).ok();
    fsck();
}

#[test]
fn a_crash_at_a_sample_of_all_places_leaves_what_a_ref_was_there_or_in_the_trash() {
    crash_amid_trash(3, 0x5EED);
}

#[test]
#[ignore = "all places: make crashpoints"]
fn a_crash_at_any_place_leaves_what_a_ref_was_there_or_in_the_trash() {
    crash_amid_trash(usize::MAX, 1);
}

/// Checks the last changes of an init, which make it appear, and `most` of all others.
fn crash_amid_init(most: usize) {
    let Some(place) = Place::new(Disk::default()) else { return };
    let recorded = place.watch(&["init"]);
    drop(place);
    let mut random = Random(7);
    let ends = (recorded.len().saturating_sub(6)..=recorded.len()).flat_map(|at| [(at, Stop::Kill), (at, Stop::Cut)]);
    let others = choose(&recorded, most, &mut random);
    for (number, stop) in ends.chain(others) {
        let place = Place::new(recorded.at(number, stop, &mut random)).expect("mounted before");
        let is_there = place.dir().join(".zenith").exists();
        assert!(is_there || number < recorded.len(), "an acknowledged init is lost");
        if !is_there {
            place.run(&["init"]).ok();
        }
        let fsck = place.run(&["fsck"]);
        assert_eq!(fsck.code, 0, "{stop:?} before {number} of {}: {}{}", recorded.len(), fsck.out, fsck.err);
        place.run(&["rev-parse", "main"]).ok();
    }
}

#[test]
fn an_init_that_is_cut_off_leaves_a_whole_repository_or_none() {
    crash_amid_init(5);
}

#[test]
#[ignore = "all places: make crashpoints"]
fn an_init_that_is_cut_off_anywhere_leaves_a_whole_repository_or_none() {
    crash_amid_init(usize::MAX);
}
