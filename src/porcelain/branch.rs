//! `zenith branch`: creates, lists, renames and deletes branches.

use std::io::Write;

use super::trash::say_kept;
use super::{branch_or_head, config, delete_each};
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{self, Expect, RefKind, RefName, Value, revision};
use crate::objects::timeline::Position;
use crate::plumbing::fork_timeline::fork_timeline;
use crate::plumbing::instance::trash;
use crate::plumbing::instance::{self, hold_stopped};
use crate::plumbing::postgres::server::Status;
use crate::plumbing::rev_list::{All, position};
use crate::plumbing::rev_parse::with_position;
use crate::plumbing::update_ref::update_ref;
use crate::ui::{ID, STRONG, paint};

/// Create, list, rename or delete branches
///
/// With a name, makes a branch that begins at START, or at HEAD: at once, whatever the size of the
/// database, and without stopping its server. Without one, lists the branches. What a branch was that is
/// deleted, or made to begin elsewhere, goes to the trash, unless another branch or a tag has it; the
/// settings of a deleted one are forgotten.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith branch try main\n  zenith branch yesterday 'main@{1 day ago}'\n  \
    zenith branch again main@0/15ECF68\n  zenith branch -m try better\n  zenith branch -d better\n")]
pub struct Args {
    /// Delete branches
    #[arg(short, long, conflicts_with_all = ["rename", "force"])]
    delete: bool,
    /// Rename a branch
    #[arg(short = 'm', long = "move")]
    rename: bool,
    /// Make the branch begin at START although it exists
    #[arg(short, long)]
    force: bool,
    /// Show each branch's timeline and LSN
    #[arg(short, long)]
    verbose: bool,
    /// Print one line of JSON: a list of name, timeline, lsn, head and running; of a change name, timeline and lsn
    #[arg(long)]
    json: bool,
    /// The new branch and where it begins; with -m the old and the new name; with -d branches
    #[arg(value_name = "NAME [START]", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    names: Vec<String>,
}

#[derive(serde::Serialize)]
struct Row {
    name: String,
    timeline: String,
    lsn: String,
    head: bool,
    running: bool,
}

/// A branch that was made, renamed or deleted.
#[derive(serde::Serialize)]
struct Changed {
    name: String,
    timeline: String,
    lsn: String,
}

impl Changed {
    fn new(name: &str, tip: Position) -> Changed {
        Changed { name: name.to_owned(), timeline: tip.timeline.to_string(), lsn: tip.lsn.to_string() }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    if args.delete {
        if args.names.is_empty() {
            return Err(CommandError::usage("the name of a branch is missing"));
        }
        return delete_each(cx, ("branch", "branches"), &args.names, args.json, |cx, name| delete(cx, &repo, name));
    }
    match (args.rename, args.names.as_slice()) {
        (true, [new]) => rename(cx, &repo, None, new, args.json),
        (true, [old, new]) => rename(cx, &repo, Some(old), new, args.json),
        (true, _) => Err(CommandError::usage("the old and the new name are missing")),
        (false, []) => list(cx, &repo, &args),
        (false, [name]) => create(cx, &repo, name, "HEAD", &args),
        (false, [name, start]) => create(cx, &repo, name, start, &args),
        (false, _) => Err(CommandError::usage("a branch has one name and one start")),
    }
}

fn create(cx: &mut Cx, repo: &Repo, name: &str, start: &str, args: &Args) -> CmdResult {
    let branch = RefName::branch(name)?;
    let old = repo.refs().read(&branch)?;
    if old.is_some() && !args.force {
        return Err(refs::Error::Exists(branch).into());
    }
    drop(hold_stopped(repo, &[name], "moved", &cx.ui)?);
    if old.is_none() {
        // Left by one that was deleted as a ref, and may have been live.
        config::take_settings(repo, branch.short(), None)?;
    }
    let (resolved, timeline) = with_position(repo, start, &cx.now, |resolved| {
        Ok((resolved.clone(), fork_timeline(repo, resolved.position, cx.now.timestamp().as_microsecond())?))
    })?;
    let at_end = resolved.exact && resolved.name.as_ref().is_some_and(|name| name.kind() == RefKind::Branch);
    let signature = cx.sign(format!("branch: created from {start}"));
    let expect = old.map_or(Expect::Absent, Expect::Exactly);
    let made = hold_stopped(repo, &[name], "moved", &cx.ui)
        .and_then(|_held| update_ref(repo, &branch, &expect, Some(&Value::Branch(timeline)), &signature));
    if made.is_err() {
        // Another command took the name or started its server meanwhile, and nobody knows the new timeline.
        trash::remove_unneeded(repo, timeline)?;
    }
    if let Some(item) = made?.kept {
        say_kept(cx, &branch, &item, true);
    }
    let lsn = resolved.position.lsn;
    if args.json {
        return cx.json(&Changed::new(name, Position { timeline, lsn }));
    }
    cx.say(format_args!("branching at {}{lsn}", if at_end { "end of WAL: " } else { "" }))
}

/// Deletes a branch. Returns what to say of it, and where it was.
fn delete(cx: &Cx, repo: &Repo, name: &str) -> Result<(Changed, Position), CommandError> {
    let branch = branch_or_head(repo, Some(name))?;
    if repo.refs().head()? == branch {
        return Err(CommandError::refused(format!("cannot delete '{name}': HEAD names it"))
            .hint("let HEAD name another one first: zenith symbolic-ref refs/branches/NAME"));
    }
    let mut held = hold_stopped(repo, &[branch.short()], "deleted", &cx.ui)?;
    let tip = revision::tip(repo, &branch)?.ok_or_else(|| refs::Error::Unknown(branch.clone()))?;
    let expect = Expect::Exactly(Value::Branch(tip.timeline));
    if let Some(item) = update_ref(repo, &branch, &expect, None, &cx.sign("branch: deleted"))?.kept {
        say_kept(cx, &branch, &item, false);
    }
    if let Some((held, instance)) = held.instances[0].take() {
        instance.remove(repo, held)?;
    }
    config::take_settings(repo, branch.short(), None)?;
    // What cannot be removed now goes the next time.
    let _ = trash::tidy(repo, cx.now.timestamp().as_microsecond());
    Ok((Changed::new(name, tip), tip))
}

fn rename(cx: &mut Cx, repo: &Repo, old: Option<&str>, new: &str, json: bool) -> CmdResult {
    let from = branch_or_head(repo, old)?;
    let to = RefName::branch(new)?;
    if from == to {
        // As in git, that is no error.
        return report_renamed(cx, repo, &to, json);
    }
    let mut held = hold_stopped(repo, &[from.short(), new], "renamed", &cx.ui)?;
    let signature = cx.sign(format!("branch: renamed {} to {new}", from.short()));
    if repo.refs().read(&to)?.is_some() {
        return Err(refs::Error::Exists(to).into());
    }
    // The timeline has one name or the other all the time, and somebody else may look for them one after the other.
    let _kept = repo.timelines().keep()?;
    // First, so that a crash leaves them with both names rather than with the old one.
    config::take_settings(repo, new, Some(from.short()))?;
    let renamed = repo.refs().rename(repo.tmp()?, &from, &to, &signature);
    config::take_settings(repo, if renamed.is_ok() { from.short() } else { new }, None)?;
    renamed?;
    // Left by a branch of that name that was deleted as a ref.
    if let Some((held, instance)) = held.instances[1].take() {
        instance.remove(repo, held)?;
    }
    if let Some((_held, instance)) = &mut held.instances[0] {
        new.clone_into(&mut instance.config.branch);
        instance.write(repo)?;
    }
    report_renamed(cx, repo, &to, json)
}

fn report_renamed(cx: &mut Cx, repo: &Repo, name: &RefName, json: bool) -> CmdResult {
    if !json {
        return Ok(());
    }
    let tip = revision::tip(repo, name)?.ok_or_else(|| refs::Error::Unknown(name.clone()))?;
    cx.json(&Changed::new(name.short(), tip))
}

fn list(cx: &mut Cx, repo: &Repo, args: &Args) -> CmdResult {
    let head = repo.refs().head()?;
    let instances = instance::list(repo)?;
    let (mut rows, mut all) = (Vec::new(), All::default());
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let tip = match position(repo, &name, &value) {
            Ok(Some(tip)) => tip,
            // It was deleted meanwhile.
            Ok(None) => continue,
            Err(error) => {
                all.broken.push((name, error));
                continue;
            }
        };
        let own = instances.iter().find(|instance| instance.config.branch == name.short());
        rows.push(Row {
            head: name == head,
            running: own.is_some_and(|instance| instance.status(repo) != Status::Stopped),
            timeline: tip.timeline.to_string(),
            lsn: tip.lsn.to_string(),
            name: name.short().to_owned(),
        });
    }
    if args.json {
        cx.json(&rows)?;
        return all.check();
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    for row in rows {
        let padded = if args.verbose { format!("{:width$}", row.name) } else { row.name.clone() };
        let name = if row.head { paint(STRONG, padded) } else { padded };
        write!(cx.out, "{} {name}", if row.head { '*' } else { ' ' })?;
        if args.verbose {
            let running = if row.running { " running" } else { "" };
            write!(cx.out, " {}{running}", paint(ID, format!("{}@{}", row.timeline, row.lsn)))?;
        }
        writeln!(cx.out)?;
    }
    all.check()
}
