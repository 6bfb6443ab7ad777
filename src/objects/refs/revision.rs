//! Revisions: what a user types to name a timeline and an LSN.
//!
//! ```text
//! revision = base suffix*
//! base     = HEAD | @ | branch | tag | remote/branch | refs/… | 4 or more digits of a timeline id
//! suffix   = ~n            the fork point n timelines back
//!          | @0/15ECF68    an LSN
//!          | @{0/15ECF68} | @{2026-11-20 12:00+01} | @{5 minutes ago} | @{yesterday} | @{3}
//! ```
//! Suffixes apply from left to right. A number in braces is, as in git, the n-th value of the
//! branch before this one.

use jiff::{Span, Timestamp, Zoned, civil};

use super::reflog::Entry;
use super::{RefKind, RefName, Value};
use crate::objects::pg::Lsn;
use crate::objects::pg::wal::WalError;
use crate::objects::repo::Repo;
use crate::objects::timeline::{self, Position, Timeline, TimelineId};

/// A revision, read but not looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    pub base: String,
    pub suffixes: Vec<Suffix>,
}

/// One step from the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suffix {
    /// `~n`
    Forks(u64),
    /// `@LSN`
    At(Lsn),
    /// `@{time}`, microseconds since 1970.
    Time(i64),
    /// `@{n}`
    Previous(usize),
}

/// A revision, looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub position: Position,
    /// The ref that the base names, if it names one.
    pub name: Option<RefName>,
    /// Whether the position is that of the ref itself, without suffixes.
    pub exact: bool,
}

/// A revision cannot be read or does not lead anywhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{text}' is not a revision: {what}")]
    Syntax { text: String, what: String },
    #[error("unknown revision '{name}'")]
    Unknown { name: String, near: Vec<String> },
    #[error("'{revision}' has no past: its timeline has {forks} forks behind it")]
    NoSuchFork { revision: String, forks: u64 },
    #[error("'{revision}' names {lsn}, but timeline {timeline} ends at {end}")]
    BeyondEnd { revision: String, lsn: Lsn, timeline: TimelineId, end: Lsn },
    #[error("'{revision}' names {lsn}, but the history begins at {start}")]
    BeforeStart { revision: String, lsn: Lsn, start: Lsn },
    #[error("'{revision}' lies before the oldest state of the history, at {start}")]
    TimeBeforeStart { revision: String, start: Lsn },
    #[error("the log of '{name}' has only {count} entries")]
    NoSuchEntry { name: String, count: usize },
    #[error("cannot look into the WAL of timeline {timeline}")]
    Wal { timeline: TimelineId, source: WalError },
    #[error(transparent)]
    Refs(#[from] super::Error),
    #[error(transparent)]
    Timeline(#[from] timeline::Error),
}

impl Revision {
    /// Reads a revision. Times without a zone are of `now`'s zone.
    pub fn parse(text: &str, now: &Zoned) -> Result<Revision, Error> {
        let wrong = |what: &str| Error::Syntax { text: text.to_owned(), what: what.to_owned() };
        let is_head = text == "@" || text.starts_with("@~") || text.starts_with("@@") || text.starts_with("@{");
        let end =
            if is_head { usize::from(!text.starts_with("@{")) } else { text.find(['~', '@']).unwrap_or(text.len()) };
        let base = if is_head { "HEAD" } else { &text[..end] };
        if base.is_empty() {
            return Err(wrong("it names nothing"));
        }
        let (mut rest, mut suffixes) = (&text[end..], Vec::new());
        while !rest.is_empty() {
            let (suffix, after) = if let Some(after) = rest.strip_prefix('~') {
                let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                let count = if digits == 0 { Ok(1) } else { after[..digits].parse() };
                (Suffix::Forks(count.map_err(|_| wrong("the number after '~' is too large"))?), &after[digits..])
            } else if let Some(after) = rest.strip_prefix("@{") {
                let close = after.find('}').ok_or_else(|| wrong("a '}' is missing"))?;
                (braces(text, after[..close].trim(), now)?, &after[close + 1..])
            } else if let Some(after) = rest.strip_prefix('@') {
                let length = after.find(['~', '@']).unwrap_or(after.len());
                let lsn = after[..length].parse().map_err(|error| wrong(&format!("{error}")))?;
                (Suffix::At(lsn), &after[length..])
            } else {
                return Err(wrong("expected '~' or '@' after the name"));
            };
            suffixes.push(suffix);
            rest = after;
        }
        Ok(Revision { base: base.to_owned(), suffixes })
    }
}

/// Reads what stands between the braces of `@{…}`.
fn braces(text: &str, inner: &str, now: &Zoned) -> Result<Suffix, Error> {
    if let Ok(lsn) = inner.parse() {
        return Ok(Suffix::At(lsn));
    }
    if let Ok(number) = inner.parse() {
        return Ok(Suffix::Previous(number));
    }
    let what = || format!("'{inner}' is neither an LSN nor a time, such as 2026-11-20 12:00:00+01 or 5 minutes ago");
    parse_time(inner, now).map(Suffix::Time).ok_or_else(|| Error::Syntax { text: text.to_owned(), what: what() })
}

/// Reads a time: an instant, a date, a date and time of `now`'s zone, a span ago, or a word.
/// Returns microseconds since 1970.
pub fn parse_time(text: &str, now: &Zoned) -> Option<i64> {
    let midnight = || now.start_of_day().ok();
    let zoned = match text {
        "now" => Some(now.clone()),
        "today" => midnight(),
        "yesterday" => midnight()?.checked_sub(Span::new().days(1)).ok(),
        _ => None,
    };
    let ago = || {
        text.ends_with("ago").then(|| text.parse::<Span>().ok()).flatten().and_then(|span| now.checked_add(span).ok())
    };
    // PostgreSQL prints an offset in hours, and a space between date and time.
    let instant = || text.parse::<Timestamp>().ok().or_else(|| format!("{text}:00").parse::<Timestamp>().ok());
    let civil = || text.parse::<civil::DateTime>().ok().and_then(|time| time.to_zoned(now.time_zone().clone()).ok());
    let zoned = zoned.or_else(ago);
    let time = match zoned {
        Some(zoned) => zoned.timestamp(),
        None => match instant() {
            Some(instant) => instant,
            None => civil()?.timestamp(),
        },
    };
    Some(time.as_microsecond())
}

/// Looks up a revision.
pub fn resolve(repo: &Repo, text: &str, now: &Zoned) -> Result<Resolved, Error> {
    let revision = Revision::parse(text, now)?;
    let mut gone = None;
    loop {
        match look_up(repo, text, &revision, now) {
            // A branch leaves a timeline before that is removed: look where it is now.
            Err(Error::Timeline(timeline::Error::Unknown(id))) if gone != Some(id) => gone = Some(id),
            resolved => return resolved,
        }
    }
}

fn look_up(repo: &Repo, text: &str, revision: &Revision, now: &Zoned) -> Result<Resolved, Error> {
    let (name, mut position) = base(repo, &revision.base)?;
    // The WAL between a position and the tip of the timeline is known only for a whole timeline.
    for suffix in &revision.suffixes {
        position = match suffix {
            Suffix::Previous(number) => previous(repo, &revision.base, name.as_ref(), *number)?,
            Suffix::Forks(count) => {
                let back = repo.timelines().forks_back(position, *count)?;
                back.map_err(|forks| Error::NoSuchFork { revision: text.to_owned(), forks })?
            }
            Suffix::At(lsn) => at_lsn(repo, text, position, *lsn)?,
            // Whatever the server's clock said: all that there is has been.
            Suffix::Time(time_us) if *time_us >= now.timestamp().as_microsecond() => position,
            Suffix::Time(time_us) => at_time(repo, text, position, *time_us)?,
        };
    }
    Ok(Resolved { position, name, exact: revision.suffixes.is_empty() })
}

/// Returns what the ref is by which a revision begins, or that it begins with none.
pub fn base_value(repo: &Repo, text: &str, now: &Zoned) -> Option<Value> {
    let base = Revision::parse(text, now).ok()?.base;
    names_of(repo, &base).ok()?.iter().find_map(|name| repo.refs().read(name).ok()?)
}

/// Returns the refs that a base may name, in the order in which they are looked for.
fn names_of(repo: &Repo, base: &str) -> Result<Vec<RefName>, Error> {
    Ok(if base == "HEAD" {
        vec![repo.refs().head()?]
    } else if base.starts_with("refs/") {
        vec![RefName::full(base).map_err(super::Error::from)?]
    } else {
        let kinds = [RefKind::Tag, RefKind::Branch, RefKind::Remote];
        kinds.into_iter().filter_map(|kind| RefName::new(kind, base).ok()).collect()
    })
}

/// Returns the position of the base: that of a tag, or the tip of a timeline.
fn base(repo: &Repo, base: &str) -> Result<(Option<RefName>, Position), Error> {
    let refs = repo.refs();
    for name in names_of(repo, base)? {
        match refs.read(&name)? {
            Some(Value::Tag(tag)) => return Ok((Some(name), tag.position)),
            Some(Value::Branch(_)) => {
                if let Some(tip) = tip(repo, &name)? {
                    return Ok((Some(name), tip));
                }
            }
            None => {}
        }
    }
    match repo.timelines().resolve_prefix(base)? {
        Some(id) => Ok((None, repo.timelines().read(id)?.tip())),
        None => Err(Error::Unknown { name: base.to_owned(), near: near(repo, base) }),
    }
}

/// Returns the tip of a branch; `None` if there is no such branch by now.
pub fn tip(repo: &Repo, branch: &RefName) -> Result<Option<Position>, Error> {
    let mut gone = None;
    loop {
        let Some(value) = repo.refs().read(branch)? else { return Ok(None) };
        match repo.timelines().read(value.timeline()) {
            // A branch leaves a timeline before that is removed: look where it is now.
            Err(timeline::Error::Unknown(id)) if gone != Some(id) => gone = Some(id),
            timeline => return Ok(Some(timeline?.tip())),
        }
    }
}

/// Returns the names of refs that look like `name`, the nearest first.
fn near(repo: &Repo, name: &str) -> Vec<String> {
    let kinds = [RefKind::Branch, RefKind::Tag, RefKind::Remote];
    let all = kinds.into_iter().flat_map(|kind| repo.refs().list(kind).unwrap_or_default());
    let mut near: Vec<(f64, String)> = all
        .map(|(known, _)| (strsim::jaro_winkler(known.short(), name), known.short().to_owned()))
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Returns what a ref, or `HEAD`, has been, the newest change first: its log without the timelines that are gone,
/// which were those of epochs that left nothing behind. The n-th is what `@{n}` stands for.
pub fn past(repo: &Repo, name: &str) -> Result<Vec<Entry>, Error> {
    let mut past: Vec<Entry> = Vec::new();
    let mut passed_over = false;
    for mut entry in repo.refs().reflog(name)?.into_iter().rev() {
        if entry.new.is_some_and(|id| repo.timelines().is_gone(id)) {
            passed_over = true;
            continue;
        }
        if std::mem::take(&mut passed_over) {
            entry.old = past.last().and_then(|last| last.new);
            if entry.old == entry.new {
                continue;
            }
        }
        past.push(entry);
    }
    past.reverse();
    Ok(past)
}

fn previous(repo: &Repo, base: &str, name: Option<&RefName>, number: usize) -> Result<Position, Error> {
    let name = name.map_or_else(|| base.to_owned(), |name| name.as_str().to_owned());
    let log = past(repo, if base == "HEAD" { "HEAD" } else { &name })?;
    let timeline = match number.checked_sub(1) {
        None => log.first().and_then(|entry| entry.new),
        Some(back) => log.get(back).and_then(|entry| entry.old),
    };
    match timeline {
        Some(id) => Ok(repo.timelines().read(id)?.tip()),
        None => Err(Error::NoSuchEntry { name, count: log.len() }),
    }
}

/// Returns `lsn` on the chain of a position, moved back to where a record ends.
fn at_lsn(repo: &Repo, text: &str, from: Position, lsn: Lsn) -> Result<Position, Error> {
    let revision = || text.to_owned();
    let timeline = repo.timelines().read(from.timeline)?;
    let end = if timeline.tip() == from { timeline.sealed() } else { from.lsn };
    if lsn > end {
        return Err(Error::BeyondEnd { revision: revision(), lsn, timeline: from.timeline, end });
    }
    let owner = repo.timelines().read(repo.timelines().canonical(Position { lsn, ..from })?.timeline)?;
    let first = repo.first_usable(&owner)?;
    if lsn < first {
        return Err(Error::BeforeStart { revision: revision(), lsn, start: first });
    }
    let whole = repo.whole_record_before(&owner, lsn).map_err(|source| Error::Wal { timeline: owner.id, source })?;
    Ok(repo.timelines().canonical(Position { lsn: whole.max(first), ..from })?)
}

/// Returns the position just before the first commit after `time_us`, or the position itself.
fn at_time(repo: &Repo, text: &str, from: Position, time_us: i64) -> Result<Position, Error> {
    let timeline: Timeline = repo.timelines().read(from.timeline)?;
    let first = repo.first_usable(&timeline)?;
    let found = repo.commit_after(&timeline, from.lsn, time_us);
    let lsn = found.map_err(|source| Error::Wal { timeline: timeline.id, source })?.unwrap_or(from.lsn);
    let too_early = lsn < first || repo.made_us(&timeline)?.is_some_and(|made_us| time_us < made_us);
    if too_early {
        return Err(Error::TimeBeforeStart { revision: text.to_owned(), start: first });
    }
    Ok(repo.timelines().canonical(Position { lsn, ..from })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-20T12:00:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    fn suffixes(text: &str) -> Vec<Suffix> {
        Revision::parse(text, &now()).unwrap().suffixes
    }

    #[test]
    fn reads_every_form() {
        let noon = now().timestamp().as_microsecond();
        assert_eq!(suffixes("main"), []);
        assert_eq!(suffixes("main~"), [Suffix::Forks(1)]);
        assert_eq!(suffixes("feature/x~2@0/15ECF68"), [Suffix::Forks(2), Suffix::At(Lsn(0x15ECF68))]);
        assert_eq!(suffixes("main@{0/10}~3"), [Suffix::At(Lsn(16)), Suffix::Forks(3)]);
        assert_eq!(suffixes("main@{2}"), [Suffix::Previous(2)]);
        for text in [
            "2026-11-20 12:00:00+01",
            "2026-11-20T11:00:00Z",
            "2026-11-20 12:00",
            "2026-11-20 12:00:00",
            "now",
            "2026-11-20 12:00:00.000000+01:00",
        ] {
            assert_eq!(suffixes(&format!("main@{{{text}}}")), [Suffix::Time(noon)], "{text}");
        }
        assert_eq!(suffixes("main@{5 minutes ago}"), [Suffix::Time(noon - 300_000_000)]);
        assert_eq!(suffixes("main@{1 day ago}"), [Suffix::Time(noon - 86_400_000_000)]);
        assert_eq!(suffixes("main@{today}"), [Suffix::Time(noon - 43_200_000_000)]);
        assert_eq!(suffixes("main@{2026-11-20}"), [Suffix::Time(noon - 43_200_000_000)]);
        for text in ["@", "@~2", "@{1}", "@@0/1"] {
            assert_eq!(Revision::parse(text, &now()).unwrap().base, "HEAD", "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_revision() {
        for text in ["", "~1", "main@", "main@{", "main@{soon}", "main@0", "main~99999999999999999999999"] {
            assert!(matches!(Revision::parse(text, &now()), Err(Error::Syntax { .. })), "{text:?}");
        }
    }
}
