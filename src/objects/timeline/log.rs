//! What WAL a timeline holds, interval by interval.
//!
//! # Format
//! `timelines/<id>/log` is text, only ever appended to, a line for each interval:
//! `wal <start> <end> <object> <whole> <commit>`. The WAL of [start, end) is this object. `whole`
//! is the end of the last whole record at or before `end`; a record that begins there goes on in
//! the next interval. `commit` is the time of the latest commit whose record ends in the interval,
//! microseconds since 1970, or `-`.
//!
//! Intervals follow each other without a gap, so the logs that two clones have of one timeline are prefixes of each other. A last
//! line without a newline is what a crash left of an append that was not acknowledged; it does not count, and the next append
//! removes it.

use std::fmt;

use super::lines::whole_lines;
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

/// A timeline's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    pub wal: Vec<WalInterval>,
}

impl fmt::Display for WalInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WalInterval { start, end, object, whole, commit_us } = self;
        write!(f, "wal {start} {end} {object} {whole} ")?;
        match commit_us {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "-"),
        }
    }
}

impl WalInterval {
    fn parse(line: &str) -> Option<WalInterval> {
        let mut fields = line.strip_prefix("wal ")?.split(' ');
        let interval = WalInterval {
            start: fields.next()?.parse().ok()?,
            end: fields.next()?.parse().ok()?,
            object: fields.next()?.parse().ok()?,
            whole: fields.next()?.parse().ok()?,
            commit_us: match fields.next()? {
                "-" => None,
                time => Some(time.parse().ok()?),
            },
        };
        fields.next().is_none().then_some(interval)
    }
}

impl Log {
    /// Reads the whole lines of a log. The error is the number of the bad line, counted from 1, and what is wrong.
    pub fn parse(text: &[u8]) -> Result<Log, (usize, &'static str)> {
        let mut log = Log::default();
        for (number, line) in whole_lines(text) {
            let interval = line.and_then(WalInterval::parse).ok_or((number, "not a wal line"))?;
            log.push(interval).map_err(|what| (number, what))?;
        }
        Ok(log)
    }

    /// Adds an interval, unless it contradicts those before.
    pub fn push(&mut self, interval: WalInterval) -> Result<(), &'static str> {
        let impossible = interval.end.since(interval.start) > MAX_INTERVAL as u64 || interval.whole > interval.end;
        if interval.start >= interval.end || impossible {
            return Err("an impossible interval");
        }
        if self.sealed().is_some_and(|sealed| sealed != interval.start) {
            return Err("an interval that does not follow the one before");
        }
        self.wal.push(interval);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(start: u64, end: u64) -> WalInterval {
        let object = ObjectId([1; 32]);
        WalInterval { start: Lsn(start), end: Lsn(end), object, whole: Lsn(end), commit_us: Some(-3) }
    }

    #[test]
    fn text_comes_back_and_a_torn_line_does_not_count() {
        let text: String = [wal(8, 16), wal(16, 99)].iter().map(|line| format!("{line}\n")).collect();
        let log = Log::parse(format!("{text}wal 0/63 0/7").as_bytes()).unwrap();
        assert_eq!(log.wal, [wal(8, 16), wal(16, 99)]);
        assert_eq!(log.sealed(), Some(Lsn(99)));
    }

    #[test]
    fn an_interval_is_cut_with_all_that_it_says() {
        let cut = wal(8, 16).before(Lsn(12));
        assert_eq!((cut.start, cut.end, cut.whole, cut.commit_us), (Lsn(8), Lsn(12), Lsn(12), Some(-3)));
        assert_eq!(wal(8, 16).before(Lsn(99)), wal(8, 16));
    }

    #[test]
    fn gaps_and_garbage_are_named_by_line() {
        let text = format!("{}\n{}\n", wal(8, 16), wal(24, 32));
        assert_eq!(Log::parse(text.as_bytes()), Err((2, "an interval that does not follow the one before")));
        assert_eq!(Log::parse(b"hello\n"), Err((1, "not a wal line")));
        assert_eq!(Log::parse(b"\n"), Err((1, "not a wal line")));
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
