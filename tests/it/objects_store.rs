//! The store as its users see it: many at once, damaged, half-written.

use std::fs;
use std::path::PathBuf;

use zenith::objects::frame::BLOCK_SIZE;
use zenith::objects::store::encode::{Encoded, Encoding, Xor};
use zenith::objects::store::{Error, Store};
use zenith::objects::{Kind, ObjectId};

use crate::support::{Env, Random};

fn empty() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let (objects, tmp) = (home.path().join("objects"), home.path().join("tmp"));
    fs::create_dir_all(objects.join("pack")).unwrap();
    fs::create_dir_all(&tmp).unwrap();
    (home, objects, tmp)
}

#[test]
fn many_writers_of_the_same_objects() {
    let (_home, objects, tmp) = empty();
    let contents: Vec<Vec<u8>> = (0..50u32).map(|n| n.to_le_bytes().repeat(500)).collect();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let store = Store::open(&objects);
                for content in &contents {
                    let id = store.write_loose(&tmp, Kind::Wal, content, 3).unwrap();
                    assert_eq!(id, ObjectId::of(Kind::Wal, content));
                    assert_eq!(store.read(&id).unwrap().content, *content);
                }
            });
        }
    });
    let store = Store::open(&objects);
    assert_eq!(store.ids().unwrap().len(), 50);
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
}

#[test]
fn prefixes_find_one_object_or_list_the_candidates() {
    let (_home, objects, tmp) = empty();
    let store = Store::open(&objects);
    // Enough objects that two begin with the same four digits.
    let ids: Vec<ObjectId> =
        (0..1500u32).map(|n| store.write_loose(&tmp, Kind::Wal, &n.to_le_bytes(), 1).unwrap()).collect();
    let mut prefixes: Vec<String> = ids.iter().map(|id| id.to_string()[..4].to_owned()).collect();
    prefixes.sort();
    let twice = prefixes.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).expect("1500 objects");
    match store.resolve_prefix(&twice) {
        Err(Error::AmbiguousPrefix { candidates, .. }) => assert!(candidates.len() >= 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.resolve_prefix(&ids[7].to_string()).unwrap(), ids[7]);
    assert_eq!(store.resolve_prefix(&ids[7].to_string()[..16].to_uppercase()).unwrap(), ids[7]);
    assert!(matches!(store.resolve_prefix("abc"), Err(Error::UnknownPrefix { .. })));
}

#[test]
fn damaged_indexes_never_panic_and_never_give_wrong_data() {
    let (_home, objects, tmp) = empty();
    let store = Store::open(&objects);
    let mut pack = store.pack(&tmp).unwrap();
    let contents: Vec<Vec<u8>> = (0..40u32).map(|n| n.to_be_bytes().repeat(300)).collect();
    for content in &contents {
        let id = ObjectId::of(Kind::Frame, content);
        pack.append(&zenith::objects::store::encode::Encoded::compress(id, Kind::Frame, content, 3)).unwrap();
    }
    pack.finish().unwrap();
    let files: Vec<PathBuf> = fs::read_dir(objects.join("pack")).unwrap().flatten().map(|entry| entry.path()).collect();
    let mut random = Random(99);
    for path in &files {
        let good = fs::read(path).unwrap();
        for _ in 0..200 {
            let mut bytes = good.clone();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            if random.below(8) == 0 {
                bytes.truncate(at);
            }
            // A published file is never written again, so a damaged one is another file.
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
            let store = Store::open(&objects);
            for content in &contents {
                if let Ok(object) = store.read(&ObjectId::of(Kind::Frame, content)) {
                    assert!(object.content == *content);
                }
            }
            fs::remove_file(path).unwrap();
            fs::write(path, &good).unwrap();
        }
    }
    // Without its index a pack is not seen: it was not finished.
    fs::remove_file(files.iter().find(|path| path.extension().unwrap() == "idx").unwrap()).unwrap();
    assert_eq!(Store::open(&objects).ids().unwrap().len(), 0);
}

#[test]
fn what_dead_processes_left_in_tmp_is_removed_and_what_live_ones_have_is_not() {
    let env = Env::init();
    let tmp = env.repo().join("tmp");
    // Killed before the lock was taken, amid work, and while its folder was being removed.
    fs::write(tmp.join("z-begun.lock"), b"").unwrap();
    fs::create_dir(tmp.join("z-dead")).unwrap();
    fs::write(tmp.join("z-dead.lock"), b"").unwrap();
    fs::write(tmp.join("z-dead/z-half"), b"half").unwrap();
    fs::create_dir(tmp.join("z-lockless")).unwrap();
    fs::create_dir(tmp.join("z-alive")).unwrap();
    let lock = fs::File::create(tmp.join("z-alive.lock")).unwrap();
    lock.lock().unwrap();
    env.run(["branch", "x"]).ok();
    let mut left: Vec<_> = fs::read_dir(&tmp).unwrap().flatten().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, ["z-alive", "z-alive.lock"]);
}

/// Publishes a pack of these objects; of all packs it is asked first.
fn add_pack(store: &Store, tmp: &std::path::Path, objects: &[Encoded]) {
    let mut pack = store.pack(tmp).unwrap();
    for object in objects {
        pack.append(object).unwrap();
    }
    pack.finish().unwrap();
    store.refresh().unwrap();
}

#[test]
fn an_object_is_well_as_long_as_one_of_its_copies_is() {
    let (_home, objects, tmp) = empty();
    let store = Store::open(&objects);
    let mut random = Random(5);
    let a: Vec<u8> = (0..4 * BLOCK_SIZE).map(|_| random.below(256) as u8).collect();
    let b: Vec<u8> = a.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at % BLOCK_SIZE == 9)).collect();
    let [a_id, b_id] = [&a, &b].map(|content| ObjectId::of(Kind::Frame, content));
    let delta = |id, content: &[u8], base, old: &Vec<u8>| {
        let blocks = (0..4).map(|number| (0, number)).collect();
        let encoded = Encoded::delta(id, content, Xor { bases: vec![base], blocks }, &[old], 3);
        assert!(matches!(encoded.encoding, Encoding::Xor(_)));
        encoded
    };
    let whole = |id, content: &[u8]| Encoded::compress(id, Kind::Frame, content, 3);
    add_pack(&store, &tmp, &[whole(a_id, &a), whole(b_id, &b)]);
    // Each against the other: two writers that did not know of each other.
    add_pack(&store, &tmp, &[delta(a_id, &a, b_id, &b), delta(b_id, &b, a_id, &a)]);
    for (id, content) in [(a_id, &a), (b_id, &b)] {
        assert!(store.read(&id).unwrap().content == *content);
    }
    // A damaged copy is found before the others.
    add_pack(&store, &tmp, &[Encoded { payload: vec![0; a.len()], encoding: Encoding::Raw, ..whole(a_id, &a) }]);
    let store = Store::open(&objects);
    assert!(store.read(&a_id).unwrap().content == a);
}
