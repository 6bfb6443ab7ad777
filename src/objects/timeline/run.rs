//! The run of a server on a timeline: from when its WAL is laid out until all of that is sealed.
//!
//! # Format
//! `timelines/<id>/run` is text, one line: `began <LSN>`, where the timeline ended when the run began. As long as it is there, the
//! folder of the active WAL may have what nothing else has. It lies beside that folder, so that it is there when what was
//! in the folder is gone. (Before, it was an empty file `laid-out` in the folder itself.)

use std::io;
use std::path::Path;

use super::{Error, TimelineId, Timelines};
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::{bounded, durable};

const FILE: &str = "run";
const FORMER: &str = "laid-out";

/// A run whose WAL may not be sealed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where the timeline ended when it began, if that is known.
    pub began: Option<Lsn>,
}

impl Timelines {
    /// Notes that a server is about to be started on a timeline that ends at `began`, durably. Its WAL is laid out.
    pub fn begin_run(&self, tmp: &Path, id: TimelineId, began: Lsn) -> Result<(), Error> {
        let path = self.path(id).join(FILE);
        durable::replace(tmp, &path, format!("began {began}\n").as_bytes()).map_err(cannot::<Error>("write", &path))
    }

    /// Returns the run that began last, unless it has ended.
    pub fn run(&self, id: TimelineId) -> Result<Option<Run>, Error> {
        let path = self.path(id).join(FILE);
        match bounded::read_to_string(&path, bounded::ORIGIN) {
            // One that cannot be understood began somewhere.
            Ok(text) => {
                Ok(Some(Run { began: text.strip_prefix("began ").and_then(|lsn| lsn.trim_end().parse().ok()) }))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(Run { began: None })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let former = self.wal_dir(id).join(FORMER);
                let is_there = former.try_exists().map_err(cannot::<Error>("look for", &former))?;
                Ok(is_there.then_some(Run { began: None }))
            }
            Err(error) => Err(cannot::<Error>("read", &path)(error)),
        }
    }

    /// Ends the run, whose WAL is sealed or kept elsewhere, and empties the folder of the active WAL at once: a crash leaves all
    /// of it or nothing, never some segments.
    pub fn end_run(&self, tmp: &Path, id: TimelineId) -> Result<(), Error> {
        let (mark, wal) = (self.path(id).join(FILE), self.wal_dir(id));
        // First: without it what is left in the folder is what is sealed.
        durable::remove(&mark).map_err(cannot::<Error>("remove", &mark))?;
        durable::discard_dir(tmp, &wal).map_err(cannot::<Error>("remove", &wal))?;
        durable::create_dir_all(&wal.join("archive_status")).map_err(cannot::<Error>("create", &wal))
    }
}
