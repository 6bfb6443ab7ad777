//! `zenith show-ref`: lists refs.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{RefKind, RefName, Value};

/// List refs
///
/// Prints a line for each: the timeline id, for a tag with @LSN, and the full name. Exits with 1 where
/// there are none.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith show-ref\n  zenith show-ref --tags --json\n")]
pub struct Args {
    /// Only branches
    #[arg(long)]
    branches: bool,
    /// Only tags
    #[arg(long)]
    tags: bool,
    /// Print one line of JSON: a list of name, timeline and for tags lsn
    #[arg(long)]
    json: bool,
    /// Only refs whose last part is this
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(serde::Serialize)]
struct Row {
    name: String,
    timeline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<String>,
}

/// Returns the refs of the kinds, in their order, sorted by name.
pub fn show_ref(repo: &Repo, kinds: &[RefKind]) -> Result<Vec<(RefName, Value)>, CommandError> {
    let lists = kinds.iter().map(|kind| repo.refs().list(*kind)).collect::<Result<Vec<_>, _>>()?;
    Ok(lists.into_iter().flatten().collect())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let kinds: &[RefKind] = match (args.branches, args.tags) {
        (true, false) => &[RefKind::Branch],
        (false, true) => &[RefKind::Tag],
        _ => &[RefKind::Branch, RefKind::Remote, RefKind::Tag],
    };
    let mut refs = show_ref(cx.repo()?, kinds)?;
    refs.retain(|(name, _)| args.name.as_ref().is_none_or(|wanted| name.as_str().rsplit('/').next() == Some(wanted)));
    if refs.is_empty() {
        return Err(CommandError::refused("no such ref"));
    }
    let lsn = |value: &Value| if let Value::Tag(tag) = value { Some(tag.position.lsn.to_string()) } else { None };
    if args.json {
        let row = |(name, value): &(RefName, Value)| Row {
            name: name.to_string(),
            timeline: value.timeline().to_string(),
            lsn: lsn(value),
        };
        return cx.json(&refs.iter().map(row).collect::<Vec<_>>());
    }
    for (name, value) in &refs {
        let at = lsn(value).map(|lsn| format!("@{lsn}")).unwrap_or_default();
        writeln!(cx.out, "{}{at} {name}", value.timeline())?;
    }
    Ok(())
}
