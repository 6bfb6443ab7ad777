//! `zenith update-ref`: sets or deletes a ref, by compare-and-swap.

use super::instance::seal::seal_active;
use super::instance::trash;
use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{Expect, RefKind, RefName, Signature, Tag, Value, revision};
use crate::objects::timeline::{Position, TimelineId};
use crate::objects::trash::Item;

/// Set or delete a ref safely
///
/// Sets REF, a full name such as refs/branches/main, to the timeline that NEW names, or for a tag to
/// timeline@LSN. A branch is a whole timeline, and of one branch only: a NEW amid one, or that is another branch, is refused, and
/// needs a timeline of its own, which fork-timeline makes. With OLD, does so only if the ref is at OLD now; an OLD of 32 zeroes means
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

/// What became of a ref.
#[derive(Debug)]
pub struct Changed {
    pub old: Option<Value>,
    /// What it was is in the trash.
    pub kept: Option<Item>,
}

/// Sets a ref to `new`, or deletes it where that is `None`. What it was goes to the trash, unless other refs lead there
/// (INVARIANT 7). A branch gets no timeline that another one has.
pub fn update_ref(
    repo: &Repo,
    name: &RefName,
    expect: &Expect,
    new: Option<&Value>,
    signature: &Signature,
) -> Result<Changed, CommandError> {
    let old = repo.refs().read(name)?;
    expect.check(name, old.as_ref())?;
    if let Some(Value::Branch(timeline)) = old.as_ref().filter(|old| Some(*old) != new) {
        // It waits for others, so nobody may have to wait for us.
        seal_active(repo, *timeline)?;
    }
    // A ref must not name what is not there, or goes meanwhile.
    let _kept = repo.timelines().keep()?;
    if let Some(new) = new {
        secure(repo, new)?;
    }
    let mut kept = None;
    let expect = old.map_or(Expect::Absent, Expect::Exactly);
    let old = repo.refs().update_after(repo.tmp()?, name, &expect, new, signature, |old| {
        // Nobody else changes a ref meanwhile.
        if let Some(Value::Branch(timeline)) = new.filter(|_| name.kind() == RefKind::Branch) {
            check_is_free(repo, name, *timeline)?;
        }
        if let Some(old) = old {
            kept = trash::keep_named(repo, name, (old, new), signature)?;
        }
        Ok::<_, CommandError>(())
    })?;
    Ok(Changed { old, kept })
}

/// Makes durable what a ref is about to name, and refuses a position whose WAL is not sealed (INVARIANT 1).
fn secure(repo: &Repo, new: &Value) -> CmdResult {
    let end = repo.timelines().secure(new.timeline())?.sealed();
    match new {
        Value::Tag(Tag { position, .. }) if position.lsn > end => {
            let Position { timeline, lsn } = *position;
            Err(revision::Error::BeyondEnd { revision: position.to_string(), lsn, timeline, end }.into())
        }
        _ => Ok(()),
    }
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

/// Refuses to let a branch have the timeline of another one, which would move with it.
fn check_is_free(repo: &Repo, name: &RefName, timeline: TimelineId) -> CmdResult {
    let names = repo.refs().files(RefKind::Branch)?.into_iter().filter_map(|short| RefName::branch(&short).ok());
    for other in names.filter(|other| other != name) {
        match repo.refs().read(&other).map_err(CommandError::from) {
            Ok(value) if value == Some(Value::Branch(timeline)) => {
                let error = format!("timeline {timeline} is that of the branch '{}'", other.short());
                let hint = format!("begin another one at its end: zenith fork-timeline {}", other.short());
                return Err(CommandError::refused(error).hint(hint));
            }
            // A damaged one of another branch is in nobody's way.
            Err(error) if error.class != Class::Corrupt => return Err(error),
            _ => {}
        }
    }
    Ok(())
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
    let new = match args.new.filter(|_| !args.delete) {
        None => None,
        Some(new) => {
            let position = revision::resolve(&repo, &new, &now)?.position;
            Some(match name.kind() {
                RefKind::Tag => Value::Tag(Tag { position, time_us: signature.time_us, message: None }),
                RefKind::Branch | RefKind::Remote => Value::Branch(whole_timeline(&repo, &new, position)?),
            })
        }
    };
    update_ref(&repo, &name, &expect, new.as_ref(), &signature)?;
    Ok(())
}
