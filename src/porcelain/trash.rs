//! `zenith trash`: shows what was dropped, and brings it back.

use std::io::Write;

use super::{date, size};
use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::RefName;
use crate::plumbing::trash::{self, Sized};
use crate::ui::{ID, paint};

/// List what was dropped, bring it back, or empty the trash
///
/// What is dropped goes to the trash: the timelines of a deleted branch, the data directory of a server that was not
/// shut down, and WAL behind an end that was believed. What holds no commit goes for good after gc.trash (14 days), or
/// where the trash is larger than gc.trash_limit (1 GiB); all else only when the trash is emptied.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:\n  zenith trash\n  zenith trash restore 3f2a\n  zenith trash restore 3f2a old-main\n  \
                       zenith trash empty\n"
)]
pub struct Args {
    /// Print one line of JSON: a list of id, what, branch, timeline, lsn, commits, bytes, time, who, why and path
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Bring a branch back, under its name or another one
    Restore {
        /// The entry, as trash lists it
        #[arg(value_name = "ID")]
        id: String,
        /// The branch's new name
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove entries for good: all, or those that are named
    Empty {
        /// Only what is older than gc.trash, or too much
        #[arg(long, conflicts_with = "ids")]
        expired: bool,
        /// The entries, as trash lists them
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(serde::Serialize)]
struct Row {
    id: String,
    what: &'static str,
    branch: String,
    timeline: String,
    lsn: String,
    commits: bool,
    bytes: u64,
    time: String,
    who: String,
    why: String,
    path: String,
}

impl Row {
    fn new(Sized { item, bytes }: Sized) -> Row {
        let entry = item.entry;
        Row {
            id: item.id,
            what: entry.what.word(),
            branch: entry.branch,
            timeline: entry.position.timeline.to_string(),
            lsn: entry.position.lsn.to_string(),
            commits: entry.commits,
            bytes,
            time: jiff::Timestamp::from_microsecond(entry.time_us).unwrap_or_default().to_string(),
            who: entry.who,
            why: entry.why,
            path: item.path.display().to_string(),
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    match args.action {
        None => list(cx, &repo, args.json),
        Some(Action::Restore { id, name }) => {
            let item = repo.trash().find(&id)?;
            let name = RefName::branch(name.as_ref().unwrap_or(&item.entry.branch))?;
            trash::restore(&repo, &item, &name, &cx.sign("trash: restored"))?;
            Ok(writeln!(cx.out, "branch {} is back at {}", name.short(), item.entry.position.lsn)?)
        }
        Some(Action::Empty { expired, ids }) => {
            let gone = empty(cx, &repo, expired, &ids)?;
            Ok(writeln!(cx.out, "removed {gone} {}", if gone == 1 { "entry" } else { "entries" })?)
        }
    }
}

/// Removes entries for good. Returns how many.
fn empty(cx: &Cx, repo: &Repo, expired: bool, ids: &[String]) -> Result<usize, CommandError> {
    if expired {
        return trash::expire(repo, cx.now.timestamp().as_microsecond());
    }
    let items = match ids {
        [] => repo.trash().list()?,
        ids => ids.iter().map(|id| repo.trash().find(id)).collect::<Result<_, _>>()?,
    };
    items.iter().try_for_each(|item| trash::remove(repo, item))?;
    Ok(items.len())
}

fn list(cx: &mut Cx, repo: &Repo, json: bool) -> CmdResult {
    let mut rows = trash::list(repo)?;
    if json {
        return cx.json(&rows.into_iter().map(Row::new).collect::<Vec<_>>());
    }
    rows.reverse();
    let width = rows.iter().map(|row| row.item.entry.branch.chars().count()).max().unwrap_or(0);
    for Sized { item, bytes } in rows {
        let entry = &item.entry;
        let (id, date, what) = (paint(ID, &item.id), date(entry.time_us, &cx.now), entry.what.word());
        let (branch, lsn, bytes) = (&entry.branch, entry.position.lsn, size(bytes));
        writeln!(cx.out, "{id} {date} {what:14} {branch:width$} {lsn} {bytes}: {}", entry.why)?;
    }
    Ok(())
}
