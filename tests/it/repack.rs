//! Packs are merged: nothing is lost by it, nobody waits for it, and there are never many for long.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zenith::objects::frame::BLOCK_SIZE;
use zenith::objects::store::encode::{Encoded, Encoding, Xor};
use zenith::objects::store::repack::{Extent, Outcome, execute, plan};
use zenith::objects::store::{Store, midx};
use zenith::objects::{Kind, ObjectId};
use zenith::progress::Hidden;

use crate::support::{Env, Random};

#[test]
fn a_damaged_pack_of_the_same_name_is_replaced_and_not_believed() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 3, 0);
    let aside: Vec<(PathBuf, Vec<u8>)> = [place.files("pack"), place.files("idx")]
        .concat()
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    place.repack(Extent::All);
    let [merged] = place.files("pack").try_into().unwrap();
    let mut bytes = fs::read(&merged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&merged, &bytes).unwrap();
    assert!(all.iter().any(|(id, _)| place.store().read(id).is_err()));
    // From a backup.
    aside.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    place.repack(Extent::All);
    check(&place.store(), &all);
}

#[test]
fn an_object_that_is_damaged_is_written_again() {
    let place = Place::new();
    let content = content(5);
    let id = place.store().write_loose(&place.tmp, Kind::Wal, &content, 3).unwrap();
    let path = place.objects.join(&id.to_string()[..2]).join(&id.to_string()[2..]);
    for in_a_pack in [false, true] {
        let damaged = if in_a_pack {
            place.repack(Extent::All);
            place.files("pack").remove(0)
        } else {
            path.clone()
        };
        let mut bytes = fs::read(&damaged).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&damaged, &bytes).unwrap();
        assert!(place.store().read(&id).is_err());
        assert_eq!(place.store().write_loose(&place.tmp, Kind::Wal, &content, 3).unwrap(), id);
        assert_eq!(place.store().read(&id).unwrap().content, content);
    }
}

#[test]
fn a_pack_with_a_damaged_object_is_passed_over_from_then_on() {
    let place = Place::new();
    fill(&place.objects, &place.tmp, 4, 0);
    let damaged = place.files("pack").remove(0);
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    let first = place.repack(Extent::Geometric);
    assert_eq!((first.damaged.len(), first.packs, first.packs_now), (1, 3, 2));
    // Nothing of it was written again.
    assert_eq!(first.objects, 6);
    assert!(damaged.is_file());
    assert!(plan(&place.store(), Extent::Geometric).unwrap().is_empty());
    let all = place.repack(Extent::All);
    assert_eq!((all.damaged.len(), all.packs_now), (1, 2));
    // Once it was brought back from elsewhere.
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    assert_eq!(place.repack(Extent::All).packs_now, 1);
    assert_eq!(place.files("damaged"), Vec::<PathBuf>::new());
}

#[test]
fn a_pack_without_an_index_gets_one_and_nothing_of_it_goes() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 30, 0);
    place.repack(Extent::All);
    // Its writer was killed before it made one, or somebody lost it.
    let [index] = place.files("idx").try_into().unwrap();
    let bytes = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    assert!(place.store().read(&all[0].0).is_err());
    assert_eq!(plan(&place.store(), Extent::Geometric).unwrap().lone, 1);
    place.repack(Extent::Geometric);
    assert_eq!(fs::read(&index).unwrap(), bytes);
    check(&place.store(), &all);
    // One that is cut off is left, and is in nobody's way.
    let cut = place.objects.join("pack").join(format!("{}.pack", ObjectId([7; 32])));
    for length in [0, 3, 100] {
        fs::write(&cut, &fs::read(index.with_extension("pack")).unwrap()[..length]).unwrap();
        assert_eq!(place.repack(Extent::Geometric).damaged.len(), 1);
        assert!(cut.is_file() && plan(&place.store(), Extent::Geometric).unwrap().is_empty());
        fs::remove_file(cut.with_extension("damaged")).unwrap();
        fs::write(cut.with_extension("idx"), &bytes).unwrap();
        assert!(!place.repack(Extent::All).damaged.is_empty());
        assert!(cut.is_file());
        fs::remove_file(cut.with_extension("idx")).unwrap();
        let _ = fs::remove_file(cut.with_extension("damaged"));
    }
    check(&place.store(), &all);
}

#[test]
fn a_damaged_index_is_made_anew_from_its_pack() {
    enum Damage {
        Cut(usize),
        Flipped(usize),
    }
    // The last two, an id and an offset, are told by the checksum alone.
    for damage in [
        Damage::Cut(0),
        Damage::Cut(3),
        Damage::Cut(1100),
        Damage::Flipped(0),
        Damage::Flipped(8 + 1024 + 20),
        Damage::Flipped(8 + 1024 + 2 * 32 + 1),
    ] {
        let place = Place::new();
        let all = fill(&place.objects, &place.tmp, 3, 0);
        let index = place.files("idx").remove(0);
        let mut bytes = fs::read(&index).unwrap();
        match damage {
            Damage::Cut(length) => bytes.truncate(length),
            Damage::Flipped(at) => bytes[at] ^= 0x20,
        }
        fs::write(&index, &bytes).unwrap();
        assert!(all.iter().any(|(id, _)| place.store().read(id).is_err()));
        assert_eq!(place.repack(Extent::All).damaged, Vec::<String>::new());
        check(&place.store(), &all);
    }
}

/// A crash leaves such a pack after its writer's first rename.
#[test]
fn a_pack_without_an_index_is_a_fault_only_if_something_is_missing() {
    let env = Env::init();
    let objects = env.repo().join("objects/pack");
    let pack = fs::read_dir(&objects).unwrap().flatten().map(|entry| entry.path());
    let pack = pack.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "pack")).unwrap();
    fs::copy(&pack, objects.join(format!("{}.pack", ObjectId([7; 32])))).unwrap();
    let ran = env.run(["fsck"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("has no index: zenith repack makes one"), "{}", ran.err);
    assert_eq!(env.json(["fsck", "--json"])["remarks"].as_array().unwrap().len(), 1);
    fs::remove_file(objects.join(format!("{}.pack", ObjectId([7; 32])))).unwrap();
    fs::remove_file(pack.with_extension("idx")).unwrap();
    let ran = env.run(["fsck"]);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    env.run(["repack"]).ok();
    let ran = env.run(["fsck"]);
    assert_eq!((ran.code, ran.err.contains("no index")), (0, false), "{}", ran.err);
}

#[test]
fn files_that_are_imported_again_heal_what_is_damaged() {
    let env = Env::init();
    env.run(["restore", "main", "dir"]).ok();
    let pack = fs::read_dir(env.repo().join("objects/pack")).unwrap().flatten().map(|entry| entry.path());
    let pack = pack.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "pack")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&pack, bytes).unwrap();
    assert_eq!(env.run(["fsck"]).code, 3);
    let id = env.run(["write-snapshot", "dir"]).ok();
    env.run(["read-snapshot", &id, "again"]).ok();
    // What others name is the same object.
    env.run(["restore", "main", "healed"]).ok();
    crate::support::checked(std::process::Command::new("diff").args(["-r", "dir", "healed"]).current_dir(env.path()));
}

#[test]
fn merged_packs_are_closed_by_a_file_system_that_runs() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 1000) i; checkpoint");
    env.run(["snapshot"]).ok();
    env.run(["repack", "--all"]).ok();
    let mount = env.file_system("main");
    let gone = || {
        let files = fs::read_dir(format!("/proc/{mount}/fd")).unwrap().flatten();
        files
            .filter(|file| fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().contains(".pack (deleted)")))
            .count()
    };
    let until = Instant::now() + Duration::from_secs(90);
    while gone() > 0 {
        assert!(Instant::now() < until, "{} merged packs are open", gone());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A folder with a store in it.
struct Place {
    _home: tempfile::TempDir,
    objects: PathBuf,
    tmp: PathBuf,
}

impl Place {
    fn new() -> Place {
        let home = tempfile::tempdir().unwrap();
        let (objects, tmp) = (home.path().join("objects"), home.path().join("tmp"));
        fs::create_dir_all(objects.join("pack")).unwrap();
        fs::create_dir_all(&tmp).unwrap();
        Place { _home: home, objects, tmp }
    }

    /// Returns the store as another command sees it.
    fn store(&self) -> Store {
        Store::open(&self.objects)
    }

    fn repack(&self, extent: Extent) -> Outcome {
        let store = self.store();
        let plan = plan(&store, extent).unwrap();
        execute(&store, &self.tmp, &plan, &Hidden).unwrap().unwrap()
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.objects.join("pack")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }
}

fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number + 1);
    (0..2_000).map(|at| if at % 3 == 0 { random.below(256) as u8 } else { number as u8 }).collect()
}

fn encoded(content: &[u8]) -> Encoded {
    Encoded::compress(ObjectId::of(Kind::Frame, content), Kind::Frame, content, 3)
}

fn add_pack(objects: &Path, tmp: &Path, contents: &[Encoded]) {
    let mut pack = Store::open(objects).pack(tmp).unwrap();
    for object in contents {
        pack.append(object).unwrap();
    }
    pack.finish().unwrap();
}

/// Writes packs of two objects each, and loose ones. Returns all ids with their contents.
fn fill(objects: &Path, tmp: &Path, packs: u64, loose: u64) -> Vec<(ObjectId, Vec<u8>)> {
    let mut all = Vec::new();
    for number in 0..packs {
        let two = [content(2 * number), content(2 * number + 1)];
        add_pack(objects, tmp, &two.each_ref().map(|content| encoded(content)));
        all.extend(two.map(|content| (ObjectId::of(Kind::Frame, &content), content)));
    }
    let store = Store::open(objects);
    for number in 0..loose {
        let content = content(1_000_000 + number);
        all.push((store.write_loose(tmp, Kind::Wal, &content, 3).unwrap(), content));
    }
    all
}

fn check(store: &Store, all: &[(ObjectId, Vec<u8>)]) {
    for (id, content) in all {
        assert!(store.read(id).unwrap().content == *content, "{id}");
    }
    assert_eq!(store.ids().unwrap().len(), all.len());
    assert_eq!(store.broken_packs(), []);
}

#[test]
fn a_pack_that_is_brought_back_under_its_own_name_is_read_by_who_has_the_damaged_one_open() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 1, 0);
    let mut packs = fs::read_dir(place.objects.join("pack")).unwrap().flatten().map(|entry| entry.path());
    let pack = packs.find(|path| path.extension().unwrap() == "pack").unwrap();
    let store = place.store();
    check(&store, &all);
    let good = fs::read(&pack).unwrap();
    fs::write(&pack, vec![0; good.len()]).unwrap();
    store.read(&all[0].0).unwrap_err();
    let copy = pack.with_extension("backup");
    fs::write(&copy, good).unwrap();
    fs::rename(&copy, &pack).unwrap();
    check(&store, &all);
}

#[test]
fn a_pipe_in_the_place_of_the_note_about_a_damaged_pack_is_not_waited_for() {
    let place = Place::new();
    fill(&place.objects, &place.tmp, 1, 0);
    let pack = &place.store().packs().all()[0];
    let pipe = pack.path().with_extension("damaged");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    pack.set_marked(true).unwrap_err();
}

#[test]
fn many_packs_and_loose_objects_become_one_pack_with_all_of_them() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 40, 5);
    // One that has the index of all open from before, and finds the packs gone.
    place.repack(Extent::Geometric);
    fill(&place.objects, &place.tmp, 40, 0);
    let before = place.store();
    check(&before, &all);
    let outcome = place.repack(Extent::All);
    assert_eq!((outcome.objects, outcome.packs_now, &outcome.damaged), (all.len() as u64, 1, &Vec::new()));
    assert_eq!((place.files("pack").len(), place.files("idx").len()), (1, 1));
    assert_eq!(
        fs::read_dir(&place.objects)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name() != "pack")
            .filter(|entry| fs::read_dir(entry.path()).unwrap().count() > 0)
            .count(),
        0
    );
    check(&before, &all);
    check(&place.store(), &all);
    // Its name is that of its bytes, and the index of all is sound.
    let path = &place.files("pack")[0];
    let hash = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        fs::read(path).unwrap(),
    ));
    assert_eq!(path.file_stem().unwrap().to_str().unwrap(), ObjectId(hash.into()).to_string());
    let multi = place.objects.join("pack").join(midx::FILE);
    midx::MultiIndex::open(&multi).unwrap().verify(&multi).unwrap();
    // It may go, and may be damaged.
    let bytes = fs::read(&multi).unwrap();
    for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        fs::remove_file(&multi).unwrap();
        fs::write(&multi, &bytes[..cut]).unwrap();
        check(&place.store(), &all);
    }
    fs::remove_file(&multi).unwrap();
    check(&place.store(), &all);
    assert_eq!(place.repack(Extent::All), Outcome { packs_now: 1, ..Outcome::default() });
}

#[test]
fn large_packs_are_left_alone() {
    let place = Place::new();
    let mut random = Random(3);
    let large: Vec<Vec<u8>> = (0..20).map(|_| (0..256 << 10).map(|_| random.below(256) as u8).collect()).collect();
    add_pack(&place.objects, &place.tmp, &large.iter().map(|content| encoded(content)).collect::<Vec<_>>());
    let kept = place.files("pack");
    let all = fill(&place.objects, &place.tmp, 2, 0);
    let outcome = place.repack(Extent::Geometric);
    assert_eq!((outcome.packs, outcome.objects, outcome.packs_now), (2, 4, 2));
    assert!(kept[0].exists());
    let store = place.store();
    let large = large.into_iter().map(|content| (ObjectId::of(Kind::Frame, &content), content));
    check(&store, &all.into_iter().chain(large).collect::<Vec<_>>());
}

#[test]
fn of_several_copies_one_that_is_sound_and_stands_alone_stays() {
    let place = Place::new();
    let mut random = Random(5);
    let a: Vec<u8> = (0..4 * BLOCK_SIZE).map(|_| random.below(256) as u8).collect();
    let b: Vec<u8> = a.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at % BLOCK_SIZE == 9)).collect();
    let [a_id, b_id] = [&a, &b].map(|content| ObjectId::of(Kind::Frame, content));
    let blocks = (0..4).map(|number| (0, number)).collect();
    let delta = Encoded::delta(b_id, &b, Xor { bases: vec![a_id], blocks }, &[&a], 3);
    assert!(matches!(delta.encoding, Encoding::Xor(_)));
    let damaged = Encoded { payload: vec![0; a.len()], encoding: Encoding::Raw, ..encoded(&a) };
    add_pack(&place.objects, &place.tmp, &[encoded(&a), delta]);
    add_pack(&place.objects, &place.tmp, &[encoded(&b)]);
    add_pack(&place.objects, &place.tmp, &[damaged]);
    let outcome = place.repack(Extent::All);
    assert_eq!((outcome.objects, outcome.packs, &outcome.damaged), (2, 3, &Vec::new()));
    let store = place.store();
    check(&store, &[(a_id, a), (b_id, b)]);
    assert!([a_id, b_id].iter().all(|id| store.stored(id).unwrap().bases.is_empty()));
}

#[test]
fn a_damaged_object_stays_where_it_is_with_its_pack() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 5, 0);
    let bad = encoded(b"what it should be");
    let damaged = Encoded { payload: vec![0; 17], encoding: Encoding::Raw, length: 17, ..bad.clone() };
    add_pack(&place.objects, &place.tmp, &[damaged, encoded(b"its neighbour")]);
    let outcome = place.repack(Extent::All);
    assert_eq!((outcome.packs, outcome.packs_now, outcome.damaged.len()), (5, 2, 1));
    let store = place.store();
    assert!(all.iter().all(|(id, content)| store.read(id).unwrap().content == *content));
    assert!(store.read(&bad.id).is_err_and(|error| error.is_corruption()));
    // A sound copy that comes later takes its place.
    add_pack(&place.objects, &place.tmp, std::slice::from_ref(&bad));
    assert_eq!(place.repack(Extent::All).packs_now, 1);
    assert_eq!(place.store().read(&bad.id).unwrap().content, b"what it should be");
}

#[test]
fn readers_and_writers_go_on_while_packs_are_merged() {
    let place = Place::new();
    let old = fill(&place.objects, &place.tmp, 30, 20);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (place, old, over) = (&place, &old, &over);
            scope.spawn(move || {
                let store = place.store();
                let mut random = Random(reader + 1);
                while !over.load(Ordering::Relaxed) {
                    let (id, content) = &old[random.below(old.len() as u64) as usize];
                    assert!(store.read(id).unwrap().content == *content);
                }
            });
        }
        let writer = scope.spawn(|| {
            for number in 0..60u64 {
                add_pack(&place.objects, &place.tmp, &[encoded(&content(5_000 + number))]);
                let store = place.store();
                store.write_loose(&place.tmp, Kind::Wal, &content(6_000 + number), 3).unwrap();
            }
        });
        while !writer.is_finished() {
            // Two at once: one of them does nothing.
            let other = scope.spawn(|| {
                let store = place.store();
                let plan = plan(&store, Extent::All).unwrap();
                execute(&store, &place.tmp, &plan, &Hidden).unwrap();
            });
            let store = place.store();
            let plan = plan(&store, Extent::Geometric).unwrap();
            execute(&store, &place.tmp, &plan, &Hidden).unwrap();
            other.join().unwrap();
        }
        writer.join().unwrap();
        over.store(true, Ordering::Relaxed);
    });
    let store = place.store();
    let new = (0..60).flat_map(|number| [(Kind::Frame, content(5_000 + number)), (Kind::Wal, content(6_000 + number))]);
    for (kind, content) in new {
        assert!(store.read(&ObjectId::of(kind, &content)).unwrap().content == content);
    }
    check(
        &store,
        &store.ids().unwrap().into_iter().map(|id| (id, store.read(&id).unwrap().content)).collect::<Vec<_>>(),
    );
}

#[test]
fn any_number_of_packs_works_with_few_open_files_and_they_become_few_by_themselves() {
    let env = Env::init();
    let all = fill(&env.repo().join("objects"), &env.repo().join("tmp"), 400, 0);
    let ids: Vec<String> = all.iter().step_by(17).map(|(id, _)| id.to_string()).collect();
    let script =
        format!("ulimit -n 100; for id in {}; do \"$0\" cat-object \"$id\" > /dev/null || exit 1; done", ids.join(" "));
    let sh = |script: &str| {
        let mut command = std::process::Command::new("sh");
        let ran = command.args(["-c", script, env!("CARGO_BIN_EXE_zenith")]).current_dir(env.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    sh(&script);
    sh("ulimit -n 100; \"$0\" fsck");
    env.run(["start"]).ok();
    env.sql("main", "create table t ()");
    env.run(["stop"]).ok();
    let packs = || {
        fs::read_dir(env.repo().join("objects/pack"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"))
            .count()
    };
    let begun = Instant::now();
    while packs() > 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "there are still {} packs", packs());
        std::thread::sleep(Duration::from_millis(50));
    }
    env.run(["fsck"]).ok();
    sh(&script);
    let said = env.run(["repack", "--dry-run", "--json"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(said["kept"].as_u64().is_some(), "{said}");
    env.run(["repack", "--all"]).ok();
    env.run(["fsck"]).ok();
    assert_eq!(packs(), 1);
    assert_eq!(env.run(["repack"]).ok().trim(), "nothing to merge");
}

#[test]
fn fsck_finds_a_damaged_copy_that_no_reader_notices_and_a_merge_leaves_it_out() {
    let env = Env::init();
    let (objects, tmp) = (env.repo().join("objects"), env.repo().join("tmp"));
    let sound = encoded(&content(1));
    let damaged = Encoded { payload: vec![0; 2_000], encoding: Encoding::Raw, ..sound.clone() };
    add_pack(&objects, &tmp, std::slice::from_ref(&sound));
    add_pack(&objects, &tmp, &[damaged]);
    env.run(["cat-object", &sound.id.to_string()]).ok();
    let fsck = env.run(["fsck"]);
    assert_eq!(fsck.code, 3);
    assert!(fsck.out.contains(&sound.id.to_string()), "{}", fsck.out);
    env.run(["repack", "--all"]).ok();
    env.run(["fsck"]).ok();
    assert!(Store::open(&objects).read(&sound.id).unwrap().content == content(1));
}

#[test]
fn a_pack_whose_index_leaves_something_out_stays() {
    let place = Place::new();
    let all = fill(&place.objects, &place.tmp, 3, 0);
    // An index that says nothing of the pack's second object, and is sound itself.
    let path = place.files("idx").remove(0);
    let index = zenith::objects::store::index::Index::open(&path).unwrap();
    let mut entries: Vec<_> = index.entries(0..1).collect();
    fs::remove_file(&path).unwrap();
    fs::write(&path, zenith::objects::store::index::build(&mut entries).unwrap()).unwrap();
    let outcome = place.repack(Extent::All);
    assert_eq!((outcome.packs, outcome.damaged.len()), (2, 1), "{outcome:?}");
    assert!(path.exists() && path.with_extension("pack").exists());
    let store = place.store();
    assert_eq!(all.iter().filter(|(id, _)| store.read(id).is_ok()).count(), 5);
}

#[test]
fn a_multi_pack_index_that_is_stale_or_damaged_hides_nothing_and_is_made_anew() {
    let env = Env::init();
    let (objects, tmp) = (env.repo().join("objects"), env.repo().join("tmp"));
    let multi = objects.join("pack").join(midx::FILE);
    let mut all = fill(&objects, &tmp, 3, 0);
    env.run(["repack", "--all"]).ok();
    let old = fs::read(&multi).unwrap();
    let more = content(77);
    add_pack(&objects, &tmp, &[encoded(&more)]);
    all.push((ObjectId::of(Kind::Frame, &more), more));
    env.run(["repack", "--all"]).ok();
    let new = fs::read(&multi).unwrap();
    let check = |what: &str| {
        let store = Store::open(&objects);
        for (id, content) in &all {
            assert!(store.read(id).unwrap().content == *content, "{what}: {id}");
        }
    };
    let packs = || fs::read_dir(objects.join("pack")).unwrap().count();
    let before = packs();
    let put = |bytes: &[u8]| {
        fs::remove_file(&multi).unwrap();
        fs::write(&multi, bytes).unwrap();
    };
    // It names packs that are gone, as one that came back from a copy does.
    put(&old);
    check("stale");
    env.run(["fsck"]).ok();
    env.run(["repack", "--all"]).ok();
    assert_eq!((fs::read(&multi).unwrap(), packs()), (new.clone(), before));
    // A flipped bit anywhere.
    for at in (4..new.len()).step_by(new.len() / 40) {
        let mut damaged = new.clone();
        damaged[at] ^= 4;
        put(&damaged);
        check(&format!("byte {at}"));
        env.run(["repack"]).ok();
        assert_eq!((fs::read(&multi).unwrap(), packs()), (new.clone(), before), "byte {at}");
    }
}

#[test]
fn fsck_beside_a_merge_finds_no_fault() {
    let env = Env::init();
    let (objects, tmp) = (env.repo().join("objects"), env.repo().join("tmp"));
    fill(&objects, &tmp, 40, 40);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 10_000;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                add_pack(&objects, &tmp, &[encoded(&content(number))]);
                Store::open(&objects).write_loose(&tmp, Kind::Frame, &content(number + 100_000), 3).unwrap();
                env.run(["repack", "--all"]).ok();
            }
        });
        let runs: Vec<_> = (0..6).map(|_| env.run(["fsck"])).collect();
        over.store(true, Ordering::Relaxed);
        for ran in runs {
            assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
        }
    });
}
