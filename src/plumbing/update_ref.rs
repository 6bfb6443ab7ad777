//! `zenith update-ref`: sets or deletes a ref, by compare-and-swap.

use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{self, Expect, RefKind, RefName, Signature, Tag, Value, revision};
use crate::objects::timeline::{Position, TimelineId};

/// Set or delete a ref safely
///
/// Sets REF, a full name such as refs/branches/main, to the timeline that NEW names, or for a tag to
/// timeline@LSN. A branch is a whole timeline: a NEW amid one is refused, and needs a timeline of its own,
/// which fork-timeline makes. With OLD, does so only if the ref is at OLD now; an OLD of 32 zeroes means
/// that the ref must not exist.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith update-ref refs/branches/try 76cf99e0\n  \
    zenith update-ref refs/tags/v1 main@0/15ECF68 00000000000000000000000000000000\n  \
    zenith update-ref -d refs/branches/try\n")]
pub struct Args {
    /// Delete the ref
    #[arg(short, long)]
    delete: bool,
    /// Why, for the reflog
    #[arg(short, long, value_name = "REASON", default_value = "update-ref")]
    message: String,
    /// Full name of the ref
    #[arg(value_name = "REF")]
    name: String,
    /// The new value, a revision; with --delete, the old one
    #[arg(value_name = "NEW", required_unless_present = "delete")]
    new: Option<String>,
    /// What the ref must be now
    #[arg(value_name = "OLD", conflicts_with = "delete")]
    old: Option<String>,
}

/// Makes the branch `name` a name for `timeline`.
pub fn update_branch(
    repo: &Repo,
    name: &RefName,
    timeline: TimelineId,
    expect: &Expect,
    signature: &Signature,
) -> Result<(), CommandError> {
    // A branch must not name what is not there, or goes meanwhile.
    let _kept = repo.timelines().keep()?;
    repo.timelines().secure(timeline)?;
    repo.refs().update(repo.tmp()?, name, expect, Some(&Value::Branch(timeline)), signature)?;
    Ok(())
}

/// Makes the tag `name` a name for a position, whose WAL must be sealed (INVARIANT 1).
pub fn update_tag(
    repo: &Repo,
    name: &RefName,
    tag: Tag,
    expect: &Expect,
    signature: &Signature,
) -> Result<(), CommandError> {
    let Position { timeline, lsn } = tag.position;
    let _kept = repo.timelines().keep()?;
    let read = repo.timelines().secure(timeline)?;
    if lsn > read.sealed() {
        let end = read.sealed();
        return Err(revision::Error::BeyondEnd { revision: tag.position.to_string(), lsn, timeline, end }.into());
    }
    repo.refs().update(repo.tmp()?, name, expect, Some(&Value::Tag(tag)), signature)?;
    Ok(())
}

/// Returns the timeline at whose tip `position` is: that is what a branch can name.
fn whole_timeline(repo: &Repo, text: &str, position: Position) -> Result<TimelineId, CommandError> {
    let tip = repo.timelines().read(position.timeline)?.tip();
    if tip == position {
        return Ok(tip.timeline);
    }
    let error = format!("a branch names a whole timeline, but '{text}' is {position}, and that ends at {}", tip.lsn);
    Err(CommandError::refused(error).hint(format!("begin a timeline there: zenith fork-timeline '{text}'")))
}

/// Returns the timeline of a branch, which must exist.
pub fn read_branch(repo: &Repo, name: &RefName) -> Result<TimelineId, CommandError> {
    match repo.refs().read(name)? {
        Some(value) => Ok(value.timeline()),
        None => Err(refs::Error::Unknown(name.clone()).into()),
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let signature = cx.sign(&args.message);
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let name = RefName::full(&args.name)?;
    let expect = match if args.delete { &args.new } else { &args.old } {
        None => Expect::Anything,
        Some(old) if old.bytes().all(|digit| digit == b'0') => Expect::Absent,
        Some(old) => {
            let position = revision::resolve(&repo, old, &now)?.position;
            match repo.refs().read(&name)? {
                // A tag is compared by its position; its message goes with it.
                Some(Value::Tag(tag)) if tag.position == position => Expect::Exactly(Value::Tag(tag)),
                _ => Expect::Exactly(Value::Branch(whole_timeline(&repo, old, position)?)),
            }
        }
    };
    if args.delete {
        repo.refs().update(repo.tmp()?, &name, &expect, None, &signature)?;
        return Ok(());
    }
    let new = args.new.ok_or_else(|| CommandError::usage("a new value is missing"))?;
    let position = revision::resolve(&repo, &new, &now)?.position;
    match name.kind() {
        RefKind::Tag => {
            update_tag(&repo, &name, Tag { position, time_us: signature.time_us, message: None }, &expect, &signature)
        }
        RefKind::Branch | RefKind::Remote => {
            let timeline = whole_timeline(&repo, &new, position)?;
            update_branch(&repo, &name, timeline, &expect, &signature)
        }
    }
}
