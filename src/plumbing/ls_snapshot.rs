//! `zenith ls-snapshot`: lists the files of a snapshot.

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::refs::revision;
use crate::objects::snapshot::{Node, Snapshot};
use crate::objects::{ObjectId, Repo};

/// List the files of a snapshot
///
/// Prints for each path its mode, its length in bytes, the object that holds it, and the path.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith ls-snapshot main\n  zenith ls-snapshot 4f2a11c0 --json\n")]
pub struct Args {
    /// Print one line of JSON: a list of path, mode, type, length and object
    #[arg(long)]
    json: bool,
    /// A snapshot's id, or a revision: its newest snapshot
    #[arg(value_name = "SNAPSHOT", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    snapshot: String,
}

#[derive(serde::Serialize)]
struct Row<'a> {
    path: std::borrow::Cow<'a, str>,
    mode: String,
    r#type: &'static str,
    length: Option<u64>,
    object: Option<ObjectId>,
}

/// Returns the snapshot that a user names: by its id, or by a revision, which stands for the newest
/// snapshot at or before it.
pub fn find_snapshot(repo: &Repo, text: &str, now: &jiff::Zoned) -> Result<(ObjectId, Snapshot), CommandError> {
    let id = match revision::resolve(repo, text, now) {
        Ok(resolved) => repo.timelines().snapshot_before(resolved.position)?.1.object,
        Err(revision::Error::Unknown { .. }) => repo.store().resolve_prefix(text)?,
        Err(error) => return Err(error.into()),
    };
    Ok((id, repo.store().snapshot(&id)?))
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let (_, snapshot) = find_snapshot(cx.repo()?, &args.snapshot, &now)?;
    if !args.json {
        return super::cat_object::list_entries(cx, &snapshot);
    }
    let rows = snapshot.entries.iter().map(|entry| {
        let (r#type, length, object) = match &entry.node {
            Node::Dir => ("dir", None, None),
            Node::Symlink { .. } => ("symlink", None, None),
            Node::File { length, content } => ("file", Some(*length), content.object()),
        };
        Row { path: String::from_utf8_lossy(&entry.path), mode: format!("{:04o}", entry.mode), r#type, length, object }
    });
    cx.json(&rows.collect::<Vec<_>>())
}
