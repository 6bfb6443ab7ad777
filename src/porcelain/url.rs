//! `zenith url`: says where a branch's server is.

use std::io::Write;

use super::{named_revision, running};
use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::pageserver;
use crate::plumbing::postgres::server;

/// Print the connection URL of a branch
///
/// While the page server runs, that is its own: it stays the same, and the branch need not run. Else
/// the branch's server has to run. The branch stands with the user's name, as in postgres%40try:
/// that works in every client, while many drop other ways without a word; see zenith-clients(7).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith url\n  pg_dump \"$(zenith url try)\"\n")]
pub struct Args {
    /// The branch, or the revision of a read-only server; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    branch: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    if let Some((_, addresses)) = pageserver::running(&repo)? {
        let text = named_revision(&repo, args.branch.as_deref())?;
        return Ok(writeln!(cx.out, "{}", addresses.url(&text))?);
    }
    let (_, endpoint) = running(&repo, args.branch.as_deref())?;
    Ok(writeln!(cx.out, "{}", server::url(&endpoint))?)
}
