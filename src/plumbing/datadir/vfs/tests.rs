//! Random histories of a lazy data directory, against plain byte arrays; and every state that a power cut
//! may leave of its local layer.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::base::Base;
use super::{Make, ROOT, Vfs};
use crate::objects::format::{Config, FORMAT_VERSION};
use crate::objects::frame::BLOCK_SIZE;
use crate::objects::pg::Lsn;
use crate::objects::snapshot::Snapshot;
use crate::objects::store::encode::Encoded;
use crate::objects::timeline::TimelineId;
use crate::objects::{Kind, ObjectId, Repo};
use crate::plumbing::datadir::local::disk::Event;
use crate::plumbing::datadir::write::{Bytes, Item, TreeWriter, UNIT_BYTES};
use crate::progress::Hidden;

/// The same numbers in every run: xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A block that says which one it is.
fn stamp(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK_SIZE / 8)
}

fn stamps(first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(stamp).collect()
}

/// A repository with one snapshot that holds `files`.
pub(super) fn repo_with(home: &Path, files: &[(&str, Vec<u8>)]) -> (Arc<Repo>, ObjectId) {
    let config = Config {
        format_version: FORMAT_VERSION,
        postgres_major: 15,
        wal_segment_size: 16 << 20,
        system_identifier: "1".to_owned(),
        extensions: Vec::new(),
        core: Default::default(),
        postgres: Default::default(),
        snapshot: Default::default(),
        gc: Default::default(),
        proxy: Default::default(),
        branch: Default::default(),
    };
    let repo = Repo::create(home, &config).unwrap();
    let pack = repo.store().pack(repo.tmp().unwrap()).unwrap();
    let mut writer = TreeWriter::new(repo.store(), pack, None, 3, &Hidden);
    for (path, bytes) in files {
        writer.add(Item::File { path: path.as_bytes().to_vec(), mode: 0o600, length: bytes.len() as u64 }).unwrap();
        for part in bytes.chunks(UNIT_BYTES) {
            writer.add(Item::Part(Bytes::Now(part.to_vec()), None)).unwrap();
        }
    }
    let (entries, mut pack, _) = writer.finish().unwrap();
    let snapshot = Snapshot {
        timeline: TimelineId::random(),
        start: Lsn(1),
        checkpoint: Lsn(1),
        consistent: Lsn(1),
        time_us: 0,
        system_identifier: 1,
        postgres_major: 15,
        catalog_version: 1,
        postgres_timeline: 1,
        wal_segment_size: 16 << 20,
        parent: None,
        entries,
    };
    let content = snapshot.encode();
    let id = ObjectId::of(Kind::Snapshot, &content);
    pack.append(&Encoded::compress(id, Kind::Snapshot, &content, 3)).unwrap();
    pack.finish().unwrap();
    repo.store().refresh().unwrap();
    (Arc::new(repo), id)
}

pub(super) fn open(repo: &Arc<Repo>, id: &ObjectId, dir: &Path) -> Vfs {
    Vfs::open(repo, id, dir, Base::new(repo.clone(), None)).unwrap()
}

fn content(vfs: &Vfs, ino: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    vfs.read(ino, 0, usize::MAX >> 1, &mut bytes).unwrap();
    bytes
}

/// All files at the top, by name.
fn files(vfs: &Vfs) -> BTreeMap<String, Vec<u8>> {
    let list = vfs.list(ROOT).unwrap();
    list.into_iter().map(|(name, found)| (String::from_utf8(name).unwrap(), content(vfs, found.ino))).collect()
}

fn ino(vfs: &Vfs, name: &str) -> u64 {
    vfs.lookup(ROOT, OsStr::new(name)).unwrap().ino
}

/// Applies something random to both.
fn step(vfs: &Vfs, model: &mut BTreeMap<String, Vec<u8>>, random: &mut Random) {
    let names: Vec<String> = model.keys().cloned().collect();
    let fresh = format!("n{}", random.below(6));
    if names.is_empty() || random.below(14) == 0 {
        if let Entry::Vacant(free) = model.entry(fresh) {
            vfs.make(ROOT, OsStr::new(free.key()), 0o600, &Make::File).unwrap();
            free.insert(Vec::new());
        }
        return;
    }
    let name = names[random.below(names.len())].clone();
    let (number, bytes) = (ino(vfs, &name), model.get_mut(&name).unwrap());
    match random.below(16) {
        0..=7 => {
            let offset = random.below(bytes.len() + 20_000);
            let length = [1, 100, 8192, 30_000][random.below(4)];
            let data: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            vfs.write(number, offset as u64, &data).unwrap();
            bytes.resize(bytes.len().max(offset + length), 0);
            bytes[offset..offset + length].copy_from_slice(&data);
        }
        8 | 9 => {
            let length = random.below(bytes.len() * 3 / 2 + 9000);
            vfs.resize(number, length as u64).unwrap();
            bytes.resize(length, 0);
        }
        10 => {
            let (offset, length) = (random.below(bytes.len() + 1), 1 + random.below(20_000));
            let keep = random.below(2) == 0;
            vfs.allocate(number, offset as u64, length as u64, keep).unwrap();
            if !keep {
                bytes.resize(bytes.len().max(offset + length), 0);
            }
        }
        11 => vfs.sync(number).unwrap(),
        12 => {
            vfs.remove(ROOT, OsStr::new(&name), false).unwrap();
            model.remove(&name);
        }
        13 => {
            let moved = model.remove(&name).unwrap();
            vfs.rename((ROOT, OsStr::new(&name)), (ROOT, OsStr::new(&fresh)), true).unwrap();
            model.insert(fresh, moved);
        }
        14 => vfs.hydrate(&|| false).unwrap(),
        _ => {
            let (offset, length) = (random.below(bytes.len() + 10), random.below(70_000));
            let mut read = Vec::new();
            vfs.read(number, offset as u64, length, &mut read).unwrap();
            let expected = bytes.get(offset..(offset + length).min(bytes.len())).unwrap_or_default();
            assert!(read == expected, "{name} differs at {offset}");
        }
    }
}

/// Every block that differs from `before` must be among what the file system says has changed.
fn assert_noted(vfs: &Vfs, before: &BTreeMap<String, Vec<u8>>, now: &BTreeMap<String, Vec<u8>>) {
    let changed: HashMap<_, _> = vfs.changed().into_iter().collect();
    for (name, bytes) in now {
        let noted = changed.get(name.as_bytes());
        if noted.is_some_and(|noted| noted.whole) {
            continue;
        }
        let old = before.get(name).unwrap_or_else(|| panic!("{name} is new, and nobody noted that"));
        for (number, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
            let same = old.chunks(BLOCK_SIZE).nth(number).is_some_and(|old| old == block);
            let is_noted = noted.is_some_and(|noted| noted.blocks.contains(number as u32));
            assert!(same || is_noted, "block {number} of {name} changed, and nobody noted that");
        }
        assert!(noted.is_some() || bytes.len() == old.len(), "the length of {name} changed, and nobody noted that");
    }
}

#[test]
fn behaves_as_files_do_and_notes_what_changes() {
    for seed in 1..40 {
        let home = tempfile::tempdir().unwrap();
        let mut random = Random(seed * 0x9E37_79B9);
        let sizes = [0, 100, 8192, 100_000, 262_144, 700_001];
        let contents = sizes.map(|size| (0..size).map(|_| random.next() as u8).collect::<Vec<u8>>());
        let names = ["a", "b", "c", "d", "e", "f"];
        let given: Vec<_> = names.into_iter().zip(contents).collect();
        let (repo, id) = repo_with(home.path(), &given);
        let layer = home.path().join("local");
        let mut model: BTreeMap<String, Vec<u8>> =
            given.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        let first = model.clone();
        let (mut marked, mut begun) = (model.clone(), None);
        let mut vfs = open(&repo, &id, &layer);
        for _ in 0..150 {
            step(&vfs, &mut model, &mut random);
            match random.below(30) {
                0 => {
                    vfs.begin_mark();
                    begun = Some(model.clone());
                }
                1 if begun.is_some() => {
                    vfs.end_mark(ObjectId([1; 32]));
                    marked = begun.take().unwrap();
                }
                2 => {
                    vfs.flush().unwrap();
                    drop(vfs);
                    vfs = open(&repo, &id, &layer);
                    (marked, begun) = (first.clone(), None);
                }
                _ => {}
            }
            assert_noted(&vfs, &marked, &model);
        }
        assert!(files(&vfs) == model, "seed {seed}");
    }
}

#[test]
fn a_layer_can_be_opened_again_whatever_was_synced_of_files_without_a_lasting_name() {
    let home = tempfile::tempdir().unwrap();
    let given = [("a", stamps(1, 3)), ("b", stamps(10, 3)), ("c", stamps(20, 3))];
    let (repo, id) = repo_with(home.path(), &given.clone());
    let layer = home.path().join("local");
    let vfs = open(&repo, &id, &layer);
    // A query's own, which nobody removes if its backend is killed.
    let folder = vfs.make(ROOT, OsStr::new("pgsql_tmp"), 0o700, &Make::Folder).unwrap().ino;
    let temporary = vfs.make(folder, OsStr::new("pgsql_tmp1.0"), 0o600, &Make::File).unwrap().ino;
    vfs.write(temporary, 0, &stamps(7, 2)).unwrap();
    vfs.sync(temporary).unwrap();
    // Removed, but open.
    let (a, b) = (ino(&vfs, "a"), ino(&vfs, "b"));
    vfs.open_inode(a).unwrap();
    vfs.remove(ROOT, OsStr::new("a"), false).unwrap();
    vfs.write(a, 0, &stamps(8, 1)).unwrap();
    vfs.sync(a).unwrap();
    vfs.resize(a, 100).unwrap();
    vfs.set_mode(a, 0o640).unwrap();
    vfs.sync(a).unwrap();
    // Removed while somebody syncs it.
    let file = vfs.file(b).unwrap();
    vfs.write(b, 0, &stamps(9, 1)).unwrap();
    vfs.remove(ROOT, OsStr::new("b"), false).unwrap();
    file.sync(vfs.cx()).unwrap();
    vfs.write(ino(&vfs, "c"), 0, &stamps(30, 1)).unwrap();
    vfs.flush().unwrap();
    drop(vfs);
    let found = files(&open(&repo, &id, &layer));
    assert_eq!(found, BTreeMap::from([("c".to_owned(), [stamps(30, 1), stamps(21, 2)].concat())]));
}

/// What a disk has after a power cut: of every file what was synced, and of the rest any part.
struct Cut<'a> {
    events: &'a [Event],
    random: &'a mut Random,
}

impl Cut<'_> {
    /// Writes the files into `dir`.
    fn leave(&mut self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        let last_dir_sync = self.events.iter().rposition(|event| *event == Event::SyncDir).map_or(0, |at| at + 1);
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (at, event) in self.events.iter().enumerate() {
            let durable = at < last_dir_sync;
            match event {
                Event::Create(name) if durable || self.random.below(2) == 0 => drop(names.insert(name)),
                Event::Remove(name) if durable || self.random.below(2) == 0 => drop(names.remove(name.as_str())),
                _ => {}
            }
        }
        for name in names {
            fs::write(dir.join(name), self.content_of(name)).unwrap();
        }
    }

    fn content_of(&mut self, file: &str) -> Vec<u8> {
        let is_made = |event: &Event| matches!(event, Event::Create(name) if name == file);
        let made = self.events.iter().rposition(is_made).unwrap_or(0);
        let is_sync = |event: &Event| matches!(event, Event::Sync(name) if name == file);
        let synced = self.events.iter().rposition(is_sync).unwrap_or(0);
        let mut content = Vec::new();
        for (at, event) in self.events.iter().enumerate().skip(made) {
            match event {
                Event::Write { name, offset, bytes } if name == file => {
                    // Page by page, in any order: a later one may be there without this one.
                    for (number, page) in bytes.chunks(4096).enumerate() {
                        // A data page tears like a disk's: what PostgreSQL's full-page writes are for. So
                        // the two halves of a block stay together here, and the journal's do not.
                        let together = file != "journal" && number % 2 == 1;
                        let lost = at >= synced && !together && self.random.below(3) == 0;
                        let start = *offset as usize + number * 4096;
                        if lost {
                            if file != "journal" {
                                break;
                            }
                            continue;
                        }
                        if content.len() < start + page.len() {
                            content.resize(start + page.len(), 0);
                        }
                        content[start..start + page.len()].copy_from_slice(page);
                    }
                }
                Event::Resize { name, length } if name == file && (at < synced || self.random.below(2) == 0) => {
                    content.resize(*length as usize, 0);
                }
                _ => {}
            }
        }
        content
    }
}

/// What may be found of a file after a cut.
#[derive(Debug, Clone, Default)]
struct Allowed {
    /// By block: the stamps that were there when it was synced last, or later. 0 stands for zeros.
    blocks: HashMap<u64, BTreeSet<u64>>,
    lengths: BTreeSet<u64>,
}

/// A file of whole blocks, as its stamps.
#[derive(Debug, Clone, Default)]
struct Stamped {
    now: Vec<u64>,
    allowed: Allowed,
}

impl Stamped {
    fn new(now: Vec<u64>) -> Stamped {
        let mut file = Stamped { now, allowed: Allowed::default() };
        file.synced();
        file
    }

    fn synced(&mut self) {
        self.allowed = Allowed::default();
        self.changed();
    }

    fn changed(&mut self) {
        self.allowed.lengths.insert(self.now.len() as u64);
        for (number, stamp) in self.now.iter().enumerate() {
            self.allowed.blocks.entry(number as u64).or_default().insert(*stamp);
        }
    }
}

/// Where a history stands after an operation.
#[derive(Debug, Clone)]
struct Moment {
    /// Events so far.
    events: usize,
    files: BTreeMap<u64, Stamped>,
    /// Those that the names may lead to: after the last sync, or later.
    names: Vec<BTreeMap<String, u64>>,
}

/// Plays a random history, and returns every moment of it.
fn history(vfs: &Vfs, random: &mut Random, given: &[(&str, u64, u64)]) -> Vec<Moment> {
    let mut files: BTreeMap<u64, Stamped> = BTreeMap::new();
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    for (name, first, count) in given {
        let number = ino(vfs, name);
        files.insert(number, Stamped::new((*first..first + count).collect()));
        names.insert((*name).to_owned(), number);
    }
    let mut possible = vec![names.clone()];
    let mut next = 1_000_000;
    let mut moments = vec![Moment { events: vfs.layer.events().len(), files: files.clone(), names: possible.clone() }];
    for _ in 0..40 {
        let all: Vec<(String, u64)> = names.clone().into_iter().collect();
        let (name, number) = all[random.below(all.len())].clone();
        let file = files.get_mut(&number).unwrap();
        let mut all_names_durable = false;
        match random.below(12) {
            0..=5 => {
                let first = random.below(file.now.len() + 2);
                let count = 1 + random.below(3);
                vfs.write(number, (first * BLOCK_SIZE) as u64, &stamps(next, count as u64)).unwrap();
                file.now.resize(file.now.len().max(first + count), 0);
                (0..count).for_each(|at| file.now[first + at] = next + at as u64);
                next += count as u64;
                file.changed();
            }
            6 | 7 => {
                vfs.sync(number).unwrap();
                file.synced();
                all_names_durable = true;
            }
            8 => {
                let length = random.below(file.now.len() + 4);
                vfs.resize(number, (length * BLOCK_SIZE) as u64).unwrap();
                // A cut of what the snapshot has is durable at once, with all names.
                all_names_durable = false;
                file.now.resize(length, 0);
                file.changed();
            }
            9 => {
                let fresh = format!("n{}", random.below(4));
                if let Entry::Vacant(free) = names.entry(fresh) {
                    let made = vfs.make(ROOT, OsStr::new(free.key()), 0o600, &Make::File).unwrap().ino;
                    files.insert(made, Stamped::new(Vec::new()));
                    free.insert(made);
                }
            }
            10 if names.len() > 2 => {
                vfs.remove(ROOT, OsStr::new(&name), false).unwrap();
                names.remove(&name);
            }
            _ => {
                let fresh = format!("m{}", random.below(4));
                vfs.rename((ROOT, OsStr::new(&name)), (ROOT, OsStr::new(&fresh)), true).unwrap();
                names.remove(&name);
                names.insert(fresh, number);
            }
        }
        if all_names_durable {
            possible.clear();
        }
        possible.push(names.clone());
        moments.push(Moment { events: vfs.layer.events().len(), files: files.clone(), names: possible.clone() });
    }
    moments
}

/// Checks what a power cut left, between `before` and `after` an operation.
fn check(vfs: &Vfs, before: &Moment, after: &Moment) {
    let found: BTreeMap<String, u64> = {
        let list = vfs.list(ROOT).unwrap().into_iter();
        list.map(|(name, found)| (String::from_utf8(name).unwrap(), found.ino)).collect()
    };
    let possible = before.names.iter().chain(&after.names);
    assert!(possible.clone().any(|names| *names == found), "{found:?} is none of {:?}", possible.collect::<Vec<_>>());
    for (name, number) in found {
        let allowed: Vec<&Allowed> =
            [before, after].iter().filter_map(|moment| Some(&moment.files.get(&number)?.allowed)).collect();
        let bytes = content(vfs, number);
        let length = bytes.len() as u64 / BLOCK_SIZE as u64;
        assert_eq!(bytes.len() % BLOCK_SIZE, 0, "{name} has half a block");
        let longest = allowed.iter().flat_map(|allowed| &allowed.lengths).max().copied().unwrap_or(0);
        let shortest = allowed.iter().flat_map(|allowed| &allowed.lengths).min().copied().unwrap_or(0);
        assert!((shortest..=longest).contains(&length), "{name} has {length} blocks, not {shortest} to {longest}");
        for (at, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
            let value = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert!(block == stamp(value), "block {at} of {name} is a mixture");
            // Behind the shortest length nothing was promised: there may be zeros.
            let is_hole = value == 0 && at as u64 >= shortest;
            let known = allowed
                .iter()
                .any(|allowed| allowed.blocks.get(&(at as u64)).is_some_and(|stamps| stamps.contains(&value)));
            assert!(known || is_hole, "block {at} of {name} is {value}, which was not there since its last sync");
        }
    }
}

#[test]
fn a_power_cut_at_any_point_leaves_what_was_synced() {
    let given = [("a", 1, 3), ("b", 100, 40), ("c", 200, 12)];
    let mut states = 0;
    for seed in 1..24 {
        let home = tempfile::tempdir().unwrap();
        let mut random = Random(seed * 0x51_7CC1_B727);
        let contents: Vec<_> = given.iter().map(|(name, first, count)| (*name, stamps(*first, *count))).collect();
        let (repo, id) = repo_with(home.path(), &contents);
        let vfs = open(&repo, &id, &home.path().join("local"));
        let moments = history(&vfs, &mut random, &given);
        let events = vfs.layer.events();
        for pair in moments.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            for cut in before.events..=after.events {
                for attempt in 0..3 {
                    let dir = home.path().join(format!("cut-{cut}-{attempt}"));
                    Cut { events: &events[..cut], random: &mut random }.leave(&dir);
                    check(&open(&repo, &id, &dir), before, after);
                    fs::remove_dir_all(&dir).unwrap();
                    states += 1;
                }
            }
        }
    }
    assert!(states > 5000, "only {states} states were tried");
}
