//! Objects, packs, refs and timelines made by somebody who means harm: every command that reads them refuses, names what it
//! is, and does nothing else; `fsck` names each and goes on.

use std::fs;
use std::path::Path;

use zenith::objects::map::{Extent, Map};
use zenith::objects::pg::Lsn;
use zenith::objects::snapshot::{Content, Entry, Node, Snapshot};
use zenith::objects::store::encode::{Encoded, Encoding, Xor};
use zenith::objects::store::loose;
use zenith::objects::timeline::origin::Up;
use zenith::objects::timeline::{Origin, Position, TimelineId};
use zenith::objects::{Kind, ObjectId, Repo, wal};

use crate::support::Env;

/// A repository, and what plants things in it.
struct Victim {
    env: Env,
    repo: Repo,
    timeline: TimelineId,
    /// The snapshot that was there before.
    honest: Snapshot,
}

impl Victim {
    fn new() -> Victim {
        let env = Env::init();
        let repo = Repo::open(&env.repo()).unwrap();
        let timeline: TimelineId = env.run(["rev-parse", "main"]).ok()[..32].parse().unwrap();
        let line = repo.timelines().read(timeline).unwrap().snapshots.listed[0];
        let honest = repo.store().snapshot(&line.object).unwrap();
        Victim { env, repo, timeline, honest }
    }

    fn plant(&self, kind: Kind, content: &[u8]) -> ObjectId {
        self.repo.store().write_loose(self.repo.tmp().unwrap(), kind, content, 3).unwrap()
    }

    /// Plants a stored form as it is.
    fn plant_encoded(&self, encoded: &Encoded) {
        let path = loose::path(self.repo.store().dir(), &encoded.id);
        let mut bytes = b"ZNO1".to_vec();
        encoded.write(&mut bytes);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Plants a snapshot with these entries as the only one of the branch.
    fn plant_snapshot(&self, entries: Vec<Entry>) -> ObjectId {
        let mut snapshot = Snapshot { entries, ..self.honest.clone() };
        snapshot.time_us += 1;
        let id = self.plant(Kind::Snapshot, &snapshot.encode());
        let listed = self.env.repo().join("timelines").join(self.timeline.to_string()).join("snapshots");
        fs::write(listed, format!("snapshot {} {id}\n", self.honest.consistent)).unwrap();
        id
    }

    /// Checks that fsck finds all of `faults`, each on a line of its own.
    #[track_caller]
    fn fsck_finds(&self, faults: &[String]) {
        let checked = self.env.run(["fsck"]);
        assert_eq!(checked.code, 3, "{}{}", checked.out, checked.err);
        for fault in faults {
            assert!(checked.out.lines().any(|line| line.contains(fault)), "{fault:?} is not in:\n{}", checked.out);
        }
    }
}

fn folder(path: &str) -> Entry {
    Entry { path: path.into(), mode: 0o700, node: Node::Dir }
}

fn link(path: &str, target: &Path) -> Entry {
    use std::os::unix::ffi::OsStrExt;
    Entry { node: Node::Symlink { target: target.as_os_str().as_bytes().to_vec() }, ..folder(path) }
}

fn file(path: &str, length: u64, content: Content) -> Entry {
    Entry { path: path.into(), mode: 0o600, node: Node::File { length, content } }
}

#[test]
fn a_snapshot_never_writes_outside_its_folder() {
    let victim = Victim::new();
    let outside = victim.env.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let owned = victim.plant(Kind::Frame, b"owned");
    let evil = |path: &str| file(path, 5, Content::Frame(owned));
    let suid = Entry { mode: 0o4755, ..evil("tool") };
    for (entries, what) in [
        (vec![link("x", &outside), evil("x/owned")], "a path in what is not a folder of the snapshot"),
        (vec![link("pg_wal", &outside)], "a symbolic link where PostgreSQL or zenith writes"),
        (
            vec![link("postgresql.auto.conf", &outside.join("owned"))],
            "a symbolic link where PostgreSQL or zenith writes",
        ),
        (vec![folder("base"), link("base/1", &outside), evil("base/1/owned")], "a symbolic link where"),
        (vec![evil("../outside/owned")], "a path that leaves the data directory"),
        (vec![evil("a"), evil("a")], "a path that is there twice"),
        (vec![suid], "impossible permission bits"),
        (vec![evil(".zenith.mark")], "a name that zenith keeps for itself"),
    ] {
        let id = victim.plant_snapshot(entries).to_string();
        let target = victim.env.path().join("target");
        victim.env.run(["restore", "main", "target"]).fails(3, &[&id, what]);
        assert!(!target.exists(), "{what}");
        for command in ["ls-snapshot", "start"] {
            let failed = victim.env.run([command, "main"]);
            assert_ne!(failed.code, 0, "{command}: {}", failed.out);
        }
        victim.env.run(["cat-object", "-p", &id]).fails(3, &[&id, what]);
        victim.fsck_finds(&[format!("object {id} is corrupt: {what}")]);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{what}");
    }
    // All of them together are as many faults.
    victim.fsck_finds(&["twice".into(), "leaves the data directory".into(), "permission bits".into()]);
}

/// Returns the most memory that a command had, KiB.
fn peak_kib(command: &mut std::process::Command) -> u64 {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Maximum resident set size (kbytes): "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn fsck_names_each_hostile_object_and_goes_on() {
    let victim = Victim::new();
    let mut faults = Vec::new();
    let mut corrupt = |id: ObjectId, what: &str| faults.push(format!("object {id} is corrupt: {what}"));

    // A few bytes that claim to be many entries, extents or frames, and inflate to a gigabyte.
    let mut empty = Snapshot { entries: Vec::new(), ..victim.honest.clone() }.encode();
    empty.pop();
    let claims = |count: u64, bytes: usize| {
        let mut content = empty.clone();
        zenith::objects::codec::put_varint(&mut content, count);
        content.resize(content.len() + bytes, 0);
        content
    };
    corrupt(victim.plant(Kind::Snapshot, &claims((8 << 20) + 1, 34 << 20)), "too many entries");
    corrupt(victim.plant(Kind::Snapshot, &claims(8 << 20, 33 << 20)), "an unknown type of entry");
    corrupt(victim.plant(Kind::Snapshot, &claims(u64::MAX, 3)), "a count beyond the end of the content");
    let mut map = vec![1, 0, 0, 0];
    zenith::objects::codec::put_varint(&mut map, 16 << 20);
    map.resize(65 << 20, 0);
    corrupt(victim.plant(Kind::Map, &map), "an extent in no frame");

    // Headers that lie about lengths.
    let forged = |kind, length, payload: &[u8], seed: u8| {
        let id = ObjectId([seed; 32]);
        let encoded = Encoded { id, kind, encoding: Encoding::Zstd, length, payload: payload.to_vec() };
        victim.plant_encoded(&encoded);
        id
    };
    let zeros = zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap();
    corrupt(forged(Kind::Wal, 1 << 30, &zeros, 1), "an interval longer than a segment");
    corrupt(forged(Kind::Snapshot, 1 << 30, &zeros, 6), "a content longer than its kind may be");
    corrupt(forged(Kind::Frame, 1 << 30, &zeros, 2), "a content longer than its kind may be");
    corrupt(forged(Kind::Frame, 1 << 18, &zeros, 3), "");
    corrupt(forged(Kind::Map, 5, b"longer than five", 4), "a payload longer than its content");
    corrupt(forged(Kind::Frame, 100, &[], 5), "");

    // Deltas in a circle, and against nothing.
    let delta = |seed: u8, base: u8| {
        let xor = Xor { bases: vec![ObjectId([base; 32])], blocks: vec![(0, 0)] };
        let payload = zstd::bulk::compress(&[0; 500], 3).unwrap();
        let id = ObjectId([seed; 32]);
        victim.plant_encoded(&Encoded { id, kind: Kind::Frame, encoding: Encoding::Xor(xor), length: 500, payload });
        id
    };
    corrupt(delta(11, 12), "");
    corrupt(delta(12, 11), "");
    corrupt(delta(13, 13), "");
    // A chain of maps that leaves blocks out, one of the wrong depth, and a map for a file of another length.
    let frame = victim.plant(Kind::Frame, &[7; 8192]);
    let whole = Map::of_frame(frame, 8192);
    let whole_id = victim.plant(Kind::Map, &whole.encode());
    let change = |length: u64, block: u32, depth: u8| {
        let extents = vec![Extent { block, count: 1, offset: 0, frame: 0 }];
        Map { length, base: Some((whole_id, depth)), frames: vec![frame], extents }
    };
    let gap = victim.plant(Kind::Map, &change(100 * 8192, 99, 1).encode());
    let deep = victim.plant(Kind::Map, &change(100 * 8192, 99, 5).encode());
    let length = 100 * 8192;
    victim.plant_snapshot(vec![
        file("deep", length, Content::Map(deep)),
        file("gap", length, Content::Map(gap)),
        file("kind", length, Content::Map(frame)),
        file("missing", 5, Content::Frame(ObjectId([99; 32]))),
        file("short", length, Content::Map(whole_id)),
        file("smaller", 8000, Content::Frame(frame)),
    ]);
    faults.push(format!("object {gap} is corrupt: a chain of maps that leaves blocks out"));
    faults.push(format!("object {deep} is corrupt: a chain of maps of the wrong depth"));
    faults.push(format!("object {whole_id} is corrupt: a map for a file of another length"));
    faults.push(format!("object {frame} is a frame, not a map"));
    faults.push(format!("object {frame} is corrupt: a frame for a file of another length"));
    faults.push(format!("object {} is missing", ObjectId([99; 32])));

    // WAL that is not what the log says, packs that are none, refs and timelines that lead nowhere.
    let stray = victim.plant(Kind::Wal, &wal::encode(Lsn(8), b"stray").unwrap());
    let folder = victim.env.repo().join("timelines").join(victim.timeline.to_string());
    let log = fs::read_to_string(folder.join("log")).unwrap();
    let sealed = victim.repo.timelines().read(victim.timeline).unwrap().sealed();
    fs::write(folder.join("log"), format!("{log}wal {sealed} {} {stray} {sealed} -\n", sealed.plus(8))).unwrap();
    faults.push(format!("object {stray} is not the WAL from {sealed}"));
    let cyclic = TimelineId::random();
    let own = Position { timeline: cyclic, lsn: Lsn(16) };
    let origin = Origin { depth: 1, up: Some(Up { parent: own, jump: own }), ..Origin::root(cyclic, 0) };
    victim.repo.timelines().create(victim.repo.tmp().unwrap(), cyclic, &origin).unwrap();
    faults.push("the depth does not fit to that of an ancestor".to_owned());
    fs::write(victim.env.repo().join("refs/branches/cyclic"), format!("{cyclic}\n")).unwrap();
    faults.push(format!("'refs/branches/cyclic' names timeline {cyclic}, which cannot be read"));
    fs::write(victim.env.repo().join("refs/branches/garbage"), b"\xFF\x1B[2J").unwrap();
    faults.push("garbage".to_owned());
    fs::write(victim.env.repo().join("refs/tags/bad name"), b"x").unwrap();
    faults.push("has a space".to_owned());
    fs::write(victim.env.repo().join("objects/pack/evil.idx"), b"ZNX1\xFF\xFF\xFF\xFF").unwrap();
    fs::write(victim.env.repo().join("objects/pack/evil.pack"), b"ZNP1").unwrap();
    faults.push("evil.idx".to_owned());

    victim.fsck_finds(&faults);
    let mut time = std::process::Command::new("/usr/bin/time");
    time.arg("-v").arg(assert_cmd::cargo::cargo_bin("zenith")).arg("--repo").arg(victim.env.repo()).arg("fsck");
    if Path::new("/usr/bin/time").exists() {
        let peak = peak_kib(&mut time);
        assert!(peak < 400 << 10, "{peak} KiB");
    } else {
        println!("SKIPPED: the memory is not measured without /usr/bin/time");
    }
}

#[test]
fn what_no_reader_would_take_is_not_written() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let dir = env.path().join("dir");
    let written = |env: &Env| env.run(["write-snapshot", "dir"]);
    // A link to nowhere in PostgreSQL's own folder, and one in place of a file that is written.
    let outside = env.path().join("outside");
    fs::write(&outside, "content").unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("global/linked")).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("mine")).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("standby.signal")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir.join("base"), fs::Permissions::from_mode(0o2700)).unwrap();
    let id = written(&env).ok();
    let listed = env.run(["ls-snapshot", &id]).ok();
    let line =
        |name: &str| listed.lines().find(|line| line.split_whitespace().nth(3) == Some(name)).unwrap().to_owned();
    assert!(line("global/linked").starts_with("100"), "{listed}");
    assert!(!listed.contains("standby.signal"), "{listed}");
    // So does the user's own: no server reads files outside of its data directory.
    assert!(line("mine").starts_with("100"), "{listed}");
    assert!(line("base").starts_with("040700"), "{listed}");
    // Longer than any path of PostgreSQL's.
    let deep = dir.join(format!("{0}/{0}/{0}/{0}/{0}", "x".repeat(250)));
    fs::create_dir_all(&deep).unwrap();
    written(&env).fails(1, &["cannot be part of a snapshot: a path that is too long"]);
    // Twice in one stream, which has no links.
    ["global/linked", "mine", "standby.signal"].iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap());
    fs::remove_dir_all(dir.join("x".repeat(250))).unwrap();
    let pack =
        |args: &[&str]| crate::support::checked(std::process::Command::new("tar").args(args).current_dir(env.path()));
    pack(&["-C", "dir", "-cf", "twice.tar", "."]);
    pack(&["-C", "dir", "-rf", "twice.tar", "./PG_VERSION"]);
    let stream = fs::File::open(env.path().join("twice.tar")).unwrap();
    let failed = env.command(["write-snapshot", "-"]).stdin(stream).output().unwrap();
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(text.contains("'PG_VERSION' cannot be part of a snapshot: a path that is there twice"), "{text}");
    env.run(["fsck"]).ok();
}

#[test]
fn names_and_messages_do_not_steer_the_terminal() {
    let victim = Victim::new();
    let frame = victim.plant(Kind::Frame, b"owned");
    let name = "\x1b]0;owned\x07\u{9b}2J\nroot 777 evil";
    victim.plant_snapshot(vec![file(name, 5, Content::Frame(frame))]);
    victim.env.run(["tag", "-m", "\x1b[2J\x1b[31mred\x1b[0m\r", "v1"]).ok();
    let head = victim.env.repo().join("logs/HEAD");
    let log = fs::read_to_string(&head).unwrap();
    let forged = log.lines().last().unwrap().split('\t').next().unwrap().to_owned() + "\t\x1b[2Jwhy\n";
    fs::write(&head, log + &forged).unwrap();
    for command in [
        &["ls-snapshot", "main"][..],
        &["show", "v1"],
        &["--color", "always", "show", "v1"],
        &["reflog"],
        &["log", "--all"],
        &["restore", "\x1b[2J", "x"],
        &["restore", "main", "x"],
    ] {
        let ran = victim.env.run(command);
        let text = ran.out + &ran.err;
        let allowed = |c: char| !c.is_control() || c == '\n' || c == '\t';
        let plain = without_colours_in(&text);
        assert!(plain.chars().all(allowed), "{command:?}: {text:?}");
    }
    // A path is one line.
    let listed = victim.env.run(["ls-snapshot", "main"]).ok();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(victim.env.run(["--color", "always", "show", "v1"]).ok().contains("^[[2J\x1b[31mred\x1b[0m^M"));
}

/// Returns a text without its colours.
fn without_colours_in(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('m').filter(|(colour, _)| colour.chars().all(|c| c.is_ascii_digit() || c == ';')) {
            Some((_, rest)) => out.push_str(rest),
            None => out.push_str(&format!("\x1b[{part}")),
        }
    }
    out
}
