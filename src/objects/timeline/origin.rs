//! Where a timeline comes from, and who writes to it.
//!
//! # Format
//! `timelines/<id>/origin` never changes. It is text, a line for each of these, in this order:
//! * `depth <n>`: how many ancestors the timeline has;
//! * `parent <timeline id> <LSN>`: where it forks, unless the depth is 0;
//! * `jump <timeline id> <LSN>`: an ancestor further up, and the LSN at which the way from here leaves it; unless the depth is 0;
//! * `writer <clone id>`: the clone that adds WAL to it;
//! * `time <microseconds since 1970>`: when it was made.
//!
//! The jumps are those of a skew-binary list (E. W. Myers, "An applicative random-access stack", 1983): a timeline jumps to where
//! its parent's jump leads by its own, if those two jumps are equally far, else to its parent. Any ancestor is
//! found in a number of reads that grows with the logarithm of the depth.

use std::fmt::Write;
use std::str::{FromStr, Lines};

use super::TimelineId;
use crate::objects::codec::Malformed;
use crate::objects::pg::Lsn;

/// A position: an LSN on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Position {
    pub timeline: TimelineId,
    #[serde(serialize_with = "serialize_lsn")]
    pub lsn: Lsn,
}

fn serialize_lsn<S: serde::Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.timeline, self.lsn)
    }
}

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Position, Malformed> {
        let malformed = Malformed { offset: 0, what: "not a timeline and an LSN" };
        text.split_once('@').and_then(position).ok_or(malformed)
    }
}

fn position((timeline, lsn): (&str, &str)) -> Option<Position> {
    Some(Position { timeline: timeline.parse().ok()?, lsn: lsn.parse().ok()? })
}

/// The way up from a timeline that is no root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Up {
    /// Where it forks.
    pub parent: Position,
    /// An ancestor, and where the way from here leaves it.
    pub jump: Position,
}

/// Where a timeline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The number of its ancestors.
    pub depth: u64,
    /// `None` for a root.
    pub up: Option<Up>,
    /// The clone that adds WAL to it.
    pub writer: CloneId,
    /// When it was made, microseconds since 1970.
    pub time_us: i64,
}

/// The id of a clone of a repository: that of a timeline has the same form.
pub type CloneId = TimelineId;

impl Origin {
    /// Returns that of a timeline without ancestors.
    pub fn root(writer: CloneId, time_us: i64) -> Origin {
        Origin { depth: 0, up: None, writer, time_us }
    }

    /// Returns where the timeline forks; `None` for a root.
    pub fn parent(&self) -> Option<Position> {
        self.up.map(|up| up.parent)
    }

    /// Returns where the timeline's own WAL begins; `None` for a root.
    pub fn start(&self) -> Option<Lsn> {
        self.parent().map(|parent| parent.lsn)
    }

    /// Reads the text. The error is the number of the bad line, counted from 1, and what is wrong.
    pub fn parse(text: &str) -> Result<Origin, (usize, &'static str)> {
        let mut lines = text.lines();
        let depth = field(&mut lines, "depth").and_then(|depth| depth.parse().ok()).ok_or((1, "expected the depth"))?;
        let mut up = None;
        if depth > 0 {
            let mut place = |name| field(&mut lines, name).and_then(|place| position(place.split_once(' ')?));
            let parent = place("parent").ok_or((2, "expected the parent, a timeline id and an LSN"))?;
            let jump = place("jump").ok_or((3, "expected a jump, a timeline id and an LSN"))?;
            if jump.lsn > parent.lsn {
                return Err((3, "jumps forward"));
            }
            up = Some(Up { parent, jump });
        }
        let number = if depth > 0 { 4 } else { 2 };
        let writer =
            field(&mut lines, "writer").and_then(|id| id.parse().ok()).ok_or((number, "expected the writer"))?;
        let time = field(&mut lines, "time").and_then(|time| time.parse().ok());
        let time_us = time.ok_or((number + 1, "expected the time"))?;
        match lines.next() {
            None if text.ends_with('\n') => Ok(Origin { depth, up, writer, time_us }),
            None => Err((number + 1, "cut off")),
            Some(_) => Err((number + 2, "expected nothing more")),
        }
    }

    /// Returns the text.
    pub fn format(&self) -> String {
        let Origin { depth, up, writer, time_us } = self;
        let mut text = format!("depth {depth}\n");
        if let Some(Up { parent, jump }) = up {
            let _ = writeln!(text, "parent {} {}", parent.timeline, parent.lsn); // text takes all
            let _ = writeln!(text, "jump {} {}", jump.timeline, jump.lsn);
        }
        text + &format!("writer {writer}\ntime {time_us}\n")
    }
}

/// Returns what stands behind `name` in the next line.
fn field<'a>(lines: &mut Lines<'a>, name: &str) -> Option<&'a str> {
    lines.next()?.strip_prefix(name)?.strip_prefix(' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(n: u8, lsn: u64) -> Position {
        Position { timeline: TimelineId::from_bytes([n; 16]), lsn: Lsn(lsn) }
    }

    #[test]
    fn text_comes_back_and_bad_lines_are_named() {
        let writer = TimelineId::from_bytes([9; 16]);
        let root = Origin::root(writer, -5);
        let child = Origin { depth: 3, up: Some(Up { parent: at(2, 20), jump: at(1, 10) }), writer, time_us: 7 };
        for origin in [root, child] {
            assert_eq!(Origin::parse(&origin.format()), Ok(origin));
            let text = origin.format();
            assert!(Origin::parse(&text[..text.len() - 1]).is_err());
            assert!(Origin::parse(&format!("{text}more\n")).is_err());
        }
        assert_eq!(Origin::parse(""), Err((1, "expected the depth")));
        let text = child.format().replace("0/A", "0/15");
        assert_eq!(Origin::parse(&text), Err((3, "jumps forward")));
    }

    proptest! {
        #[test]
        fn arbitrary_text_gives_an_origin_or_an_error(text: String) {
            let _ = Origin::parse(&text);
        }
    }
}
