//! `zenith trash`: shows what was dropped, and brings it back.

use std::io::Write;

use super::{date, size};
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::RefName;
use crate::objects::trash::{Entry, Item};
use crate::plumbing::instance::trash::{self, Row};
use crate::plumbing::trash::restore;
use crate::ui::{ID, paint};

/// List what was dropped, bring it back, or empty the trash
///
/// What is dropped goes to the trash: the timelines of a branch or a tag that was deleted or moved, the data directory of
/// a server that was not shut down, and WAL behind an end that was believed. What holds no commit that a branch or a tag
/// lacks goes for good after gc.trash (14 days), or where the trash is larger than gc.trash_limit (1 GiB); all else only
/// when the trash is emptied. An entry that cannot be read is shown as damaged, and nothing goes for good before it is
/// seen to. A branch comes back without settings of its own.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:\n  zenith trash\n  zenith trash restore 3f2a\n  zenith trash restore 3f2a old-main\n  \
                       zenith trash empty\n"
)]
pub struct Args {
    /// Print one line of JSON: a list of id, what, branch, timeline, lsn, commits, bytes, time, who, why and path; one that is
    /// damaged has only id, what, commits and path
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Bring a branch or a tag back, under its name or another one
    Restore {
        /// The entry, as trash lists it
        #[arg(value_name = "ID")]
        id: String,
        /// Its new name
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
struct Shown {
    id: String,
    what: &'static str,
    commits: bool,
    path: String,
    #[serde(flatten)]
    says: Option<Says>,
}

/// What an entry says that can be read.
#[derive(serde::Serialize)]
struct Says {
    branch: String,
    timeline: String,
    lsn: String,
    bytes: u64,
    time: String,
    who: String,
    why: String,
}

impl Shown {
    fn new(Row { item, commits }: Row) -> Shown {
        let what = item.entry.as_ref().map_or("damaged", |entry| entry.what.word());
        let says = |entry: Entry| Says {
            branch: entry.branch,
            timeline: entry.position.timeline.to_string(),
            lsn: entry.position.lsn.to_string(),
            bytes: entry.bytes,
            time: jiff::Timestamp::from_microsecond(entry.time_us).unwrap_or_default().to_string(),
            who: entry.who,
            why: entry.why,
        };
        Shown { id: item.id, what, commits, path: item.path.display().to_string(), says: item.entry.map(says) }
    }
}

/// Says that what a ref was is in the trash. A ref that `is_moved` still has its name.
pub(super) fn say_kept(cx: &Cx, name: &RefName, item: &Item, is_moved: bool) {
    let (name, id) = (name.short(), &item.id);
    let (what, new_name) = if is_moved { (format!("what {name} was"), " NAME") } else { (name.to_owned(), "") };
    cx.ui.status(format!("{what} is in the trash (use \"zenith trash restore {id}{new_name}\" to bring it back)"));
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    match args.action {
        None => list(cx, &repo, args.json),
        Some(Action::Restore { id, name }) => {
            let item = repo.trash().find(&id)?;
            let name = restore(&repo, &item, name.as_deref(), &cx.sign("trash: restored"), &cx.ui)?;
            let (kind, name, lsn) = (name.kind().word(), name.short(), item.entry()?.position.lsn);
            cx.say(format_args!("{kind} {name} is back at {lsn}"))
        }
        Some(Action::Empty { expired, ids }) => {
            let gone = empty(cx, &repo, expired, &ids)?;
            cx.say(format_args!("removed {gone} {}", if gone == 1 { "entry" } else { "entries" }))
        }
    }
}

/// Removes entries for good. Returns how many.
fn empty(cx: &Cx, repo: &Repo, expired: bool, ids: &[String]) -> Result<usize, CommandError> {
    if expired {
        return trash::expire(repo, cx.now.timestamp().as_microsecond());
    }
    if ids.is_empty() {
        return trash::empty(repo);
    }
    let items: Vec<Item> = ids.iter().map(|id| repo.trash().find(id)).collect::<Result<_, _>>()?;
    trash::remove(repo, &items)?;
    Ok(items.len())
}

fn list(cx: &mut Cx, repo: &Repo, json: bool) -> CmdResult {
    let mut rows = trash::list(repo)?;
    if json {
        return cx.json(&rows.into_iter().map(Shown::new).collect::<Vec<_>>());
    }
    rows.reverse();
    let names = rows.iter().filter_map(|row| Some(row.item.entry.as_ref()?.branch.chars().count()));
    let width = names.max().unwrap_or(0);
    for Row { item, .. } in rows {
        let id = paint(ID, &item.id);
        match item.entry() {
            Ok(entry) => {
                let (date, what, lsn) = (date(entry.time_us, &cx.now), entry.what.word(), entry.position.lsn);
                let (branch, bytes) = (&entry.branch, size(entry.bytes));
                writeln!(cx.out, "{id} {date} {what:14} {branch:width$} {lsn} {bytes}: {}", entry.why)?;
            }
            Err(error) => writeln!(cx.out, "{id} {error}")?,
        }
    }
    Ok(())
}
