//! Which clone of a repository a folder is.
//!
//! A timeline has one writer, the clone that made it, so a copy of a repository has to be another clone. It is told by the folder:
//! a copied one, or one that was restored from a backup, is another folder, and gets an id of its own when it first
//! makes a timeline or goes on with one. One that was taken for another by mistake forks its branches once, no more.
//!
//! # Format
//! `clone` is TOML: `id`, 32 hexadecimal digits, and what it is bound to: `inode` and `born` (nanoseconds since 1970) of the repository's
//! folder, `file_system` (`f_fsid`, which for most file systems is the same after each mount) and `machine`
//! (`/etc/machine-id`). What cannot be found out is left empty.
//!
//! That a virtual machine was set back to an older state, nothing here shows: it is the same folder. Its timelines differ then
//! from those in other clones, which is seen when the ids of their WAL intervals are compared.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::file_error::is_want;
use super::timeline::CloneId;
use super::{bounded, durable, regular};

const FILE: &str = "clone";

/// The content of `clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    id: String,
    #[serde(flatten)]
    bound_to: Folder,
}

/// What a folder is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    inode: u64,
    born: String,
    file_system: String,
    machine: String,
}

impl Folder {
    /// Looks at a folder.
    pub fn of(dir: &Path) -> io::Result<Folder> {
        let metadata = fs::metadata(dir)?;
        let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let machine = match regular::read_to_string(Path::new("/etc/machine-id")) {
            // What cannot be read now says nothing: another machine is another clone.
            Err(error) if is_want(&error) => return Err(error),
            machine => machine.unwrap_or_default(),
        };
        Ok(Folder {
            inode: metadata.ino(),
            born: born.map_or_else(String::new, |born| born.as_nanos().to_string()),
            file_system: format!("{:x}", nix::sys::statvfs::statvfs(dir)?.filesystem_id()),
            machine: machine.trim().to_owned(),
        })
    }
}

impl Identity {
    /// Returns a new clone in a folder.
    pub fn new(bound_to: Folder) -> Identity {
        Identity { id: CloneId::random().to_string(), bound_to }
    }

    /// Reads the text; `None` if it does not read like one.
    pub fn parse(text: &str) -> Option<Identity> {
        toml_edit::de::from_str(text).ok()
    }

    /// Returns the text.
    pub fn format(&self) -> String {
        toml_edit::ser::to_string_pretty(self).expect("invariant: only simple fields")
    }

    /// Returns its id if it lies in `folder`.
    pub fn id_in(&self, folder: &Folder) -> Option<CloneId> {
        if self.bound_to == *folder { self.id.parse().ok() } else { None }
    }
}

/// Returns the id of the clone in the folder `dir`; gives it one, durably, if it has none or is not the one that it is bound to.
pub fn establish(dir: &Path, tmp: &Path) -> io::Result<CloneId> {
    let folder = Folder::of(dir)?;
    if let Some(id) = known(dir, &folder)? {
        return Ok(id);
    }
    let identity = Identity::new(folder.clone());
    durable::replace(tmp, &dir.join(FILE), identity.format().as_bytes())?;
    Ok(identity.id_in(&folder).expect("invariant: made for this folder"))
}

/// Returns the id of the clone in `dir`, if it has one there.
pub fn known(dir: &Path, folder: &Folder) -> io::Result<Option<CloneId>> {
    match bounded::read_to_string(&dir.join(FILE), bounded::CONFIG) {
        Ok(text) => Ok(Identity::parse(&text).and_then(|identity| identity.id_in(folder))),
        // One that is damaged is another clone's: a false alarm costs a fork.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_clone_and_a_folder_that_moves_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (original, copy, moved) = (dir.path().join("original"), dir.path().join("copy"), dir.path().join("moved"));
        fs::create_dir(&original).unwrap();
        fs::create_dir(&copy).unwrap();
        let clone = Identity::parse(&Identity::new(Folder::of(&original).unwrap()).format()).unwrap();
        let id = clone.id_in(&Folder::of(&original).unwrap());
        assert!(id.is_some());
        assert_eq!(clone.id_in(&Folder::of(&copy).unwrap()), None);
        fs::rename(&original, &moved).unwrap();
        assert_eq!(clone.id_in(&Folder::of(&moved).unwrap()), id);
        assert_eq!(Identity::parse("hello"), None);
    }
}
