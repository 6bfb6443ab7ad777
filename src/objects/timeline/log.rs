//! What a timeline holds: its WAL, interval by interval, and its snapshots.
//!
//! # Format
//! `timelines/<id>/log` is text, only ever appended to:
//! * `wal <start> <end> <object> <whole> <commit>`: the WAL of [start, end) is this object. `whole`
//!   is the end of the last whole record at or before `end`; a record that begins there goes on in
//!   the next interval. `commit` is the time of the latest commit whose record ends in the interval,
//!   microseconds since 1970, or `-`.
//! * `snapshot <lsn> <object>`: the files as of that LSN.
//!
//! Intervals follow each other without a gap. A last line without a newline is what a crash left
//! of an append that was not acknowledged; it does not count, and the next append removes it.

use std::fmt;

use crate::objects::id::ObjectId;
use crate::objects::pg::Lsn;
use crate::objects::wal::MAX_INTERVAL;

/// A sealed interval of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalInterval {
    pub start: Lsn,
    pub end: Lsn,
    pub object: ObjectId,
    /// End of the last whole record at or before `end`.
    pub whole: Lsn,
    /// Time of the latest commit in it, microseconds since 1970. Of one that was [cut](WalInterval::before):
    /// no commit in it is later.
    pub commit_us: Option<i64>,
}

impl WalInterval {
    /// Returns the part before `upto`, where a record ends: all that a chain has of an interval at whose midst it
    /// leaves a timeline.
    pub fn before(self, upto: Lsn) -> WalInterval {
        WalInterval { end: self.end.min(upto), whole: self.whole.min(upto), ..self }
    }
}

/// A snapshot of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotLine {
    /// From here on it can be used.
    pub lsn: Lsn,
    pub object: ObjectId,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Wal(WalInterval),
    Snapshot(SnapshotLine),
}

/// A timeline's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    pub wal: Vec<WalInterval>,
    pub snapshots: Vec<SnapshotLine>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Wal(WalInterval { start, end, object, whole, commit_us }) => {
                write!(f, "wal {start} {end} {object} {whole} ")?;
                match commit_us {
                    Some(time) => write!(f, "{time}"),
                    None => write!(f, "-"),
                }
            }
            Line::Snapshot(SnapshotLine { lsn, object }) => write!(f, "snapshot {lsn} {object}"),
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut fields = line.split(' ');
        let parsed = match fields.next()? {
            "wal" => Line::Wal(WalInterval {
                start: fields.next()?.parse().ok()?,
                end: fields.next()?.parse().ok()?,
                object: fields.next()?.parse().ok()?,
                whole: fields.next()?.parse().ok()?,
                commit_us: match fields.next()? {
                    "-" => None,
                    time => Some(time.parse().ok()?),
                },
            }),
            "snapshot" => {
                Line::Snapshot(SnapshotLine { lsn: fields.next()?.parse().ok()?, object: fields.next()?.parse().ok()? })
            }
            _ => return None,
        };
        fields.next().is_none().then_some(parsed)
    }
}

impl Log {
    /// Reads the whole lines of a log. Returns it, and how many bytes they have. The error is the
    /// number of the bad line, counted from 1, and what is wrong.
    pub fn parse(text: &[u8]) -> Result<(Log, usize), (usize, &'static str)> {
        let length = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut log = Log::default();
        for (number, line) in text[..length].split(|&byte| byte == b'\n').enumerate() {
            if line.is_empty() && number > 0 {
                continue;
            }
            if line.is_empty() {
                break;
            }
            let line = std::str::from_utf8(line).ok().and_then(Line::parse);
            let line = line.ok_or((number + 1, "neither a wal nor a snapshot line"))?;
            log.push(line).map_err(|what| (number + 1, what))?;
        }
        Ok((log, length))
    }

    /// Adds a line, unless it contradicts those before.
    pub fn push(&mut self, line: Line) -> Result<(), &'static str> {
        match line {
            Line::Wal(interval) => {
                let impossible =
                    interval.end.since(interval.start) > MAX_INTERVAL as u64 || interval.whole > interval.end;
                if interval.start >= interval.end || impossible {
                    return Err("an impossible interval");
                }
                if self.sealed().is_some_and(|sealed| sealed != interval.start) {
                    return Err("an interval that does not follow the one before");
                }
                self.wal.push(interval);
            }
            Line::Snapshot(snapshot) => self.snapshots.push(snapshot),
        }
        Ok(())
    }

    /// Returns where the sealed WAL ends, perhaps amid a record.
    pub fn sealed(&self) -> Option<Lsn> {
        self.wal.last().map(|interval| interval.end)
    }

    /// Returns the end of the last whole record in the sealed WAL.
    pub fn tip(&self) -> Option<Lsn> {
        self.wal.last().map(|interval| interval.whole)
    }

    /// Returns the newest snapshot that can be used at `lsn`.
    pub fn snapshot_before(&self, lsn: Lsn) -> Option<SnapshotLine> {
        self.snapshots.iter().rev().filter(|snapshot| snapshot.lsn <= lsn).max_by_key(|snapshot| snapshot.lsn).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(start: u64, end: u64) -> Line {
        let object = ObjectId([1; 32]);
        Line::Wal(WalInterval { start: Lsn(start), end: Lsn(end), object, whole: Lsn(end), commit_us: Some(-3) })
    }

    #[test]
    fn text_comes_back_and_a_torn_line_does_not_count() {
        let lines = [wal(8, 16), Line::Snapshot(SnapshotLine { lsn: Lsn(16), object: ObjectId([2; 32]) }), wal(16, 99)];
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let torn = format!("{text}wal 0/63 0/7");
        let (log, length) = Log::parse(torn.as_bytes()).unwrap();
        assert_eq!((log.wal.len(), log.snapshots.len(), length), (2, 1, text.len()));
        assert_eq!(log.sealed(), Some(Lsn(99)));
    }

    #[test]
    fn an_interval_is_cut_with_all_that_it_says() {
        let Line::Wal(interval) = wal(8, 16) else { unreachable!() };
        let cut = interval.before(Lsn(12));
        assert_eq!((cut.start, cut.end, cut.whole, cut.commit_us), (Lsn(8), Lsn(12), Lsn(12), Some(-3)));
        assert_eq!(interval.before(Lsn(99)), interval);
    }

    #[test]
    fn gaps_and_garbage_are_named_by_line() {
        let text = format!("{}\n{}\n", wal(8, 16), wal(24, 32));
        assert_eq!(Log::parse(text.as_bytes()), Err((2, "an interval that does not follow the one before")));
        assert_eq!(Log::parse(b"hello\n"), Err((1, "neither a wal nor a snapshot line")));
        // Longer than any object: nobody is to ask for so much memory.
        let text = format!("{}\n", wal(8, 9 + MAX_INTERVAL as u64));
        assert_eq!(Log::parse(text.as_bytes()), Err((1, "an impossible interval")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_a_log_or_an_error(bytes: Vec<u8>) {
            let _ = Log::parse(&bytes);
        }
    }
}
