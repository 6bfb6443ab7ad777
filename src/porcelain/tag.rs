//! `zenith tag`: creates, lists and deletes tags.

use std::io::Write;

use super::trash::say_kept;
use super::{date, delete_each};
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{self, Expect, RefKind, RefName, Tag, Value};
use crate::objects::timeline::Position;
use crate::plumbing::rev_parse::with_position;
use crate::plumbing::update_ref::update_ref;
use crate::ui::{ID, paint};

/// Create, list or delete tags
///
/// A tag names a timeline and an LSN for good. Without a name, lists the tags. What a tag named that is deleted or moved
/// goes to the trash, unless a branch or another tag has it.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith tag v1\n  zenith tag before-delete 'main@{10 minutes ago}' -m 'all was well'\n  zenith tag -d v1\n"
)]
pub struct Args {
    /// Delete tags
    #[arg(short, long)]
    delete: bool,
    /// Move the tag although it exists
    #[arg(short, long)]
    force: bool,
    /// What the tag is for
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Show each tag's position, time and message
    #[arg(short, long)]
    verbose: bool,
    /// Print one line of JSON: a list of name, timeline, lsn, time and message
    #[arg(long)]
    json: bool,
    /// The new tag and the revision that it names, or HEAD; with -d tags
    #[arg(value_name = "NAME [REVISION]", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    names: Vec<String>,
}

#[derive(serde::Serialize)]
struct Row {
    name: String,
    timeline: String,
    lsn: String,
    time: String,
    message: Option<String>,
}

impl Row {
    fn new(name: &RefName, tag: Tag) -> Row {
        Row {
            name: name.short().to_owned(),
            timeline: tag.position.timeline.to_string(),
            lsn: tag.position.lsn.to_string(),
            time: jiff::Timestamp::from_microsecond(tag.time_us).unwrap_or_default().to_string(),
            message: tag.message,
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    if args.delete {
        if args.names.is_empty() {
            return Err(CommandError::usage("the name of a tag is missing"));
        }
        return delete_each(cx, ("tag", "tags"), &args.names, args.json, |cx, name| delete(cx, &repo, name));
    }
    match args.names.as_slice() {
        [] => list(cx, &repo, &args),
        [name] => create(cx, &repo, name, "HEAD", &args),
        [name, revision] => create(cx, &repo, name, revision, &args),
        _ => Err(CommandError::usage("a tag has one name and one revision")),
    }
}

fn create(cx: &mut Cx, repo: &Repo, name: &str, revision: &str, args: &Args) -> CmdResult {
    let tag = RefName::tag(name)?;
    if !args.force && repo.refs().read(&tag)?.is_some() {
        return Err(refs::Error::Exists(tag).into());
    }
    let signature = cx.sign(format!("tag: {revision}"));
    let expect = if args.force { Expect::Anything } else { Expect::Absent };
    let (value, kept) = with_position(repo, revision, &cx.now, |resolved| {
        let value = Tag { position: resolved.position, time_us: signature.time_us, message: args.message.clone() };
        let changed = update_ref(repo, &tag, &expect, Some(&Value::Tag(value.clone())), &signature)?;
        Ok((value, changed.kept))
    })?;
    if let Some(item) = kept {
        say_kept(cx, &tag, &item, true);
    }
    if args.json { cx.json(&Row::new(&tag, value)) } else { Ok(()) }
}

/// Deletes a tag. Returns what to say of it, and where it was.
fn delete(cx: &Cx, repo: &Repo, name: &str) -> Result<(Row, Position), CommandError> {
    let tag = RefName::tag(name)?;
    let changed = update_ref(repo, &tag, &Expect::Present, None, &cx.sign("tag: deleted"))?;
    if let Some(item) = changed.kept {
        say_kept(cx, &tag, &item, false);
    }
    match changed.old {
        Some(Value::Tag(was)) => {
            let position = was.position;
            Ok((Row::new(&tag, was), position))
        }
        _ => Err(refs::Error::Unknown(tag).into()),
    }
}

fn list(cx: &mut Cx, repo: &Repo, args: &Args) -> CmdResult {
    let tags = repo.refs().list(RefKind::Tag)?.into_iter();
    let tags: Vec<(RefName, Tag)> =
        tags.filter_map(|(name, value)| if let Value::Tag(tag) = value { Some((name, tag)) } else { None }).collect();
    if args.json {
        let rows = tags.into_iter().map(|(name, tag)| Row::new(&name, tag));
        return cx.json(&rows.collect::<Vec<_>>());
    }
    let width = tags.iter().map(|(name, _)| name.short().chars().count()).max().unwrap_or(0);
    for (name, tag) in tags {
        if args.verbose {
            let (position, date) = (paint(ID, tag.position), date(tag.time_us, &cx.now));
            let first = tag.message.as_deref().and_then(|message| message.lines().next()).unwrap_or_default();
            writeln!(cx.out, "{}", format!("{:width$} {position} {date} {first}", name.short()).trim_end())?;
        } else {
            writeln!(cx.out, "{}", name.short())?;
        }
    }
    Ok(())
}
