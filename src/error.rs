//! The only place that says how bad an error is, and what to do about it.
//!
//! Library errors are plain; a `From` for each picks the class and adds hints.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

use crate::objects::refs::{self, revision};
use crate::objects::{format, lock, repo, store, timeline, trash};
use crate::plumbing::datadir::{self, WalFilesError};
use crate::plumbing::postgres;
use crate::plumbing::postgres::process::{Process, lockers};
use crate::progress::Interrupted;

/// How bad; the numbers are the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Not found, taken, not possible now.
    Refused = 1,
    /// The words of the command are wrong.
    Usage = 2,
    /// Stored data is damaged.
    Corrupt = 3,
    /// The user pressed Ctrl-C.
    Interrupted = 130,
    /// Nobody reads the output any more: not an error.
    BrokenPipe = 0,
}

/// What a command failed with.
#[derive(Debug)]
pub struct CommandError {
    pub class: Class,
    pub source: Box<dyn StdError + Send + Sync>,
    pub hints: Vec<String>,
}

/// What a command returns.
pub type CmdResult = Result<(), CommandError>;

impl CommandError {
    /// An error of `class`.
    pub fn new(class: Class, source: impl Into<Box<dyn StdError + Send + Sync>>) -> CommandError {
        CommandError { class, source: source.into(), hints: Vec::new() }
    }

    /// Something is refused, for a reason that needs no type of its own.
    pub fn refused(text: impl Into<String>) -> CommandError {
        CommandError::new(Class::Refused, text.into())
    }

    /// The command's words are wrong.
    pub fn usage(text: impl Into<String>) -> CommandError {
        CommandError::new(Class::Usage, text.into())
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }

    /// Returns the error and its causes on one line.
    pub fn text(&self) -> String {
        let mut text = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            // A transparent error says the same as its cause.
            let said = error.to_string();
            if !text.ends_with(&said) {
                let _ = write!(text, ": {said}");
            }
            cause = error.source();
        }
        text
    }
}

fn disk_hint(mut error: CommandError) -> CommandError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error.source);
    while let Some(found) = cause {
        if let Some(io) = found.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::StorageFull => {
                    error.hints.push("free some space and run the command again; nothing was lost".to_owned());
                }
                io::ErrorKind::ReadOnlyFilesystem => error.hints.push("the file system is read-only".to_owned()),
                io::ErrorKind::BrokenPipe => error.class = Class::BrokenPipe,
                _ => {}
            }
            break;
        }
        cause = found.source();
    }
    error
}

impl From<Interrupted> for CommandError {
    fn from(error: Interrupted) -> CommandError {
        CommandError::new(Class::Interrupted, error)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> CommandError {
        let class = if error.kind() == io::ErrorKind::InvalidData { Class::Corrupt } else { Class::Refused };
        disk_hint(CommandError::new(class, error))
    }
}

impl From<lock::Error> for CommandError {
    fn from(error: lock::Error) -> CommandError {
        match error {
            lock::Error::Interrupted(error) => error.into(),
            lock::Error::Busy { ref path, .. } => {
                let lockers = lockers(path).unwrap_or_default();
                let hint = lockers.first().map_or("wait for it, or end it".to_owned(), |locker| what_to_do(*locker));
                CommandError::new(Class::Refused, error).hint(hint)
            }
            lock::Error::Io(_) => disk_hint(CommandError::new(Class::Refused, error)),
        }
    }
}

/// Returns what to do about a process that has a lock.
fn what_to_do(process: Process) -> String {
    let pid = process.pid;
    let command = process.command().map(|command| format!(" ({command})")).unwrap_or_default();
    match process.is_suspended() {
        true => format!("process {pid}{command} has it, and is suspended: kill -CONT {pid} lets it go on"),
        false => format!("process {pid}{command} has it: wait for that, or end it"),
    }
}

impl From<repo::Error> for CommandError {
    fn from(error: repo::Error) -> CommandError {
        if let repo::Error::Lock(error) = error {
            return error.into();
        }
        let hint = match &error {
            repo::Error::Foreign { dir, owner } => {
                Some(format!("act as that user: runuser -u {owner} -- zenith --repo '{}' ...", dir.display()))
            }
            repo::Error::NotFound(_) => Some("create one: zenith init".to_owned()),
            repo::Error::Lacks { file: "HEAD", .. } => {
                Some("write into it: ref: refs/branches/NAME, with a branch that is in its refs/branches".to_owned())
            }
            repo::Error::Lacks { .. } => Some("bring that file back from a backup or another copy".to_owned()),
            repo::Error::Within(_) => Some("choose a folder outside of it".to_owned()),
            repo::Error::NotUtf8(_) => Some("give the folder a name that is text: mv".to_owned()),
            repo::Error::Format { source: format::Error::Version(2) | format::Error::Migrating, .. } => {
                Some("bring it to the format of this one: zenith migrate".to_owned())
            }
            repo::Error::Format { source: format::Error::Version(_), .. } => {
                Some("use the version of zenith that made it".to_owned())
            }
            repo::Error::Format { source: format::Error::Setting(_) | format::Error::Syntax(_), path } => {
                Some(format!("correct it in '{}'", path.join("config").display()))
            }
            _ => None,
        };
        let class = match &error {
            repo::Error::Store(error) if error.is_corruption() => Class::Corrupt,
            repo::Error::Lacks { .. } => Class::Corrupt,
            _ => Class::Refused,
        };
        let error = disk_hint(CommandError::new(class, error));
        hint.into_iter().fold(error, CommandError::hint)
    }
}

impl From<store::Error> for CommandError {
    fn from(error: store::Error) -> CommandError {
        if error.is_corruption() {
            return CommandError::new(Class::Corrupt, error).hint("see what else is damaged: zenith fsck");
        }
        disk_hint(CommandError::new(Class::Refused, error))
    }
}

impl From<timeline::Error> for CommandError {
    fn from(error: timeline::Error) -> CommandError {
        if let timeline::Error::Lock(error) = error {
            return error.into();
        }
        let is_damaged = match &error {
            timeline::Error::Corrupt { .. } => true,
            // A timeline has all of its files.
            timeline::Error::Io(error) => error.verb == "read" && error.source.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        if is_damaged {
            return CommandError::new(Class::Corrupt, error).hint("see what else is damaged: zenith fsck");
        }
        disk_hint(CommandError::new(Class::Refused, error))
    }
}

impl From<trash::Error> for CommandError {
    fn from(error: trash::Error) -> CommandError {
        let class = if matches!(error, trash::Error::Damaged(_)) { Class::Corrupt } else { Class::Refused };
        let is_unknown = matches!(error, trash::Error::Unknown(_) | trash::Error::Ambiguous(_));
        let error = CommandError::new(class, error);
        if is_unknown { error.hint("see what there is: zenith trash") } else { error }
    }
}

impl From<refs::BadName> for CommandError {
    fn from(error: refs::BadName) -> CommandError {
        CommandError::new(Class::Refused, error)
    }
}

impl From<refs::Error> for CommandError {
    fn from(error: refs::Error) -> CommandError {
        if let refs::Error::Lock(error) = error {
            return error.into();
        }
        let hint = match &error {
            refs::Error::Exists(name) => Some(format!("choose another name, or see it: zenith show {}", name.short())),
            refs::Error::Unknown(_) => Some("see what there is: zenith show-ref".to_owned()),
            refs::Error::Stale { .. } => Some("somebody else changed it; look again, then repeat".to_owned()),
            refs::Error::NotABranch(_) => Some("name one: zenith symbolic-ref refs/branches/NAME".to_owned()),
            refs::Error::Corrupt(_) => Some(
                "its log, in the repository's folder logs/, says what it was: remove the file, then zenith update-ref"
                    .to_owned(),
            ),
            _ => None,
        };
        let class = if matches!(error, refs::Error::Corrupt(_)) { Class::Corrupt } else { Class::Refused };
        let error = disk_hint(CommandError::new(class, error));
        hint.into_iter().fold(error, CommandError::hint)
    }
}

impl From<revision::Error> for CommandError {
    fn from(error: revision::Error) -> CommandError {
        let hint = match &error {
            revision::Error::Unknown { near, .. } if near.is_empty() => {
                Some("see what there is: zenith show-ref".to_owned())
            }
            revision::Error::Unknown { near, .. } => Some(format!("did you mean {}?", near.join(", "))),
            revision::Error::Syntax { .. } => Some("see how revisions are written: REVISIONS in zenith(1)".to_owned()),
            revision::Error::BeyondEnd { end, .. } => Some(format!("the newest position is @{end}")),
            revision::Error::BeforeStart { start, .. } | revision::Error::TimeBeforeStart { start, .. } => {
                Some(format!("the oldest position is @{start}"))
            }
            _ => None,
        };
        let error = match error {
            revision::Error::Refs(error) => return error.into(),
            revision::Error::Timeline(error) => return error.into(),
            revision::Error::Wal { .. } => CommandError::new(Class::Corrupt, error),
            other => CommandError::new(Class::Refused, other),
        };
        hint.into_iter().fold(error, CommandError::hint)
    }
}

impl From<datadir::Error> for CommandError {
    fn from(error: datadir::Error) -> CommandError {
        match error {
            datadir::Error::Interrupted(error) => error.into(),
            datadir::Error::Store(error) => error.into(),
            datadir::Error::Changed { .. } => {
                CommandError::new(Class::Refused, error).hint("stop its server first, or use pg_basebackup")
            }
            datadir::Error::Journal { .. } | datadir::Error::Layer { .. } => CommandError::new(Class::Corrupt, error),
            other => disk_hint(CommandError::new(Class::Refused, other)),
        }
    }
}

impl From<WalFilesError> for CommandError {
    fn from(error: WalFilesError) -> CommandError {
        match error {
            WalFilesError::Timeline(error) => error.into(),
            WalFilesError::Store(error) => error.into(),
            WalFilesError::Repo(error) => error.into(),
            WalFilesError::Files(error) => error.into(),
            WalFilesError::Lock(error) => error.into(),
            WalFilesError::EndInDoubt { end, .. } => {
                let hint = format!(
                    "nothing was removed. Put the missing files back; or, if what lay behind {end} is lost for good, \
                     accept that end: zenith stop --accept-end {end} BRANCH"
                );
                CommandError::new(Class::Corrupt, error).hint(hint)
            }
            WalFilesError::Unreadable { .. } => disk_hint(CommandError::new(Class::Refused, error)),
            WalFilesError::Damaged { .. } | WalFilesError::Missing { .. } => CommandError::new(Class::Corrupt, error),
        }
    }
}

impl From<postgres::Error> for CommandError {
    fn from(error: postgres::Error) -> CommandError {
        if let postgres::Error::Interrupted(error) = error {
            return error.into();
        }
        let hint = error.hint();
        let error = disk_hint(CommandError::new(Class::Refused, error));
        hint.into_iter().fold(error, CommandError::hint)
    }
}
