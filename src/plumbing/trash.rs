//! What is dropped goes to the trash, and goes for good only from there (INVARIANT 7).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::instance;
use super::seal_wal::seal_active;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::pg::wal::PAGE;
use crate::objects::refs::{Expect, RefKind, RefName, Signature};
use crate::objects::timeline::{self, Position, Timeline, TimelineId};
use crate::objects::trash::{Entry, Error, Item, What};
use crate::plumbing::datadir::wal_end;

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        let class = if matches!(error, Error::Corrupt(_)) { Class::Corrupt } else { Class::Refused };
        let is_unknown = matches!(error, Error::Unknown(_) | Error::Ambiguous(_));
        let error = CommandError::new(class, error);
        if is_unknown { error.hint("see what there is: zenith trash") } else { error }
    }
}

/// What an entry says of a drop: who, when and why come from the signature.
fn entry(what: What, branch: &str, position: Position, commits: bool, signature: &Signature) -> Entry {
    let Signature { who, time_us, why } = signature.clone();
    Entry { what, branch: branch.to_owned(), position, commits, who, time_us, why }
}

/// Puts the timeline of a branch that is about to go into the trash, unless something else refers to it. Its WAL is
/// sealed first. The caller takes the branch away after that.
pub fn keep_timeline(
    repo: &Repo,
    branch: &RefName,
    id: TimelineId,
    signature: &Signature,
) -> Result<Option<Item>, CommandError> {
    if is_referenced(repo, id, &|name| name == branch)? {
        return Ok(None);
    }
    seal_active(repo, id)?;
    let timeline = repo.timelines().read(id)?;
    let commits = holds_commits(repo, branch, &timeline)?;
    let entry = entry(What::Timeline, branch.short(), timeline.tip(), commits, signature);
    Ok(Some(repo.trash().put(repo.tmp()?, entry, |_| Ok(()))?))
}

/// Returns whether a timeline that is dropped, or an ancestor that goes with it, has a commit.
fn holds_commits(repo: &Repo, branch: &RefName, timeline: &Timeline) -> Result<bool, CommandError> {
    let commits = |timeline: &Timeline| timeline.log.wal.iter().any(|interval| interval.commit_us.is_some());
    if commits(timeline) {
        return Ok(true);
    }
    let mut child = timeline.id;
    for ancestor in timeline.history.ancestors.iter().rev() {
        if is_referenced_but_by(repo, ancestor.timeline, &|name| name == branch, child)? {
            return Ok(false);
        }
        if commits(&repo.timelines().read(ancestor.timeline)?) {
            return Ok(true);
        }
        child = ancestor.timeline;
    }
    Ok(false)
}

/// Moves a data directory, which nobody uses, into the trash; `commits` says whether it may hold some that no branch has.
pub fn keep_datadir(repo: &Repo, branch: &str, id: TimelineId, commits: bool, signature: &Signature) -> CmdResult {
    let dir = repo.datadir(id);
    if !dir.exists() {
        return Ok(());
    }
    let position = repo.timelines().read(id)?.tip();
    let entry = entry(What::DataDirectory, branch, position, commits, signature);
    repo.trash().put_folder(repo.tmp()?, entry, &dir)?;
    Ok(())
}

/// Moves the active WAL of a timeline, on which no server is alive, into the trash: its end was not believed.
pub fn keep_wal(repo: &Repo, branch: &str, id: TimelineId, signature: &Signature) -> CmdResult {
    let dir = repo.timelines().wal_dir(id);
    if !dir.exists() {
        return Ok(());
    }
    let entry = entry(What::Wal, branch, repo.timelines().read(id)?.tip(), true, signature);
    repo.trash().put_folder(repo.tmp()?, entry, &dir)?;
    Ok(repo.timelines().empty_wal(repo.tmp()?, id)?)
}

/// Copies what lies behind the end of the WAL into the trash, if there is any, before something overwrites it.
pub fn keep_beyond(repo: &Repo, branch: &str, end: Position, signature: &Signature) -> CmdResult {
    let beyond = wal_end::beyond(repo, end.timeline, end.lsn)?;
    if beyond.is_empty() {
        return Ok(());
    }
    let entry = entry(What::Wal, branch, end, true, signature);
    let same = |item: &Item| item.entry.what == What::Wal && item.entry.position == end && item.has_files();
    if repo.trash().list()?.iter().any(same) {
        // A start that was repeated.
        return Ok(());
    }
    let folder = |dir: &Path| dir.join(What::Wal.folder().expect("invariant: it has files"));
    repo.trash().put(repo.tmp()?, entry, |dir| {
        fs::create_dir(folder(dir))?;
        beyond.iter().try_for_each(|(path, from)| copy_pages(path, *from, &folder(dir)))
    })?;
    Ok(())
}

/// Copies a segment from the page of byte `from` on; pages of zeroes become holes.
fn copy_pages(path: &Path, from: u64, to: &Path) -> io::Result<()> {
    let source = File::open(path)?;
    let length = source.metadata()?.len();
    let copy = File::create(to.join(path.file_name().unwrap_or_default()))?;
    copy.set_len(length)?;
    let mut at = from - from % PAGE as u64;
    let mut page = vec![0; PAGE];
    while at < length {
        let part = &mut page[..(length - at).min(PAGE as u64) as usize]; // at most a page
        source.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            copy.write_all_at(part, at)?;
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// Returns whether something refers to a timeline: a ref that `own` does not count as one's own, a fork, the trash, or an
/// open epoch.
pub fn is_referenced(repo: &Repo, id: TimelineId, own: &dyn Fn(&RefName) -> bool) -> Result<bool, CommandError> {
    is_referenced_but_by(repo, id, own, id)
}

/// The same, but the fork `child`, and those that fork from it, do not count.
fn is_referenced_but_by(
    repo: &Repo,
    id: TimelineId,
    own: &dyn Fn(&RefName) -> bool,
    child: TimelineId,
) -> Result<bool, CommandError> {
    for kind in [RefKind::Branch, RefKind::Tag, RefKind::Remote] {
        let refs = repo.refs().list(kind)?;
        if refs.iter().any(|(name, value)| value.timeline() == id && !own(name)) {
            return Ok(true);
        }
    }
    if repo.trash().list()?.iter().any(|item| item.entry.what == What::Timeline && item.entry.position.timeline == id) {
        return Ok(true);
    }
    for other in repo.timelines().list()?.into_iter().filter(|other| *other != child) {
        // Other commands drop theirs at the same time.
        let history = match repo.timelines().history(other) {
            Err(timeline::Error::Unknown(_)) => continue,
            history => history?,
        };
        let through = |ancestor: TimelineId| history.ancestors.iter().any(|other| other.timeline == ancestor);
        if through(id) && (child == id || !through(child)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Brings a timeline back as the branch `name`, and takes it out of the trash.
pub fn restore(repo: &Repo, item: &Item, name: &RefName, signature: &Signature) -> CmdResult {
    if item.entry.what != What::Timeline {
        let path = item.path.display();
        return Err(CommandError::refused(format!("'{}' is not a branch but files, in '{path}'", item.id))
            .hint("what was committed is in the branch; copy the files from there if you need them"));
    }
    let _kept = repo.timelines().keep()?;
    super::update_ref::update_branch(repo, name, item.entry.position.timeline, &Expect::Absent, signature)?;
    Ok(repo.trash().remove(repo.tmp()?, item)?)
}

/// Removes an entry for good, and with it the timelines that nothing else refers to.
pub fn remove(repo: &Repo, item: &Item) -> CmdResult {
    repo.trash().remove(repo.tmp()?, item)?;
    if item.entry.what != What::Timeline {
        return Ok(());
    }
    let mut next = Some(item.entry.position.timeline);
    while let Some(id) = next.take() {
        let Ok(history) = repo.timelines().history(id) else { return Ok(()) };
        let open = instance::list(repo)?.iter().any(|instance| instance.timeline() == Some(id));
        let is_unneeded = || Ok::<_, CommandError>(!open && !is_referenced(repo, id, &|_| false)?);
        if repo.timelines().remove(repo.tmp()?, id, is_unneeded)? {
            next = history.ancestors.last().map(|ancestor| ancestor.timeline);
        }
    }
    Ok(())
}

/// An entry, and the bytes that go with it.
#[derive(Debug, Clone)]
pub struct Sized {
    pub item: Item,
    pub bytes: u64,
}

/// Returns all entries, the oldest first.
pub fn list(repo: &Repo) -> Result<Vec<Sized>, CommandError> {
    let sized = |item: Item| {
        let bytes = item.file_bytes() + if item.entry.what == What::Timeline { wal_bytes(repo, &item) } else { 0 };
        Sized { item, bytes }
    };
    Ok(repo.trash().list()?.into_iter().map(sized).collect())
}

/// Returns the bytes that the WAL of a timeline takes in the store.
fn wal_bytes(repo: &Repo, item: &Item) -> u64 {
    let Ok(timeline) = repo.timelines().read(item.entry.position.timeline) else { return 0 };
    let stored = timeline.log.wal.iter().filter_map(|interval| repo.store().stored(&interval.object).ok());
    stored.map(|stored| stored.stored).sum()
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
    let mut rows = list(repo)?;
    let keep_us = gc.trash.0.map_or(i64::MAX, |keep| i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
    let mut total: u64 = rows.iter().map(|row| row.bytes).sum();
    let mut gone = 0;
    rows.sort_by_key(|row| row.item.entry.time_us);
    for Sized { item, bytes } in rows {
        let Entry { time_us, commits, .. } = item.entry;
        let is_old = now_us.saturating_sub(time_us) > keep_us && (with_commits || !commits);
        let is_too_much = total > gc.trash_limit && !commits && time_us != now_us;
        if is_old || is_too_much {
            remove(repo, &item)?;
            total = total.saturating_sub(bytes);
            gone += 1;
        }
    }
    Ok(gone)
}
