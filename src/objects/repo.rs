//! A repository: finds, opens and creates it, and looks into its WAL.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use tempfile::{NamedTempFile, TempDir};

use super::clone::{self, Folder};
use super::format::{self, Config};
use super::lock::{self, Mode, Patience};
use super::pg::Lsn;
use super::pg::version::Version;
use super::pg::wal::{Expected, WalError, WalReader, What};
use super::refs::Refs;
use super::store::{self, Store};
use super::timeline::wal::{Segments, TimelineWal};
use super::timeline::{self, CloneId, Timeline, TimelineId, Timelines};
use super::trash::Trash;
use super::{bounded, durable, folder, mode, regular};
use crate::objects::file_error::{FileError, cannot};

/// The name of the folder.
pub const FOLDER: &str = ".zenith";
/// Keeps a repository that lies in a git working tree out of that: `git status` is quiet, `git clean` spares it. Whoever
/// wants it otherwise empties the file.
const GITIGNORE: &str = ".gitignore";
const HIDDEN_FROM_GIT: &[u8] = b"*\n";

/// A repository cannot be found, opened or created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not a zenith repository (or any of the parent folders): '{}'", .0.display())]
    NotFound(PathBuf),
    #[error("not a zenith repository: '{}'", .0.display())]
    NotThere(PathBuf),
    #[error("the repository '{}' is damaged: it has no {file}", dir.display())]
    Lacks { dir: PathBuf, file: &'static str },
    #[error("there is a repository already: '{}'", .0.display())]
    Exists(PathBuf),
    /// PostgreSQL's settings, of which the command that seals WAL is one, are text.
    #[error("the path {0:?} is not UTF-8, so servers cannot work with it")]
    NotUtf8(PathBuf),
    #[error("the repository '{}' belongs to {owner}, who could not use what root makes there", dir.display())]
    Foreign { dir: PathBuf, owner: String },
    #[error("'{}' lies in the repository, and would be taken for a part of that", .0.display())]
    Within(PathBuf),
    #[error("cannot use the repository '{}'", path.display())]
    Format { path: PathBuf, source: format::Error },
    #[error(transparent)]
    Io(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// An open repository.
pub struct Repo {
    dir: PathBuf,
    config: Config,
    store: Store,
    refs: Refs,
    timelines: Timelines,
    patience: Patience,
    tmp: OnceLock<Tmp>,
    /// Whose it is, if nothing may be written to it for that.
    foreign: Option<String>,
}

/// This process's folder `tmp/NAME/`, and its lock `tmp/NAME.lock`: others see by that that it is in use,
/// and it goes with the process, whatever ends that. The folder is there only while the lock file is, so it
/// never looks abandoned for a moment, and never stays unnoticed.
struct Tmp {
    // In this order they are removed.
    dir: TempDir,
    _lock: NamedTempFile,
}

impl Tmp {
    /// Makes them in `tmp`.
    fn make(tmp: &Path) -> io::Result<Tmp> {
        loop {
            let lock = tempfile::Builder::new()
                .prefix("z-")
                .suffix(".lock")
                .permissions(durable::by_umask())
                .tempfile_in(tmp)?;
            // Before it is locked, another process may take it for an orphan; then that removes it.
            let is_ours = match lock.as_file().try_lock() {
                Err(fs::TryLockError::Error(error)) => return Err(error),
                tried => tried.is_ok() && lock.path().exists(),
            };
            let name = lock.path().file_stem().filter(|_| is_ours);
            if let Some(name) = name {
                let dir = tempfile::Builder::new().prefix(name).rand_bytes(0).tempdir_in(tmp)?;
                return Ok(Tmp { dir, _lock: lock });
            }
        }
    }
}

/// Returns the path from the root on. Through `..` the way is that of the system, which follows links and mounts.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    let found = if goes_up { fs::canonicalize(path) } else { std::path::absolute(path) };
    found.map_err(cannot::<Error>("find", path))
}

impl Repo {
    /// Returns the folder of the repository that `start` lies in, or is.
    pub fn locate(start: &Path) -> Result<PathBuf, Error> {
        let start = absolute(start)?;
        for folder in start.ancestors() {
            if let Some(found) = Repo::in_folder(folder)? {
                return Ok(found);
            }
        }
        Err(Error::NotFound(start))
    }

    /// Returns the folder of the repository that the folder `dir` is, or has in it, and no other: whoever names one means that one.
    pub fn locate_in(dir: &Path) -> Result<PathBuf, Error> {
        let dir = absolute(dir)?;
        Repo::in_folder(&dir)?.ok_or(Error::NotThere(dir))
    }

    fn in_folder(folder: &Path) -> Result<Option<PathBuf>, Error> {
        let is_repository = |dir: &Path| dir.join("config").is_file() && dir.join("HEAD").is_file();
        let inside = folder.join(FOLDER);
        if is_repository(&inside) {
            return Ok(Some(inside));
        }
        if inside.join("timelines").is_dir() {
            let gone = ["config", "HEAD"].into_iter().find(|name| !inside.join(name).is_file());
            return Err(Error::Lacks { dir: inside, file: gone.unwrap_or("config") });
        }
        Ok((is_repository(folder) && folder.join("timelines").is_dir()).then(|| folder.to_owned()))
    }

    /// Reads the config of the repository in `dir`, as it is now.
    pub fn read_config(dir: &Path) -> Result<Config, Error> {
        let path = dir.join("config");
        let text = bounded::read_to_string(&path, bounded::CONFIG).map_err(cannot::<Error>("read", &path))?;
        Config::parse(&text).map_err(|source| Error::Format { path: dir.to_owned(), source })
    }

    /// Writes what `change` makes of the config as it is now. Others who change it wait meanwhile, so that no change is
    /// lost.
    pub fn change_config<E: From<Error>>(&self, change: impl FnOnce(&str) -> Result<String, E>) -> Result<(), E> {
        let path = self.dir.join("config");
        // Refused where nothing may be written, before the lock is made.
        self.tmp()?;
        // Not the config itself, which is another file after each change.
        let held = self.patience.open(&self.dir.join("config.lock"), Mode::Exclusive).map_err(Error::Lock)?;
        let text = bounded::read_to_string(&path, bounded::CONFIG).map_err(cannot::<Error>("read", &path))?;
        let text = change(&text)?;
        durable::replace(self.tmp()?, &path, text.as_bytes()).map_err(cannot::<Error>("write", &path))?;
        drop(held);
        Ok(())
    }

    /// Checks that a repository may lie in `dir`.
    pub fn check_path(dir: &Path) -> Result<(), Error> {
        dir.to_str().map(drop).ok_or_else(|| Error::NotUtf8(dir.to_owned()))
    }

    /// Opens the repository in `dir`, the folder `.zenith` itself.
    pub fn open(dir: &Path) -> Result<Repo, Error> {
        Repo::check_path(dir)?;
        let config = Repo::read_config(dir)?;
        mode::repair(dir, config.core.shared).map_err(cannot::<Error>("change the modes of", dir))?;
        Ok(Repo {
            store: Store::open(&dir.join("objects")).with_segment_size(config.wal_segment_size),
            refs: Refs::open(dir),
            timelines: Timelines::open(&dir.join("timelines")),
            patience: Patience::default(),
            tmp: OnceLock::new(),
            foreign: None,
            dir: dir.to_owned(),
            config,
        })
    }

    /// Creates the repository `parent/.zenith`, without timelines, HEAD on the branch `main`. It appears
    /// whole or not at all; one that is there already is left alone.
    pub fn create(parent: &Path, config: &Config) -> Result<Repo, Error> {
        let dir = parent.join(FOLDER);
        if dir.exists() {
            return Err(Error::Exists(dir));
        }
        let create = || {
            if !parent.is_dir() {
                durable::create_dir_all(parent)?;
            }
            let prepared = tempfile::Builder::new().prefix(".zenith-").tempdir_in(parent)?;
            let path = prepared.path();
            mode::close(path, config.core.shared)?;
            for folder in ["objects/pack", "refs/branches", "refs/tags", "timelines", "datadirs", "instances", "tmp"] {
                durable::create_dir_all(&path.join(folder))?;
            }
            let tmp = path.join("tmp");
            durable::replace(&tmp, &path.join("HEAD"), b"ref: refs/branches/main\n")?;
            durable::replace(&tmp, &path.join("config"), config.format().as_bytes())?;
            durable::replace(&tmp, &path.join(GITIGNORE), HIDDEN_FROM_GIT)?;
            durable::publish_dir(path, &dir)?;
            let _ = prepared.keep();
            io::Result::Ok(())
        };
        create().map_err(cannot::<Error>("create", &dir))?;
        Repo::open(&dir)
    }

    /// Replaces the config of the repository in `dir`, which nobody else uses, and opens it.
    pub fn reopen_with(dir: &Path, config: &Config) -> Result<Repo, Error> {
        let path = dir.join("config");
        let written = durable::replace(&dir.join("tmp"), &path, config.format().as_bytes());
        written.map_err(cannot::<Error>("write", &path))?;
        Repo::open(dir)
    }

    /// Returns the folder of the repository.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn refs(&self) -> &Refs {
        &self.refs
    }

    pub fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    /// Returns how long it waits for locks.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Returns it for somebody who waits for locks with `patience`.
    pub fn with_patience(self, patience: Patience) -> Repo {
        Repo {
            refs: self.refs.with_patience(patience.clone()),
            timelines: self.timelines.with_patience(patience.clone()),
            patience,
            ..self
        }
    }

    /// Returns it for root, who writes nothing to it, since it belongs to `owner`.
    pub fn of_somebody_else(self, owner: String) -> Repo {
        Repo { foreign: Some(owner), ..self }
    }

    /// Returns whether it is somebody else's, for root, who does nothing in it that its owner could lead elsewhere.
    pub fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// Refuses to lock or write anything in somebody else's.
    pub fn check_own(&self) -> Result<(), Error> {
        match &self.foreign {
            Some(owner) => Err(Error::Foreign { dir: self.dir.clone(), owner: owner.clone() }),
            None => Ok(()),
        }
    }

    /// Returns the id of the clone that this repository is; a new one in a folder that is not the one it is bound to.
    pub fn clone_id(&self) -> Result<CloneId, Error> {
        let failed = cannot::<Error>("tell which clone is", &self.dir);
        match Folder::of(&self.dir).and_then(|folder| clone::known(&self.dir, &folder)) {
            Ok(Some(id)) => return Ok(id),
            Ok(None) => {}
            Err(error) => return Err(failed(error)),
        }
        let tmp = self.tmp()?;
        let _held = self.patience.open(&self.dir.join("config.lock"), Mode::Exclusive)?;
        clone::establish(&self.dir, tmp).map_err(failed)
    }

    pub fn trash(&self) -> Trash {
        Trash::open(&self.dir)
    }

    /// Returns the folder of the data directory of a timeline's instance.
    pub fn datadir(&self, timeline: TimelineId) -> PathBuf {
        self.dir.join("datadirs").join(timeline.to_string())
    }

    /// Returns whether a timeline has a data directory. One that cannot be looked for is not taken for gone.
    pub fn has_datadir(&self, timeline: TimelineId) -> Result<bool, Error> {
        let dir = self.datadir(timeline);
        dir.try_exists().map_err(cannot::<Error>("look for", &dir))
    }

    /// Returns a folder for this process's unfinished files, and removes those of processes that
    /// are gone.
    pub fn tmp(&self) -> Result<&Path, Error> {
        if let Some(tmp) = self.tmp.get() {
            return Ok(tmp.dir.path());
        }
        // Whatever is written begins here.
        self.check_own()?;
        let tmp = self.dir.join("tmp");
        let make = || {
            folder::make_in_place(&tmp)?;
            remove_orphans(&tmp)?;
            let gitignore = self.dir.join(GITIGNORE);
            // Of a repository that was made without one.
            if !gitignore.exists() {
                durable::replace(&tmp, &gitignore, HIDDEN_FROM_GIT)?;
            }
            Tmp::make(&tmp)
        };
        let made = make().map_err(cannot::<Error>("write in", &tmp))?;
        Ok(self.tmp.get_or_init(|| made).dir.path())
    }

    /// Returns what the pages of the repository's WAL must say.
    pub fn expected_wal(&self) -> Expected {
        let version = Version::of_major(self.config.postgres_major).expect("invariant: checked when it was made");
        Expected { version, segment_size: self.config.wal_segment_size, system_identifier: self.config.system() }
    }

    /// Refuses the folder `dir`, which may have to be made yet, as a place for files that are not the repository's.
    pub fn refuse_within(&self, dir: &Path) -> Result<(), Error> {
        let real = dir.ancestors().find_map(|above| fs::canonicalize(above).ok());
        let own = fs::canonicalize(&self.dir).map_err(cannot::<Error>("look for", &self.dir))?;
        if real.is_some_and(|real| real.starts_with(own)) { Err(Error::Within(dir.to_owned())) } else { Ok(()) }
    }

    /// Returns the active segments of a timeline. PostgreSQL's own timeline id stays 1: every zenith
    /// timeline goes on where its ancestor ended, by plain crash recovery.
    pub fn active_segments(&self, timeline: TimelineId, postgres_timeline: u32) -> Segments {
        Segments::new(self.timelines.wal_dir(timeline), postgres_timeline, self.config.wal_segment_size)
    }

    /// Returns the sealed WAL of a timeline's chain from `from` on.
    pub fn sealed_wal<'a>(&'a self, timeline: &Timeline, from: Lsn) -> Result<TimelineWal<'a>, timeline::Error> {
        TimelineWal::open(&self.store, &self.timelines, timeline, from, None)
    }

    /// Returns the first LSN of a timeline's chain at which a server can be started.
    pub fn first_usable(&self, timeline: &Timeline) -> Result<Lsn, timeline::Error> {
        let root = match timeline.origin.parent() {
            Some(parent) => self.timelines.read(self.timelines.root(parent.timeline)?)?,
            None => timeline.clone(),
        };
        let first = root.snapshots.listed.iter().map(|snapshot| snapshot.lsn).min();
        first.ok_or(timeline::Error::NoSnapshot { timeline: root.id, lsn: timeline.sealed() })
    }

    /// Returns when the oldest snapshot of a timeline's chain was written, microseconds since 1970.
    pub fn made_us(&self, timeline: &Timeline) -> Result<Option<i64>, timeline::Error> {
        let first = self.first_usable(timeline)?;
        let root = self.timelines.read(self.timelines.root(timeline.id)?)?;
        let line = root.snapshots.listed.iter().find(|snapshot| snapshot.lsn == first);
        Ok(line.and_then(|line| self.store.snapshot(&line.object).ok()).map(|snapshot| snapshot.time_us))
    }

    /// Returns the end of the last whole record at or before `lsn`, which lies in the sealed WAL.
    pub fn whole_record_before(&self, timeline: &Timeline, lsn: Lsn) -> Result<Lsn, WalError> {
        // A boundary that the log knows: the interval's own, if that is what was asked for.
        let known = timeline.log.wal.iter().map(|interval| interval.whole).filter(|whole| *whole <= lsn).max();
        let known = known.or_else(|| timeline.origin.start()).or_else(|| self.first_usable(timeline).ok());
        let Some(known) = known.filter(|known| *known != lsn) else { return Ok(lsn) };
        if known > lsn {
            return Ok(lsn);
        }
        let failed = |error: timeline::Error| WalError { lsn, what: What::Io(io::Error::other(error)) };
        let source = self.sealed_wal(timeline, known.segment_start(self.config.wal_segment_size)).map_err(failed)?;
        let mut reader = WalReader::new(source, self.expected_wal(), known);
        let mut whole = known;
        loop {
            match reader.read() {
                Ok(record) if record.end <= lsn => whole = record.end,
                Ok(_) => return Ok(whole),
                // The sealed WAL may end amid a record.
                Err(error) if matches!(error.what, What::End) => return Ok(whole),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns where the first commit after `time_us` begins on a timeline's chain, before `end`. Costs the records
    /// of the interval that holds it, and of those that the chain has only in part.
    pub fn commit_after(&self, timeline: &Timeline, end: Lsn, time_us: i64) -> Result<Option<Lsn>, WalError> {
        let failed = |error: timeline::Error| WalError { lsn: end, what: What::Io(io::Error::other(error)) };
        // A record that ends in an interval may begin in those before; the last whole one before is where
        // reading can begin.
        let mut known = self.first_usable(timeline).map_err(failed)?;
        for (_, interval) in self.timelines.wal(timeline, Lsn(0), end).map_err(failed)? {
            if interval.commit_us.is_some_and(|commit_us| commit_us > time_us) {
                let found = self.commit_between(timeline, known, interval.whole, time_us)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            known = known.max(interval.whole);
        }
        Ok(None)
    }

    /// Returns where the first commit after `time_us` begins among the records from `from` to `to`, at both of which
    /// one ends.
    fn commit_between(&self, timeline: &Timeline, from: Lsn, to: Lsn, time_us: i64) -> Result<Option<Lsn>, WalError> {
        let failed = |error: timeline::Error| WalError { lsn: from, what: What::Io(io::Error::other(error)) };
        let source = self.sealed_wal(timeline, from.segment_start(self.config.wal_segment_size)).map_err(failed)?;
        let mut reader = WalReader::new(source, self.expected_wal(), from);
        let mut before = from;
        while before < to {
            let record = reader.read()?;
            if record.commit().is_some_and(|commit| commit.time_us > time_us) {
                return Ok(Some(before));
            }
            before = record.end;
        }
        Ok(None)
    }
}

fn remove_orphans(tmp: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tmp)?.flatten() {
        let lock_path = entry.path().with_extension("lock");
        // Held until both are gone.
        let lock = match regular::open(&lock_path) {
            Ok(lock) if lock.try_lock().is_ok() => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            _ => continue,
        };
        // Another process may be faster. The folder goes first, so that it has a lock file as long as it is there.
        let _ = fs::remove_dir_all(lock_path.with_extension(""));
        if lock.is_some() {
            let _ = fs::remove_file(&lock_path);
        }
    }
    Ok(())
}
