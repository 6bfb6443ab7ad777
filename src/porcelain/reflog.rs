//! `zenith reflog`: says what became of a ref.

use std::io::Write;

use super::date;
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{RefName, revision};
use crate::ui::{ID, paint};

/// Show what HEAD or a branch has been
///
/// The newest change comes first; NAME@{n} in a revision names the n-th of these.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith reflog\n  zenith reflog main --json\n")]
pub struct Args {
    /// Print one line of JSON: a list of selector, old, new, time, who and why
    #[arg(long)]
    json: bool,
    /// A branch or a tag; otherwise HEAD
    #[arg(value_name = "REF", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    name: Option<String>,
}

#[derive(serde::Serialize)]
struct Row {
    selector: String,
    old: Option<String>,
    new: Option<String>,
    time: String,
    who: String,
    why: String,
}

fn full_name(repo: &Repo, name: Option<&str>) -> Result<String, CommandError> {
    match name {
        None | Some("HEAD" | "@") => Ok("HEAD".to_owned()),
        Some(name) if name.starts_with("refs/") => Ok(RefName::full(name)?.to_string()),
        Some(name) => {
            let (branch, tag) = (RefName::branch(name)?, RefName::tag(name)?);
            let is_branch = repo.refs().read(&branch)?.is_some() || repo.refs().read(&tag)?.is_none();
            Ok(if is_branch { branch } else { tag }.to_string())
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let shown = args.name.as_deref().unwrap_or("HEAD");
    let entries = revision::past(&repo, &full_name(&repo, args.name.as_deref())?)?;
    if entries.is_empty() {
        return Err(CommandError::refused(format!("there is no log of '{shown}'")));
    }
    let rows: Vec<Row> = entries
        .iter()
        .enumerate()
        .map(|(number, entry)| Row {
            selector: format!("{shown}@{{{number}}}"),
            old: entry.old.map(|id| id.to_string()),
            new: entry.new.map(|id| id.to_string()),
            time: jiff::Timestamp::from_microsecond(entry.time_us).unwrap_or_default().to_string(),
            who: entry.who.clone(),
            why: entry.why.clone(),
        })
        .collect();
    if args.json {
        return cx.json(&rows);
    }
    for (row, entry) in rows.iter().zip(&entries) {
        let id = entry.new.map_or_else(|| "deleted ".to_owned(), |id| id.short());
        writeln!(
            cx.out,
            "{} {}: {} ({}, {})",
            paint(ID, id),
            row.selector,
            row.why,
            date(entry.time_us, &cx.now),
            row.who
        )?;
    }
    Ok(())
}
