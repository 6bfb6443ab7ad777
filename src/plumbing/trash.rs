//! Brings back what is in the trash.

use super::update_ref::update_ref;
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::refs::{Expect, RefName, Signature, Tag, Value};
use crate::objects::trash::{Entry, Item, What};
use crate::plumbing::instance::hold_stopped;
use crate::progress::Progress;

/// Brings a branch or a tag back as `name`, and takes it out of the trash.
pub fn restore(
    repo: &Repo,
    item: &Item,
    name: Option<&str>,
    signature: &Signature,
    progress: &dyn Progress,
) -> Result<RefName, CommandError> {
    let Entry { what, branch, position, message, .. } = item.entry()?;
    let name = name.unwrap_or(branch);
    let (name, value) = match what {
        What::Timeline => (RefName::branch(name)?, Value::Branch(position.timeline)),
        What::Tag => {
            let tag = Tag { position: *position, time_us: signature.time_us, message: message.clone() };
            (RefName::tag(name)?, Value::Tag(tag))
        }
        What::DataDirectory | What::Wal => {
            let path = item.path.display();
            return Err(CommandError::refused(format!("'{}' is not a branch but files, in '{path}'", item.id))
                .hint("what was committed is in the branch; copy the files from there if you need them"));
        }
    };
    let held = match &value {
        Value::Branch(_) => Some(hold_stopped(repo, &[name.short()], "brought back", progress)?),
        Value::Tag(_) => None,
    };
    let _kept = repo.timelines().keep()?;
    update_ref(repo, &name, &Expect::Absent, Some(&value), signature)?;
    drop(held);
    repo.trash().remove(repo.tmp()?, item)?;
    Ok(name)
}
