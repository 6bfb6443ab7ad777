//! Refs: names for timelines and for positions on them.
//!
//! # Format
//! * `HEAD`: `ref: refs/branches/<name>`.
//! * `refs/branches/<name>`, `refs/remotes/<remote>/<name>`: a timeline id.
//! * `refs/tags/<name>`: `<timeline id> <LSN>`, then `time <microseconds since 1970>`, then for a tag
//!   with a message an empty line and the message.
//! * `logs/HEAD`, `logs/refs/…`: see [`reflog`].
//!
//! All changes go through [`Refs::update`]: under one lock, compared with what the caller expects,
//! the log line first (a log without its change is the lesser harm), then the ref by rename. Reading
//! takes no lock. The lock is the kernel's and goes with the process, so a crash leaves nothing
//! stale. Which LSNs are sealed (INVARIANT 1) is for the caller to check before: tags and forks
//! are made only at or before a timeline's sealed tip.

pub mod name;
pub mod reflog;
pub mod revision;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use name::{BadName, RefKind, RefName};

use super::lock::{self, Mode, Patience};
use super::timeline::{Position, TimelineId};
use super::{bounded, durable, folder, regular};
use crate::objects::file_error::{FileError, cannot};

/// What a ref says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A branch: the timeline, whatever its tip.
    Branch(TimelineId),
    /// A tag.
    Tag(Tag),
}

/// A tag: a position with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub position: Position,
    /// When it was made, microseconds since 1970.
    pub time_us: i64,
    pub message: Option<String>,
}

impl Value {
    /// Returns the timeline.
    pub fn timeline(&self) -> TimelineId {
        match self {
            Value::Branch(timeline) => *timeline,
            Value::Tag(tag) => tag.position.timeline,
        }
    }

    /// Returns the content of the file.
    pub fn format(&self) -> String {
        match self {
            Value::Branch(timeline) => format!("{timeline}\n"),
            Value::Tag(Tag { position, time_us, message }) => {
                let message = message.as_ref().map(|message| format!("\n{message}\n")).unwrap_or_default();
                format!("{} {}\ntime {time_us}\n{message}", position.timeline, position.lsn)
            }
        }
    }

    /// Reads the content of the file of a ref of `kind`.
    pub fn parse(kind: RefKind, text: &str) -> Option<Value> {
        if kind != RefKind::Tag {
            return text.strip_suffix('\n')?.parse().ok().map(Value::Branch);
        }
        let (head, message) = match text.split_once("\n\n") {
            Some((head, message)) => (head, Some(message.strip_suffix('\n')?.to_owned())),
            None => (text.strip_suffix('\n')?, None),
        };
        let (position, time) = head.split_once('\n')?;
        let (timeline, lsn) = position.split_once(' ')?;
        let position = Position { timeline: timeline.parse().ok()?, lsn: lsn.parse().ok()? };
        Some(Value::Tag(Tag { position, time_us: time.strip_prefix("time ")?.parse().ok()?, message }))
    }
}

/// What a change of a ref expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    Present,
    Exactly(Value),
}

impl Expect {
    /// Refuses what is not as expected.
    pub fn check(&self, name: &RefName, found: Option<&Value>) -> Result<(), Error> {
        match (self, found) {
            (Expect::Absent, Some(_)) => Err(Error::Exists(name.clone())),
            (Expect::Present | Expect::Exactly(_), None) => Err(Error::Unknown(name.clone())),
            (Expect::Exactly(expected), Some(found)) if expected != found => {
                let text = |value: &Value| value.format().lines().next().unwrap_or_default().to_owned();
                Err(Error::Stale { name: name.clone(), expected: text(expected), found: text(found) })
            }
            _ => Ok(()),
        }
    }
}

/// Who changes a ref, when, and why: for the reflog.
#[derive(Debug, Clone)]
pub struct Signature {
    pub who: String,
    /// Microseconds since 1970.
    pub time_us: i64,
    pub why: String,
}

/// A ref cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    BadName(#[from] BadName),
    #[error("HEAD names a branch, and '{0}' is none")]
    NotABranch(RefName),
    #[error("a {} named '{}' already exists", .0.kind().word(), .0.short())]
    Exists(RefName),
    #[error("there is no {} named '{}'", .0.kind().word(), .0.short())]
    Unknown(RefName),
    /// Somebody else was quicker.
    #[error("'{name}' is not at {expected} but at {found}")]
    Stale { name: RefName, expected: String, found: String },
    /// A name and one below it cannot both be, as a file and a folder.
    #[error("'{name}' cannot be, since '{other}' is")]
    Conflict { name: RefName, other: String },
    #[error("the message of '{}' is too long: a ref has at most {} bytes", .0.short(), bounded::REF)]
    TooLong(RefName),
    #[error("'{}' is corrupt: it does not read like a ref", .0.display())]
    Corrupt(PathBuf),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Io(#[from] FileError),
}

/// The refs of a repository.
#[derive(Debug, Clone)]
pub struct Refs {
    dir: PathBuf,
    patience: Patience,
}

impl Refs {
    /// Opens the refs of the repository in `dir`.
    pub fn open(dir: &Path) -> Refs {
        Refs { dir: dir.to_owned(), patience: Patience::default() }
    }

    /// Returns them for somebody who waits for locks with `patience`.
    pub fn with_patience(self, patience: Patience) -> Refs {
        Refs { patience, ..self }
    }

    fn path(&self, name: &RefName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// Reads a ref; `None` where there is none.
    pub fn read(&self, name: &RefName) -> Result<Option<Value>, Error> {
        let path = self.path(name);
        match bounded::read_to_string(&path, bounded::REF) {
            Ok(text) => Value::parse(name.kind(), &text).map(Some).ok_or(Error::Corrupt(path)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(cannot::<Error>("read", &path)(error)),
        }
    }

    /// Returns the timeline of a branch, which must exist.
    pub fn read_branch(&self, name: &RefName) -> Result<TimelineId, Error> {
        self.read(name)?.map(|value| value.timeline()).ok_or_else(|| Error::Unknown(name.clone()))
    }

    /// Returns what is there under the names of refs of `kind`, sorted; some may be no names of refs.
    pub fn files(&self, kind: RefKind) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        collect(&self.dir.join("refs").join(kind.folder()), "", &mut names)?;
        names.sort_unstable();
        Ok(names)
    }

    /// Returns all refs of `kind`, sorted by name.
    pub fn list(&self, kind: RefKind) -> Result<Vec<(RefName, Value)>, Error> {
        let names = self.files(kind)?.into_iter().filter_map(|short| RefName::new(kind, &short).ok());
        let read = names.filter_map(|name| match self.read(&name) {
            Ok(value) => value.map(|value| Ok((name, value))),
            Err(error) => Some(Err(error)),
        });
        read.collect()
    }

    /// Returns the branch that HEAD names; it need not exist.
    pub fn head(&self) -> Result<RefName, Error> {
        let path = self.dir.join("HEAD");
        let text = bounded::read_to_string(&path, bounded::REF).map_err(cannot::<Error>("read", &path))?;
        let name = text.strip_prefix("ref: ").map(|name| name.trim_end_matches('\n'));
        let name = name.and_then(|name| RefName::full(name).ok());
        name.filter(|name| name.kind() == RefKind::Branch).ok_or(Error::Corrupt(path))
    }

    /// Makes HEAD name another branch, which need not exist.
    pub fn set_head(&self, tmp: &Path, branch: &RefName, signature: &Signature) -> Result<(), Error> {
        if branch.kind() != RefKind::Branch {
            return Err(Error::NotABranch(branch.clone()));
        }
        let _lock = self.lock()?;
        if self.head().is_ok_and(|head| head == *branch) {
            return durable::sync_dir(&self.dir).map_err(cannot::<Error>("sync", &self.dir));
        }
        let old = self.head().ok().and_then(|head| self.read(&head).ok().flatten());
        let new = self.read(branch)?;
        self.log("HEAD", old.as_ref(), new.as_ref(), signature)?;
        self.write_head(tmp, branch)
    }

    /// Sets a ref to `new`, or deletes it where that is `None`, if it is what the caller expects.
    /// Returns what it was.
    pub fn update(
        &self,
        tmp: &Path,
        name: &RefName,
        expect: &Expect,
        new: Option<&Value>,
        signature: &Signature,
    ) -> Result<Option<Value>, Error> {
        self.update_after(tmp, name, expect, new, signature, |_| Ok(()))
    }

    /// The same; before it changes, `before` gets the value that goes, if there is one, and may refuse. No ref changes meanwhile.
    pub fn update_after<E: From<Error>>(
        &self,
        tmp: &Path,
        name: &RefName,
        expect: &Expect,
        new: Option<&Value>,
        signature: &Signature,
        before: impl FnOnce(Option<&Value>) -> Result<(), E>,
    ) -> Result<Option<Value>, E> {
        if new.is_some_and(|value| value.format().len() as u64 > bounded::REF) {
            return Err(Error::TooLong(name.clone()).into());
        }
        let _lock = self.lock()?;
        let old = self.read(name)?;
        expect.check(name, old.as_ref())?;
        if old.as_ref() == new {
            self.secure(name)?;
            return Ok(old);
        }
        if new.is_some() && old.is_none() {
            self.refuse_conflict(name)?;
            self.make_room(name)?;
        }
        before(old.as_ref())?;
        self.log(name.as_str(), old.as_ref(), new, signature)?;
        if self.head().is_ok_and(|head| head == *name) {
            self.log("HEAD", old.as_ref(), new, signature)?;
        }
        match new {
            Some(value) => self.write(tmp, name, value)?,
            // As in git, the log goes with the ref; HEAD's own keeps what it saw.
            None => {
                self.remove(&self.log_path(name.as_str()))?;
                self.remove(&self.path(name))?;
            }
        }
        Ok(old)
    }

    /// Gives a branch another name, under which its log goes on; HEAD follows it. A crash amid leaves both names,
    /// never none.
    pub fn rename(&self, tmp: &Path, from: &RefName, to: &RefName, signature: &Signature) -> Result<(), Error> {
        let _lock = self.lock()?;
        let value = self.read(from)?.ok_or_else(|| Error::Unknown(from.clone()))?;
        if self.read(to)?.is_some() {
            return Err(Error::Exists(to.clone()));
        }
        self.refuse_conflict(to)?;
        self.make_room(to)?;
        let (old_log, new_log) = (self.log_path(from.as_str()), self.log_path(to.as_str()));
        let copied = match regular::read(&old_log) {
            Ok(log) => durable::create_dir_all(new_log.parent().expect("invariant: names have three parts"))
                .and_then(|()| durable::replace(tmp, &new_log, &log)),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        };
        copied.map_err(cannot::<Error>("write", &new_log))?;
        self.log(to.as_str(), Some(&value), Some(&value), signature)?;
        self.write(tmp, to, &value)?;
        if self.head().is_ok_and(|head| head == *from) {
            self.log("HEAD", Some(&value), Some(&value), signature)?;
            self.write_head(tmp, to)?;
        }
        self.remove(&old_log)?;
        self.remove(&self.path(from))
    }

    fn write(&self, tmp: &Path, name: &RefName, value: &Value) -> Result<(), Error> {
        let path = self.path(name);
        durable::create_dir_all(path.parent().expect("invariant: names have three parts"))
            .and_then(|()| durable::replace(tmp, &path, value.format().as_bytes()))
            .map_err(cannot::<Error>("write", &path))
    }

    fn write_head(&self, tmp: &Path, branch: &RefName) -> Result<(), Error> {
        let path = self.dir.join("HEAD");
        durable::replace(tmp, &path, format!("ref: {branch}\n").as_bytes()).map_err(cannot::<Error>("write", &path))
    }

    /// Makes durable what a ref is, or that it is not: whoever wrote it may have been killed before.
    fn secure(&self, name: &RefName) -> Result<(), Error> {
        let path = self.path(name);
        match durable::sync_dir(path.parent().expect("invariant: names have three parts")) {
            Err(error) if !is_absent(&error) => Err(cannot::<Error>("sync", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a file, and the folders that this leaves empty: they would stand in the way of a ref
    /// of their name.
    fn remove(&self, path: &Path) -> Result<(), Error> {
        durable::remove(path).map_err(cannot::<Error>("remove", path))?;
        let kept = |folder: &Path| folder.parent().is_some_and(|above| above.ends_with("refs"));
        let mut folders = path.ancestors().skip(1);
        while folders.next().is_some_and(|folder| !kept(folder) && fs::remove_dir(folder).is_ok()) {}
        Ok(())
    }

    /// Refuses a name that is a folder of others, or below one that is a file; and one that a branch and a tag would share, since
    /// some commands would take it for the one, and some for the other.
    fn refuse_conflict(&self, name: &RefName) -> Result<(), Error> {
        let twin = match name.kind() {
            RefKind::Branch => Some(RefKind::Tag),
            RefKind::Tag => Some(RefKind::Branch),
            RefKind::Remote => None,
        };
        if let Some(twin) = twin.map(|kind| RefName::new(kind, name.short())).transpose()?
            && self.path(&twin).is_file()
        {
            return Err(Error::Exists(twin));
        }
        let conflict = |other: String| Err(Error::Conflict { name: name.clone(), other });
        let folder = name.as_str().len() - name.short().len();
        for (slash, _) in name.short().match_indices('/') {
            let above = &name.as_str()[..folder + slash];
            if self.dir.join(above).is_file() {
                return conflict(above.to_owned());
            }
        }
        let mut below = Vec::new();
        collect(&self.path(name), name.as_str(), &mut below)?;
        match below.into_iter().next() {
            Some(other) => conflict(other),
            None => Ok(()),
        }
    }

    /// Removes what a crash left in the place of a new ref, with which none that is there is in conflict, or of its log: folders of
    /// a ref that was deleted, and the log of one that was never made.
    fn make_room(&self, name: &RefName) -> Result<(), Error> {
        let log = self.log_path(name.as_str());
        let mut left = Vec::new();
        collect(&log, "", &mut left)?;
        let left = left.iter().map(|below| log.join(below));
        let above = log.ancestors().skip(1).filter(|above| above.is_file()).map(Path::to_owned);
        for log in left.chain(above) {
            durable::remove(&log).map_err(cannot::<Error>("remove", &log))?;
        }
        [self.path(name), log]
            .iter()
            .try_for_each(|place| remove_empty(place).map_err(cannot::<Error>("remove", place)))
    }

    /// Returns the reflog of a ref or of `HEAD`, the newest entry first.
    pub fn reflog(&self, name: &str) -> Result<Vec<reflog::Entry>, Error> {
        reflog::read(&self.log_path(name))
    }

    fn log(&self, name: &str, old: Option<&Value>, new: Option<&Value>, signature: &Signature) -> Result<(), Error> {
        let entry = reflog::Entry {
            old: old.map(Value::timeline),
            new: new.map(Value::timeline),
            who: signature.who.clone(),
            time_us: signature.time_us,
            why: signature.why.clone(),
        };
        reflog::append(&self.log_path(name), &entry)
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(name)
    }

    /// Takes the lock for changing refs; it goes with the file, or with the process.
    fn lock(&self) -> Result<File, Error> {
        Ok(self.patience.open(&self.dir.join("refs.lock"), Mode::Exclusive)?)
    }
}

/// Adds the names of all files below `dir`, joined with `/` and put after `prefix`.
fn collect(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<(), Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(cannot::<Error>("list", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(cannot::<Error>("list", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let full = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), &full, names)?,
            _ => names.push(full),
        }
    }
    Ok(())
}

/// Removes a folder that holds nothing but such folders; what it holds else stays, and so does what is no folder.
fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::symlink_metadata(dir) {
        Ok(metadata) if metadata.is_dir() => {}
        _ => return Ok(()),
    }
    for name in folder::names(dir)? {
        remove_empty(&dir.join(name))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::pg::Lsn;

    fn setup() -> (tempfile::TempDir, Refs, Signature) {
        let dir = tempfile::tempdir().unwrap();
        let refs = Refs::open(dir.path());
        (dir, refs, Signature { who: "me".into(), time_us: 5, why: "test".into() })
    }

    fn branch(name: &str) -> RefName {
        RefName::branch(name).unwrap()
    }

    fn entry() -> reflog::Entry {
        reflog::Entry { old: None, new: None, time_us: 1, who: "me".into(), why: "never done".into() }
    }

    #[test]
    fn update_refuses_stale_old_value() {
        let (dir, refs, signature) = setup();
        let [a, b] = [TimelineId::random(), TimelineId::random()].map(Value::Branch);
        let set = |expect, new| refs.update(dir.path(), &branch("x"), &expect, new, &signature);
        set(Expect::Absent, Some(&a)).unwrap();
        assert!(matches!(set(Expect::Absent, Some(&b)), Err(Error::Exists(_))));
        assert!(matches!(set(Expect::Exactly(b.clone()), Some(&b)), Err(Error::Stale { .. })));
        set(Expect::Exactly(a.clone()), Some(&b)).unwrap();
        assert_eq!(refs.read(&branch("x")).unwrap(), Some(b.clone()));
        let log = refs.reflog("refs/branches/x").unwrap();
        assert_eq!((log[0].new, log[0].old, log[1].old), (Some(b.timeline()), Some(a.timeline()), None));
    }

    #[test]
    fn one_of_many_writers_wins_each_round() {
        let (dir, refs, signature) = setup();
        let mut current = Value::Branch(TimelineId::random());
        refs.update(dir.path(), &branch("x"), &Expect::Absent, Some(&current), &signature).unwrap();
        for _ in 0..30 {
            let winners: Vec<Value> = std::thread::scope(|scope| {
                let race = || {
                    let mine = Value::Branch(TimelineId::random());
                    let expect = Expect::Exactly(current.clone());
                    refs.update(dir.path(), &branch("x"), &expect, Some(&mine), &signature).ok().map(|_| mine)
                };
                let threads: Vec<_> = (0..6).map(|_| scope.spawn(race)).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(winners.len(), 1);
            current = winners[0].clone();
            assert_eq!(refs.read(&branch("x")).unwrap(), Some(current.clone()));
        }
    }

    #[test]
    fn a_name_cannot_be_a_file_and_a_folder() {
        let (dir, refs, signature) = setup();
        let value = Value::Branch(TimelineId::random());
        let set = |name: &str, new| refs.update(dir.path(), &branch(name), &Expect::Anything, new, &signature);
        set("a/b", Some(&value)).unwrap();
        assert!(matches!(set("a", Some(&value)), Err(Error::Conflict { .. })));
        assert!(matches!(set("a/b/c", Some(&value)), Err(Error::Conflict { .. })));
        set("a/b", None).unwrap();
        set("a", Some(&value)).unwrap();
        assert_eq!(refs.list(RefKind::Branch).unwrap().len(), 1);
        let tag = RefName::tag("v").unwrap();
        refs.update(dir.path(), &tag, &Expect::Absent, Some(&value), &signature).unwrap();
    }

    #[test]
    fn what_a_crash_left_is_not_in_the_way_of_a_new_ref() {
        let value = Value::Branch(TimelineId::random());
        let leave: [&dyn Fn(&Path); 4] = [
            // Amid a deletion of a/b.
            &|dir| fs::create_dir_all(dir.join("refs/branches/a/b/c")).unwrap(),
            &|dir| fs::create_dir_all(dir.join("logs/refs/branches/a/b/c")).unwrap(),
            // Before a/b was made, or a.
            &|dir| reflog::append(&dir.join("logs/refs/branches/a/b/d"), &entry()).unwrap(),
            &|dir| reflog::append(&dir.join("logs/refs/branches/a"), &entry()).unwrap(),
        ];
        for leave in leave {
            for name in ["a", "a/b"] {
                let (dir, refs, signature) = setup();
                leave(dir.path());
                refs.update(dir.path(), &branch(name), &Expect::Absent, Some(&value), &signature).unwrap();
                assert_eq!(refs.read(&branch(name)).unwrap(), Some(value.clone()));
                assert_eq!(refs.reflog(&format!("refs/branches/{name}")).unwrap()[0].why, "test");

                let (dir, refs, signature) = setup();
                refs.update(dir.path(), &branch("x"), &Expect::Absent, Some(&value), &signature).unwrap();
                leave(dir.path());
                refs.rename(dir.path(), &branch("x"), &branch(name), &signature).unwrap();
                assert_eq!(refs.reflog(&format!("refs/branches/{name}")).unwrap().len(), 2);
            }
        }
    }

    #[test]
    fn a_renamed_branch_keeps_its_log_and_head() {
        let (dir, refs, signature) = setup();
        let [a, b] = [TimelineId::random(), TimelineId::random()].map(Value::Branch);
        for value in [&a, &b] {
            refs.update(dir.path(), &branch("x"), &Expect::Anything, Some(value), &signature).unwrap();
        }
        refs.set_head(dir.path(), &branch("x"), &signature).unwrap();
        refs.rename(dir.path(), &branch("x"), &branch("y/z"), &signature).unwrap();
        assert_eq!(refs.head().unwrap(), branch("y/z"));
        assert_eq!((refs.read(&branch("x")).unwrap(), refs.read(&branch("y/z")).unwrap()), (None, Some(b.clone())));
        let log = refs.reflog("refs/branches/y/z").unwrap();
        assert_eq!((log.len(), log[1].new, log[2].new), (3, Some(b.timeline()), Some(a.timeline())));
        assert!(refs.reflog("refs/branches/x").unwrap().is_empty());
    }

    #[test]
    fn head_names_a_branch_and_nothing_else() {
        let (dir, refs, signature) = setup();
        let tag = RefName::tag("v1").unwrap();
        assert!(matches!(refs.set_head(dir.path(), &tag, &signature), Err(Error::NotABranch(_))));
        fs::write(dir.path().join("HEAD"), "ref: refs/tags/v1\n").unwrap();
        assert!(matches!(refs.head(), Err(Error::Corrupt(_))));
    }

    #[test]
    fn tags_come_back_with_their_message() {
        let position = Position { timeline: TimelineId::random(), lsn: Lsn(77) };
        for message in [None, Some("one\n\ntwo".to_owned())] {
            let tag = Value::Tag(Tag { position, time_us: 9, message });
            assert_eq!(Value::parse(RefKind::Tag, &tag.format()), Some(tag));
        }
        for text in ["", "x\n", "0123 0/1\ntime 3\n"] {
            assert_eq!(Value::parse(RefKind::Tag, text), None);
        }
    }
}
