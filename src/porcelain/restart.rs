//! `zenith restart`: stops and starts a branch's server.

use std::time::Duration;

use super::branch_or_head;
use super::start::{report, start_branch};
use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::instance;
use crate::plumbing::instance::start::Wish;
use crate::plumbing::instance::stop::stop;
use crate::plumbing::postgres::server::Mode;

/// Stop and start the server of a branch
///
/// The port stays. A branch that does not run is started.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith restart main\n")]
pub struct Args {
    /// The branch; otherwise HEAD
    #[arg(value_name = "BRANCH", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
    branch: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let branch = branch_or_head(&repo, args.branch.as_deref())?;
    let mut wish = Wish::default();
    if let Some(instance) = instance::of_branch(&repo, branch.short())? {
        (wish.tcp, wish.on_demand) = (instance.config.tcp, instance.config.on_demand);
        stop(&repo, &instance, Mode::Fast, Duration::from_secs(60), &cx.sign("restart"), &cx.ui)?;
    }
    let outcome = start_branch(cx, &repo, branch.short(), wish)?;
    report(cx, &repo, &outcome)
}
