//! `zenith psql`: connects to a branch.

use std::ffi::OsString;
use std::io::Write;

use super::reach;
use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::postgres::conninfo::{is_conninfo, take_branch};
use crate::plumbing::postgres::server::become_psql;

/// Connect to the server of a branch with psql
///
/// Connects to the database postgres as the superuser postgres unless told otherwise. A branch that
/// does not run is started by the page server, if that runs.
///
/// Instead of a branch it takes a connection string, in which a branch may stand. Everything
/// after -- goes to psql.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith psql\n  zenith psql try -- -c 'select count(*) from t'\n  \
    zenith psql 'dbname=shop branch=try'\n")]
pub struct Args {
    /// The branch, a revision that is or can be shown, or a connection string; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    branch: Option<String>,
    /// Arguments for psql
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let Args { mut branch, mut arguments } = args;
    // A revision may have a = in it only between braces, as a branch may.
    if let Some(text) = branch.as_ref().filter(|text| is_conninfo(text) && reach(&repo, Some(text)).is_err()) {
        let (named, rest) = take_branch(text);
        arguments.insert(0, rest.into());
        branch = named;
    }
    let (endpoint, options) = reach(&repo, branch.as_deref())?;
    let psql = cx.binaries(Some(&repo))?.psql(std::env::var_os("PATH").as_ref())?;
    cx.out.flush()?;
    Err(cx.as_the_user(|| become_psql(&psql, &endpoint, &options, &arguments)).into())
}
