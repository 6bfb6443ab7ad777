//! `zenith branch`: creates, lists, renames and deletes branches.

use std::io::Write;

use super::branch_or_head;
use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{self, Expect, RefKind, RefName, Value};
use crate::plumbing::fork_timeline::fork_timeline;
use crate::plumbing::instance::{self, Instance};
use crate::plumbing::postgres::server::Status;
use crate::plumbing::rev_parse::resolve_now;
use crate::plumbing::update_ref::{read_branch, update_branch};
use crate::ui::{ID, STRONG, paint};

/// Create, list, rename or delete branches
///
/// With a name, makes a branch that begins at START, or at HEAD: at once, whatever the size of the
/// database, and without stopping its server. Without one, lists the branches.
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
    /// Print one line of JSON: a list of name, timeline, lsn, head and running
    #[arg(long)]
    json: bool,
    /// The new branch and where it begins; with -m the old and the new name; with -d branches
    #[arg(value_name = "NAME [START]", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::revision))]
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

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    if args.delete {
        if args.names.is_empty() {
            return Err(CommandError::usage("the name of a branch is missing"));
        }
        return args.names.iter().try_for_each(|name| delete(cx, &repo, name));
    }
    match (args.rename, args.names.as_slice()) {
        (true, [new]) => rename(cx, &repo, None, new),
        (true, [old, new]) => rename(cx, &repo, Some(old), new),
        (true, _) => Err(CommandError::usage("the old and the new name are missing")),
        (false, []) => list(cx, &repo, &args),
        (false, [name]) => create(cx, &repo, name, "HEAD", args.force),
        (false, [name, start]) => create(cx, &repo, name, start, args.force),
        (false, _) => Err(CommandError::usage("a branch has one name and one start")),
    }
}

fn create(cx: &mut Cx, repo: &Repo, name: &str, start: &str, force: bool) -> CmdResult {
    let branch = RefName::branch(name)?;
    let old = repo.refs().read(&branch)?;
    if old.is_some() && !force {
        return Err(refs::Error::Exists(branch).into());
    }
    refuse_if_running(repo, name, "moved")?;
    let now = cx.now.clone();
    let resolved = resolve_now(repo, start, &now)?;
    let at_end = resolved.exact && resolved.name.as_ref().is_some_and(|name| name.kind() == RefKind::Branch);
    let timeline = fork_timeline(repo, resolved.position)?;
    let signature = cx.sign(format!("branch: created from {start}"));
    let expect = old.map_or(Expect::Absent, Expect::Exactly);
    let made = update_branch(repo, &branch, timeline, &expect, &signature);
    if made.is_err() {
        // Another command took the name meanwhile.
        repo.timelines().remove(repo.tmp()?, timeline)?;
    }
    made?;
    let lsn = resolved.position.lsn;
    if at_end {
        writeln!(cx.out, "branching at end of WAL: {lsn}")?
    } else {
        writeln!(cx.out, "branching at {lsn}")?
    }
    Ok(())
}

fn delete(cx: &mut Cx, repo: &Repo, name: &str) -> CmdResult {
    let branch = branch_or_head(repo, Some(name))?;
    if repo.refs().head()? == branch {
        return Err(CommandError::refused(format!("cannot delete '{name}': HEAD names it"))
            .hint("let HEAD name another one first: zenith symbolic-ref refs/branches/NAME"));
    }
    refuse_if_running(repo, name, "deleted")?;
    let old = Value::Branch(read_branch(repo, &branch)?);
    let tip = repo.timelines().read(old.timeline())?.tip();
    repo.refs().update(repo.tmp()?, &branch, &Expect::Exactly(old), None, &cx.sign("branch: deleted"))?;
    if let Some(instance) = instance::of_branch(repo, name)? {
        instance.remove(repo)?;
    }
    Ok(writeln!(cx.out, "deleted branch {name} (was {tip})")?)
}

fn rename(cx: &mut Cx, repo: &Repo, old: Option<&str>, new: &str) -> CmdResult {
    let from = branch_or_head(repo, old)?;
    let to = RefName::branch(new)?;
    refuse_if_running(repo, from.short(), "renamed")?;
    let signature = cx.sign(format!("branch: renamed {} to {new}", from.short()));
    repo.refs().rename(repo.tmp()?, &from, &to, &signature)?;
    super::config::rename_branch(repo, from.short(), new)?;
    if let Some(mut instance) = instance::of_branch(repo, from.short())? {
        new.clone_into(&mut instance.config.branch);
        instance.write(repo)?;
    }
    Ok(())
}

fn refuse_if_running(repo: &Repo, name: &str, what: &str) -> CmdResult {
    let running = |instance: &Instance| instance.status(repo) != Status::Stopped || instance.timeline().is_some();
    match instance::of_branch(repo, name)?.filter(running) {
        Some(_) => Err(CommandError::refused(format!("'{name}' is running and cannot be {what}"))
            .hint(format!("stop it first: zenith stop {name}"))),
        None => Ok(()),
    }
}

fn list(cx: &mut Cx, repo: &Repo, args: &Args) -> CmdResult {
    let head = repo.refs().head()?;
    let instances = instance::list(repo)?;
    let mut rows = Vec::new();
    for (name, value) in repo.refs().list(RefKind::Branch)? {
        let tip = repo.timelines().read(value.timeline())?.tip();
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
        return cx.json(&rows);
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
    Ok(())
}
