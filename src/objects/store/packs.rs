//! The packs of a store: found through the multi-pack index, opened when something is read from them.
//!
//! Nothing is looked at before the first look-up. That lists the folder once, and reads the own indexes of those packs
//! that the multi-pack index does not name. At most [`MOST_OPEN`] packs are open at a time.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use quick_cache::sync::Cache;

use super::Error;
use super::index::Position;
use super::midx::{self, MultiIndex};
use super::pack::{OpenFiles, Pack};
use crate::objects::file_error::{cannot, is_want};
use crate::objects::folder;
use crate::objects::id::ObjectId;

/// Packs that are open at a time.
pub const MOST_OPEN: usize = 64;

/// What is known of the folder.
#[derive(Default)]
struct Known {
    /// Whether it was looked at.
    listed: bool,
    /// The packs that have an index.
    names: HashSet<ObjectId>,
    multi: Option<(midx::Version, Arc<MultiIndex>)>,
    /// The packs that the multi-pack index names, by number.
    named: Vec<Arc<Pack>>,
    /// The others, those that came last last.
    others: Vec<Arc<Pack>>,
    /// Indexes that cannot be used, and why: what those packs hold counts as missing, all else goes on.
    broken: Vec<(PathBuf, String)>,
}

impl Known {
    /// Returns all packs, those written last last.
    fn packs(&self) -> impl Iterator<Item = &Arc<Pack>> {
        self.named.iter().chain(&self.others)
    }
}

/// The names of all packs that have an index, and the indexes that are not named like one.
type List = (HashSet<ObjectId>, Vec<PathBuf>);

/// The packs in a folder.
pub struct Packs {
    dir: PathBuf,
    files: Arc<OpenFiles>,
    known: RwLock<Known>,
    generation: AtomicU64,
}

impl Packs {
    /// Returns those in `dir`, which need not be there. Looks at nothing yet.
    pub fn new(dir: &Path) -> Packs {
        Packs {
            dir: dir.to_owned(),
            files: Arc::new(Cache::new(MOST_OPEN)),
            known: RwLock::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Looks at the folder again. Returns whether anything has changed since the last look.
    pub fn rescan(&self) -> Result<bool, Error> {
        let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut list = self.list()?;
        let found = loop {
            let (found, is_gone) = self.look(&known, &list)?;
            // A merge publishes its pack before it removes what that replaces: where one is gone since it was listed, the list
            // may lack the other.
            let listed = if is_gone { self.list()? } else { break found };
            if listed == list {
                break found;
            }
            list = listed;
        };
        let version = |known: &Known| known.multi.as_ref().map(|(version, _)| *version);
        let mut changed = !known.listed || found.names != known.names || version(&found) != version(&known);
        for pack in known.packs() {
            let is_replaced = pack.is_replaced();
            changed |= is_replaced;
            // What is open takes its room on the disk although it was removed.
            if is_replaced || !found.names.contains(pack.name()) {
                self.files.remove(pack.path());
            }
        }
        *known = found;
        if changed {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        Ok(changed)
    }

    /// Returns what is known of the packs of a list, and whether one of them went meanwhile.
    fn look(&self, known: &Known, (names, strange): &List) -> Result<(Known, bool), Error> {
        let path = self.dir.join(midx::FILE);
        let version = midx::version(&path);
        let multi = match known.multi.clone() {
            Some((seen, multi)) if Some(seen) == version => Some((seen, multi)),
            // The packs' own indexes say the same as one that cannot be used.
            _ => version.and_then(|version| Some((version, Arc::new(MultiIndex::open(&path).ok()?)))),
        };
        // One that names a pack which is not there is of another time.
        let multi = multi.filter(|(_, multi)| multi.packs().all(|name| names.contains(&name)));
        let strange =
            strange.iter().map(|path| (path.clone(), format!("'{}' is not named like a pack", path.display())));
        let mut broken: Vec<_> = strange.collect();
        let same = known.packs().filter(|pack| !pack.is_replaced());
        let opened: HashMap<ObjectId, Arc<Pack>> = same.map(|pack| (*pack.name(), pack.clone())).collect();
        let pack = |name: &ObjectId| opened.get(name).cloned().unwrap_or_else(|| Arc::new(self.pack(*name)));
        let named: Vec<ObjectId> = multi.iter().flat_map(|(_, multi)| multi.packs().collect::<Vec<_>>()).collect();
        let of_multi: HashSet<&ObjectId> = named.iter().collect();
        let mut fresh: Vec<&ObjectId> = names.iter().filter(|name| !of_multi.contains(name)).collect();
        // Those that were known before first, so that what came last is found first.
        fresh.sort_unstable_by_key(|name| (!opened.contains_key(name), **name));
        let (mut others, mut is_gone) = (Vec::new(), false);
        for pack in fresh.into_iter().map(pack) {
            match pack.open() {
                Ok(()) => others.push(pack),
                // That says nothing of the pack.
                Err(error) if is_want(&error) => return Err(error),
                Err(error) => {
                    is_gone |= !pack.is_there();
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    broken.push((pack.index_path().to_owned(), format!("{error}{cause}")));
                }
            }
        }
        // All at once: the numbers in the one are those of packs in the other.
        let named = named.iter().map(pack).collect();
        Ok((Known { listed: true, names: names.clone(), multi, named, others, broken }, is_gone))
    }

    /// Returns a number that differs once somebody has found something changed: what was looked for before may be there.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    fn list(&self) -> Result<List, Error> {
        let (mut names, mut strange) = (HashSet::new(), Vec::new());
        for name in folder::names(&self.dir).map_err(cannot::<Error>("list", &self.dir))? {
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".idx")) else { continue };
            match stem.parse::<ObjectId>() {
                Ok(name) => {
                    names.insert(name);
                }
                Err(_) => strange.push(self.dir.join(&name)),
            }
        }
        Ok((names, strange))
    }

    /// Returns the packs that have no index, or one that cannot be used.
    pub fn lone(&self) -> Result<Vec<Pack>, Error> {
        let all = folder::names(&self.dir).map_err(cannot::<Error>("list", &self.dir))?;
        let names = all.iter().filter_map(|name| name.to_str()?.strip_suffix(".pack")?.parse().ok());
        Ok(names.map(|name| self.pack(name)).filter(Pack::lacks_index).collect())
    }

    /// Returns a pack as it is now, whatever was read of it before.
    pub fn anew(&self, pack: &Pack) -> Arc<Pack> {
        self.files.remove(pack.path());
        Arc::new(self.pack(*pack.name()))
    }

    fn pack(&self, name: ObjectId) -> Pack {
        Pack::new(&self.dir, name, self.files.clone())
    }

    /// Does something with what is known, after the first look.
    fn with<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.listed {
            return look(&known);
        }
        drop(known);
        // Where the folder cannot be listed nothing is found; whoever misses something looks again, and is told why.
        let _ = self.rescan();
        look(&self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Returns the indexes of packs that cannot be used, and why.
    pub fn broken(&self) -> Vec<(PathBuf, String)> {
        self.with(|known| known.broken.clone())
    }

    /// Returns all packs, those written last last.
    pub fn all(&self) -> Vec<Arc<Pack>> {
        self.with(|known| known.packs().cloned().collect())
    }

    /// Returns the multi-pack index, if there is one.
    pub fn multi(&self) -> Option<Arc<MultiIndex>> {
        self.with(|known| known.multi.as_ref().map(|(_, multi)| multi.clone()))
    }

    /// Returns the packs that the multi-pack index does not name.
    pub fn others(&self) -> Vec<Arc<Pack>> {
        self.with(|known| known.others.clone())
    }

    /// Returns where an object lies, where it is first looked for.
    pub fn locate(&self, id: &ObjectId) -> Option<(Arc<Pack>, Position)> {
        self.with(|known| {
            let newest = known.others.iter().rev();
            let in_others = newest.filter_map(|pack| Some((pack.clone(), pack.index().ok()?.find(id)?))).next();
            in_others.or_else(|| {
                let (pack, position) = known.multi.as_ref()?.1.find(id)?;
                Some((known.named.get(pack)?.clone(), position))
            })
        })
    }

    /// Returns all places of an object that the packs' own indexes know of, but `first`: costs a look into each pack.
    pub fn locate_again(&self, id: &ObjectId, first: Option<(&Pack, Position)>) -> Vec<(Arc<Pack>, Position)> {
        let is_first =
            |pack: &Pack, position| first.is_some_and(|(first, at)| first.name() == pack.name() && at == position);
        let places = self.all().into_iter().rev();
        let places = places.filter_map(|pack| pack.index().ok()?.find(id).map(|position| (pack.clone(), position)));
        places.filter(|(pack, position)| !is_first(pack, *position)).collect()
    }
}
