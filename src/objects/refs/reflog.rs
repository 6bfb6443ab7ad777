//! What became of a ref, and who did it.
//!
//! # Format
//! A line for each change: `<old timeline> <new timeline> <microseconds since 1970> <who>`, a tab, and
//! why. An absent ref is 32 zeroes. White space in `who` and newlines in `why` become `_` and a space.

use std::path::Path;

use super::{Error, is_absent};
use crate::objects::file_error::cannot;
use crate::objects::timeline::TimelineId;
use crate::objects::{durable, regular};

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
    /// Returns the line, without its end.
    pub fn format(&self) -> String {
        let id = |id: Option<TimelineId>| id.map_or_else(|| ABSENT.to_owned(), |id| id.to_string());
        let who = self.who.replace(char::is_whitespace, "_");
        let why = self.why.replace(['\n', '\r'], " ");
        format!("{} {} {} {who}\t{why}", id(self.old), id(self.new), self.time_us)
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
        durable::append_line(path, &entry.format())
    };
    append().map_err(cannot::<Error>("write", path))
}

/// Reads all changes, the newest first. Lines that do not read like one, such as what a crash left
/// of the last, are passed over.
pub fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    match regular::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().rev().filter_map(Entry::parse).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(cannot::<Error>("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_error_keeps_what_the_system_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop");
        std::os::unix::fs::symlink("loop", &path).unwrap();
        let Err(Error::Io(error)) = read(&path) else { panic!("a loop was read") };
        assert_eq!(error.source.raw_os_error(), Some(nix::libc::ELOOP));
    }

    #[test]
    fn a_torn_line_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/refs/main");
        let entry = |time_us| Entry { old: None, new: None, time_us, who: "me".to_owned(), why: "test".to_owned() };
        append(&path, &entry(1)).unwrap();
        let whole = fs::read(&path).unwrap();
        append(&path, &entry(2)).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, [&whole[..], &whole[..length]].concat()).unwrap();
            append(&path, &entry(3)).unwrap();
            let times: Vec<i64> = read(&path).unwrap().iter().map(|entry| entry.time_us).collect();
            assert_eq!((times[0], times[times.len() - 1]), (3, 1), "{length} bytes of a torn line");
        }
    }
}
