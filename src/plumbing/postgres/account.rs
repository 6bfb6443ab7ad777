//! As whom PostgreSQL runs. It refuses root; where zenith is root, as in containers and CI, the
//! server gets a user namespace in which root has an ordinary number: no file changes its owner.
//! Where that is forbidden it runs as the OS user `postgres`.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, chown, geteuid};

use super::Error;

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
        if !geteuid().is_root() {
            return Ok(Account::Own);
        }
        let candidates = [Account::UserNamespace, Account::Postgres];
        let works = |account: &Account| {
            let tried = account.command(Path::new("true")).stdout(Stdio::null()).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        };
        candidates.into_iter().find(works).ok_or(Error::Root)
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

    /// Gives the account everything below `path`, where that takes anything.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        if *self != Account::Postgres {
            return Ok(());
        }
        let Ok(Some(user)) = User::from_name("postgres") else { return Err(Error::Root) };
        own_tree(path, &user)
    }
}

fn wrapped(wrapper: &str, arguments: &[&str], program: &Path) -> Command {
    let mut command = Command::new(wrapper);
    command.args(arguments).arg(program);
    command
}

fn own_tree(path: &Path, user: &User) -> Result<(), Error> {
    let own = |path: &Path| chown(path, Some(user.uid), Some(user.gid)).map_err(std::io::Error::from);
    own(path).map_err(Error::io("give to postgres", path))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).map_err(Error::io("list", path))?.flatten() {
            own_tree(&entry.path(), user)?;
        }
    }
    Ok(())
}
