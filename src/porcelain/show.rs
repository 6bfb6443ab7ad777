//! `zenith show`: says what a revision is.

use std::io::Write;

use super::{date, size};
use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::refs::{RefKind, Value};
use crate::plumbing::rev_parse::resolve_now;
use crate::ui::{ID, paint};

/// Show what a revision is and what a start from it costs
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith show v1\n  zenith show 'main@{1 hour ago}' --json\n")]
pub struct Args {
    /// Print one line of JSON: timeline, lsn, name, message, time, snapshot, bytes and replay_bytes
    #[arg(long)]
    json: bool,
    /// The revision; otherwise HEAD
    #[arg(value_name = "REVISION", default_value = "HEAD", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: String,
}

#[derive(serde::Serialize)]
struct Shown {
    timeline: String,
    lsn: String,
    name: Option<String>,
    message: Option<String>,
    time: Option<String>,
    snapshot: String,
    /// Length of the cluster's files at the snapshot.
    bytes: u64,
    /// WAL between the snapshot and the revision.
    replay_bytes: u64,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let resolved = resolve_now(&repo, &args.revision, &now)?;
    let (_, line) = repo.timelines().snapshot_before(resolved.position)?;
    let snapshot = repo.store().snapshot(&line.object)?;
    let tag = match &resolved.name {
        Some(name) if resolved.exact && name.kind() == RefKind::Tag => repo.refs().read(name)?,
        _ => None,
    };
    let tag = tag.and_then(|value| if let Value::Tag(tag) = value { Some(tag) } else { None });
    let shown = Shown {
        timeline: resolved.position.timeline.to_string(),
        lsn: resolved.position.lsn.to_string(),
        name: resolved.name.as_ref().map(ToString::to_string),
        message: tag.as_ref().and_then(|tag| tag.message.clone()),
        time: tag.as_ref().map(|tag| date(tag.time_us, &now)),
        snapshot: line.object.to_string(),
        bytes: snapshot.total_bytes(),
        replay_bytes: resolved.position.lsn.since(line.lsn),
    };
    if args.json {
        return cx.json(&shown);
    }
    writeln!(cx.out, "position  {}", paint(ID, resolved.position))?;
    if let Some(name) = &shown.name {
        writeln!(cx.out, "name      {name}")?;
    }
    if let Some(time) = &shown.time {
        writeln!(cx.out, "tagged    {time}")?;
    }
    writeln!(cx.out, "snapshot  {} of {}", line.object, date(snapshot.time_us, &now))?;
    writeln!(cx.out, "files     {} in {} paths", size(shown.bytes), snapshot.entries.len())?;
    writeln!(cx.out, "replay    {} of WAL", size(shown.replay_bytes))?;
    if let Some(message) = &shown.message {
        writeln!(cx.out, "\n    {}", message.replace('\n', "\n    "))?;
    }
    Ok(())
}
