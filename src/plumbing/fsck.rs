//! `zenith fsck`: checks everything.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::rev_list::{Reachable, rev_list, trash_positions, walk_damaged};
use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::codec::Malformed;
use crate::objects::map::Map;
use crate::objects::pg::{Lsn, segment};
use crate::objects::refs::{RefKind, RefName, Tag, Value};
use crate::objects::snapshot::{Content, Node, Snapshot};
use crate::objects::store::Object;
use crate::objects::store::encode::Encoded;
use crate::objects::store::file::StoredFile;
use crate::objects::store::midx;
use crate::objects::store::pack::Pack;
use crate::objects::store::seen::Seen;
use crate::objects::timeline::log::WalInterval;
use crate::objects::timeline::{Position, Timeline, TimelineId};
use crate::objects::{Kind, ObjectId, Repo, store, wal};
use crate::plumbing::instance::{own_files, slots};
use crate::progress::Progress;

/// Check every object, every timeline and every ref
///
/// Reads every object and checks it against its id, checks packs and their indexes, and that
/// everything that refs, timelines and snapshots need is there. Prints a line for each fault, and
/// exits with 3 if there is one. A pack that has no index, as a crash leaves it, is not one: a warning
/// names it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith fsck\n  zenith fsck --json\n")]
pub struct Args {
    /// Print one line of JSON: objects, unreachable, faults, remarks
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Outcome {
    /// Objects that were read.
    pub objects: usize,
    /// Those of them that no ref needs: gc would remove them.
    pub unreachable: usize,
    pub faults: Vec<String>,
    /// What needs no repair, but somebody's look.
    pub remarks: Vec<String>,
}

/// Objects whose content is longer are checked one at a time, for they take much memory: that of a snapshot or a
/// map many times its length.
const LONG: u64 = 4 << 20;
const LONG_WAL: u64 = 64 << 20;

/// Checks a repository. Faults are part of the outcome; errors are what keeps it from being checked. Reads each copy of each
/// object once, pack by pack as they lie there, and maps and snapshots once more to follow them. Memory: a bit for each object, and
/// four bytes for each of the largest pack.
pub fn fsck(repo: &Repo, progress: &dyn Progress) -> Result<Outcome, CommandError> {
    let store = repo.store();
    store.refresh()?;
    let packs = store.packs();
    let mut faults: Vec<String> = store.broken_packs().into_iter().map(|(_, why)| why).collect();
    // One may be merged with others this instant.
    let damage = |pack: &Arc<Pack>| pack.verify().err().filter(|_| pack.is_there() || !is_merged(repo, pack));
    faults.extend(packs.all().iter().filter_map(damage).map(text));
    let lone = packs.lone()?;
    let multi = packs.multi().and_then(|multi| multi.verify(&packs.dir().join(midx::FILE)).err());
    faults.extend(multi.map(text));
    let checker = Checker { repo, intervals: Mutex::default(), alone: Mutex::new(()) };
    let mut all = Seen::new(store)?;
    checker.objects(&mut all, &mut faults, progress)?;
    let intervals = checker.intervals.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let reachable = check_named(repo, &intervals, &mut faults)?;
    let needed = check_reachable(repo, &reachable, &mut all, &mut faults, progress)?;
    // A crash leaves such a pack, and what it alone holds was not acknowledged; if an index was lost, what is needed of it is
    // missing, which is a fault. One that is written this instant gets its index right away.
    let is_lone = |pack: &Pack| pack.path().exists() && !pack.index_path().exists();
    let remark = |pack: &Pack| format!("'{}' has no index: zenith repack makes one", pack.path().display());
    let remarks = lone.iter().filter(|pack| is_lone(pack)).map(remark).collect();
    faults.sort_unstable();
    faults.dedup();
    Ok(Outcome { objects: all.len(), unreachable: all.len().saturating_sub(needed), faults, remarks })
}

fn text(error: store::Error) -> String {
    CommandError::from(error).text()
}

/// Returns whether a pack that is gone was merged with others since it was looked for.
fn is_merged(repo: &Repo, gone: &Pack) -> bool {
    repo.store().refresh().is_ok() && repo.store().packs().all().iter().all(|pack| pack.name() != gone.name())
}

/// Where the WAL of an object begins, and its length in bytes.
type Intervals = HashMap<ObjectId, (Lsn, u64)>;

/// Checks objects.
struct Checker<'a> {
    repo: &'a Repo,
    intervals: Mutex<Intervals>,
    /// For who takes much memory.
    alone: Mutex<()>,
}

impl Checker<'_> {
    /// Reads each copy of each object, and adds the objects to `all`.
    fn objects(&self, all: &mut Seen, faults: &mut Vec<String>, progress: &dyn Progress) -> CmdResult {
        let store = self.repo.store();
        let loose = store.loose_ids()?;
        // Those whose index cannot be read are faults already.
        let packs = store.packs().all();
        let indexes: Vec<_> = packs.iter().filter_map(|pack| Some((pack, pack.index().ok()?))).collect();
        let total = indexes.iter().map(|(_, index)| index.len()).sum::<usize>() + loose.len();
        progress.start("checking", total as u64);
        for (pack, index) in indexes {
            // In chunks, so that Ctrl-C is heard.
            for numbers in index.in_order_of_offsets().chunks(4096) {
                progress.check()?;
                let check = |number: &u32| {
                    let (id, position) = index.entry(*number);
                    progress.advance(1);
                    let checked = self.copy(&id, store.packed_copy(pack, &id, position));
                    let is_gone = checked.is_err() && !pack.is_there() && is_merged(self.repo, pack);
                    if is_gone { self.wherever_it_is(&id) } else { checked }.err().map(text)
                };
                faults.extend(numbers.par_iter().filter_map(check).collect::<Vec<_>>());
                for number in numbers {
                    all.insert(&index.entry(*number).0);
                }
            }
        }
        for ids in loose.chunks(4096) {
            progress.check()?;
            let check = |id: &ObjectId| {
                progress.advance(1);
                // One that is gone lies in a pack by now.
                let copy = store.loose_copy(id).transpose();
                copy.map_or_else(|| self.wherever_it_is(id), |copy| self.copy(id, copy)).err().map(text)
            };
            faults.extend(ids.par_iter().filter_map(check).collect::<Vec<_>>());
            for id in ids {
                all.insert(id);
            }
        }
        progress.finish();
        Ok(())
    }

    /// Checks one copy of an object: its content, and all that can be known from that alone.
    fn copy(&self, id: &ObjectId, read: Result<(Encoded, PathBuf), store::Error>) -> Result<(), store::Error> {
        let store = self.repo.store();
        let (encoded, path) = read?;
        let long = if encoded.kind == Kind::Wal { LONG_WAL } else { LONG };
        let _alone =
            (encoded.length > long).then(|| self.alone.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.content(id, store.decode(id, encoded, path)?)
    }

    /// Checks an object that was moved since it was looked for.
    fn wherever_it_is(&self, id: &ObjectId) -> Result<(), store::Error> {
        self.content(id, self.repo.store().read(id)?)
    }

    fn content(&self, id: &ObjectId, object: Object) -> Result<(), store::Error> {
        let store = self.repo.store();
        let malformed = |error| store.malformed(id, &error);
        match object.kind {
            Kind::Frame => {}
            Kind::Map => drop(Map::decode(&object.content).map_err(malformed)?),
            Kind::Snapshot => drop(Snapshot::decode(&object.content).map_err(malformed)?),
            Kind::Wal => {
                let (start, bytes) = wal::decode(&object.content).map_err(malformed)?;
                let mut intervals = self.intervals.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                intervals.insert(*id, (start, bytes.len() as u64));
            }
        }
        Ok(())
    }
}

/// How often names are looked at that others change meanwhile.
const LOOKS: u32 = 3;

/// Checks all that has a name, and returns what is reachable from it. What others change between two reads, as a tag on WAL that was
/// just sealed, looks like damage: what is damaged is so at each look.
fn check_named(repo: &Repo, intervals: &Intervals, faults: &mut Vec<String>) -> Result<Vec<Reachable>, CommandError> {
    let mut looks = 1;
    loop {
        let mut found = Vec::new();
        let reachable = rev_list(repo, &check_names(repo, intervals, &mut found));
        if looks == LOOKS || reachable.is_ok() && found.is_empty() {
            faults.append(&mut found);
            return reachable;
        }
        looks += 1;
    }
}

/// Checks HEAD, the refs, and the timelines. Returns the positions of the refs that lead somewhere.
fn check_names(repo: &Repo, intervals: &Intervals, faults: &mut Vec<String>) -> Vec<Position> {
    let mut fault = |error: CommandError| faults.push(error.text());
    if let Err(error) = repo.refs().head() {
        fault(error.into());
    }
    let mut timelines = HashMap::new();
    for id in repo.timelines().list().map_err(|error| fault(error.into())).unwrap_or_default() {
        match repo.timelines().read(id) {
            Ok(timeline) => drop(timelines.insert(id, timeline)),
            Err(error) => fault(error.into()),
        }
    }
    for timeline in timelines.values() {
        let wrong = wrong_intervals(repo, timeline, intervals);
        wrong.chain(wrong_origin(repo, timeline, &timelines)).for_each(|text| fault(CommandError::refused(text)));
        repo.timelines().check_end(timeline).err().into_iter().for_each(|error| fault(error.into()));
        let beside = own_files::check(repo, timeline.id).and_then(|()| slots::kept(repo, timeline).map(drop));
        beside.err().into_iter().for_each(|error| fault(error.into()));
    }
    let mut positions = Vec::new();
    for kind in [RefKind::Branch, RefKind::Remote, RefKind::Tag] {
        for short in repo.refs().files(kind).map_err(|error| fault(error.into())).unwrap_or_default() {
            let read = RefName::new(kind, &short).map_err(CommandError::from);
            let read = read.and_then(|name| Ok(repo.refs().read(&name)?.map(|value| (name, value))));
            let (name, value) = match read {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) => {
                    fault(error);
                    continue;
                }
            };
            let timeline = timelines.get(&value.timeline());
            let whole = |timeline: &&Timeline| {
                let mut way = repo.timelines().ancestry(timeline.tip());
                way.all(|at| at.is_ok_and(|at| timelines.contains_key(&at.timeline)))
            };
            match (timeline.filter(whole), value) {
                (Some(timeline), Value::Tag(Tag { position, .. })) if timeline.sealed() < position.lsn => {
                    let end = timeline.sealed();
                    fault(CommandError::refused(format!("'{name}' names {position}, but that timeline ends at {end}")));
                }
                (Some(_), Value::Tag(tag)) => positions.push(tag.position),
                (Some(timeline), Value::Branch(_)) => positions.push(timeline.tip()),
                // Made since the timelines were read.
                (None, value) if timeline.is_none() && repo.timelines().read(value.timeline()).is_ok() => {}
                (None, value) => {
                    let text = format!("'{name}' names timeline {}, which cannot be read", value.timeline());
                    fault(CommandError::refused(text));
                }
            }
        }
    }
    for position in trash_positions(repo, &mut fault) {
        match timelines.get(&position.timeline) {
            Some(_) => positions.push(position),
            None => fault(CommandError::refused(format!("the trash names {position}, which cannot be read"))),
        }
    }
    positions
}

/// Returns what is wrong with the WAL objects that a timeline's log names.
fn wrong_intervals<'a>(
    repo: &'a Repo,
    timeline: &'a Timeline,
    intervals: &'a Intervals,
) -> impl Iterator<Item = String> + 'a {
    // What was sealed since the objects were read.
    let sealed_since = |id: &ObjectId| {
        let object = repo.store().read(id).ok()?;
        wal::decode(&object.content).ok().map(|(start, bytes)| (start, bytes.len() as u64))
    };
    let found = move |id: &ObjectId| intervals.get(id).copied().or_else(|| sealed_since(id));
    timeline.log.wal.iter().filter_map(move |line| match found(&line.object) {
        None => Some(format!("object {} is missing or damaged: WAL of timeline {}", line.object, timeline.id)),
        Some((start, length)) if start != line.start || line.end.since(start) != length => Some(format!(
            "object {} is not the WAL from {} to {} of timeline {}",
            line.object, line.start, line.end, timeline.id
        )),
        Some(_) => None,
    })
}

/// Returns what is wrong with what a timeline says of where it comes from.
fn wrong_origin(repo: &Repo, timeline: &Timeline, timelines: &HashMap<TimelineId, Timeline>) -> Option<String> {
    let (id, origin) = (timeline.id, &timeline.origin);
    let Some(Position { timeline: parent, lsn }) = origin.parent() else {
        let begins_amid = |interval: &WalInterval| interval.start.segment_start(segment::SMALLEST) != interval.start;
        let has_no_begin = timeline.log.wal.first().is_some_and(begins_amid);
        return has_no_begin.then(|| format!("timeline {id} has no parent, although its WAL begins amid a segment"));
    };
    let Some(parent) = timelines.get(&parent) else {
        return Some(format!("timeline {id} forks from {parent}, which cannot be read"));
    };
    if parent.sealed() < lsn {
        return Some(format!("timeline {id} forks from {} at {lsn}, but that ends at {}", parent.id, parent.sealed()));
    }
    match repo.timelines().fork(Position { timeline: parent.id, lsn }, origin.writer, origin.time_us) {
        Ok(expected) if expected == *origin => None,
        Ok(_) => Some(format!("timeline {id} leads to other ancestors than its parent {}", parent.id)),
        Err(error) => Some(format!("the ancestors of timeline {id} cannot be followed: {error}")),
    }
}

/// Checks that all that is reachable is there, and fits. Returns how many of the objects that are there they need.
fn check_reachable(
    repo: &Repo,
    reachable: &[Reachable],
    all: &mut Seen,
    faults: &mut Vec<String>,
    progress: &dyn Progress,
) -> Result<usize, CommandError> {
    let mut needed = 0;
    let mut each = |_, id| {
        needed += usize::from(all.contains(&id));
        let missing = || CommandError::refused(format!("object {id} is missing"));
        // Where it was a moment ago it may be no more.
        if repo.store().contains(&id) || repo.store().stored(&id).is_ok() { Ok(()) } else { Err(missing()) }
    };
    let mut fault = |error: CommandError| {
        faults.push(error.text());
        Ok(())
    };
    walk_damaged(repo, reachable, &mut each, &mut fault)?;
    let mut files = HashSet::new();
    for item in reachable {
        progress.check()?;
        if let Reachable::Snapshot { id, .. } = item {
            check_files(repo, *id, &mut files, faults);
        }
    }
    Ok(needed)
}

/// Checks that the frames and maps of a snapshot fit its files, but those that are `known` already.
fn check_files(repo: &Repo, id: ObjectId, known: &mut HashSet<(ObjectId, u64)>, faults: &mut Vec<String>) {
    // One that cannot be read was a fault before.
    let Ok(snapshot) = repo.store().snapshot(&id) else { return };
    for entry in &snapshot.entries {
        let Node::File { length, content } = entry.node else { continue };
        if content.object().is_none_or(|object| !known.insert((object, length))) {
            continue;
        }
        let fits = match content {
            Content::Frame(frame) => repo.store().stored(&frame).and_then(|stored| {
                let what = "a frame for a file of another length";
                let malformed = || repo.store().malformed(&frame, &Malformed { offset: 0, what });
                if stored.length == length { Ok(()) } else { Err(malformed()) }
            }),
            _ => StoredFile::open(repo.store(), length, content).map(drop),
        };
        if let Err(error) = fits {
            let path = String::from_utf8_lossy(&entry.path);
            faults.push(format!("snapshot {id}: '{path}': {}", CommandError::from(error).text()));
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let outcome = fsck(&repo, &cx.ui)?;
    if args.json {
        cx.json(&outcome)?;
    } else {
        outcome.faults.iter().try_for_each(|fault| writeln!(cx.out, "{fault}"))?;
        cx.ui.status(format!("{} objects checked, {} unreachable", outcome.objects, outcome.unreachable));
    }
    cx.out.flush()?;
    outcome.remarks.iter().for_each(|remark| cx.ui.warning(remark));
    match outcome.faults.len() {
        0 => Ok(()),
        1 => Err(CommandError::new(Class::Corrupt, "the repository has a fault")),
        count => Err(CommandError::new(Class::Corrupt, format!("the repository has {count} faults"))),
    }
}
