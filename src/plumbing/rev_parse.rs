//! `zenith rev-parse`: looks up revisions.

use std::io::Write;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::revision::{self, Resolved, Revision};
use crate::objects::timeline;

/// Look up revisions
///
/// Prints timeline@LSN for each revision. A branch stands for the end of its sealed WAL; what a running
/// server has written since is sealed with seal-wal.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith rev-parse main\n  zenith rev-parse 'main@{5 minutes ago}' main~1 v1\n"
)]
pub struct Args {
    /// Print the full name of the ref that the revision begins with
    #[arg(long)]
    symbolic_full_name: bool,
    /// Revisions
    #[arg(value_name = "REVISION", required = true, add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::revision))]
    revisions: Vec<String>,
}

/// How often something is looked up of which a part is dropped just then.
const ATTEMPTS: u32 = 5;

/// Looks up a revision as of this moment: what its timeline's server has flushed is sealed first.
pub fn resolve_now(repo: &Repo, text: &str, now: &jiff::Zoned) -> Result<Resolved, CommandError> {
    with_position(repo, text, now, |resolved| Ok(resolved.clone()))
}

fn resolve_once(repo: &Repo, text: &str, now: &jiff::Zoned) -> Result<Resolved, CommandError> {
    let base = Revision::parse(text, now)?.base;
    let timeline = revision::resolve(repo, &base, now)?.position.timeline;
    super::instance::seal::seal_active(repo, timeline)?;
    Ok(revision::resolve(repo, text, now)?)
}

/// Looks up a revision as of this moment, and does something with it; again, should its timeline be gone by then.
pub fn with_position<T>(
    repo: &Repo,
    text: &str,
    now: &jiff::Zoned,
    act: impl Fn(&Resolved) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    again_if_gone(|| act(&resolve_once(repo, text, now)?))
}

/// Does what looks at refs, and then at the timelines that they name; again, if one of those went away between: other
/// commands drop what they did not need.
pub fn again_if_gone<T>(attempt: impl Fn() -> Result<T, CommandError>) -> Result<T, CommandError> {
    let mut result = attempt();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(error) if is_about_a_timeline_that_is_gone(error) => result = attempt(),
            _ => break,
        }
    }
    result
}

fn is_about_a_timeline_that_is_gone(error: &CommandError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error.source);
    while let Some(found) = cause {
        if matches!(found.downcast_ref(), Some(timeline::Error::Unknown(_))) {
            return true;
        }
        // A transparent error hides the one that it is.
        if let Some(revision::Error::Timeline(timeline::Error::Unknown(_))) = found.downcast_ref() {
            return true;
        }
        cause = found.source();
    }
    false
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    for text in &args.revisions {
        let resolved = revision::resolve(&repo, text, &now)?;
        match resolved.name.filter(|_| args.symbolic_full_name) {
            Some(name) => writeln!(cx.out, "{name}")?,
            None if args.symbolic_full_name => {}
            None => writeln!(cx.out, "{}", resolved.position)?,
        }
    }
    Ok(())
}
