//! Finds the instance of a branch, among those that are lost too, or makes it, and holds it.

use super::hold::{Held, hold_all};
use super::{Error, Instance, create, lost, of_branch};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::plumbing::postgres::server::Status;
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

/// Branches whose servers nobody starts: see [`hold_stopped`].
#[must_use = "their servers may be started again when this is dropped"]
pub struct HeldBranches {
    /// The instance of each, if it has one.
    pub instances: Vec<Option<(Held, Instance)>>,
    _no_others: Option<Held>,
}

/// Keeps the servers of branches from being started: holds their instances, and where one has none keeps others from making it.
fn hold_branches(repo: &Repo, names: &[&str], progress: &dyn Progress) -> Result<HeldBranches, CommandError> {
    lost::take_up(repo, progress)?;
    // In one order, so that two commands do not wait for each other.
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|number| names[*number]);
    loop {
        let mut instances: Vec<Option<(Held, Instance)>> = names.iter().map(|_| None).collect();
        for &number in &order {
            instances[number] = hold_of_branch(repo, names[number], progress)?;
        }
        let lacking: Vec<&str> =
            names.iter().zip(&instances).filter(|(_, held)| held.is_none()).map(|(name, _)| *name).collect();
        let no_others = if lacking.is_empty() { None } else { Some(hold_all(repo, progress)?) };
        let mut made_since = false;
        for name in lacking {
            made_since |= of_branch(repo, name)?.is_some();
        }
        if !made_since {
            return Ok(HeldBranches { instances, _no_others: no_others });
        }
    }
}

/// Does so for branches that are about to be changed as `what` says, and refuses where a server runs.
pub fn hold_stopped(
    repo: &Repo,
    names: &[&str],
    what: &str,
    progress: &dyn Progress,
) -> Result<HeldBranches, CommandError> {
    let held = hold_branches(repo, names, progress)?;
    for (_, instance) in held.instances.iter().flatten() {
        if instance.status(repo) != Status::Stopped || instance.timeline().is_some() {
            let name = &instance.config.branch;
            return Err(CommandError::refused(format!("'{name}' is running and cannot be {what}"))
                .hint(format!("stop it first: zenith stop {name}")));
        }
    }
    Ok(held)
}

fn hold_of_branch(
    repo: &Repo,
    branch: &str,
    progress: &dyn Progress,
) -> Result<Option<(Held, Instance)>, CommandError> {
    loop {
        let Some(instance) = of_branch(repo, branch)? else { return Ok(None) };
        match instance.hold(repo, progress) {
            Err(Error::Unknown(_)) => {}
            held => return Ok(held.map(Some)?),
        }
    }
}
