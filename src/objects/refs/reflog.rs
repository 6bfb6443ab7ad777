//! What became of a ref, and who did it.
//!
//! # Format
//! A line for each change: `<old timeline> <new timeline> <microseconds since 1970> <who>`, a tab, and
//! why. An absent ref is 32 zeroes. White space in `who` and newlines in `why` become `_` and a space.

use std::fs;
use std::io;
use std::path::Path;

use super::{Error, io_error, is_absent};
use crate::objects::durable;
use crate::objects::timeline::TimelineId;

const ABSENT: &str = "00000000000000000000000000000000";

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub old: Option<TimelineId>,
    pub new: Option<TimelineId>,
    pub time_us: i64,
    pub who: String,
    pub why: String,
}

impl Entry {
    /// Returns the line.
    pub fn format(&self) -> String {
        let id = |id: Option<TimelineId>| id.map_or_else(|| ABSENT.to_owned(), |id| id.to_string());
        let who = self.who.replace(char::is_whitespace, "_");
        let why = self.why.replace(['\n', '\r'], " ");
        format!("{} {} {} {who}\t{why}\n", id(self.old), id(self.new), self.time_us)
    }

    /// Reads a line, without its end.
    pub fn parse(line: &str) -> Option<Entry> {
        let (head, why) = line.split_once('\t')?;
        let mut fields = head.split(' ');
        let mut id = || match fields.next()? {
            ABSENT => Some(None),
            id => id.parse().ok().map(Some),
        };
        let (old, new) = (id()?, id()?);
        Some(Entry {
            old,
            new,
            time_us: fields.next()?.parse().ok()?,
            who: fields.next()?.to_owned(),
            why: why.to_owned(),
        })
    }
}

/// Appends a change.
pub fn append(path: &Path, entry: &Entry) -> Result<(), Error> {
    let append = || {
        durable::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        durable::append(path, entry.format().as_bytes())
    };
    append().map_err(io_error("write", path))
}

/// Reads all changes, the newest first. Lines that do not read like one, such as what a crash left
/// of the last, are passed over.
pub fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().rev().filter_map(Entry::parse).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(io_error("read", path)(io::Error::from(error.kind()))),
    }
}
