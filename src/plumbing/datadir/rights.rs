//! Whether a link may be followed. Where zenith runs as root and the server as another user, a link in the data directory that
//! this user made would have root read what that user may not, and a snapshot hand it out.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

/// Returns whether what the link at `path` leads to belongs to whoever made the link, or may be read by that user; or leads nowhere.
/// Only root has to ask: for everybody else the system answers.
pub fn may_follow(path: &Path) -> bool {
    let (Ok(link), Ok(target)) = (fs::symlink_metadata(path), fs::metadata(path)) else { return true };
    let is_own = link.uid() == 0 || link.uid() == target.uid();
    !geteuid().is_root() || is_own || may_read(path, link.uid()).unwrap_or(false)
}

/// Returns whether root may read a file on behalf of the user `uid`: whoever wrote its name into a file of that user's could have.
pub fn is_readable_for(path: &Path, uid: u32) -> bool {
    !geteuid().is_root() || uid == 0 || may_read(path, uid).unwrap_or(false)
}

/// Returns whether the user `uid`, for whom root walks, could look into a folder, wherever a link led to it.
pub fn may_list(folder: &Path, uid: u32) -> bool {
    !geteuid().is_root() || uid == 0 || may(folder, uid, 0o5).unwrap_or(false)
}

/// Returns whether what root has opened for the user `uid`, by whatever way it was found, is a file that this user may have: his own, or
/// one that its mode opens to him.
pub fn may_have(opened: &Metadata, uid: u32) -> bool {
    let is_open = opened.mode() & 0o004 != 0
        || opened.mode() & 0o040 != 0 && groups_of(uid).contains(&Gid::from_raw(opened.gid()));
    !geteuid().is_root() || uid == 0 || opened.uid() == uid || is_open
}

/// Returns whether the user `uid` may read the file, or list the folder, that `path` leads to: by the modes of it and of all
/// folders above it.
fn may_read(path: &Path, uid: u32) -> std::io::Result<bool> {
    may(path, uid, 0o4)
}

/// Returns whether the modes give the user all of `bits`, and the way there.
fn may(path: &Path, uid: u32, bits: u32) -> std::io::Result<bool> {
    let real = fs::canonicalize(path)?;
    let groups = groups_of(uid);
    let has = |path: &Path, bits: u32| {
        let metadata = fs::metadata(path)?;
        let shift = match metadata.uid() == uid {
            true => 6,
            false if groups.contains(&Gid::from_raw(metadata.gid())) => 3,
            false => 0,
        };
        Ok::<_, std::io::Error>(metadata.mode() >> shift & bits == bits)
    };
    for folder in real.ancestors().skip(1) {
        if !has(folder, 0o1)? {
            return Ok(false);
        }
    }
    has(&real, bits)
}

fn groups_of(uid: u32) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return Vec::new() };
    let name = std::ffi::CString::new(user.name).unwrap_or_default();
    getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid])
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    #[test]
    fn root_follows_nobodys_link_only_where_nobody_could_go() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root can give links away");
            return;
        }
        let nobody = User::from_name("nobody").unwrap().expect("every system has one").uid.as_raw();
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        let (secret, link) = (home.path().join("secret"), home.path().join("link"));
        fs::write(&secret, "").unwrap();
        symlink(&secret, &link).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        assert!(may_follow(&link));
        lchown(&link, Some(nobody), None).unwrap();
        assert!(!may_follow(&link));
        fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
        assert!(may_follow(&link));
        fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(!may_follow(&link));
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        // Its own, wherever root keeps it.
        lchown(&secret, Some(nobody), None).unwrap();
        assert!(may_follow(&link));
    }
}
