//! `zenith status`: says what there is and what runs.

use std::io::Write;

use super::pg::{Row, print_table, rows};
use crate::cli::Cx;
use crate::error::CmdResult;
use crate::objects::refs::Value;

/// Show HEAD and the instances
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith status\n  zenith status --json\n")]
pub struct Args {
    /// Print one line of JSON: repository, postgres, head, timeline, lsn and instances
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
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let head = repo.refs().head()?;
    let tip = match repo.refs().read(&head)? {
        Some(Value::Branch(timeline)) => Some(repo.timelines().read(timeline)?.tip()),
        _ => None,
    };
    let status = Status {
        repository: repo.dir().display().to_string(),
        postgres: repo.config().postgres_major,
        head: head.short().to_owned(),
        timeline: tip.map(|tip| tip.timeline.to_string()),
        lsn: tip.map(|tip| tip.lsn.to_string()),
        instances: rows(&repo)?,
    };
    if args.json {
        return cx.json(&status);
    }
    writeln!(cx.out, "On branch {}", status.head)?;
    if let Some(tip) = tip {
        writeln!(cx.out, "Sealed up to {tip}")?;
    }
    writeln!(cx.out, "PostgreSQL {}, repository {}", status.postgres, status.repository)?;
    if status.instances.is_empty() {
        cx.ui.status("nothing runs (use \"zenith start\" to run a branch)");
        return Ok(());
    }
    writeln!(cx.out)?;
    print_table(cx, &status.instances)
}
