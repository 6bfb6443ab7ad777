//! The snapshots of a timeline that are at hand, and what of its WAL is not: the part of a timeline in which clones differ.
//!
//! # Format
//! `timelines/<id>/snapshots` is text, only ever appended to. Its lines are:
//! * `snapshot <lsn> <object>`: the files as of that LSN, from which on it can be used;
//! * `removed <object>`: that snapshot is no longer listed, unless a later line lists it again;
//! * `dropped <start> <end>`: the WAL of [start, end) need not be here, although the log has it. It is not read.
//!
//! A last line without a newline does not count, as in the [log](super::log).

use std::collections::HashMap;
use std::fmt;

use super::lines::whole_lines;
use crate::objects::id::ObjectId;
use crate::objects::pg::Lsn;

/// A snapshot of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// From here on it can be used.
    pub lsn: Lsn,
    pub object: ObjectId,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Snapshot(Listed),
    Removed(ObjectId),
    Dropped { start: Lsn, end: Lsn },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Snapshot(Listed { lsn, object }) => write!(f, "snapshot {lsn} {object}"),
            Line::Removed(object) => write!(f, "removed {object}"),
            Line::Dropped { start, end } => write!(f, "dropped {start} {end}"),
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut fields = line.split(' ');
        let parsed = match fields.next()? {
            "snapshot" => {
                Line::Snapshot(Listed { lsn: fields.next()?.parse().ok()?, object: fields.next()?.parse().ok()? })
            }
            "removed" => Line::Removed(fields.next()?.parse().ok()?),
            "dropped" => Line::Dropped { start: fields.next()?.parse().ok()?, end: fields.next()?.parse().ok()? },
            _ => return None,
        };
        fields.next().is_none().then_some(parsed)
    }
}

/// What is at hand of a timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshots {
    /// In the order in which they were written.
    pub listed: Vec<Listed>,
    /// Ranges of WAL that are not.
    pub dropped: Vec<(Lsn, Lsn)>,
}

impl Snapshots {
    /// Reads the whole lines of the file. The error is the number of the bad line, counted from 1, and what is wrong.
    pub fn parse(text: &[u8]) -> Result<Snapshots, (usize, &'static str)> {
        let mut snapshots = Snapshots::default();
        // How many had been listed when an object was removed last: all of them at once, since each costs a look at the list.
        let mut removed = HashMap::new();
        for (number, line) in whole_lines(text) {
            match line.and_then(Line::parse).ok_or((number, "not a line about a snapshot or WAL"))? {
                Line::Removed(object) => drop(removed.insert(object, snapshots.listed.len())),
                line => snapshots.push(line).map_err(|what| (number, what))?,
            }
        }
        let mut numbers = 0..;
        let is_left = |number: usize, object: &ObjectId| removed.get(object).is_none_or(|listed| number >= *listed);
        snapshots.listed.retain(|listed| numbers.next().is_some_and(|number| is_left(number, &listed.object)));
        Ok(snapshots)
    }

    /// Takes in a line, unless it makes no sense.
    pub fn push(&mut self, line: Line) -> Result<(), &'static str> {
        match line {
            Line::Snapshot(listed) => self.listed.push(listed),
            Line::Removed(object) => self.listed.retain(|listed| listed.object != object),
            Line::Dropped { start, end } if start < end => self.dropped.push((start, end)),
            Line::Dropped { .. } => return Err("an impossible range"),
        }
        Ok(())
    }

    /// Returns the newest snapshot that can be used at `lsn`.
    pub fn before(&self, lsn: Lsn) -> Option<Listed> {
        self.listed.iter().rev().filter(|listed| listed.lsn <= lsn).max_by_key(|listed| listed.lsn).copied()
    }

    /// Returns the first LSN of [from, to) whose WAL is not at hand.
    pub fn first_dropped(&self, from: Lsn, to: Lsn) -> Option<Lsn> {
        self.dropped.iter().filter(|(start, end)| *start < to && *end > from).map(|(start, _)| (*start).max(from)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listed(lsn: u64, object: u8) -> Listed {
        Listed { lsn: Lsn(lsn), object: ObjectId([object; 32]) }
    }

    #[test]
    fn lines_come_back_and_the_last_word_counts() {
        let removed = |object| Line::Removed(ObjectId([object; 32]));
        let lines = [
            Line::Snapshot(listed(8, 1)),
            Line::Snapshot(listed(16, 2)),
            removed(1),
            removed(2),
            Line::Snapshot(listed(16, 2)),
            Line::Dropped { start: Lsn(8), end: Lsn(12) },
        ];
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let snapshots = Snapshots::parse(format!("{text}snapshot 0/9").as_bytes()).unwrap();
        assert_eq!(snapshots.listed, [listed(16, 2)]);
        assert_eq!((snapshots.before(Lsn(15)), snapshots.before(Lsn(16))), (None, Some(listed(16, 2))));
        let first = |from, to| snapshots.first_dropped(Lsn(from), Lsn(to));
        assert_eq!((first(0, 8), first(0, 9), first(10, 99), first(12, 99)), (None, Some(Lsn(8)), Some(Lsn(10)), None));
    }

    #[test]
    fn garbage_is_named_by_line() {
        assert_eq!(Snapshots::parse(b"\n"), Err((1, "not a line about a snapshot or WAL")));
        assert_eq!(Snapshots::parse(b"dropped 0/9 0/9\n"), Err((1, "an impossible range")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_snapshots_or_an_error(bytes: Vec<u8>) {
            let _ = Snapshots::parse(&bytes);
        }
    }
}
