//! Finds PostgreSQL's programs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use super::Error;
use super::account::is_roots;
use crate::objects::pg::version::VERSIONS;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// The folder that the user named; nothing else is looked at then.
    pub explicit: Option<PathBuf>,
    /// The one that the repository's config names.
    pub configured: Option<PathBuf>,
    /// The value of PATH.
    pub path: Option<OsString>,
    /// The major version that a repository needs.
    pub major: Option<u32>,
}

/// The programs of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

/// Folders in which distributions put PostgreSQL, `*` for the version.
const USUAL: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/opt/homebrew/bin",
    "/usr/local/pgsql/bin",
    "/usr/local/bin",
];

/// Returns the programs of the wanted version, the newest if any will do.
pub fn find(search: &Search) -> Result<Binaries, Error> {
    if let (None, Some(dir)) = (&search.explicit, &search.configured)
        && !may_be_configured(dir)
    {
        return Err(Error::Untrusted(dir.clone()));
    }
    if let Some(dir) = search.explicit.as_ref().or(search.configured.as_ref()) {
        let major = version(dir).ok_or_else(|| Error::NotFound { major: search.major, searched: vec![dir.clone()] })?;
        return match search.major {
            Some(wanted) if wanted != major => Err(Error::WrongVersion { dir: dir.clone(), found: major, wanted }),
            _ if !is_supported(major) => Err(Error::Unsupported { dir: dir.clone(), found: major }),
            _ => Ok(Binaries { dir: dir.clone(), major }),
        };
    }
    let on_path = search.path.iter().flat_map(std::env::split_paths).collect::<Vec<_>>();
    let usual = USUAL.iter().flat_map(|pattern| expand(pattern));
    // A folder of links, such as /usr/local/bin, may lack the other programs: follow them.
    let real = |dir: PathBuf| Some(fs::canonicalize(dir.join("postgres")).ok()?.parent()?.to_owned());
    let folders = on_path.into_iter().chain(usual).filter_map(real).filter(|dir| dir.join("initdb").is_file());
    let mut found: Vec<Binaries> = Vec::new();
    for dir in folders {
        if found.iter().any(|binaries| binaries.dir == dir) {
            continue;
        }
        let Some(major) = version(&dir) else { continue };
        let binaries = Binaries { dir, major };
        // Of equals the first: what the user's PATH says goes before what is usual.
        if search.major == Some(major) && is_supported(major) {
            return Ok(binaries);
        }
        found.push(binaries);
    }
    let usable = |binaries: &&Binaries| is_supported(binaries.major) && search.major.is_none();
    let newest = found.iter().filter(usable).rev().max_by_key(|binaries| binaries.major).cloned();
    newest.ok_or_else(|| Error::NotFound {
        major: search.major,
        searched: found.into_iter().map(|binaries| binaries.dir).collect(),
    })
}

/// Returns whether the config may name a folder: root takes that only for folders in which nobody but root can have put a program, since
/// where PostgreSQL does not run as root it may write to the config.
pub fn may_be_configured(dir: &Path) -> bool {
    !geteuid().is_root() || has_roots_programs(dir)
}

fn has_roots_programs(dir: &Path) -> bool {
    let Ok(real) = fs::canonicalize(dir) else { return false };
    let programs = fs::read_dir(&real).into_iter().flatten().flatten().map(|entry| entry.path());
    real.ancestors().all(is_roots) && programs.into_iter().all(|program| is_roots(&program))
}

fn is_supported(major: u32) -> bool {
    VERSIONS.iter().any(|version| version.major == major)
}

/// Returns the folders that a pattern with one `*` stands for.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let names =
        fs::read_dir(parent).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort_unstable();
    names.iter().map(|name| PathBuf::from(format!("{parent}/{name}{after}"))).collect()
}

/// Asks the programs in `dir` for their major version: `postgres (PostgreSQL) 15.18 (Debian …)`. The server
/// itself takes ten times as long to load as the smallest program beside it.
fn version(dir: &Path) -> Option<u32> {
    let program = ["pg_controldata", "postgres"].map(|name| dir.join(name)).into_iter().find(|path| path.is_file())?;
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_once("(PostgreSQL) ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Binaries {
    /// Returns the path of a program.
    pub fn program(&self, name: &'static str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::Lacks { dir: self.dir.clone(), program: name, major: self.major })
        }
    }

    /// Returns `psql`: that of the installation, else the first on PATH, since a server's package may lack it.
    pub fn psql(&self, path: Option<&OsString>) -> Result<PathBuf, Error> {
        self.program("psql").or_else(|error| {
            let mut folders = path.into_iter().flat_map(std::env::split_paths);
            let found = folders.find(|dir| dir.join("psql").is_file());
            let usual =
                || USUAL.iter().flat_map(|pattern| expand(pattern)).rev().find(|dir| dir.join("psql").is_file());
            found.or_else(usual).map(|dir| dir.join("psql")).ok_or(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_postgresql_is_named_and_so_is_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let search = Search { explicit: Some(dir.path().to_owned()), major: Some(15), ..Search::default() };
        let error = find(&search).unwrap_err();
        assert!(error.to_string().contains(&dir.path().display().to_string()));
        assert!(error.hint().unwrap().contains("apt-get install postgresql-15"));
    }

    #[test]
    fn root_runs_nothing_that_a_config_names_and_others_can_write() {
        use std::os::unix::fs::{PermissionsExt, chown};
        if !geteuid().is_root() {
            println!("SKIPPED: only root has to be careful");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pg_controldata");
        fs::write(&program, "#!/bin/sh\necho 'pg_controldata (PostgreSQL) 15.1'\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let search = Search { configured: Some(dir.path().to_owned()), ..Search::default() };
        assert_eq!(find(&search).unwrap().major, 15);
        chown(&program, Some(65534), None).unwrap();
        assert!(matches!(find(&search), Err(Error::Untrusted(_))));
        chown(&program, Some(0), None).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(find(&search), Err(Error::Untrusted(_))));
        // Who names it knows it.
        assert!(find(&Search { explicit: search.configured.clone(), ..search }).is_ok());
    }
}
