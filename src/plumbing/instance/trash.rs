//! What is dropped goes to the trash, and goes for good only from there (INVARIANT 7).

use std::cell::LazyCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::is_open;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::pg::Lsn;
use crate::objects::refs::{RefKind, RefName, Signature, Value};
use crate::objects::timeline::{self, Position, Timeline, TimelineId, Timelines};
use crate::objects::trash::{Entry, Item, What, total_bytes};
use crate::objects::{Repo, regular};
use crate::plumbing::datadir::wal::{copy_pages, has_pages};
use crate::plumbing::datadir::wal_end;

const KINDS: [RefKind; 3] = [RefKind::Branch, RefKind::Remote, RefKind::Tag];

/// What an entry says of a drop: who, when and why come from the signature.
fn entry(what: What, branch: &str, position: Position, commits: bool, signature: &Signature) -> Entry {
    let Signature { who, time_us, why } = signature.clone();
    Entry { what, branch: branch.to_owned(), position, commits, bytes: 0, message: None, who, time_us, why }
}

/// Puts what a ref is, which is about to be deleted or to become `new`, into the trash, unless `new` or another ref leads
/// there. Entries of the trash do not count: they go as well. The active WAL is sealed already.
pub fn keep_named(
    repo: &Repo,
    name: &RefName,
    (old, new): (&Value, Option<&Value>),
    signature: &Signature,
) -> Result<Option<Item>, CommandError> {
    let id = old.timeline();
    let timeline = match repo.timelines().read(id) {
        // Nothing is left of it.
        Err(timeline::Error::Unknown(_)) => return Ok(None),
        timeline => timeline.ok(),
    };
    // Of one that is damaged, all.
    let tip = timeline.as_ref().map_or(Position { timeline: id, lsn: Lsn::MAX }, Timeline::tip);
    let (what, position, message) = match old {
        Value::Branch(_) => (What::Timeline, tip, None),
        Value::Tag(tag) => (What::Tag, tag.position, tag.message.clone()),
    };
    // What a server may still commit there, no other has.
    let may_grow = what == What::Timeline && is_open(repo, id).unwrap_or(true);
    let end = if may_grow { Lsn::MAX } else { position.lsn };
    if Reach::of(repo, |other| other != name, new).has(Position { lsn: end, ..position }) {
        return Ok(None);
    }
    let bytes = timeline.map_or(0, |timeline| wal_bytes(repo, &timeline));
    let entry = Entry { bytes, message, ..entry(what, name.short(), position, true, signature) };
    Ok(Some(repo.trash().put(repo.tmp()?, entry, |_| Ok(()))?))
}

/// Where refs lead.
struct Reach<'a> {
    timelines: &'a Timelines,
    ends: Vec<Position>,
}

impl Reach<'_> {
    /// Looks at the refs that `counts` names, and at one more that is `new`. One that cannot be read leads nowhere.
    fn of<'a>(repo: &'a Repo, counts: impl Fn(&RefName) -> bool, new: Option<&Value>) -> Reach<'a> {
        let all = KINDS.into_iter().flat_map(|kind| repo.refs().list(kind).unwrap_or_default());
        let values = all.filter(|(name, _)| counts(name)).map(|(_, value)| value).chain(new.cloned());
        let ends = values.map(|value| match value {
            Value::Branch(timeline) => Position { timeline, lsn: Lsn::MAX },
            Value::Tag(tag) => tag.position,
        });
        Reach { timelines: repo.timelines(), ends: ends.collect() }
    }

    /// Returns whether one has all up to `position` in its past, with the timeline itself: what lies beside its WAL is wanted too.
    fn has(&self, position: Position) -> bool {
        self.ends.iter().any(|end| self.timelines.leads_through(*end, position).unwrap_or(false))
    }

    /// Returns whether commits may go with an entry that no ref leads to. A timeline without WAL of its own has none; any
    /// other changed something, or it would have been dropped when its epoch ended. What cannot be read may have some.
    fn may_lose(&self, repo: &Repo, item: &Item) -> bool {
        let Some(entry) = &item.entry else { return true };
        if entry.what.folder().is_some() {
            return entry.commits;
        }
        let is_open =
            |id| repo.has_datadir(id).unwrap_or(true) || repo.timelines().run(id).map_or(true, |run| run.is_some());
        let has_sealed = |id| repo.timelines().read(id).map_or(true, |timeline| !timeline.log.wal.is_empty());
        // The timeline may have gone on since, with a server that ran when its branch was moved.
        let tip =
            |id| repo.timelines().read(id).map_or(Position { timeline: id, lsn: Lsn::MAX }, |timeline| timeline.tip());
        let end = if entry.what == What::Timeline { tip(entry.position.timeline) } else { entry.position };
        let way = repo.timelines().ancestry(end);
        let mut lost = way.take_while(|at| at.as_ref().map_or(true, |at| !self.has(*at)));
        lost.any(|at| at.map_or(true, |at| has_sealed(at.timeline) || is_open(at.timeline)))
    }
}

/// Returns the bytes that the WAL of a timeline takes in the store.
fn wal_bytes(repo: &Repo, timeline: &Timeline) -> u64 {
    timeline.log.wal.iter().filter_map(|interval| repo.store().stored_bytes(&interval.object).ok()).sum()
}

/// Moves a data directory, which nobody uses, into the trash; `commits` says whether it may hold some that no branch has.
pub fn keep_datadir(repo: &Repo, branch: &str, id: TimelineId, commits: bool, signature: &Signature) -> CmdResult {
    if !repo.has_datadir(id)? {
        return Ok(());
    }
    let position = match repo.timelines().read(id) {
        Err(timeline::Error::Unknown(_)) => Position { timeline: id, lsn: Lsn::INVALID },
        timeline => timeline?.tip(),
    };
    let entry = entry(What::DataDirectory, branch, position, commits, signature);
    repo.trash().put_folder(repo.tmp()?, entry, &repo.datadir(id))?;
    Ok(())
}

/// Moves the active WAL of a timeline, on which no server is alive, into the trash: its end was not believed.
pub fn keep_wal(repo: &Repo, branch: &str, id: TimelineId, signature: &Signature) -> CmdResult {
    let dir = repo.timelines().wal_dir(id);
    // A call that was stopped may have come so far, but not to the end.
    if dir.try_exists()? {
        let entry = entry(What::Wal, branch, repo.timelines().read(id)?.tip(), true, signature);
        repo.trash().put_folder(repo.tmp()?, entry, &dir)?;
    }
    Ok(repo.timelines().end_run(repo.tmp()?, id)?)
}

/// Copies what lies behind the end of the WAL into the trash, if there is any, before something overwrites it. Returns whether that was
/// so.
pub fn keep_beyond(repo: &Repo, branch: &str, end: Position, signature: &Signature) -> Result<bool, CommandError> {
    let beyond = wal_end::beyond(repo, end.timeline, end.lsn)?;
    if beyond.is_empty() {
        return Ok(false);
    }
    let entry = entry(What::Wal, branch, end, true, signature);
    let folder = |dir: &Path| dir.join(What::Wal.folder().expect("invariant: it has files"));
    let place = |dir: &Path, path: &Path| folder(dir).join(path.file_name().unwrap_or_default());
    for item in repo.trash().list()? {
        let is_here = |entry: &Entry| entry.what == What::Wal && entry.position == end;
        let is_same = |(path, from): &(PathBuf, u64)| has_pages(&place(&item.path, path), path, *from).unwrap_or(false);
        // A start that was repeated. Another tail behind the same end is kept as well.
        if item.entry.as_ref().is_some_and(is_here) && beyond.iter().all(is_same) {
            return Ok(false);
        }
    }
    repo.trash().put(repo.tmp()?, entry, |dir| {
        fs::create_dir(folder(dir))?;
        beyond.iter().try_for_each(|(path, from)| copy_pages(path, *from, &File::create_new(place(dir, path))?))
    })?;
    Ok(true)
}

/// Removes a timeline that was made for a ref which could not be made, unless somebody needs it by now.
pub fn remove_unneeded(repo: &Repo, timeline: TimelineId) -> CmdResult {
    let is_unneeded = || is_referenced(repo, timeline).map(|is_needed| !is_needed);
    repo.timelines().remove(repo.tmp()?, timeline, is_unneeded)?;
    Ok(())
}

/// Returns whether something refers to a timeline: a ref, a fork, or the trash, in which a damaged entry may.
pub fn is_referenced(repo: &Repo, id: TimelineId) -> Result<bool, CommandError> {
    for kind in KINDS {
        for short in repo.refs().files(kind)? {
            let Ok(name) = RefName::new(kind, &short) else { continue };
            match repo.refs().read(&name) {
                Ok(Some(value)) if value.timeline() != id => {}
                // One that is damaged may refer to it, and so may one that has another name since the look at the names.
                _ => return Ok(true),
            }
        }
    }
    if repo.trash().list()?.iter().any(|item| item.entry.as_ref().is_none_or(|entry| entry.names(id))) {
        return Ok(true);
    }
    for other in repo.timelines().list()? {
        // Other commands drop theirs at the same time.
        let origin = match repo.timelines().origin(other) {
            Err(timeline::Error::Unknown(_)) => continue,
            // One of an older format, which was damaged when the others were brought to this one, names all that it comes from.
            Err(_) => {
                let history = regular::read_to_string(&repo.timelines().dir(other).join("history"));
                if history.is_ok_and(|history| !history.contains(&id.to_string())) {
                    continue;
                }
                return Ok(true);
            }
            Ok(origin) => origin,
        };
        if origin.parent().is_some_and(|parent| parent.timeline == id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes entries for good, and with each the timelines that nothing else refers to. What a damaged one refers to is not
/// known: it goes alone, and as long as it is there no other takes a timeline away.
pub fn remove(repo: &Repo, items: &[Item]) -> CmdResult {
    let has_timeline = |item: &Item| item.entry.as_ref().is_some_and(|entry| entry.what.folder().is_none());
    if items.iter().any(has_timeline) {
        refuse_damaged(&repo.trash().list()?)?;
    }
    for item in items {
        repo.trash().remove(repo.tmp()?, item)?;
        if let Some(entry) = item.entry.as_ref().filter(|_| has_timeline(item)) {
            remove_timelines(repo, entry.position.timeline)?;
        }
    }
    Ok(())
}

/// Removes a timeline and its ancestors, as far as nothing refers to them.
fn remove_timelines(repo: &Repo, youngest: TimelineId) -> CmdResult {
    let mut next = Some(youngest);
    while let Some(id) = next.take() {
        let Ok(origin) = repo.timelines().origin(id) else { return Ok(()) };
        let open = is_open(repo, id)?;
        let is_unneeded = || Ok::<_, CommandError>(!open && !is_referenced(repo, id)?);
        if repo.timelines().remove(repo.tmp()?, id, is_unneeded)? {
            next = origin.parent().map(|parent| parent.timeline);
        }
    }
    Ok(())
}

/// Removes all entries for good. Returns how many.
pub fn empty(repo: &Repo) -> Result<usize, CommandError> {
    let items = repo.trash().list()?;
    refuse_damaged(&items)?;
    remove(repo, &items)?;
    Ok(items.len())
}

fn refuse_damaged(items: &[Item]) -> CmdResult {
    let Some(damaged) = items.iter().find(|item| item.entry.is_none()) else { return Ok(()) };
    let Item { id, path, .. } = damaged;
    let error = format!("entry '{id}' of the trash is damaged: nothing goes for good as long as it may refer to it");
    Err(CommandError::new(Class::Corrupt, error)
        .hint(format!("look at '{}'; to give up what it refers to: zenith trash empty {id}", path.display())))
}

/// An entry, and whether commits may go with it that nothing else has.
#[derive(Debug, Clone)]
pub struct Row {
    pub item: Item,
    pub commits: bool,
}

/// Returns all entries, those that are damaged first, then the oldest.
pub fn list(repo: &Repo) -> Result<Vec<Row>, CommandError> {
    let reach = Reach::of(repo, |_| true, None);
    let row = |item| Row { commits: reach.may_lose(repo, &item), item };
    Ok(repo.trash().list()?.into_iter().map(row).collect())
}

/// Removes, of what holds no commit, what is older than `gc.trash`, and the oldest where the trash is larger than
/// `gc.trash_limit`; but nothing that this very command, which began at `now_us`, has put there. Commits never go
/// by the way: a clock that jumps would take them all. Returns how many entries went.
pub fn tidy(repo: &Repo, now_us: i64) -> Result<usize, CommandError> {
    sweep(repo, now_us, false)
}

/// The same, for who asks for it: what holds commits goes as well when it is older than `gc.trash`.
pub fn expire(repo: &Repo, now_us: i64) -> Result<usize, CommandError> {
    sweep(repo, now_us, true)
}

fn sweep(repo: &Repo, now_us: i64, with_commits: bool) -> Result<usize, CommandError> {
    let gc = &repo.config().gc;
    let keep_us = gc.trash.0.map_or(i64::MAX, |keep| i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
    let items = repo.trash().list()?;
    // A damaged one may refer to any timeline, but to no files of others.
    let is_frozen = !with_commits && items.iter().any(|item| item.entry.is_none());
    // Looked up now: what else led to the commits of an entry when it came may have gone since.
    let reach = LazyCell::new(|| Reach::of(repo, |_| true, None));
    let mut total = total_bytes(&items);
    let mut gone = 0;
    for item in items {
        let Some(Entry { what, time_us, bytes, .. }) = item.entry else { continue };
        if is_frozen && what.folder().is_none() {
            continue;
        }
        let is_old = now_us.saturating_sub(time_us) > keep_us;
        let is_too_much = total > gc.trash_limit && time_us != now_us;
        if is_old && with_commits || (is_old || is_too_much) && !reach.may_lose(repo, &item) {
            remove(repo, std::slice::from_ref(&item))?;
            total = total.saturating_sub(bytes);
            gone += 1;
        }
    }
    Ok(gone)
}
