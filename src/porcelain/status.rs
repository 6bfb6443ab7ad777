//! `zenith status`: says what there is and what runs.

use std::io::Write;

use super::pg::{Row, print_table, rows};
use super::size;
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::refs::revision;
use crate::plumbing::health::{Health, health};
use crate::ui;

/// Show HEAD and the instances
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith status\n  zenith status --json\n")]
pub struct Args {
    /// Print one line of JSON: repository, postgres, head, timeline, lsn, instances and health
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Status {
    repository: String,
    postgres: u32,
    head: String,
    timeline: Option<String>,
    lsn: Option<String>,
    instances: Vec<Row>,
    health: Health,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let head = repo.refs().head()?;
    let tip = revision::tip(&repo, &head).map_err(CommandError::from);
    // What runs is told all the same.
    let tip = tip.unwrap_or_else(|error| {
        cx.ui.warning(format!("cannot tell where {} is: {}", head.short(), error.text()));
        error.hints.iter().for_each(ui::hint);
        None
    });
    let status = Status {
        repository: repo.dir().display().to_string(),
        postgres: repo.config().postgres_major,
        head: head.short().to_owned(),
        timeline: tip.map(|tip| tip.timeline.to_string()),
        lsn: tip.map(|tip| tip.lsn.to_string()),
        instances: rows(&repo)?,
        health: health(&repo)?,
    };
    if args.json {
        return cx.json(&status);
    }
    writeln!(cx.out, "On branch {}", status.head)?;
    if let Some(tip) = tip {
        writeln!(cx.out, "Sealed up to {tip}")?;
    }
    writeln!(cx.out, "PostgreSQL {}, repository {}", status.postgres, status.repository)?;
    status.health.warnings.iter().for_each(|warning| cx.ui.warning(warning));
    if status.instances.is_empty() {
        cx.ui.status("nothing runs (use \"zenith start\" to run a branch)");
        return Ok(());
    }
    writeln!(cx.out)?;
    print_table(cx, &status.instances)?;
    for row in &status.instances {
        print_lazy(cx, row)?;
    }
    Ok(())
}

/// Prints how far a data directory is fetched, and what of it is damaged.
fn print_lazy(cx: &mut Cx, row: &Row) -> CmdResult {
    let Some(lazy) = &row.lazy else { return Ok(()) };
    if let Some(total) = lazy.hydrating_bytes {
        let done = total.saturating_sub(lazy.remote_bytes);
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        writeln!(cx.out, "\n{}: fetched {percent} %, {} of {}", row.name, size(done), size(total))?;
    }
    for damage in &lazy.damages {
        writeln!(cx.out, "\n{}: cannot be read: {damage}", row.name)?;
    }
    if !lazy.damages.is_empty() {
        cx.ui.status("PostgreSQL gets an I/O error for these blocks (use \"zenith fsck\" to see what else is damaged)");
    }
    Ok(())
}
