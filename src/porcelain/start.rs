//! `zenith start`: runs PostgreSQL on a branch.

use std::path::PathBuf;

use super::{branch_or_head, config, size};
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::instance::mount::is_mounted;
use crate::plumbing::instance::read_only;
use crate::plumbing::instance::start::{Context, Outcome, Wish, dropped, start};
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::server;
use crate::plumbing::postgres::settings::LOOPBACK;
use crate::plumbing::rev_parse::with_position;

/// Run PostgreSQL on a branch
///
/// Starts a server on the newest version of the branch, beside those that run already, each on a
/// port of its own. It listens on a unix socket in a private folder; see url and psql.
///
/// Nothing is restored first: the data directory is a file system that fetches blocks when
/// PostgreSQL first reads them, and keeps those that it writes. Where the system refuses to mount it,
/// all files are restored, and the reason is told.
///
/// Unlogged tables are empty after every start, as after a crash: the WAL does not have what was in them.
///
/// With --read-only, REVISION may be any: a tag, an LSN, a moment. Its server shows that, beside all
/// others, until it is stopped, and leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith start\n  zenith start try --port 6000 --tcp\n  \
    zenith start --read-only 'main@{10 minutes ago}'\n")]
pub struct Args {
    /// The port; otherwise the branch's last one, or a free one
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Listen on 127.0.0.1 too, where PostgreSQL asks for a password
    #[arg(long)]
    tcp: bool,
    /// Show a revision, as it was, to read
    #[arg(long)]
    read_only: bool,
    /// Restore all files first, into an ordinary folder
    #[arg(long, conflicts_with = "hydrate")]
    eager: bool,
    /// Let this branch act on the world outside as the original does, from now on: its subscriptions and schedulers
    /// work. Otherwise they do not, since a branch is a copy; see zenith-settings(5)
    #[arg(long, conflicts_with = "read_only")]
    live: bool,
    /// Fetch all blocks in the background; status shows how far it is
    #[arg(long)]
    hydrate: bool,
    /// Make FILE the branch's postgresql.conf from now on, where the server does not start with the one that it has
    #[arg(long, value_name = "FILE", conflicts_with = "read_only", value_hint = clap::ValueHint::FilePath)]
    config_file: Option<PathBuf>,
    /// Print one line of JSON: instance, branch, port, socket_dir, timeline, url, started and lazy
    #[arg(long)]
    json: bool,
    /// The branch, or with --read-only a revision; otherwise HEAD
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revision: Option<String>,
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
pub fn start_branch(cx: &Cx, repo: &Repo, branch: &str, wish: Wish) -> Result<Outcome, CommandError> {
    with_context(cx, repo, |context| start(context, branch, wish))
}

/// Starts a read-only instance at a revision.
fn start_read_only(cx: &Cx, repo: &Repo, text: &str, wish: Wish) -> Result<Outcome, CommandError> {
    with_position(repo, text, &cx.now, |resolved| {
        with_context(cx, repo, |context| read_only::start(context, text, resolved.position, wish))
    })
}

fn with_context(
    cx: &Cx,
    repo: &Repo,
    start: impl FnOnce(&Context) -> Result<Outcome, CommandError>,
) -> Result<Outcome, CommandError> {
    // Each runs a program to find out.
    let account = std::thread::spawn(Account::detect);
    let binaries = cx.binaries(Some(repo))?;
    let account = account.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let signature = cx.sign("start");
    start(&Context { repo, binaries: &binaries, account: &account, progress: &cx.ui, signature: &signature })
}

/// Returns a revision as a shell takes it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./@~^".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{text}'") }
}

/// Prints what was started.
pub fn report(cx: &mut Cx, repo: &Repo, outcome: &Outcome) -> CmdResult {
    let config = &outcome.instance.config;
    let state = match (outcome.instance.is_read_only(), outcome.already) {
        (false, false) => "is running",
        (false, true) => "is running already",
        (true, false) => "is shown",
        (true, true) => "is shown already",
    };
    cx.say(format_args!("{}: {} {state} on port {}", outcome.instance.name, config.branch, config.port))?;
    if let Some(why) = &outcome.refused {
        cx.ui.warning(format!("all files were restored first: {why}"));
    }
    if outcome.resumed {
        cx.ui.status("went on after a crash: PostgreSQL recovered what was committed");
    } else if !outcome.already {
        cx.ui.status(format!("started at {}, {} of WAL replayed", outcome.from.lsn, size(outcome.replayed)));
    }
    let dropped = if outcome.already { Vec::new() } else { dropped(repo, &outcome.instance)? };
    if !dropped.is_empty() {
        cx.ui.status(format!("without {}: this branch is a copy; see zenith start --live", dropped.join(", ")));
    }
    cx.ui.status(format!(
        "connect: zenith psql {}, or {}",
        quoted(&config.branch),
        server::url(&outcome.instance.endpoint(repo)?)
    ));
    Ok(())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let mut repo = cx.take_repo()?;
    let Args { port, eager, hydrate, .. } = args;
    let config_file = args.config_file.map(|file| cx.folder.join(file));
    let config_file = config_file.as_deref();
    let wish = Wish { port, tcp: args.tcp.then_some(LOOPBACK), eager, hydrate, on_demand: false, config_file };
    let outcome = if args.read_only {
        start_read_only(cx, &repo, args.revision.as_deref().unwrap_or("HEAD"), wish)?
    } else {
        let branch = branch_or_head(&repo, args.revision.as_deref())?;
        if args.live && !repo.config().is_live(branch.short()) {
            config::set(&repo, &format!("branch.{}.live", branch.short()), Some("true"))?;
            repo = Repo::open(repo.dir())?.with_patience(repo.patience().clone());
        }
        start_branch(cx, &repo, branch.short(), wish)?
    };
    if !args.json {
        return report(cx, &repo, &outcome);
    }
    let endpoint = outcome.instance.endpoint(&repo)?;
    let lazy = outcome.instance.data_dir(&repo).is_some_and(|data| is_mounted(&data).unwrap_or(false));
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
