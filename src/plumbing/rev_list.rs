//! `zenith rev-list`: lists what is reachable from revisions.

use std::collections::HashMap;
use std::io::Write;

use super::rev_parse::again_if_gone;
use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::refs::{RefKind, RefName, Value, revision};
use crate::objects::snapshot::Content;
use crate::objects::store::seen::Seen;
use crate::objects::timeline::{Position, TimelineId};
use crate::objects::{Kind, ObjectId, Repo, store};

/// List the timelines and snapshots reachable from revisions, newest first
///
/// Prints "timeline <id> <LSN>", with the LSN up to which it is reachable, and "snapshot <id> <LSN>"
/// lines. With --objects, prints every object that is needed to read all that: "<kind> <id>".
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith rev-list main\n  zenith rev-list --objects --all | wc -l\n")]
pub struct Args {
    /// List objects: WAL, snapshots, maps and frames
    #[arg(long)]
    objects: bool,
    /// Begin with all branches and tags
    #[arg(long)]
    all: bool,
    #[arg(value_name = "REVISION", required_unless_present = "all", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revisions: Vec<String>,
}

/// A timeline or a snapshot that is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reachable {
    /// A timeline, up to this LSN.
    Timeline(Position),
    Snapshot {
        id: ObjectId,
        lsn: Lsn,
        timeline: TimelineId,
    },
}

/// Returns the timelines, each as far as any of the positions reaches, and their snapshots, newest first.
pub fn rev_list(repo: &Repo, positions: &[Position]) -> Result<Vec<Reachable>, CommandError> {
    let mut ends: Vec<Position> = Vec::new();
    let mut numbers = HashMap::new();
    for position in positions {
        for at in repo.timelines().ancestry(*position) {
            let at = at?;
            let number = *numbers.entry(at.timeline).or_insert(ends.len());
            match ends.get_mut(number) {
                // From here on up another position has all of it.
                Some(end) if end.lsn >= at.lsn => break,
                Some(end) => end.lsn = at.lsn,
                None => ends.push(at),
            }
        }
    }
    let mut found = Vec::new();
    for end in ends {
        found.push(Reachable::Timeline(end));
        let listed = repo.timelines().read(end.timeline)?.snapshots.listed;
        let snapshots = listed.iter().filter(|line| line.lsn <= end.lsn);
        found.extend(snapshots.map(|line| Reachable::Snapshot {
            id: line.object,
            lsn: line.lsn,
            timeline: end.timeline,
        }));
    }
    let lsn = |reachable: &Reachable| match reachable {
        Reachable::Timeline(position) => position.lsn,
        Reachable::Snapshot { lsn, .. } => *lsn,
    };
    found.sort_by_key(|reachable| std::cmp::Reverse(lsn(reachable)));
    Ok(found)
}

/// Gives every object that is needed to read what is reachable to `each`, once, referrers first.
/// Memory: a bit for each object.
pub fn walk_objects(
    repo: &Repo,
    reachable: &[Reachable],
    each: &mut dyn FnMut(Kind, ObjectId) -> CmdResult,
) -> CmdResult {
    walk_damaged(repo, reachable, each, &mut Err)
}

/// Does so, and asks `fault` what to do about an object that cannot be read, or that `each` refuses.
pub fn walk_damaged(
    repo: &Repo,
    reachable: &[Reachable],
    each: &mut dyn FnMut(Kind, ObjectId) -> CmdResult,
    fault: &mut dyn FnMut(CommandError) -> CmdResult,
) -> CmdResult {
    let mut walk = Walk { repo, seen: Seen::new(repo.store())?, each, fault };
    for item in reachable {
        match *item {
            Reachable::Timeline(end) => {
                let log = repo.timelines().read(end.timeline)?.log;
                for interval in log.wal.iter().filter(|interval| interval.start < end.lsn) {
                    walk.visit(Kind::Wal, interval.object)?;
                }
            }
            Reachable::Snapshot { id, .. } => walk.snapshot(id)?,
        }
    }
    Ok(())
}

struct Walk<'a> {
    repo: &'a Repo,
    seen: Seen,
    each: &'a mut dyn FnMut(Kind, ObjectId) -> CmdResult,
    fault: &'a mut dyn FnMut(CommandError) -> CmdResult,
}

impl Walk<'_> {
    /// Returns whether the object was not known before, and is as it should be.
    fn visit(&mut self, kind: Kind, id: ObjectId) -> Result<bool, CommandError> {
        if !self.seen.insert(&id) {
            return Ok(false);
        }
        match (self.each)(kind, id) {
            Ok(()) => Ok(true),
            Err(error) => (self.fault)(error).map(|()| false),
        }
    }

    /// Returns what was read; `None` where it is damaged and the walk goes on.
    fn sound<T>(&mut self, read: Result<T, store::Error>) -> Result<Option<T>, CommandError> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) => (self.fault)(error.into()).map(|()| None),
        }
    }

    fn snapshot(&mut self, id: ObjectId) -> CmdResult {
        if !self.visit(Kind::Snapshot, id)? {
            return Ok(());
        }
        let Some(snapshot) = self.sound(self.repo.store().snapshot(&id))? else { return Ok(()) };
        for content in snapshot.objects() {
            match content {
                Content::Empty => {}
                Content::Frame(id) => self.frame(id)?,
                Content::Map(id) => self.map(id)?,
            }
        }
        Ok(())
    }

    fn map(&mut self, id: ObjectId) -> CmdResult {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            if !self.visit(Kind::Map, id)? {
                return Ok(());
            }
            let Some(map) = self.sound(self.repo.store().map(&id))? else { return Ok(()) };
            map.frames.iter().try_for_each(|frame| self.frame(*frame))?;
            next = map.base.map(|(base, _)| base);
        }
        Ok(())
    }

    /// What a frame is stored against is no part of it: that is the store's own business.
    fn frame(&mut self, id: ObjectId) -> CmdResult {
        self.visit(Kind::Frame, id).map(drop)
    }
}

/// All that refs name.
#[derive(Debug, Default)]
pub struct All {
    pub positions: Vec<Position>,
    /// Refs that cannot be followed, and why: a timeline is gone or damaged.
    pub broken: Vec<(RefName, CommandError)>,
}

impl All {
    /// Returns the error that a command ends with where refs cannot be followed, after it has done the rest.
    pub fn check(mut self) -> CmdResult {
        let Some((name, error)) = self.broken.pop() else { return Ok(()) };
        let (others, class) = (self.broken.len(), Class::Corrupt);
        let more = if others > 0 { format!(", and {others} more") } else { String::new() };
        Err(CommandError::new(class, format!("cannot follow {name}{more}: {}", error.text()))
            .hint(format!("see what is damaged: zenith fsck; to remove the ref: zenith update-ref -d {name}")))
    }
}

/// Returns the positions of all branches and tags.
pub fn all_positions(repo: &Repo) -> Result<All, CommandError> {
    let mut all = All::default();
    for (name, value) in super::show_ref::show_ref(repo, &[RefKind::Branch, RefKind::Remote, RefKind::Tag])? {
        match position(repo, &name, &value) {
            Ok(position) => all.positions.extend(position),
            Err(error) => all.broken.push((name, error)),
        }
    }
    Ok(all)
}

/// Returns the position that a ref names, if all that it comes from can be read; `None` where it was deleted meanwhile.
pub fn position(repo: &Repo, name: &RefName, value: &Value) -> Result<Option<Position>, CommandError> {
    let position = match value {
        Value::Tag(tag) => Some(tag.position),
        Value::Branch(_) => revision::tip(repo, name)?,
    };
    if let Some(position) = position {
        repo.timelines().ancestry(position).try_for_each(|at| repo.timelines().read(at?.timeline).map(drop))?;
    }
    Ok(position)
}

/// Returns the positions of the timelines in the trash: as long as they are there, they need what they come from. An
/// entry that is damaged is a fault.
pub fn trash_positions(repo: &Repo, mut fault: impl FnMut(CommandError)) -> Vec<Position> {
    let items = repo.trash().list().map_err(|error| fault(error.into())).unwrap_or_default();
    let entries = items.iter().filter_map(|item| item.entry().map_err(|error| fault(error.into())).ok());
    entries.filter(|entry| entry.what.folder().is_none()).map(|entry| entry.position).collect()
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let (all, reachable) = again_if_gone(|| {
        let mut all = if args.all { all_positions(&repo)? } else { All::default() };
        for text in &args.revisions {
            all.positions.push(revision::resolve(&repo, text, &now)?.position);
        }
        let reachable = rev_list(&repo, &all.positions)?;
        Ok((all, reachable))
    })?;
    if args.objects {
        walk_objects(&repo, &reachable, &mut |kind, id| Ok(writeln!(cx.out, "{} {id}", kind.name())?))?;
        return all.check();
    }
    for item in reachable {
        match item {
            Reachable::Timeline(position) => writeln!(cx.out, "timeline {} {}", position.timeline, position.lsn)?,
            Reachable::Snapshot { id, lsn, .. } => writeln!(cx.out, "snapshot {id} {lsn}")?,
        }
    }
    all.check()
}
