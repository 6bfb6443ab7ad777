//! Sets of a file's blocks, as bits.

/// A set of block numbers. Takes 16 KiB for a segment of 1 GiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    words: Vec<u64>,
}

impl Blocks {
    /// Returns the set whose bits are `bytes`, the lowest block in the lowest bit of the first byte.
    pub fn from_bytes(bytes: &[u8]) -> Blocks {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Blocks { words: bytes.chunks(8).map(word).collect() }
    }

    /// Returns the bits, as [`from_bytes`](Blocks::from_bytes) takes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub fn contains(&self, block: u32) -> bool {
        self.words.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    pub fn insert(&mut self, block: u32) {
        let at = block as usize / 64;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        self.words[at] |= 1 << (block % 64);
    }

    /// Adds the blocks from `from` to before `to`.
    pub fn insert_range(&mut self, from: u32, to: u32) {
        let (first, last) = (from as usize / 64, to.div_ceil(64) as usize);
        if from >= to {
            return;
        }
        if last > self.words.len() {
            self.words.resize(last, 0);
        }
        for (at, word) in self.words[first..last].iter_mut().enumerate() {
            let start = ((first + at) * 64) as u64;
            let (low, high) = (u64::from(from).max(start) - start, u64::from(to).min(start + 64) - start);
            *word |= u64::MAX >> (64 - (high - low)) << low; // at least one block
        }
    }

    /// Adds all of `other`.
    pub fn insert_all(&mut self, other: &Blocks) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
    }

    /// Removes `end` and all blocks after it.
    pub fn truncate(&mut self, end: u32) {
        self.words.truncate(end.div_ceil(64) as usize);
        if let Some(word) = self.words.get_mut(end as usize / 64) {
            *word &= (1 << (end % 64)) - 1;
        }
    }

    /// Returns how many blocks there are.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Returns the blocks in their order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(at as u32 * 64 + bit) // blocks are u32
            })
        })
    }

    /// Returns the runs of neighbours: first block and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut blocks = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = blocks.next()?;
            let mut count = 1;
            while blocks.next_if_eq(&(first + count)).is_some() {
                count += 1;
            }
            Some((first, count))
        })
    }

    /// Returns the runs among the `count` blocks from `first` on, counted from there.
    pub fn runs_within(&self, first: u32, count: u32) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in (0..count).filter(|block| self.contains(first + block)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(numbers: Vec<u16>, end: u16, other: Vec<u16>) {
            let mut blocks = Blocks::default();
            let mut set = BTreeSet::new();
            for number in numbers {
                blocks.insert(u32::from(number));
                set.insert(u32::from(number));
            }
            blocks.truncate(u32::from(end));
            set.retain(|number| *number < u32::from(end));
            let mut more = Blocks::default();
            other.iter().for_each(|number| more.insert(u32::from(*number)));
            blocks.insert_all(&more);
            set.extend(other.iter().map(|number| u32::from(*number)));
            blocks.insert_range(u32::from(end), u32::from(end) + other.len() as u32 * 7);
            set.extend(u32::from(end)..u32::from(end) + other.len() as u32 * 7);
            prop_assert_eq!(blocks.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(blocks.count() as usize, set.len());
            prop_assert!(set.iter().all(|number| blocks.contains(*number)));
            let runs: Vec<u32> = blocks.runs().flat_map(|(first, count)| first..first + count).collect();
            prop_assert_eq!(runs, set.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(Blocks::from_bytes(&blocks.to_bytes()), blocks);
        }
    }
}
