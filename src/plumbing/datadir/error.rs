//! What can go wrong with a data directory.

use std::io;
use std::path::PathBuf;

use crate::objects::file_error::{FileError, of_system};
use crate::objects::lock;
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::{WalError, What};
use crate::objects::repo;
use crate::objects::store;
use crate::objects::timeline::{self, TimelineId};
use crate::progress::Interrupted;

/// A data directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] FileError),
    #[error("'{}' is a link to what whoever made it may not read: make it root's if you trust it (chown -h root)", .0.display())]
    Link(PathBuf),
    /// Somebody writes to it meanwhile.
    #[error("'{}' changed while it was read", path.display())]
    Changed { path: PathBuf },
    /// A file of a kind that a data directory does not have.
    #[error("'{}' is too large: a file of a snapshot has at most 32 TiB", path.display())]
    TooLarge { path: PathBuf },
    /// No reader would take it.
    #[error("'{}' cannot be part of a snapshot: {what}", path.display())]
    Unfit { path: PathBuf, what: &'static str },
    #[error("the tar stream is damaged")]
    Tar(#[source] io::Error),
    #[error("'{}' is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("'{}' is damaged", path.display())]
    Journal { path: PathBuf, source: crate::objects::codec::Malformed },
    /// What the journal says cannot have happened.
    #[error("the local layer '{}' is damaged: {what}", dir.display())]
    Layer { dir: PathBuf, what: &'static str },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// WAL cannot be sealed or laid out.
#[derive(Debug, thiserror::Error)]
pub enum WalFilesError {
    #[error("the WAL of timeline {timeline} is damaged")]
    Damaged { timeline: TimelineId, source: WalError },
    /// That says nothing of what it is like.
    #[error("the WAL of timeline {timeline} cannot be read")]
    Unreadable { timeline: TimelineId, source: WalError },
    /// INVARIANT 6.
    #[error("the WAL of timeline {timeline} seems to end at {end}, but {doubt}")]
    EndInDoubt { timeline: TimelineId, end: Lsn, doubt: Doubt },
    #[error("timeline {timeline} has no WAL from {from} to {to}")]
    Missing { timeline: TimelineId, from: Lsn, to: Lsn },
    #[error(transparent)]
    Timeline(#[from] timeline::Error),
    #[error(transparent)]
    Store(#[from] crate::objects::store::Error),
    #[error(transparent)]
    Repo(#[from] repo::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Files(#[from] Error),
}

impl WalFilesError {
    /// Returns that for WAL of a timeline in which a reader found `source`.
    pub fn of(timeline: TimelineId, source: WalError) -> WalFilesError {
        let is_of_the_system = matches!(&source.what, What::Io(error) if of_system(error).is_some());
        if is_of_the_system {
            WalFilesError::Unreadable { timeline, source }
        } else {
            WalFilesError::Damaged { timeline, source }
        }
    }
}

/// Why an end of the WAL is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("its segment {file} is missing or cut short")]
    Missing { file: String },
    #[error("pg_control says that there was WAL up to {upto} at least")]
    Control { upto: Lsn },
    #[error("pg_control, which could know of more, cannot be read: {why}")]
    ControlUnreadable { why: String },
}
