//! `zenith url`: says where a branch's server is.

use std::io::Write;

use super::running;
use crate::cli::Cx;
use crate::error::CmdResult;
use crate::plumbing::postgres::server;

/// Print the connection URL of a running branch
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith url\n  pg_dump \"$(zenith url try)\"\n")]
pub struct Args {
    /// The branch, or the revision of a read-only server; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::branch))]
    branch: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let (_, endpoint) = running(&repo, args.branch.as_deref())?;
    Ok(writeln!(cx.out, "{}", server::url(&endpoint))?)
}
