//! What a command is, and what it is handed: below the commands, as the table of them (`cli`) is above.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command as Clap};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, User, geteuid};

use crate::error::{CmdResult, CommandError};
use crate::objects::format::Shared;
use crate::objects::lock::Patience;
use crate::objects::{Repo, repo};
use crate::plumbing::postgres::account::{Account, postgres};
use crate::plumbing::postgres::find::{self, Binaries, Search};
use crate::plumbing::postgres::settings::is_ours;
use crate::ui::{self, Ui};

/// Whom a command is for, and where `zenith help` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Begin,
    Grow,
    Run,
    Examine,
    Maintain,
    /// Plumbing that changes the repository.
    Manipulate,
    /// Plumbing that only looks.
    Interrogate,
}

impl Group {
    /// All groups in the order of the help: those for people, then the plumbing.
    pub const ALL: [Group; 7] =
        [Group::Begin, Group::Grow, Group::Run, Group::Examine, Group::Maintain, Group::Manipulate, Group::Interrogate];

    /// Returns the heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Begin => "start a repository",
            Group::Grow => "grow and mark your history",
            Group::Run => "run PostgreSQL on any version",
            Group::Examine => "examine the history and state",
            Group::Maintain => "help and maintenance",
            Group::Manipulate => "plumbing: change the repository",
            Group::Interrogate => "plumbing: interrogate the repository",
        }
    }

    /// Returns whether the group is for scripts.
    pub fn is_plumbing(self) -> bool {
        matches!(self, Group::Manipulate | Group::Interrogate)
    }
}

/// A command.
pub struct Command {
    pub name: &'static str,
    pub group: Group,
    /// Returns its definition.
    pub clap: fn() -> Clap,
    /// Does it and prints the answer.
    pub run: fn(&mut Cx, &ArgMatches) -> CmdResult,
}

impl Command {
    /// Returns whether it changes the repository or runs servers, whatever its words; others may, with some.
    pub fn changes(&self) -> bool {
        let looks =
            ["psql", "url", "service-file", "pageserver", "pg", "restore", "hash-wal", "read-snapshot", "repack"];
        let always =
            matches!(self.group, Group::Run | Group::Manipulate) || ["snapshot", "migrate"].contains(&self.name);
        always && !looks.contains(&self.name)
    }
}

/// Finds the repository that the user named, or the one that `folder` lies in. One that belongs to somebody else has to be named:
/// whoever made it in a folder that others work below, such as `/tmp`, would have his programs run as them.
fn find_repo(named: Option<&Path>, folder: &Path) -> Result<PathBuf, CommandError> {
    let dir = named.map_or_else(|| Repo::locate(folder), Repo::locate_in)?;
    let owner = std::fs::metadata(&dir)?.uid();
    // Nor does somebody's link lead to another one of ours.
    let maker = std::fs::symlink_metadata(&dir)?.uid();
    if named.is_none() && (!is_ours(owner) || maker != owner) {
        let owner = if is_ours(owner) { maker } else { owner };
        let user = name_of(owner.into()).unwrap_or_else(|| owner.to_string());
        let refused = format!("the repository '{}' belongs to another user: {user}", dir.display());
        let hint = format!("if you trust that user, name it: zenith --repo '{}'", dir.display());
        return Err(CommandError::refused(refused).hint(hint));
    }
    Ok(dir)
}

/// Has root, who can run PostgreSQL as nobody but the OS user `postgres`, become that user for what is that user's, and before a
/// command `changes` anything.
fn enter(dir: &Path, changes: bool) -> CmdResult {
    let owner = Uid::from_raw(std::fs::metadata(dir)?.uid());
    let is_theirs = || postgres().is_some_and(|user| user.uid == owner);
    // Other folders have such files, too.
    let is_repository = ["timelines", "objects", "refs"].iter().all(|name| dir.join(name).is_dir());
    let may_own = changes && owner.is_root() && is_repository;
    if !geteuid().is_root() || !(is_theirs() || may_own) {
        return Ok(());
    }
    // Who needs an account and gets none is told then.
    Account::detect().map_or(Ok(()), |account| Ok(account.enter(dir, may_own)?))
}

/// Returns whose a repository is, if that is somebody else than root, who could do nothing any more with what root makes there.
fn foreign_owner(dir: &Path, shared: Shared) -> Result<Option<String>, CommandError> {
    let owner = std::fs::metadata(dir)?.uid();
    if !geteuid().is_root() || is_ours(owner) || shared == Shared::Group {
        return Ok(None);
    }
    Ok(Some(name_of(owner.into()).unwrap_or_else(|| format!("#{owner}"))))
}

/// What a command works with.
pub struct Cx {
    /// Standard output: the answer, and nothing else.
    pub out: Box<dyn Write>,
    pub ui: Ui,
    /// The folder that the command is about.
    pub folder: PathBuf,
    /// `--repo`
    pub repo_dir: Option<PathBuf>,
    /// `--pg-bin`
    pub pg_bin: Option<PathBuf>,
    /// The time at which the command began, in the user's zone.
    pub now: jiff::Zoned,
    /// All commands, in the order of the help.
    pub commands: &'static [Command],
    /// Returns the definition of the whole program.
    pub program: fn() -> Clap,
    /// The command changes the repository, or runs servers.
    pub changes: bool,
    /// The user's umask; see [`Cx::as_the_user`].
    pub umask: Mode,
    pub repo: Option<Repo>,
}

/// Until the repository says otherwise, what is written is its user's alone.
pub const PRIVATE: Mode = Mode::from_bits_truncate(0o077);

impl Cx {
    /// Returns the repository, found and opened at the first call.
    pub fn repo(&mut self) -> Result<&Repo, CommandError> {
        if self.repo.is_none() {
            let dir = self.find()?;
            let repo = Repo::open(&dir)?;
            let repo = match foreign_owner(repo.dir(), repo.config().core.shared)? {
                None => repo,
                Some(owner) if self.changes => {
                    return Err(repo::Error::Foreign { dir: repo.dir().to_owned(), owner }.into());
                }
                Some(owner) => repo.of_somebody_else(owner),
            };
            let repo = repo.with_patience(Patience::default().heeding(self.ui.stop_flag()));
            self.share(repo.config().core.shared);
            self.repo = Some(repo);
        }
        Ok(self.repo.as_ref().expect("set above"))
    }

    fn find(&self) -> Result<PathBuf, CommandError> {
        let dir = find_repo(self.repo_dir.as_deref(), &self.folder)?;
        enter(&dir, self.changes)?;
        Ok(dir)
    }

    /// Returns the folder of the repository, which may be of another format, and may be written to by this user.
    pub fn locate(&self) -> Result<PathBuf, CommandError> {
        let dir = self.find()?;
        match foreign_owner(&dir, Shared::No)? {
            Some(owner) => Err(repo::Error::Foreign { dir, owner }.into()),
            None => Ok(dir),
        }
    }

    /// Has files made with the modes that they have in a repository that is shared so.
    pub fn share(&self, shared: Shared) {
        umask(Mode::from_bits_truncate(shared.umask().into()));
    }

    /// Does what the user could have done without zenith: with the user's umask.
    pub fn as_the_user<T>(&self, work: impl FnOnce() -> T) -> T {
        let own = umask(self.umask);
        let done = work();
        umask(own);
        done
    }

    /// Opens the repository, for commands that print while they use it.
    pub fn take_repo(&mut self) -> Result<Repo, CommandError> {
        self.repo()?;
        Ok(self.repo.take().expect("opened above"))
    }

    /// Finds PostgreSQL's programs: those that the user or the repository's config names, else the
    /// newest of the wanted version.
    pub fn binaries(&self, repo: Option<&Repo>) -> Result<Binaries, CommandError> {
        Ok(find::find(&Search {
            explicit: self.pg_bin.clone(),
            configured: repo.and_then(|repo| repo.config().postgres.bin.clone()),
            path: std::env::var_os("PATH"),
            major: repo.map(|repo| repo.config().postgres_major),
        })?)
    }

    /// Returns who does this and when, for the reflog.
    pub fn sign(&self, why: impl Into<String>) -> crate::objects::refs::Signature {
        crate::objects::refs::Signature {
            who: os_user(),
            time_us: self.now.timestamp().as_microsecond(),
            why: why.into(),
        }
    }

    /// Makes standard output one for bytes that are no text.
    pub fn print_bytes(&mut self) {
        self.out = ui::binary_stdout();
    }

    /// Prints a line on what was done, for people; not with `--quiet`.
    pub fn say(&mut self, text: impl std::fmt::Display) -> CmdResult {
        if !self.ui.is_quiet() {
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    /// Prints a value as one line of JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> CmdResult {
        serde_json::to_writer(&mut self.out, value).map_err(std::io::Error::from)?;
        Ok(writeln!(self.out)?)
    }
}

/// Returns the name of an OS user, if the system knows one.
fn name_of(user: Uid) -> Option<String> {
    User::from_uid(user).ok().flatten().map(|user| user.name)
}

/// Returns the name of the OS user.
pub fn os_user() -> String {
    name_of(geteuid()).or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "postgres".to_owned())
}

/// Completes words with names from the repository of the current folder: fast, and silent where
/// there is none.
pub mod complete {
    use clap_complete::engine::CompletionCandidate;

    use crate::objects::Repo;
    use crate::objects::refs::RefKind;

    fn names(kinds: &[RefKind]) -> Vec<CompletionCandidate> {
        let named = std::env::var_os("ZENITH_DIR").map(std::path::PathBuf::from);
        let Ok(dir) = super::find_repo(named.as_deref(), ".".as_ref()) else { return Vec::new() };
        let Ok(repo) = Repo::open(&dir) else { return Vec::new() };
        let refs = kinds.iter().flat_map(|kind| repo.refs().list(*kind).unwrap_or_default());
        refs.map(|(name, _)| CompletionCandidate::new(name.short())).collect()
    }

    /// Completes branches.
    pub fn branch() -> Vec<CompletionCandidate> {
        names(&[RefKind::Branch])
    }

    /// Completes tags.
    pub fn tag() -> Vec<CompletionCandidate> {
        names(&[RefKind::Tag])
    }

    /// Completes whatever can begin a revision.
    pub fn revision() -> Vec<CompletionCandidate> {
        let mut names = names(&[RefKind::Branch, RefKind::Tag, RefKind::Remote]);
        names.push(CompletionCandidate::new("HEAD"));
        names
    }
}
