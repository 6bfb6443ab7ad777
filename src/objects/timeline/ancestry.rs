//! The way from a timeline up to its root.
//!
//! A position has many names: the point where a timeline forks is its parent's at that LSN. The canonical one is that of the
//! oldest timeline, whose own WAL leads there. A timeline's parent is the one that it was made from, whether that has WAL of its own or not:
//! its settings and slots lie with it. A lookup by LSN or by depth takes a number of reads that grows
//! with the logarithm of the depth; a walk takes one for each step.

use std::cmp::Ordering;

use super::log::WalInterval;
use super::origin::{Origin, Up};
use super::snapshots::Listed;
use super::{CloneId, Error, Position, Timeline, TimelineId, Timelines};
use crate::objects::pg::Lsn;

/// A timeline on the way up, and the position at which the way leaves it.
#[derive(Debug, Clone, Copy)]
struct Step {
    at: Position,
    origin: Origin,
}

impl Timelines {
    fn step(&self, at: Position) -> Result<Step, Error> {
        Ok(Step { at, origin: self.origin(at.timeline)? })
    }

    /// Goes up to `to`, which `from` says is above it. That the depth falls is what ends each walk.
    fn rise(&self, from: &Step, to: Position, is_expected: impl Fn(u64) -> bool) -> Result<Step, Error> {
        let lsn = to.lsn.min(from.at.lsn);
        let above = self.step(Position { lsn, ..to })?;
        if above.origin.depth < from.origin.depth && is_expected(above.origin.depth) {
            return Ok(above);
        }
        let path = self.path(from.at.timeline).join("origin");
        Err(Error::Corrupt { path, line: 1, what: "the depth does not fit to that of an ancestor" })
    }

    fn parent_of(&self, step: &Step) -> Result<Option<Step>, Error> {
        let Some(up) = step.origin.up else { return Ok(None) };
        self.rise(step, up.parent, |depth| depth + 1 == step.origin.depth).map(Some)
    }

    fn jump_from(&self, step: &Step, up: &Up) -> Result<Step, Error> {
        self.rise(step, up.jump, |_| true)
    }

    /// Returns the position itself and those at which the way up leaves its ancestors, the youngest first. One read each.
    pub fn ancestry(&self, position: Position) -> Ancestry<'_> {
        Ancestry { timelines: self, next: Some(position), last: None }
    }

    /// Returns the canonical name of a position.
    pub fn canonical(&self, position: Position) -> Result<Position, Error> {
        let mut step = self.step(position)?;
        while let Some(up) = step.origin.up.filter(|up| step.at.lsn <= up.parent.lsn) {
            step = if step.at.lsn <= up.jump.lsn {
                self.jump_from(&step, &up)?
            } else {
                self.parent_of(&step)?.expect("invariant: there is a way up")
            };
        }
        Ok(step.at)
    }

    /// Goes up to an ancestor of that depth.
    fn rise_to(&self, mut step: Step, depth: u64) -> Result<Step, Error> {
        while let Some(up) = step.origin.up.filter(|_| step.origin.depth > depth) {
            let jumped = self.jump_from(&step, &up)?;
            step = if jumped.origin.depth >= depth {
                jumped
            } else {
                self.parent_of(&step)?.expect("invariant: there is a way up")
            };
        }
        Ok(step)
    }

    /// Returns the position `count` fork points back; the error is how many there are.
    pub fn forks_back(&self, position: Position, count: u64) -> Result<Result<Position, u64>, Error> {
        let step = self.step(position)?;
        let depth = step.origin.depth;
        Ok(match depth.checked_sub(count) {
            Some(wanted) => Ok(self.rise_to(step, wanted)?.at),
            None => Err(depth),
        })
    }

    /// Returns the root of a timeline.
    pub fn root(&self, id: TimelineId) -> Result<TimelineId, Error> {
        let step = self.step(Position { timeline: id, lsn: Lsn::MAX })?;
        Ok(self.rise_to(step, 0)?.at.timeline)
    }

    /// Returns the last position that two positions have in common.
    pub fn merge_base(&self, a: Position, b: Position) -> Result<Option<Position>, Error> {
        let (mut a, mut b) = (self.step(self.canonical(a)?)?, self.step(self.canonical(b)?)?);
        match a.origin.depth.cmp(&b.origin.depth) {
            Ordering::Greater => a = self.rise_to(a, b.origin.depth)?,
            Ordering::Less => b = self.rise_to(b, a.origin.depth)?,
            Ordering::Equal => {}
        }
        while a.at.timeline != b.at.timeline {
            let (Some(up_a), Some(up_b)) = (a.origin.up, b.origin.up) else { return Ok(None) };
            // Timelines of one depth jump to one depth.
            (a, b) = if up_a.jump.timeline == up_b.jump.timeline {
                let parents = (self.parent_of(&a)?, self.parent_of(&b)?);
                let (Some(a), Some(b)) = parents else { return Ok(None) };
                (a, b)
            } else {
                (self.jump_from(&a, &up_a)?, self.jump_from(&b, &up_b)?)
            };
        }
        // One of the two may leave it where it begins.
        self.canonical(Position { lsn: a.at.lsn.min(b.at.lsn), ..a.at }).map(Some)
    }

    /// Returns whether the way from the root to `end` goes through the very timeline of `position`, to there at least. Other than
    /// [`is_in_past`](Timelines::is_in_past), that of a timeline without WAL of its own does not lead through others that fork there.
    pub fn leads_through(&self, end: Position, position: Position) -> Result<bool, Error> {
        let (end, depth) = (self.step(end)?, self.origin(position.timeline)?.depth);
        if end.origin.depth < depth {
            return Ok(false);
        }
        let above = self.rise_to(end, depth)?;
        Ok(above.at.timeline == position.timeline && above.at.lsn >= position.lsn)
    }

    /// Returns whether the state at `position` lies on the way from the root to that at `end`.
    pub fn is_in_past(&self, position: Position, end: Position) -> Result<bool, Error> {
        self.leads_through(end, self.canonical(position)?)
    }

    /// Returns the origin of a timeline that forks at `position`.
    pub fn fork(&self, position: Position, writer: CloneId, time_us: i64) -> Result<Origin, Error> {
        let parent = self.step(position)?;
        let jump = match parent.origin.up {
            None => parent.at,
            Some(up) => {
                let first = self.jump_from(&parent, &up)?;
                let second = match first.origin.up {
                    None => None,
                    Some(up) => Some(self.jump_from(&first, &up)?),
                };
                let length = parent.origin.depth - first.origin.depth;
                match second {
                    Some(second) if first.origin.depth - second.origin.depth == length => second.at,
                    _ => parent.at,
                }
            }
        };
        Ok(Origin { depth: parent.origin.depth + 1, up: Some(Up { parent: parent.at, jump }), writer, time_us })
    }

    /// Returns the intervals that hold any WAL of [from, to) on the way to `timeline`, in order. Reads no timeline that begins
    /// and ends before `from`.
    pub fn wal(&self, timeline: &Timeline, from: Lsn, to: Lsn) -> Result<Vec<(TimelineId, WalInterval)>, Error> {
        let (mut parts, mut upto) = (Vec::new(), to);
        let mut at = timeline.clone();
        let mut step = Step { at: Position { timeline: timeline.id, lsn: Lsn::MAX }, origin: timeline.origin };
        loop {
            if let Some(lsn) = at.snapshots.first_dropped(from.max(at.start().unwrap_or(from)), upto) {
                return Err(Error::Dropped { timeline: at.id, lsn });
            }
            let own = at.log.wal.iter().filter(|interval| interval.end > from && interval.start < upto);
            parts.push(own.map(|interval| (at.id, interval.before(upto))).collect::<Vec<_>>());
            if at.origin.start().is_none_or(|start| start <= from) {
                break;
            }
            step = self.parent_of(&step)?.expect("invariant: it has a start");
            upto = upto.min(step.at.lsn);
            at = self.read(step.at.timeline)?;
        }
        Ok(parts.into_iter().rev().flatten().collect())
    }

    /// Returns the newest snapshot, on the way to a position, that can be used there.
    pub fn snapshot_before(&self, position: Position) -> Result<(TimelineId, Listed), Error> {
        for at in self.ancestry(position) {
            let at = at?;
            if let Some(snapshot) = self.read(at.timeline)?.snapshots.before(at.lsn) {
                return Ok((at.timeline, snapshot));
            }
        }
        Err(Error::NoSnapshot { timeline: position.timeline, lsn: position.lsn })
    }
}

/// The way up from a position: see [`Timelines::ancestry`].
pub struct Ancestry<'a> {
    timelines: &'a Timelines,
    next: Option<Position>,
    last: Option<Step>,
}

impl Iterator for Ancestry<'_> {
    type Item = Result<Position, Error>;

    fn next(&mut self) -> Option<Result<Position, Error>> {
        let step = match (self.next.take(), &self.last) {
            (Some(first), _) => self.timelines.step(first).map(Some),
            (None, Some(last)) => self.timelines.parent_of(last),
            (None, None) => return None,
        };
        match step {
            Ok(Some(step)) => {
                self.last = Some(step);
                Some(Ok(step.at))
            }
            Ok(None) => {
                self.last = None;
                None
            }
            Err(error) => {
                self.last = None;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(timeline: TimelineId, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    /// Timelines, each forking from one before at an LSN not before its own start, and their parents.
    struct Tree {
        dir: tempfile::TempDir,
        timelines: Timelines,
        all: Vec<(TimelineId, Option<(usize, u64)>)>,
    }

    impl Tree {
        fn new() -> Tree {
            let dir = tempfile::tempdir().unwrap();
            Tree { timelines: Timelines::open(&dir.path().join("timelines")), dir, all: Vec::new() }
        }

        fn add(&mut self, parent: Option<(usize, u64)>) -> TimelineId {
            let (id, writer) = (TimelineId::random(), TimelineId::from_bytes([9; 16]));
            let origin = match parent {
                None => Origin::root(writer, 0),
                Some((parent, lsn)) => self.timelines.fork(at(self.all[parent].0, lsn), writer, 0).unwrap(),
            };
            self.timelines.create(self.dir.path(), id, &origin).unwrap();
            self.all.push((id, parent));
            id
        }

        /// The way up as a list, as it was asked for.
        fn whole_way(&self, number: usize, lsn: u64) -> Vec<(usize, u64)> {
            let mut way = vec![(number, lsn)];
            while let (number, upto) = way[way.len() - 1]
                && let Some((parent, fork)) = self.all[number].1
            {
                way.push((parent, fork.min(upto)));
            }
            way
        }

        /// The same without timelines of which it has nothing.
        fn way(&self, number: usize, lsn: u64) -> Vec<(TimelineId, u64)> {
            let is_own = |(number, lsn): &(usize, u64)| self.all[*number].1.is_none_or(|(_, fork)| *lsn > fork);
            let way = self.whole_way(number, lsn).into_iter().filter(is_own);
            way.map(|(number, lsn)| (self.all[number].0, lsn)).collect()
        }
    }

    #[test]
    fn the_point_where_a_timeline_forks_is_its_parents() {
        let mut tree = Tree::new();
        let root = tree.add(None);
        let a = tree.add(Some((0, 10)));
        let same = tree.add(Some((1, 10)));
        let b = tree.add(Some((1, 20)));
        let canonical = |timeline, lsn| tree.timelines.canonical(at(timeline, lsn)).unwrap();
        for (timeline, lsn, owner) in
            [(b, 5, root), (b, 10, root), (b, 11, a), (b, 20, a), (b, 21, b), (same, 10, root)]
        {
            assert_eq!(canonical(timeline, lsn), at(owner, lsn));
        }
        // Nothing was added between, but it is the parent all the same.
        assert_eq!(tree.timelines.origin(same).unwrap().parent(), Some(at(a, 10)));
        assert!(tree.timelines.is_in_past(at(same, 10), at(a, 10)).unwrap());
        assert!(!tree.timelines.leads_through(at(a, 10), at(same, 10)).unwrap());
        assert!(tree.timelines.leads_through(at(same, 10), at(a, 10)).unwrap());
        assert!(!tree.timelines.is_in_past(at(b, 21), at(a, 99)).unwrap());
        assert_eq!(tree.timelines.forks_back(at(b, 25), 1).unwrap(), Ok(at(a, 20)));
        assert_eq!(tree.timelines.forks_back(at(b, 25), 3).unwrap(), Err(2));
    }

    #[test]
    fn a_way_up_that_leads_in_a_circle_ends() {
        let mut tree = Tree::new();
        let root = tree.add(None);
        let a = tree.add(Some((0, 10)));
        let b = tree.add(Some((1, 20)));
        let origin = tree.timelines.origin(a).unwrap();
        let up = Up { parent: at(b, 20), jump: at(b, 20) };
        let path = tree.timelines.dir(a).join("origin");
        std::fs::write(&path, Origin { up: Some(up), ..origin }.format()).unwrap();
        for error in [
            tree.timelines.canonical(at(b, 5)).unwrap_err(),
            tree.timelines.root(b).unwrap_err(),
            tree.timelines.merge_base(at(b, 30), at(root, 5)).unwrap_err(),
            tree.timelines.ancestry(at(b, 30)).find_map(Result::err).unwrap(),
        ] {
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        }
    }

    #[test]
    fn the_way_up_a_long_chain_is_short() {
        let mut tree = Tree::new();
        tree.add(None);
        for number in 0..500 {
            tree.add(Some((number, 10 * (number as u64 + 1))));
        }
        let last = tree.all[500].0;
        let (mut step, mut steps) = (tree.timelines.step(at(last, 99_999)).unwrap(), 0);
        while let Some(up) = step.origin.up {
            // As `canonical` goes to the very first LSN.
            step = tree.timelines.jump_from(&step, &up).unwrap();
            steps += 1;
        }
        assert!(steps <= 9, "{steps} jumps");
        assert_eq!(tree.timelines.root(last).unwrap(), tree.all[0].0);
        assert_eq!(tree.timelines.forks_back(at(last, 99_999), 37).unwrap(), Ok(at(tree.all[463].0, 4640)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn lookups_agree_with_the_whole_way(
            forks in proptest::collection::vec((any::<proptest::sample::Index>(), 0u64..40), 1..40),
            queries in proptest::collection::vec((any::<proptest::sample::Index>(), 0u64..200), 2..8),
        ) {
            let mut tree = Tree::new();
            tree.add(None);
            for (parent, more) in &forks {
                let parent = parent.index(tree.all.len());
                let start = tree.all[parent].1.map_or(10, |(_, fork)| fork);
                tree.add(Some((parent, start + more)));
            }
            let positions: Vec<(usize, u64)> =
                queries.iter().map(|(number, lsn)| (number.index(tree.all.len()), *lsn)).collect();
            for &(number, lsn) in &positions {
                let (position, way) = (at(tree.all[number].0, lsn), tree.way(number, lsn));
                let canonical = tree.timelines.canonical(position).unwrap();
                prop_assert_eq!(Some((canonical.timeline, canonical.lsn.0)), way.first().copied());
                let whole = tree.whole_way(number, lsn);
                let whole: Vec<_> = whole.into_iter().map(|(number, lsn)| (tree.all[number].0, lsn)).collect();
                let walked: Result<Vec<_>, _> = tree.timelines.ancestry(position).collect();
                let walked: Vec<_> = walked.unwrap().into_iter().map(|at| (at.timeline, at.lsn.0)).collect();
                prop_assert_eq!(&walked, &whole);
                prop_assert_eq!(tree.timelines.root(position.timeline).unwrap(), tree.all[0].0);
                for (count, (timeline, lsn)) in whole.iter().enumerate() {
                    let back = tree.timelines.forks_back(position, count as u64).unwrap();
                    prop_assert_eq!(back, Ok(at(*timeline, *lsn)));
                }
                for &(other, other_lsn) in &positions {
                    let theirs = tree.way(other, other_lsn);
                    let common = way.iter().rev().zip(theirs.iter().rev()).take_while(|(a, b)| a.0 == b.0);
                    let common = common.map(|(a, b)| (a.0, a.1.min(b.1))).last();
                    let other = at(tree.all[other].0, other_lsn);
                    let base = tree.timelines.merge_base(position, other).unwrap();
                    prop_assert_eq!(base.map(|base| (base.timeline, base.lsn.0)), common);
                    let is_in_past = theirs.iter().any(|(id, lsn)| *id == way[0].0 && *lsn >= way[0].1);
                    prop_assert_eq!(tree.timelines.is_in_past(position, other).unwrap(), is_in_past);
                    let through = whole.iter().any(|(id, lsn)| *id == other.timeline && *lsn >= other.lsn.0);
                    prop_assert_eq!(tree.timelines.leads_through(position, other).unwrap(), through);
                }
            }
        }
    }
}
