//! A set of objects of a store, for whoever walks over all of them: one bit for each that a pack has.

use std::collections::HashSet;
use std::sync::Arc;

use super::midx::MultiIndex;
use super::pack::Pack;
use super::{Error, Store};
use crate::objects::id::ObjectId;

/// Bits by number.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn of(count: usize) -> Bits {
        Bits(vec![0; count.div_ceil(64)])
    }

    /// Returns whether the bit was not set yet.
    fn set(&mut self, number: usize) -> bool {
        let (word, bit) = (&mut self.0[number / 64], 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn has(&self, number: usize) -> bool {
        self.0[number / 64] & 1 << (number % 64) != 0
    }
}

/// A set of objects. Memory: a bit for each object in packs (1.2 MiB for ten million), 32 bytes and more for each other one
/// that is in the set.
pub struct Seen {
    multi: Option<(Arc<MultiIndex>, Bits)>,
    packs: Vec<(Arc<Pack>, Bits)>,
    others: HashSet<ObjectId>,
    count: usize,
}

impl Seen {
    /// Returns an empty set for the objects of `store`, as its packs are known now.
    pub fn new(store: &Store) -> Result<Seen, Error> {
        let multi = store.packs().multi().map(|multi| {
            let bits = Bits::of(multi.count());
            (multi, bits)
        });
        let mut packs = Vec::new();
        for pack in store.packs().others() {
            let bits = Bits::of(pack.index()?.len());
            packs.push((pack, bits));
        }
        Ok(Seen { multi, packs, others: HashSet::new(), count: 0 })
    }

    /// Adds an object. Returns whether it was not there before.
    pub fn insert(&mut self, id: &ObjectId) -> bool {
        let is_new = match self.place(id) {
            Some((bits, number)) => bits.set(number),
            None => self.others.insert(*id),
        };
        self.count += usize::from(is_new);
        is_new
    }

    /// Returns whether an object is there.
    pub fn contains(&mut self, id: &ObjectId) -> bool {
        match self.place(id) {
            Some((bits, number)) => bits.has(number),
            None => self.others.contains(id),
        }
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn place(&mut self, id: &ObjectId) -> Option<(&mut Bits, usize)> {
        if let Some((multi, bits)) = &mut self.multi
            && let Some(number) = multi.number(id)
        {
            return Some((bits, number));
        }
        self.packs.iter_mut().find_map(|(pack, bits)| Some((bits, pack.index().ok()?.number(id)?)))
    }
}
