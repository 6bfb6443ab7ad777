//! Where a timeline comes from.
//!
//! # Format
//! `timelines/<id>/history` has one line for each ancestor, the oldest first:
//! `<timeline id> <LSN at which the next one forks>`. That of a root timeline is empty. One read
//! gives the whole chain.

use std::collections::HashSet;

use super::TimelineId;
use crate::objects::codec::Malformed;
use crate::objects::pg::Lsn;

/// An ancestor, and where the chain leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: TimelineId,
    /// WAL up to here belongs to the ancestor, from here on to the next in the chain.
    pub fork: Lsn,
}

/// The ancestors of a timeline, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub ancestors: Vec<Ancestor>,
}

/// A position: an LSN on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Position {
    pub timeline: TimelineId,
    #[serde(serialize_with = "serialize_lsn")]
    pub lsn: Lsn,
}

fn serialize_lsn<S: serde::Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.timeline, self.lsn)
    }
}

impl std::str::FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Position, Malformed> {
        let read =
            |(timeline, lsn): (&str, &str)| Some(Position { timeline: timeline.parse().ok()?, lsn: lsn.parse().ok()? });
        let malformed = Malformed { offset: 0, what: "not a timeline and an LSN" };
        text.split_once('@').and_then(read).ok_or(malformed)
    }
}

impl History {
    /// Returns the history of a timeline that forks from `parent`, whose history this is, at `lsn`.
    pub fn fork(&self, parent: TimelineId, lsn: Lsn) -> History {
        let mut ancestors = self.ancestors.clone();
        ancestors.push(Ancestor { timeline: parent, fork: lsn });
        History { ancestors }
    }

    /// Returns where the timeline itself begins; `None` for a root timeline.
    pub fn start(&self) -> Option<Lsn> {
        self.ancestors.last().map(|ancestor| ancestor.fork)
    }

    /// Returns the timeline of the chain, `own` or an ancestor, whose WAL ends at `lsn` or goes on
    /// beyond it. At a fork point that is the ancestor.
    pub fn owner(&self, own: TimelineId, lsn: Lsn) -> TimelineId {
        self.ancestors.iter().find(|ancestor| lsn <= ancestor.fork).map_or(own, |ancestor| ancestor.timeline)
    }

    /// Returns the chain with `own` as its last: each timeline and where its own WAL ends for it.
    pub fn chain(&self, own: TimelineId) -> Vec<Ancestor> {
        let mut chain = self.ancestors.clone();
        chain.push(Ancestor { timeline: own, fork: Lsn::MAX });
        chain
    }

    /// Reads the text. The error is the number of the bad line, counted from 1, and what is wrong.
    pub fn parse(text: &str) -> Result<History, (usize, &'static str)> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        let mut known = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let fields = line.split_once(' ').and_then(|(id, lsn)| Some((id.parse().ok()?, lsn.parse().ok()?)));
            let (timeline, fork) = fields.ok_or((number + 1, "expected a timeline id and an LSN"))?;
            if ancestors.last().is_some_and(|last| last.fork > fork) {
                return Err((number + 1, "forks before its own start"));
            }
            if !known.insert(timeline) {
                return Err((number + 1, "its own ancestor"));
            }
            ancestors.push(Ancestor { timeline, fork });
        }
        Ok(History { ancestors })
    }

    /// Returns the text.
    pub fn format(&self) -> String {
        self.ancestors.iter().map(|ancestor| format!("{} {}\n", ancestor.timeline, ancestor.fork)).collect()
    }
}

/// Returns the last position that two positions have in common, each given with the history of its timeline.
pub fn merge_base(a: (&History, Position), b: (&History, Position)) -> Option<Position> {
    let cut = |(history, position): (&History, Position)| {
        let mut chain = history.chain(position.timeline);
        if let Some(last) = chain.last_mut() {
            last.fork = position.lsn;
        }
        chain
    };
    let pairs = cut(a).into_iter().zip(cut(b));
    let mut base = None;
    for (a, b) in pairs {
        if a.timeline != b.timeline {
            break;
        }
        base = Some(Position { timeline: a.timeline, lsn: a.fork.min(b.fork) });
        if a.fork != b.fork {
            break;
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> TimelineId {
        TimelineId::from_bytes([n; 16])
    }

    fn at(n: u8, lsn: u64) -> Position {
        Position { timeline: id(n), lsn: Lsn(lsn) }
    }

    #[test]
    fn text_comes_back_and_bad_lines_are_named() {
        let history = History::default().fork(id(1), Lsn(10)).fork(id(2), Lsn(20));
        assert_eq!(History::parse(&history.format()), Ok(history));
        assert_eq!(History::parse("x").unwrap_err().0, 1);
        let text = format!("{} 0/20\n{} 0/10\n", id(1), id(2));
        assert_eq!(History::parse(&text), Err((2, "forks before its own start")));
        let text = format!("{} 0/10\n{} 0/20\n{} 0/30\n", id(1), id(2), id(1));
        assert_eq!(History::parse(&text), Err((3, "its own ancestor")));
    }

    #[test]
    fn a_fork_point_belongs_to_the_ancestor() {
        let history = History::default().fork(id(1), Lsn(10)).fork(id(2), Lsn(20));
        for (lsn, owner) in [(5, 1), (10, 1), (11, 2), (20, 2), (21, 3)] {
            assert_eq!(history.owner(id(3), Lsn(lsn)), id(owner), "{lsn}");
        }
    }

    #[test]
    fn merge_base_is_the_fork_point() {
        let root = History::default();
        let (a, b) = (root.fork(id(1), Lsn(10)), root.fork(id(1), Lsn(20)));
        assert_eq!(merge_base((&a, at(2, 99)), (&b, at(3, 99))), Some(at(1, 10)));
        assert_eq!(merge_base((&a, at(2, 99)), (&root, at(1, 50))), Some(at(1, 10)));
        assert_eq!(merge_base((&root, at(1, 5)), (&root, at(1, 50))), Some(at(1, 5)));
        assert_eq!(merge_base((&root, at(1, 5)), (&root, at(7, 50))), None);
        let deep = a.fork(id(2), Lsn(30));
        assert_eq!(merge_base((&deep, at(4, 99)), (&a, at(2, 25))), Some(at(2, 25)));
    }
}
