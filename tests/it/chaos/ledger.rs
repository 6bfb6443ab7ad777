//! What clients were told of their transactions, and so what a branch must hold, may hold, and must not.
//!
//! Each transaction has an id. Positions in the WAL that the server had flushed before and after it say on which side of
//! a fork it lies: a branch at an LSN must hold what was acknowledged before the server had flushed that LSN, and
//! nothing that was tried only after.

use std::collections::{HashMap, HashSet};
use std::fmt;

use zenith::objects::pg::Lsn;

/// What its client knows of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Sent. Nobody said what became of it.
    Tried,
    /// Committed, said the server; and so many acknowledgements had there been in all.
    Acknowledged(u64),
    /// Rolled back, said the server.
    RolledBack,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    fate: Fate,
    /// What was flushed before it was tried.
    before: Lsn,
    /// What was flushed after it was acknowledged; `None` where the client could not ask any more.
    after: Option<Lsn>,
}

/// The transactions of a branch, those of its ancestors included.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: HashMap<i64, Entry>,
}

/// What a branch holds that it must not, or the other way round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub lost: Vec<i64>,
    pub rolled_back: Vec<i64>,
    pub never_tried: Vec<i64>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.rolled_back.is_empty() && self.never_tried.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let lists =
            [("lost", &self.lost), ("rolled back, but there", &self.rolled_back), ("never tried", &self.never_tried)];
        for (name, ids) in lists.iter().filter(|(_, ids)| !ids.is_empty()) {
            writeln!(
                out,
                "{} {name}: {:?}{}",
                ids.len(),
                &ids[..ids.len().min(20)],
                if ids.len() > 20 { " ..." } else { "" }
            )?;
        }
        Ok(())
    }
}

impl Ledger {
    /// Notes, before it is sent, that a transaction is tried.
    pub fn try_one(&mut self, id: i64, before: Lsn) {
        self.entries.insert(id, Entry { fate: Fate::Tried, before, after: None });
    }

    /// Notes that the server has confirmed its commit, as the one of that `number`.
    pub fn acknowledge(&mut self, id: i64, number: u64) {
        self.entry(id).fate = Fate::Acknowledged(number);
    }

    /// Notes what was flushed after that.
    pub fn flushed_after(&mut self, id: i64, lsn: Lsn) {
        self.entry(id).after = Some(lsn);
    }

    pub fn roll_back(&mut self, id: i64) {
        self.entry(id).fate = Fate::RolledBack;
    }

    fn entry(&mut self, id: i64) -> &mut Entry {
        self.entries.get_mut(&id).expect("it was tried before")
    }

    /// Returns the ledger of a branch that begins at `lsn`. What begins at the end of another branch also has all
    /// of the first `known` acknowledgements: those that there were when that was asked for.
    pub fn fork(&self, lsn: Lsn, known: Option<u64>) -> Ledger {
        let fork = |(id, entry): (&i64, &Entry)| {
            let is_before =
                |number| entry.after.is_some_and(|after| after <= lsn) || known.is_some_and(|known| number < known);
            let fate = match entry.fate {
                Fate::Acknowledged(number) if !is_before(number) => Fate::Tried,
                fate => fate,
            };
            let is_tried = fate != Fate::Tried || entry.before <= lsn;
            is_tried.then_some((*id, Entry { fate, ..*entry }))
        };
        Ledger { entries: self.entries.iter().filter_map(fork).collect() }
    }

    /// Compares with what a branch holds.
    pub fn compare(&self, found: &HashSet<i64>) -> Difference {
        let with = |fate: fn(Fate) -> bool, is_found: bool| {
            let wrong = self.entries.iter().filter(|(id, entry)| fate(entry.fate) && found.contains(id) == is_found);
            sorted(wrong.map(|(id, _)| *id))
        };
        Difference {
            lost: with(|fate| matches!(fate, Fate::Acknowledged(_)), false),
            rolled_back: with(|fate| fate == Fate::RolledBack, true),
            never_tried: sorted(found.iter().copied().filter(|id| !self.entries.contains_key(id))),
        }
    }

    /// Notes what was seen, when the server had flushed `lsn`: who has seen it must see it again.
    pub fn settle(&mut self, found: &HashSet<i64>, lsn: Lsn) {
        for id in found {
            let entry = self.entry(*id);
            if entry.fate == Fate::Tried {
                (entry.fate, entry.after) = (Fate::Acknowledged(0), Some(lsn));
            }
        }
    }

    /// Returns the LSN that is behind so much of what was acknowledged, per mille.
    pub fn lsn_at(&self, per_mille: u64) -> Option<Lsn> {
        let mut known: Vec<Lsn> = self.entries.values().filter_map(|entry| entry.after).collect();
        known.sort_unstable();
        let index = known.len().saturating_sub(1) * usize::try_from(per_mille).ok()? / 1000;
        known.get(index).copied()
    }
}

fn sorted(ids: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut ids: Vec<i64> = ids.collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    /// 1 acknowledged, 2 acknowledged later, 3 rolled back, 4 without an answer.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for (id, before) in [(1, "0/100"), (2, "0/200"), (3, "0/200"), (4, "0/300")] {
            ledger.try_one(id, lsn(before));
        }
        ledger.acknowledge(1, 0);
        ledger.flushed_after(1, lsn("0/200"));
        ledger.acknowledge(2, 1);
        ledger.roll_back(3);
        ledger
    }

    #[track_caller]
    fn compares(ledger: &Ledger, found: &[i64], lost: &[i64], rolled_back: &[i64], never_tried: &[i64]) {
        let (lost, rolled_back, never_tried) = (lost.to_vec(), rolled_back.to_vec(), never_tried.to_vec());
        let found = found.iter().copied().collect();
        assert_eq!(ledger.compare(&found), Difference { lost, rolled_back, never_tried });
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_not_tried_must_not() {
        let mut ledger = ledger();
        compares(&ledger, &[1, 2], &[], &[], &[]);
        compares(&ledger, &[1, 2, 4], &[], &[], &[]);
        compares(&ledger, &[2, 3, 5], &[1], &[3], &[5]);
        // Once it was seen it stays.
        ledger.settle(&[1, 2, 4].into(), lsn("0/400"));
        compares(&ledger, &[1, 2], &[4], &[], &[]);
    }

    #[test]
    fn a_fork_holds_what_lies_before_it() {
        let ledger = ledger();
        let early = ledger.fork(lsn("0/180"), None);
        compares(&early, &[], &[], &[], &[]);
        compares(&early, &[1, 2], &[], &[], &[2]);
        let amid = ledger.fork(lsn("0/200"), None);
        compares(&amid, &[], &[1], &[], &[]);
        compares(&amid, &[1, 2, 4], &[], &[], &[4]);
        // The branch's end has all that was acknowledged by then, whatever its client could still ask.
        compares(&ledger.fork(lsn("0/380"), Some(2)), &[1], &[2], &[], &[]);
        compares(&ledger.fork(lsn("0/380"), Some(1)), &[1], &[], &[], &[]);
    }
}
