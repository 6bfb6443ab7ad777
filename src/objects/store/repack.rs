//! Merges packs, so that there are never many: geometrically, as `git repack --geometric` does.
//!
//! Packs are kept as long as each is at least twice as large as all smaller ones together; the smaller ones that break that
//! rule become one, with the loose objects. So a store of n bytes has about log2(n) packs, and each object is written
//! again about as often, however many packs came one by one.
//!
//! An object is moved as it is stored, after it was read and checked against its id; of several copies one that stands alone
//! is preferred. One that is damaged stays where it is, with its whole pack, which is marked by an empty file `<name>.damaged`:
//! unless everything is merged, it is passed over from then on.
//!
//! # Order
//! The new pack is published, then a [multi-pack index](super::midx) that names it, then the old packs are removed: a crash
//! anywhere leaves each object in one place at least. Readers and writers go on meanwhile: one that finds a pack gone
//! looks again, and a writer that relies on an object relies on the id, which is never dropped here. Two never merge at once:
//! the lock is on `objects/pack/repack.lock`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encode::{Encoded, Encoding};
use super::index::Index;
use super::pack::{Pack, PackWriter};
use super::{Error, Store, loose, midx};
use crate::objects::durable;
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;
use crate::objects::lock;
use crate::progress::{Interrupted, Progress};

/// A pack counts as this large at least, bytes: below that it is its file that costs, not what is in it. With that, a store of
/// one TiB has at most some twenty packs.
const SMALLEST: u64 = 1 << 20;
/// Loose objects that may lie about before they are worth a pack.
const MOST_LOOSE: usize = 64;
/// Packs that may lie about before the merge is due.
const MOST_PACKS: usize = 20;

/// What is to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    /// What breaks the geometric rule.
    #[default]
    Geometric,
    /// Everything.
    All,
}

/// A merge that is to be done.
pub struct Plan {
    /// The packs to merge, those written first first.
    pub packs: Vec<Arc<Pack>>,
    /// The packs that stay.
    pub kept: usize,
    /// The loose objects to pack.
    pub loose: Vec<ObjectId>,
    /// What will be read, bytes.
    pub bytes: u64,
    /// The multi-pack index does not fit the packs, or is damaged.
    pub is_stale: bool,
    /// Packs without an index, or with one that cannot be used.
    pub lone: usize,
}

impl Plan {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.loose.is_empty() && !self.is_stale && self.lone == 0
    }
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// The new pack; none where there was nothing to do.
    pub pack: Option<ObjectId>,
    /// Objects that were moved.
    pub objects: u64,
    /// Packs that were merged, and are gone.
    pub packs: u64,
    /// Loose objects that were packed, and are gone.
    pub loose: u64,
    /// Packs that there are now.
    pub packs_now: u64,
    /// Damaged objects, which stayed where they are.
    pub damaged: Vec<String>,
}

/// Objects cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Returns whether a merge is worth its while: there are many packs, or many loose objects. Costs a look at the names.
pub fn is_due(store: &Store) -> Result<bool, Error> {
    let packs = store.packs().all().len();
    if packs > MOST_PACKS {
        return Ok(true);
    }
    Ok(loose::count_upto(store.dir(), MOST_LOOSE + 1)? > MOST_LOOSE)
}

/// Returns what a merge would do.
pub fn plan(store: &Store, extent: Extent) -> Result<Plan, Error> {
    store.packs().rescan()?;
    let all = store.packs().all();
    let loose = loose::ids(store.dir(), "")?;
    let mut sizes = Vec::new();
    for pack in all.iter().filter(|pack| extent == Extent::All || !pack.is_marked()) {
        // One that goes this instant is in nobody's way.
        if let Ok(metadata) = fs::metadata(pack.path()) {
            sizes.push((metadata.len(), pack.clone()));
        }
    }
    sizes.sort_by_key(|(bytes, pack)| (*bytes, *pack.name()));
    let mut loose_bytes = 0;
    for id in &loose {
        loose_bytes += fs::metadata(loose::path(store.dir(), id)).map_or(0, |metadata| metadata.len());
    }
    let merged = match extent {
        Extent::All => sizes.len(),
        Extent::Geometric => smallest_to_merge(&sizes.iter().map(|(bytes, _)| *bytes).collect::<Vec<_>>(), loose_bytes),
    };
    // A pack alone would become itself.
    let merged = if merged == 1 && loose.is_empty() { 0 } else { merged };
    let bytes = sizes[..merged].iter().map(|(bytes, _)| bytes).sum::<u64>() + loose_bytes;
    let names: HashSet<ObjectId> = sizes[..merged].iter().map(|(_, pack)| *pack.name()).collect();
    let (packs, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|pack| names.contains(pack.name()));
    let path = store.packs().dir().join(midx::FILE);
    let is_sound = || store.packs().multi().is_some_and(|multi| multi.verify(&path).is_ok());
    let is_stale = path.exists() && !is_sound();
    // One that was found to be damaged is left alone, as others are.
    let lone = store.packs().lone()?.iter().filter(|pack| extent == Extent::All || !pack.is_marked()).count();
    Ok(Plan { packs, kept: kept.len(), loose, bytes, is_stale, lone })
}

/// Returns how many of the packs of these sizes, ascending, are to be merged, with so many bytes of loose objects.
fn smallest_to_merge(sizes: &[u64], loose: u64) -> usize {
    let weight = |bytes: u64| bytes.max(SMALLEST);
    let breaks = |number: &usize| weight(sizes[*number]) < 2 * weight(sizes[*number - 1]);
    // All up to the largest that is not twice as large as the one before.
    let mut merged = (1..sizes.len()).rev().find(breaks).map_or(0, |number| number + 1);
    let mut total = loose + sizes[..merged].iter().map(|bytes| weight(*bytes)).sum::<u64>();
    // What they become may break the rule with the next one.
    while total > 0 && merged < sizes.len() && weight(sizes[merged]) < 2 * total {
        total += weight(sizes[merged]);
        merged += 1;
    }
    merged
}

/// Does it, unless somebody else merges right now. Memory: some 100 bytes an object that is moved, and the largest of
/// them.
pub fn execute(
    store: &Store,
    tmp: &Path,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<Option<Outcome>, RepackError> {
    let Some(_lock) = lock(store)? else { return Ok(None) };
    // Somebody else may have merged what the plan names.
    store.packs().rescan()?;
    remove_remains(store)?;
    let mut outcome = Outcome { damaged: index_lone(store, tmp)?, ..Outcome::default() };
    store.packs().rescan()?;
    let index = store.packs().dir().join(midx::FILE);
    if index.is_dir() {
        return Err(Error::BadPack { path: index, what: "it is a folder".to_owned() }.into());
    }
    let packs = sound_packs(store, tmp, plan, &mut outcome.damaged)?;
    // Others may have come to lie alone since the plan.
    let is_alone = packs.len() == 1 && plan.packs.len() > 1 && plan.loose.is_empty();
    let packs = if is_alone { Vec::new() } else { packs };
    progress.start("packing", plan.bytes);
    let mut merge =
        Merge { store, writer: store.pack(tmp)?, twice: twice(&packs, &plan.loose)?, outcome: &mut outcome };
    let mut emptied = Vec::new();
    for pack in &packs {
        if merge.pack(pack, progress)? {
            emptied.push(pack.clone());
        }
    }
    let mut packed = Vec::new();
    for id in &plan.loose {
        progress.check()?;
        if merge.loose(id, progress)? {
            packed.push(*id);
        }
    }
    let published = merge.writer.finish()?;
    progress.finish();
    outcome.pack = published.map(|published| published.name);
    // Where all of them were copies of one, that is the new one.
    emptied.retain(|pack| Some(*pack.name()) != outcome.pack);
    store.packs().rescan()?;
    let gone: HashSet<ObjectId> = emptied.iter().map(|pack| *pack.name()).collect();
    // One that cannot be used is found by its own index, or missed.
    let is_left = |pack: &Arc<Pack>| !gone.contains(pack.name()) && pack.open().is_ok();
    let left: Vec<_> = store.packs().all().into_iter().filter(is_left).collect();
    midx::write(store.packs().dir(), tmp, &left)?;
    for pack in &emptied {
        pack.remove()?;
    }
    for id in &packed {
        loose::remove(store.dir(), id)?;
    }
    store.packs().rescan()?;
    (outcome.packs, outcome.loose) = (emptied.len() as u64, packed.len() as u64);
    outcome.packs_now = store.packs().all().len() as u64;
    Ok(Some(outcome))
}

/// Takes the lock against others that merge; `None` where somebody has it.
fn lock(store: &Store) -> Result<Option<File>, RepackError> {
    let dir = store.packs().dir();
    durable::create_dir_all(dir).map_err(cannot::<Error>("create", dir))?;
    Ok(lock::try_open(&dir.join("repack.lock"))?)
}

/// Returns the packs of a plan that are there, and whose indexes name all that they hold: what an index does not name would be
/// lost with its pack. A damaged index is made anew. The other packs are `damaged`.
fn sound_packs(store: &Store, tmp: &Path, plan: &Plan, damaged: &mut Vec<String>) -> Result<Vec<Arc<Pack>>, Error> {
    let names: HashSet<ObjectId> = store.packs().all().iter().map(|pack| *pack.name()).collect();
    let mut sound = Vec::new();
    for pack in plan.packs.iter().filter(|pack| names.contains(pack.name())) {
        let mut pack = pack.clone();
        let has_bad_index = pack.index()?.verify(pack.index_path()).is_err_and(|error| error.is_corruption());
        if has_bad_index && pack.make_index(tmp).is_ok() {
            pack = store.packs().anew(&pack);
        }
        match pack.verify() {
            Ok(()) => sound.push(pack),
            Err(error) if error.is_corruption() => {
                pack.set_marked(true)?;
                damaged.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(sound)
}

/// Returns the objects that lie in several of the packs, or in one and loose. Takes memory for a 256th of all at a time.
fn twice(packs: &[Arc<Pack>], loose: &[ObjectId]) -> Result<HashSet<ObjectId>, Error> {
    let indexes = packs.iter().map(|pack| pack.index()).collect::<Result<Vec<_>, _>>()?;
    let (mut twice, mut bucket) = (HashSet::new(), Vec::new());
    for byte in 0..=255u8 {
        bucket.clear();
        for index in &indexes {
            bucket.extend(index.entries(index.bucket(byte)).map(|(id, _)| id));
        }
        bucket.extend(loose.iter().filter(|id| id.0[0] == byte));
        bucket.sort_unstable();
        twice.extend(bucket.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]));
    }
    Ok(twice)
}

/// A merge under way.
struct Merge<'a> {
    store: &'a Store,
    writer: PackWriter,
    /// Objects of which one copy is chosen among several.
    twice: HashSet<ObjectId>,
    outcome: &'a mut Outcome,
}

impl Merge<'_> {
    /// Moves all objects of a pack, in the order in which they lie there. Returns whether it is no longer needed; of one that is,
    /// nothing is moved.
    fn pack(&mut self, pack: &Pack, progress: &dyn Progress) -> Result<bool, RepackError> {
        let index = pack.index()?;
        let (begin, objects) = (self.writer.mark(), self.outcome.objects);
        let mut is_needed = false;
        for number in index.in_order_of_offsets() {
            let (id, position) = index.entry(number);
            progress.check()?;
            let read = || self.store.packed_copy(pack, &id, position).map(Some);
            is_needed |= !self.object(&id, read)?;
            progress.advance(u64::from(position.length));
        }
        if is_needed {
            self.writer.roll_back(begin)?;
            self.outcome.objects = objects;
        }
        pack.set_marked(is_needed)?;
        Ok(!is_needed)
    }

    /// Moves a loose object. Returns whether that is no longer needed.
    fn loose(&mut self, id: &ObjectId, progress: &dyn Progress) -> Result<bool, RepackError> {
        let moved = self.object(id, || self.store.loose_copy(id))?;
        progress.advance(fs::metadata(loose::path(self.store.dir(), id)).map_or(0, |metadata| metadata.len()));
        Ok(moved)
    }

    /// Moves one object, which `read` has. Returns whether the new pack has it now.
    fn object(
        &mut self,
        id: &ObjectId,
        read: impl FnOnce() -> Result<Option<(Encoded, PathBuf)>, Error>,
    ) -> Result<bool, Error> {
        if self.writer.contains(id) {
            return Ok(true);
        }
        let found = match self.twice.contains(id) {
            true => self.store.best_copy(id).map(Some),
            false => read().and_then(|found| {
                let Some((encoded, path)) = found else { return Ok(None) };
                self.store.decode(id, encoded.clone(), path)?;
                Ok(Some(encoded))
            }),
        };
        match found {
            Ok(Some(encoded)) => {
                self.writer.append(&encoded)?;
                self.outcome.objects += 1;
                Ok(true)
            }
            // It was loose, and is not any more: in a pack, then.
            Ok(None) => Ok(false),
            Err(error) if error.is_corruption() => {
                self.outcome.damaged.push(error.to_string());
                Ok(false)
            }
            // Such as a disk that cannot be read: nothing is given up for that.
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// Returns a copy of an object that is sound: one that stands alone, if there is one.
    fn best_copy(&self, id: &ObjectId) -> Result<Encoded, Error> {
        let (mut best, mut failed) = (None, None);
        for copy in self.copies(id) {
            let checked = copy.and_then(|(encoded, path)| self.decode(id, encoded.clone(), path).map(|_| encoded));
            match checked {
                Ok(encoded) if !matches!(encoded.encoding, Encoding::Xor(_)) => return Ok(encoded),
                Ok(encoded) => best = best.or(Some(encoded)),
                Err(error) if error.is_corruption() => failed = failed.or(Some(error)),
                // That one may be what others are stored against.
                Err(error) => return Err(error),
            }
        }
        best.ok_or_else(|| failed.unwrap_or(Error::Missing { id: *id }))
    }
}

/// Returns whether the index at `path` is what is left of the removal of a pack: the pack is gone, and all that it held
/// lies elsewhere. Or the index is gone by now, too.
pub(super) fn is_remain(store: &Store, path: &Path) -> bool {
    let gone = fs::metadata(path.with_extension("pack")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let lies_elsewhere = |id: ObjectId| store.locate(&id).is_some() || loose::path(store.dir(), &id).exists();
    let indexed = || Index::open(path).map(|index| index.ids().all(lies_elsewhere));
    gone && indexed().unwrap_or_else(|_| !path.exists())
}

/// Makes indexes for the packs that have none: their writers were killed before they made one, or it was lost or damaged. All that they
/// hold is there again. Returns what is wrong with those that cannot be read to their end.
fn index_lone(store: &Store, tmp: &Path) -> Result<Vec<String>, Error> {
    let mut damaged = Vec::new();
    for pack in store.packs().lone()? {
        match pack.make_index(tmp) {
            Ok(()) => {}
            Err(error) if error.is_corruption() => {
                pack.set_marked(true)?;
                damaged.push(error.to_string());
            }
            // Merged with others this instant.
            Err(_) if !pack.is_there() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

/// Removes such indexes.
fn remove_remains(store: &Store) -> Result<(), Error> {
    for (path, _) in store.packs().broken() {
        if is_remain(store, &path) {
            durable::remove(&path).map_err(cannot::<Error>("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_merged_until_each_is_twice_as_large_as_all_smaller_ones() {
        let mib = |sizes: &[u64]| sizes.iter().map(|size| size << 20).collect::<Vec<_>>();
        for (sizes, merged) in [
            (&[][..], 0),
            (&[5], 0),
            (&[1, 2, 4, 8], 0),
            (&[1, 1], 2),
            (&[1, 1, 100], 2),
            (&[1, 1, 3], 3),
            (&[1, 3, 4, 100], 3),
            (&[3, 3, 11, 24], 4),
        ] {
            assert_eq!(smallest_to_merge(&mib(sizes), 0), merged, "{sizes:?}");
        }
        // However small: it is the number that counts.
        assert_eq!(smallest_to_merge(&[10, 20, 40, 80], 0), 4);
        assert_eq!(smallest_to_merge(&mib(&[10]), 1 << 20), 0);
        assert_eq!(smallest_to_merge(&mib(&[10]), 6 << 20), 1);
    }

    #[test]
    fn there_are_about_as_many_as_the_size_has_binary_digits() {
        let (mut sizes, mut written) = (Vec::<u64>::new(), 0);
        for number in 0..5_000u64 {
            sizes.push(1 << 20);
            sizes.sort_unstable();
            let merged = smallest_to_merge(&sizes, 0);
            if merged > 1 {
                let new = sizes.drain(..merged).sum();
                written += new;
                sizes.push(new);
                sizes.sort_unstable();
            }
            assert!(sizes.len() <= 13, "{number}: {sizes:?}");
        }
        assert!(written >> 20 < 5_000 * 13, "{} MiB", written >> 20);
    }
}
