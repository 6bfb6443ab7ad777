//! As whom PostgreSQL runs. It refuses root; where zenith is root, as in containers and CI, the
//! server gets a user namespace in which root has an ordinary number: no file changes its owner.
//! Where that is forbidden it runs as the OS user `postgres`, who writes the repository then, too: whatever root would do in there, by a
//! link of that user's it would do elsewhere. So root gives the repository away and becomes that user, for good.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, openat};
use rustix::io::Errno;

use super::Error;
use crate::objects::file_error::cannot;

/// How the server gets an account that PostgreSQL accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// As who zenith is.
    Own,
    /// Root, mapped to an ordinary number.
    UserNamespace,
    /// The OS user `postgres`.
    Postgres,
}

const NAMESPACE: [&str; 4] = ["--user", "--map-user=1000", "--map-group=1000", "--"];
const POSTGRES: [&str; 4] = ["--reuid=postgres", "--regid=postgres", "--init-groups", "--"];

impl Account {
    /// Returns the account for this process, having tried that it works.
    pub fn detect() -> Result<Account, Error> {
        static OF_ROOT: OnceLock<Account> = OnceLock::new();
        if !geteuid().is_root() {
            return Ok(Account::Own);
        }
        if let Some(account) = OF_ROOT.get() {
            return Ok(account.clone());
        }
        let candidates = [Account::UserNamespace, Account::Postgres];
        let mut missing = None;
        for account in candidates {
            let mut command = account.command(Path::new("true"));
            match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
                Ok(status) if status.success() => return Ok(OF_ROOT.get_or_init(|| account).clone()),
                Ok(_) => {}
                Err(error) => {
                    missing = missing.or(Some(cannot::<Error>("run", Path::new(command.get_program()))(error)))
                }
            }
        }
        Err(missing.unwrap_or(Error::Root))
    }

    /// Becomes the account for good, where it is the OS user `postgres`, if the repository `dir` is that user's, or `may_own`
    /// is set and it is root's: then that user gets it first. Nobody else may be able to put something in its place meanwhile.
    pub fn enter(&self, dir: &Path, may_own: bool) -> Result<(), Error> {
        let Some(user) = postgres().filter(|_| *self == Account::Postgres) else { return Ok(()) };
        let failed = || cannot::<Error>("become postgres for", dir);
        let real = std::fs::canonicalize(dir).map_err(failed())?;
        let folder = openat(CWD, &real, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(io::Error::from);
        let folder = folder.map_err(failed())?;
        let owner = fstat(&folder).map_err(io::Error::from).map_err(failed())?.st_uid;
        if owner != user.uid.as_raw() {
            if owner != 0 || !may_own {
                return Ok(());
            }
            if !real.ancestors().skip(1).all(is_roots) {
                return Err(Error::Exposed(real));
            }
            let owner = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
            own_tree(folder, owner).map_err(io::Error::from).map_err(failed())?;
        }
        let become_it = || {
            initgroups(c"postgres", user.gid)?;
            setgid(user.gid)?;
            setuid(user.uid)
        };
        become_it().map_err(io::Error::from).map_err(failed())
    }

    /// Returns a command that runs `program` as this account, without the caller's `PG…` variables.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self {
            Account::Own => Command::new(program),
            Account::UserNamespace => wrapped("unshare", &NAMESPACE, program),
            Account::Postgres => wrapped("setpriv", &POSTGRES, program),
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command
    }

    /// Refuses to run a server in a repository that is neither this account's nor could be [entered](Account::enter).
    pub fn check(&self) -> Result<(), Error> {
        if *self == Account::Postgres { Err(Error::Root) } else { Ok(()) }
    }

    /// Gives the account everything below `path`, where that takes anything.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        if *self != Account::Postgres {
            return Ok(());
        }
        let Some(user) = postgres() else { return Err(Error::Root) };
        let owner = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
        let folder = openat(CWD, path, FOLDER, Mode::empty()).map_err(io::Error::from);
        let owned = folder.and_then(|folder| Ok(own_tree(folder, owner)?));
        owned.map_err(cannot::<Error>("give to postgres what is in", path))
    }
}

/// Returns whether a file or folder is root's, and nobody else can write to it, nor replace what root has in it.
pub fn is_roots(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    // In a sticky folder others can make files, but not replace root's.
    let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    metadata.uid() == 0 && (metadata.mode() & 0o022 == 0 || is_sticky)
}

/// Returns the OS user `postgres`, if there is one.
pub fn postgres() -> Option<&'static User> {
    static POSTGRES: OnceLock<Option<User>> = OnceLock::new();
    POSTGRES.get_or_init(|| User::from_name("postgres").ok().flatten()).as_ref()
}

fn wrapped(wrapper: &str, arguments: &[&str], program: &Path) -> Command {
    let mut command = Command::new(wrapper);
    command.args(arguments).arg(program);
    command
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Gives an owner an open folder with all that is in it. Every name is looked up in the open folder, and no link is
/// followed: the owner, who has some of it already, may put a link to a file of somebody else in any place, at any time.
fn own_tree(folder: OwnedFd, owner: (Uid, Gid)) -> Result<(), Errno> {
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let owned = match openat(&folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => own_tree(folder, owner),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                chownat(&folder, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
            }
            Err(error) => Err(error),
        };
        match owned {
            // Gone since the folder was read.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    // Last, so that a folder which is the owner's has nothing in it that is not.
    fchown(&folder, Some(owner.0), Some(owner.1))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_that_a_link_leads_to_is_given_away() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root gives files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for folder in [&tree, &outside] {
            fs::create_dir_all(folder.join("folder")).unwrap();
            fs::write(folder.join("folder/file"), "").unwrap();
        }
        symlink(outside.join("folder/file"), tree.join("folder/to-file")).unwrap();
        symlink(&outside, tree.join("to-folder")).unwrap();
        let folder = openat(CWD, &tree, FOLDER, Mode::empty()).unwrap();
        own_tree(folder, (Uid::from_raw(65534), Gid::from_raw(65534))).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        for name in ["", "folder", "folder/file", "folder/to-file", "to-folder"] {
            assert_eq!(owner(&tree.join(name)), 65534, "{name}");
        }
        for name in ["", "folder", "folder/file"] {
            assert_eq!(owner(&outside.join(name)), 0, "{name}");
        }
    }
}
