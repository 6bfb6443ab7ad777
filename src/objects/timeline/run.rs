//! The run of a server on a timeline: from when its WAL is laid out until all of that is sealed.
//!
//! # Format
//! `timelines/<id>/run` is text, one line: `began <LSN>`, where the timeline ended when the run began, and behind that the word `alone`
//! where its servers never let physical replication in. As long as the file is there, the folder of the active WAL may have what
//! nothing else has. It lies beside that folder, so that it is there when what was in the folder is gone. (Before, it was an empty
//! file `laid-out` in the folder itself.)

use std::io;
use std::path::Path;

use super::{Error, TimelineId, Timelines};
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::{bounded, durable};

const FILE: &str = "run";
const FORMER: &str = "laid-out";

/// A run whose WAL may not be sealed yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Where the timeline ended when it began, if that is known.
    pub began: Option<Lsn>,
    /// No standby has received any of its WAL: its servers let no physical replication in.
    pub alone: bool,
}

impl Run {
    /// Reads the line of one. One that cannot be understood began somewhere.
    fn parse(text: &str) -> Run {
        let mut words = text.split_whitespace();
        let began = words.next().filter(|word| *word == "began").and(words.next());
        Run { began: began.and_then(|lsn| lsn.parse().ok()), alone: words.eq(["alone"]) }
    }

    fn format(self) -> String {
        let began = self.began.map(|lsn| format!("began {lsn}"));
        let words: Vec<String> = began.into_iter().chain(self.alone.then(|| "alone".to_owned())).collect();
        words.join(" ") + "\n"
    }
}

impl Timelines {
    /// Notes that a server is about to be started on a timeline, durably. Its WAL is laid out.
    pub fn begin_run(&self, tmp: &Path, id: TimelineId, run: Run) -> Result<(), Error> {
        let path = self.path(id).join(FILE);
        durable::replace(tmp, &path, run.format().as_bytes()).map_err(cannot::<Error>("write", &path))
    }

    /// Returns the run that began last, unless it has ended.
    pub fn run(&self, id: TimelineId) -> Result<Option<Run>, Error> {
        let path = self.path(id).join(FILE);
        match bounded::read_to_string(&path, bounded::ORIGIN) {
            Ok(text) => Ok(Some(Run::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(Run::default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let former = self.wal_dir(id).join(FORMER);
                let is_there = former.try_exists().map_err(cannot::<Error>("look for", &former))?;
                Ok(is_there.then(Run::default))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_comes_back_and_what_is_not_understood_is_not_known() {
        let whole = Run { began: Some(Lsn(0x0200_00A0)), alone: true };
        assert_eq!(whole.format(), "began 0/20000A0 alone\n");
        for run in [whole, Run { alone: false, ..whole }, Run::default()] {
            assert_eq!(Run::parse(&run.format()), run);
        }
        assert_eq!(Run::parse("began x"), Run::default());
        // As written by an earlier version, for which the server's log had to tell.
        assert_eq!(Run::parse("began 0/20000A0 log 1+7 boot 3f2a"), Run { alone: false, ..whole });
    }
}
