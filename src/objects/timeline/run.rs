//! The run of a server on a timeline: from when its WAL is laid out until all of that is sealed.
//!
//! # Format
//! `timelines/<id>/run` is text, one line: `began <LSN> log <inode>+<bytes> boot <id>`: where the timeline ended when the run began;
//! which file its server's log was then, and where the line is in it that says so; the id that the system gave its own start. Each of
//! the last two may be missing with its word. As long as the file is there, the folder of the active WAL may have what nothing else
//! has. It lies beside that folder, so that it is there when what was in the folder is gone. (Before, it was an empty file `laid-out`
//! in the folder itself.)

use std::io;
use std::path::Path;

use super::{Error, TimelineId, Timelines};
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::{bounded, durable};

const FILE: &str = "run";
const FORMER: &str = "laid-out";

/// A run whose WAL may not be sealed yet. What is not known of it is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// Where the timeline ended when it began.
    pub began: Option<Lsn>,
    /// The inode of its server's log, and where in that it begins, bytes.
    pub log: Option<(u64, u64)>,
    /// The id of the system's start: after another one, what that log says may have lost its end.
    pub boot: Option<String>,
}

impl Run {
    /// Reads the line of one. One that cannot be understood began somewhere.
    fn parse(text: &str) -> Run {
        let words: Vec<&str> = text.split_whitespace().collect();
        let value = |word: &str| words.chunks_exact(2).find(|pair| pair[0] == word).map(|pair| pair[1]);
        Run {
            began: value("began").and_then(|lsn| lsn.parse().ok()),
            log: value("log").and_then(|log| {
                let (inode, bytes) = log.split_once('+')?;
                Some((inode.parse().ok()?, bytes.parse().ok()?))
            }),
            boot: value("boot").map(str::to_owned),
        }
    }

    fn format(&self) -> String {
        let began = self.began.map(|lsn| format!("began {lsn}"));
        let log = self.log.map(|(inode, bytes)| format!("log {inode}+{bytes}"));
        let boot = self.boot.as_ref().map(|id| format!("boot {id}"));
        let words: Vec<String> = [began, log, boot].into_iter().flatten().collect();
        words.join(" ") + "\n"
    }
}

impl Timelines {
    /// Notes that a server is about to be started on a timeline, durably. Its WAL is laid out.
    pub fn begin_run(&self, tmp: &Path, id: TimelineId, run: &Run) -> Result<(), Error> {
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
        let whole = Run { began: Some(Lsn(0x0200_00A0)), log: Some((5, 77)), boot: Some("3f2a".to_owned()) };
        assert_eq!(whole.format(), "began 0/20000A0 log 5+77 boot 3f2a\n");
        for run in [whole.clone(), Run { log: None, boot: None, ..whole.clone() }, Run::default()] {
            assert_eq!(Run::parse(&run.format()), run);
        }
        assert_eq!(Run::parse("began x log 1+7"), Run { log: Some((1, 7)), ..Run::default() });
        assert_eq!(Run::parse("began x log 7 of another time"), Run::default());
    }
}
