//! `zenith log`: draws the history.

use std::collections::BTreeMap;
use std::io::Write;

use super::date;
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::pg::Lsn;
use crate::objects::refs::{RefKind, Value, revision};
use crate::objects::timeline::{Position, Timeline};
use crate::plumbing::rev_list::{All, Reachable, all_positions, rev_list};
use crate::plumbing::rev_parse::again_if_gone;
use crate::ui::{ID, STRONG, paint};

/// Show the history: tips, tags, fork points and snapshots, newest first
///
/// Without a revision, shows what HEAD comes from; with --graph or --all, all branches and tags.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith log\n  zenith log --graph --oneline\n  zenith log -n 3 --json main\n")]
pub struct Args {
    /// Draw the branches
    #[arg(long)]
    graph: bool,
    /// A line for each point
    #[arg(long)]
    oneline: bool,
    /// At most so many points
    #[arg(short = 'n', long = "max-count", value_name = "NUMBER")]
    limit: Option<usize>,
    /// Begin with all branches and tags
    #[arg(long)]
    all: bool,
    /// Print one line of JSON: a list of timeline, lsn, refs, forks, snapshot, time and parent
    #[arg(long)]
    json: bool,
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revisions: Vec<String>,
}

/// A place in the history that has something to say.
#[derive(Debug, Clone, serde::Serialize)]
struct Point {
    #[serde(flatten)]
    position: Position,
    /// `HEAD -> main`, `tag: v1`
    refs: Vec<String>,
    /// Timelines that fork here, by their short ids.
    forks: Vec<String>,
    snapshot: Option<String>,
    /// Of the last commit before, where one is known.
    #[serde(skip)]
    time_us: Option<i64>,
    time: Option<String>,
    parent: Option<Position>,
}

/// Points by timeline and LSN.
type Points = BTreeMap<(Lsn, usize), Point>;

/// Returns the points of all timelines that the positions reach, newest first, each with its parent.
fn points(repo: &Repo, positions: &[Position]) -> Result<Vec<Point>, CommandError> {
    let reachable = rev_list(repo, positions)?;
    let ends = reachable.iter().filter_map(|item| if let Reachable::Timeline(end) = item { Some(*end) } else { None });
    let mut timelines: Vec<(Timeline, Lsn)> =
        ends.map(|end| Ok((repo.timelines().read(end.timeline)?, end.lsn))).collect::<Result<_, CommandError>>()?;
    // Deeper ones first, so that of points at one LSN the ancestor's comes last.
    timelines.sort_by_key(|(timeline, _)| timeline.origin.depth);
    let number = |position: &Position| timelines.iter().position(|(timeline, _)| timeline.id == position.timeline);
    let mut points = Points::new();
    let mut at = |position: Position, change: &mut dyn FnMut(&mut Point)| {
        let Some(number) = number(&position) else { return };
        let new = || Point {
            position,
            refs: Vec::new(),
            forks: Vec::new(),
            snapshot: None,
            time_us: None,
            time: None,
            parent: None,
        };
        change(points.entry((position.lsn, number)).or_insert_with(new));
    };
    for position in positions {
        at(*position, &mut |_| {});
    }
    for (timeline, _) in &timelines {
        if let Some(parent) = timeline.origin.parent() {
            at(parent, &mut |point| point.forks.push(timeline.id.short()));
        }
    }
    for item in &reachable {
        if let Reachable::Snapshot { id, lsn, timeline } = item {
            at(Position { timeline: *timeline, lsn: *lsn }, &mut |point| point.snapshot = Some(id.to_string()));
        }
    }
    let head = repo.refs().head()?;
    for kind in [RefKind::Branch, RefKind::Remote, RefKind::Tag] {
        for (name, value) in repo.refs().list(kind)? {
            let (position, label) = match value {
                Value::Tag(tag) => (tag.position, format!("tag: {}", name.short())),
                Value::Branch(timeline) => {
                    // One that is gone is reported at the end.
                    let Ok(timeline) = repo.timelines().read(timeline) else { continue };
                    let prefix = if name == head { "HEAD -> " } else { "" };
                    (timeline.tip(), format!("{prefix}{}", name.short()))
                }
            };
            let within =
                timelines.iter().any(|(timeline, end)| timeline.id == position.timeline && position.lsn <= *end);
            if within {
                at(position, &mut |point| point.refs.push(label.clone()));
            }
        }
    }
    let keys: Vec<(Lsn, usize)> = points.keys().copied().collect();
    for (lsn, number) in keys {
        let timeline = &timelines[number].0;
        let below = points.range(..(lsn, number)).rev().find(|((_, other), _)| *other == number);
        let parent = below.map(|(_, point)| point.position).or(timeline.origin.parent());
        let interval =
            timeline.log.wal.iter().rev().find(|interval| interval.start < lsn && interval.commit_us.is_some());
        let point = points.get_mut(&(lsn, number)).expect("invariant: its own key");
        point.parent = parent;
        point.time_us = interval.and_then(|interval| interval.commit_us);
        point.time = point.time_us.map(|time| jiff::Timestamp::from_microsecond(time).unwrap_or_default().to_string());
    }
    Ok(points.into_values().rev().collect())
}

/// The columns of the graph: in each, the position that comes next in it.
#[derive(Default)]
struct Lanes {
    next: Vec<Position>,
}

impl Lanes {
    /// Returns the drawing left of a point, and the line that closes lanes before it, if any do.
    fn enter(&mut self, point: &Point) -> (Option<String>, usize) {
        let mine = |next: &Position| *next == point.position;
        let column = self.next.iter().position(mine).unwrap_or_else(|| {
            self.next.push(point.position);
            self.next.len() - 1
        });
        let closing = self.next.iter().skip(column + 1).filter(|next| mine(next)).count();
        let mut line = None;
        if closing > 0 {
            let drawn = self
                .next
                .iter()
                .enumerate()
                .map(|(number, next)| if number > column && mine(next) { "/ " } else { "| " });
            line = Some(drawn.collect::<String>().trim_end().replace("| /", "|/"));
            let mut number = 0;
            self.next.retain(|next| {
                number += 1;
                number <= column + 1 || !mine(next)
            });
        }
        (line, column)
    }

    fn draw(&self, column: usize, mark: &str) -> String {
        (0..self.next.len()).map(|number| if number == column { format!("{mark} ") } else { "| ".to_owned() }).collect()
    }

    fn leave(&mut self, column: usize, parent: Option<Position>) {
        match parent {
            Some(parent) => self.next[column] = parent,
            None => drop(self.next.remove(column)),
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let is_all = args.all || (args.graph && args.revisions.is_empty());
    let (all, mut points) = again_if_gone(|| {
        let mut all = if is_all { all_positions(&repo)? } else { All::default() };
        if !is_all && args.revisions.is_empty() {
            all.positions.push(revision::resolve(&repo, "HEAD", &now)?.position);
        }
        for text in &args.revisions {
            all.positions.push(revision::resolve(&repo, text, &now)?.position);
        }
        let points = points(&repo, &all.positions)?;
        Ok((all, points))
    })?;
    points.truncate(args.limit.unwrap_or(usize::MAX));
    if args.json {
        cx.json(&points)?;
        return all.check();
    }
    let mut lanes = Lanes::default();
    for point in &points {
        let (closed, column) = lanes.enter(point);
        let graph = |lanes: &Lanes, mark: &str| if args.graph { lanes.draw(column, mark) } else { String::new() };
        if let Some(line) = closed.filter(|_| args.graph) {
            writeln!(cx.out, "{line}")?;
        }
        let refs =
            if point.refs.is_empty() { String::new() } else { format!(" ({})", paint(STRONG, point.refs.join(", "))) };
        let short = format!("{}@{}", point.position.timeline.short(), point.position.lsn);
        let date = point.time_us.map(|time| date(time, &now));
        if args.oneline {
            let what = what(point);
            writeln!(cx.out, "{}{}{refs}{what}", graph(&lanes, "*"), paint(ID, short))?;
        } else {
            writeln!(cx.out, "{}{}{refs}", graph(&lanes, "*"), paint(ID, format!("position {}", point.position)))?;
            if let Some(date) = date {
                writeln!(cx.out, "{}Date:     {date}", graph(&lanes, "|"))?;
            }
            if let Some(snapshot) = &point.snapshot {
                writeln!(cx.out, "{}Snapshot: {snapshot}", graph(&lanes, "|"))?;
            }
            if !point.forks.is_empty() {
                writeln!(cx.out, "{}Forks:    {}", graph(&lanes, "|"), point.forks.join(", "))?;
            }
            writeln!(cx.out, "{}", graph(&lanes, "|").trim_end())?;
        }
        lanes.leave(column, point.parent);
    }
    all.check()
}

fn what(point: &Point) -> String {
    let snapshot = point.snapshot.as_ref().map(|id| format!("snapshot {}", &id[..12]));
    let forks = (!point.forks.is_empty()).then(|| format!("fork of {}", point.forks.join(", ")));
    let parts: Vec<String> = snapshot.into_iter().chain(forks).collect();
    if parts.is_empty() { String::new() } else { format!(" {}", parts.join("; ")) }
}
