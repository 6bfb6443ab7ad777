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
        let parents = timelines.iter().filter_map(|(id, timeline)| Some((*id, parent(timeline)?.timeline))).collect();
        Ok(Lineage { owners: owners(&branches, &parents), timelines })
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

    /// Returns the timelines from `tip` back to where they begin to belong to another branch, and where they fork from
    /// that.
    pub fn own(&self, tip: TimelineId) -> (Vec<&Timeline>, Option<Position>) {
        let (mut own, mut at) = (Vec::new(), Some(tip));
        while let Some(timeline) = at.and_then(|id| self.timelines.get(&id)) {
            own.push(timeline);
            let Some(parent) = parent(timeline) else { break };
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
            let parent = parent(timeline)?;
            (at, end) = (self.timelines.get(&parent.timeline), Some(parent.lsn));
        }
        None
    }
}

/// Returns where a timeline forks from another one.
pub fn parent(timeline: &Timeline) -> Option<Position> {
    timeline.origin.parent()
}

/// Gives each timeline to a branch: its tip first; then what it is known to have been, by its reflog; then what only its
/// tip comes from. Of several branches the first in the list has it.
fn owners(branches: &[Branch], parents: &HashMap<TimelineId, TimelineId>) -> HashMap<TimelineId, String> {
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
            at = parents.get(&id).copied();
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> TimelineId {
        format!("{number:032x}").parse().unwrap()
    }

    fn branch(name: &str, tip: u8, named: &[u8]) -> Branch {
        Branch { name: name.to_owned(), tip: id(tip), named: named.iter().map(|number| id(*number)).collect() }
    }

    #[track_caller]
    fn belongs(branches: &[Branch], parents: &[(u8, u8)], expected: &[(u8, &str)]) {
        let parents = parents.iter().map(|(child, parent)| (id(*child), id(*parent))).collect();
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
}
