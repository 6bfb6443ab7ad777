//! Finds the instance of a branch, among those that are lost too, or makes it, and holds it.

use super::hold::{Held, hold_all};
use super::{Error, Instance, create, lost, of_branch};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::progress::Progress;

/// Holds the instance of a branch; makes one with the next name and a free port if there is none.
pub fn hold_or_create(repo: &Repo, branch: &str, progress: &dyn Progress) -> Result<(Held, Instance), CommandError> {
    loop {
        match find_or_create(repo, branch, progress)?.hold(repo, progress) {
            // Somebody forgot it meanwhile.
            Err(Error::Unknown(_)) => {}
            held => return Ok(held?),
        }
    }
}

fn find_or_create(repo: &Repo, branch: &str, progress: &dyn Progress) -> Result<Instance, CommandError> {
    let held = hold_all(repo, progress)?;
    if let Some(instance) = of_branch(repo, branch)? {
        return Ok(instance);
    }
    lost::take_up_with(repo, &held)?;
    of_branch(repo, branch)?.map_or_else(|| create(repo, branch, None), Ok)
}

/// Holds the instance of a branch that is about to be moved, renamed or deleted, if it has one: nobody starts it then.
pub fn hold_of_branch(
    repo: &Repo,
    branch: &str,
    progress: &dyn Progress,
) -> Result<Option<(Held, Instance)>, CommandError> {
    lost::take_up(repo, progress)?;
    loop {
        let Some(instance) = of_branch(repo, branch)? else { return Ok(None) };
        match instance.hold(repo, progress) {
            Err(Error::Unknown(_)) => {}
            held => return Ok(held.map(Some)?),
        }
    }
}
