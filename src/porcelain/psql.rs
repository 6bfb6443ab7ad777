//! `zenith psql`: connects to a branch.

use std::ffi::OsString;
use std::io::Write;

use super::running;
use crate::cli::Cx;
use crate::error::CmdResult;
use crate::plumbing::postgres::server::become_psql;

/// Connect to the server of a branch with psql
///
/// Everything after -- goes to psql. Connects to the database postgres as the superuser postgres
/// unless that says otherwise.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith psql\n  zenith psql try -- -c 'select count(*) from t'\n")]
pub struct Args {
    /// The branch, or the revision of a read-only server; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::branch))]
    branch: Option<String>,
    /// Arguments for psql
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let (_, endpoint) = running(&repo, args.branch.as_deref())?;
    let psql = cx.binaries(Some(&repo))?.psql(std::env::var_os("PATH").as_ref())?;
    cx.out.flush()?;
    Err(become_psql(&psql, &endpoint, &args.arguments).into())
}
