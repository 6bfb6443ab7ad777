//! Which branch each timeline belongs to: each run of a branch's server has a timeline of its own, and branches that were
//! made from it share the older ones with it.

use std::collections::HashMap;

use crate::objects::Repo;
use crate::objects::refs::{RefKind, RefName, Value};
use crate::objects::timeline::{Position, Timeline, TimelineId};

/// A branch, as far as its past is concerned.
struct Branch {
    name: String,
    tip: TimelineId,
    /// All timelines that it has named.
    named: Vec<TimelineId>,
}

/// The timelines of a repository, and their branches.
pub struct Lineage {
    timelines: HashMap<TimelineId, Timeline>,
    parents: Parents,
    owners: HashMap<TimelineId, String>,
}

impl Lineage {
    /// Reads all timelines, refs and reflogs of branches. A timeline that cannot be read, since it is dropped this
    /// instant, is left out.
    pub fn read(repo: &Repo) -> Result<Lineage, crate::error::CommandError> {
        let list = repo.timelines().list()?.into_iter();
        let timelines: HashMap<_, _> = list.filter_map(|id| Some((id, repo.timelines().read(id).ok()?))).collect();
        let head = repo.refs().head()?;
        let branch = |(name, value): (RefName, Value)| {
            let log = repo.refs().reflog(name.as_str()).unwrap_or_default();
            let named = log.into_iter().flat_map(|entry| [entry.new, entry.old]).flatten().collect();
            (name != head, Branch { name: name.short().to_owned(), tip: value.timeline(), named })
        };
        let mut branches: Vec<_> = repo.refs().list(RefKind::Branch)?.into_iter().map(branch).collect();
        branches.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let branches: Vec<Branch> = branches.into_iter().map(|(_, branch)| branch).collect();
        let parents = parents(&timelines);
        Ok(Lineage { owners: owners(&branches, &parents), parents, timelines })
    }

    /// Returns all timelines, by id.
    pub fn timelines(&self) -> Vec<&Timeline> {
        let mut all: Vec<_> = self.timelines.values().collect();
        all.sort_by_key(|timeline| timeline.id);
        all
    }

    /// Returns the branch to which a timeline belongs.
    pub fn owner(&self, timeline: TimelineId) -> Option<&str> {
        self.owners.get(&timeline).map(String::as_str)
    }

    /// Returns where a timeline forks from another one.
    pub fn parent(&self, timeline: TimelineId) -> Option<Position> {
        self.parents.get(&timeline).copied()
    }

    /// Returns the timelines from `tip` back to where they begin to belong to another branch, and where they fork from
    /// that.
    pub fn own(&self, tip: TimelineId) -> (Vec<&Timeline>, Option<Position>) {
        let (mut own, mut at) = (Vec::new(), Some(tip));
        while let Some(timeline) = at.and_then(|id| self.timelines.get(&id)) {
            own.push(timeline);
            let Some(parent) = self.parent(timeline.id) else { break };
            if self.owner(parent.timeline) != self.owner(tip) {
                return (own, Some(parent));
            }
            at = Some(parent.timeline);
        }
        (own, None)
    }

    /// Returns when the latest commit was made that `tip` has, microseconds since 1970.
    pub fn changed_us(&self, tip: TimelineId) -> Option<i64> {
        let (mut at, mut end) = (self.timelines.get(&tip), None);
        while let Some(timeline) = at {
            let intervals = timeline.log.wal.iter().filter(|interval| end.is_none_or(|end| interval.end <= end));
            if let Some(latest) = intervals.filter_map(|interval| interval.commit_us).max() {
                return Some(latest);
            }
            let parent = self.parent(timeline.id)?;
            (at, end) = (self.timelines.get(&parent.timeline), Some(parent.lsn));
        }
        None
    }
}

/// Where timelines fork from others.
type Parents = HashMap<TimelineId, Position>;

/// Returns the way up from each timeline. That the depth falls is what ends each walk, here too: who stands no higher than
/// its child is no parent.
fn parents(timelines: &HashMap<TimelineId, Timeline>) -> Parents {
    let is_above = |parent: &Position, depth| timelines.get(&parent.timeline).is_none_or(|it| it.origin.depth < depth);
    let way = |timeline: &Timeline| {
        let parent = timeline.origin.parent().filter(|parent| is_above(parent, timeline.origin.depth))?;
        Some((timeline.id, parent))
    };
    timelines.values().filter_map(way).collect()
}

/// Gives each timeline to a branch: its tip first; then what it is known to have been, by its reflog; then what only its
/// tip comes from. Of several branches the first in the list has it.
fn owners(branches: &[Branch], parents: &Parents) -> HashMap<TimelineId, String> {
    let mut owners = HashMap::new();
    for branch in branches {
        owners.entry(branch.tip).or_insert_with(|| branch.name.clone());
    }
    for branch in branches {
        for id in &branch.named {
            owners.entry(*id).or_insert_with(|| branch.name.clone());
        }
    }
    for branch in branches {
        let mut at = Some(branch.tip);
        while let Some(id) = at {
            owners.entry(id).or_insert_with(|| branch.name.clone());
            at = parents.get(&id).map(|parent| parent.timeline);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::pg::Lsn;
    use crate::objects::timeline::Origin;
    use crate::objects::timeline::origin::Up;

    fn id(number: u8) -> TimelineId {
        format!("{number:032x}").parse().unwrap()
    }

    fn at(number: u8) -> Position {
        Position { timeline: id(number), lsn: Lsn(1) }
    }

    fn branch(name: &str, tip: u8, named: &[u8]) -> Branch {
        Branch { name: name.to_owned(), tip: id(tip), named: named.iter().map(|number| id(*number)).collect() }
    }

    #[track_caller]
    fn belongs(branches: &[Branch], parents: &[(u8, u8)], expected: &[(u8, &str)]) {
        let parents = parents.iter().map(|(child, parent)| (id(*child), at(*parent))).collect();
        let expected = expected.iter().map(|(number, name)| (id(*number), (*name).to_owned())).collect();
        assert_eq!(owners(branches, &parents), expected);
    }

    #[test]
    fn a_tip_is_its_branchs_whoever_comes_first() {
        // alpha was made from the very tip of zeta, which is not HEAD.
        let branches = [branch("main", 1, &[1]), branch("alpha", 3, &[3]), branch("zeta", 2, &[2])];
        belongs(&branches, &[(2, 1), (3, 2)], &[(1, "main"), (2, "zeta"), (3, "alpha")]);
    }

    #[test]
    fn what_a_branch_was_is_its_own() {
        // zeta ran again after alpha was made from it: 2 is what it was then.
        let branches = [branch("alpha", 3, &[3]), branch("zeta", 4, &[4, 2])];
        belongs(&branches, &[(2, 1), (3, 2), (4, 2)], &[(1, "alpha"), (2, "zeta"), (3, "alpha"), (4, "zeta")]);
    }

    #[test]
    fn two_names_of_one_timeline_are_the_firsts() {
        let branches = [branch("main", 1, &[1]), branch("same", 1, &[1])];
        belongs(&branches, &[], &[(1, "main")]);
    }
    /// A timeline that says that so many are above it, and which is the next.
    fn timeline(number: u8, depth: u64, parent: u8) -> (TimelineId, Timeline) {
        let up = Up { parent: at(parent), jump: at(parent) };
        let origin = Origin { depth, up: Some(up), ..Origin::root(id(99), 0) };
        (id(number), Timeline { id: id(number), origin, log: Default::default(), snapshots: Default::default() })
    }

    #[test]
    fn origins_that_lead_in_a_circle_are_walked_to_their_end() {
        // 1 and 2 come from each other, 3 from itself, 4 from what is gone.
        let timelines = [timeline(1, 1, 2), timeline(2, 2, 1), timeline(3, 7, 3), timeline(4, 1, 5)].into();
        let branches = [branch("main", 2, &[]), branch("own", 3, &[]), branch("orphan", 4, &[])];
        let parents = parents(&timelines);
        let lineage = Lineage { owners: owners(&branches, &parents), parents, timelines };
        let own = |tip: u8| {
            let (own, fork) = lineage.own(id(tip));
            (own.into_iter().map(|timeline| timeline.id).collect::<Vec<_>>(), fork)
        };
        assert_eq!(own(2), (vec![id(2), id(1)], None));
        assert_eq!(own(3), (vec![id(3)], None));
        assert_eq!(own(4), (vec![id(4)], None));
        assert_eq!([1, 2, 3, 4].map(|tip| lineage.changed_us(id(tip))), [None; 4]);
        assert_eq!(lineage.owner(id(1)), Some("main"));
    }
}
