//! `zenith start`: runs PostgreSQL on a branch.

use std::io::Write;

use super::{branch_or_head, size};
use crate::cli::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::instance;
use crate::plumbing::instance::mount::is_mounted;
use crate::plumbing::instance::start::{Context, Outcome, Wish, start};
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::server;

/// Run PostgreSQL on a branch
///
/// Starts a server on the newest version of the branch, beside those that run already, each on a
/// port of its own. It listens on a unix socket in a private folder; see url and psql.
///
/// Nothing is restored first: the data directory is a file system that fetches blocks when
/// PostgreSQL first reads them, and keeps those that it writes. Where the system refuses to mount it,
/// all files are restored, and the reason is told.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith start\n  zenith start try --port 6000 --tcp\n")]
pub struct Args {
    /// The port; otherwise the branch's last one, or a free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Listen on 127.0.0.1 too, where PostgreSQL asks for a password
    #[arg(long)]
    tcp: bool,
    /// Restore all files first, into an ordinary folder
    #[arg(long, conflicts_with = "hydrate")]
    eager: bool,
    /// Fetch all blocks in the background; status shows how far it is
    #[arg(long)]
    hydrate: bool,
    /// Print one line of JSON: instance, branch, port, socket_dir, timeline, url, started and lazy
    #[arg(long)]
    json: bool,
    /// The branch; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::branch))]
    branch: Option<String>,
}

#[derive(serde::Serialize)]
struct Row {
    instance: String,
    branch: String,
    port: u16,
    socket_dir: String,
    timeline: Option<String>,
    url: String,
    started: bool,
    lazy: bool,
}

/// Starts the instance of a branch.
pub fn start_branch(
    cx: &Cx,
    repo: &Repo,
    branch: &str,
    port: Option<u16>,
    wish: Wish,
) -> Result<Outcome, CommandError> {
    let instance = instance::find_or_create(repo, branch, port)?;
    let binaries = cx.binaries(Some(repo))?;
    let account = Account::detect()?;
    let signature = cx.sign("start");
    let context = Context { repo, binaries: &binaries, account: &account, progress: &cx.ui, signature: &signature };
    start(&context, &instance.name, wish)
}

/// Prints what was started.
pub fn report(cx: &mut Cx, repo: &Repo, outcome: &Outcome) -> CmdResult {
    let config = &outcome.instance.config;
    let state = if outcome.already { "is running already" } else { "is running" };
    writeln!(cx.out, "{}: {} {state} on port {}", outcome.instance.name, config.branch, config.port)?;
    if let Some(why) = &outcome.refused {
        cx.ui.warning(format!("all files were restored first: {why}"));
    }
    if outcome.resumed {
        cx.ui.status("went on after a crash: PostgreSQL recovered what was committed");
    } else if !outcome.already {
        cx.ui.status(format!("started at {}, {} of WAL replayed", outcome.from.lsn, size(outcome.replayed)));
    }
    cx.ui.status(format!(
        "connect: zenith psql {}, or {}",
        config.branch,
        server::url(&outcome.instance.endpoint(repo)?)
    ));
    Ok(())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let branch = branch_or_head(&repo, args.branch.as_deref())?;
    let wish = Wish { tcp: args.tcp, eager: args.eager, hydrate: args.hydrate };
    let outcome = start_branch(cx, &repo, branch.short(), args.port, wish)?;
    if !args.json {
        return report(cx, &repo, &outcome);
    }
    let endpoint = outcome.instance.endpoint(&repo)?;
    let lazy = outcome.instance.data_dir(&repo).is_some_and(|data| is_mounted(&data));
    cx.json(&Row {
        lazy,
        url: server::url(&endpoint),
        port: endpoint.port,
        socket_dir: endpoint.socket_dir.display().to_string(),
        timeline: outcome.instance.config.timeline.clone(),
        instance: outcome.instance.name,
        branch: outcome.instance.config.branch,
        started: !outcome.already,
    })
}
