//! What keeps the store fast, in the background.

use std::path::Path;

use super::mount::background;
use crate::objects::Repo;
use crate::objects::store::repack::is_due;

/// Has packs merged in the background, at the lowest priority, if there are many. Nobody waits for it, and what fails is done
/// the next time. What it has to say goes to the file `log`.
pub fn repack_if_due(repo: &Repo, log: &Path) {
    if !is_due(repo.store()).unwrap_or(false) {
        return;
    }
    let Ok(mut command) = background(repo, log) else { return };
    if let Ok(mut child) = command.args(["--quiet", "repack", "--auto"]).spawn() {
        // Of a process that lives on it would stay as a zombie.
        std::thread::spawn(move || child.wait());
    }
}
