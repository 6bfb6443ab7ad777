//! `zenith merge-base`: finds where two revisions part.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::revision;
use crate::objects::timeline::Position;

/// Find the fork point of two revisions
///
/// Prints the last timeline@LSN that both have in common; exits with 1 where there is none.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith merge-base main try\n")]
pub struct Args {
    #[arg(value_name = "A", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    a: String,
    #[arg(value_name = "B", add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    b: String,
    /// Print nothing; exit with 0 if A is an ancestor of B, else with 1
    #[arg(long)]
    is_ancestor: bool,
}

/// Returns the last position that two have in common.
pub fn merge_base(repo: &Repo, a: Position, b: Position) -> Result<Option<Position>, CommandError> {
    Ok(repo.timelines().merge_base(a, b)?)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let a = revision::resolve(&repo, &args.a, &now)?.position;
    let b = revision::resolve(&repo, &args.b, &now)?.position;
    let base = merge_base(&repo, a, b)?;
    let Some(base) = base else {
        return Err(CommandError::refused(format!("'{}' and '{}' have nothing in common", args.a, args.b)));
    };
    if args.is_ancestor {
        let message = || CommandError::refused(format!("'{}' is not an ancestor of '{}'", args.a, args.b));
        return if base == a { Ok(()) } else { Err(message()) };
    }
    Ok(writeln!(cx.out, "{base}")?)
}
