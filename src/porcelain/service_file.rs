//! `zenith service-file`: the branches for `pg_service.conf`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::refs::RefKind;
use crate::objects::{Repo, durable, regular};
use crate::plumbing::pageserver;

/// Print the branches as services for libpq, or install them
///
/// Each branch becomes a section of a file pg_service.conf, by which psql and all that use libpq
/// reach it through the page server: psql service=try.
///
/// With --install they are written into ~/.pg_service.conf, or the file that PGSERVICEFILE names,
/// between two lines that mark them as this repository's; the next time they are replaced. Nothing
/// else in the file changes: a service there that has the name of a branch stays what it is.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith service-file\n  zenith service-file --install\n  psql service=main\n")]
pub struct Args {
    /// Write them into ~/.pg_service.conf, beside what is there
    #[arg(long)]
    install: bool,
}

/// A section of the file: its name, and its lines.
struct Service {
    name: String,
    lines: String,
}

fn services(cx: &Cx, repo: &Repo) -> Result<Vec<Service>, CommandError> {
    let listen = match pageserver::running(repo)? {
        Some((_, addresses)) => addresses.reached_at(),
        None => {
            cx.ui.status("the page server does not run (use \"zenith pageserver start\" to start it)");
            pageserver::reached_at(repo.config().proxy.listen)
        }
    };
    let (host, port) = (listen.ip(), listen.port());
    let service = |name: &str| Service {
        name: name.to_owned(),
        lines: format!("host={host}\nport={port}\nuser=postgres\ndbname=postgres\noptions=-c zenith.branch={name}\n"),
    };
    Ok(repo.refs().list(RefKind::Branch)?.iter().map(|(name, _)| service(name.short())).collect())
}

/// Returns the text of a file with `services` in the place of those that it has between the lines of `owner`, and the names
/// of those that it has elsewhere, which stay. `None` where the place has no end.
fn merge(old: &str, owner: &str, services: Vec<Service>) -> Option<(String, Vec<String>)> {
    let (begin, end) = (format!("# begin of {owner}\n"), format!("# end of {owner}\n"));
    let (before, after) = match old.split_once(&begin) {
        Some((before, rest)) => (before.to_owned(), rest.split_once(&end)?.1),
        None if old.is_empty() || old.ends_with('\n') => (old.to_owned(), ""),
        None => (format!("{old}\n"), ""),
    };
    let is_taken = |name: &str| {
        let header = format!("[{name}]");
        before.lines().chain(after.lines()).any(|line| line.trim_end() == header)
    };
    let (taken, own): (Vec<_>, Vec<_>) = services.into_iter().partition(|service| is_taken(&service.name));
    let own: Vec<String> = own.iter().map(|Service { name, lines }| format!("[{name}]\n{lines}")).collect();
    let text = format!("{before}{begin}{}{end}{after}", own.join("\n"));
    Some((text, taken.into_iter().map(|service| service.name).collect()))
}

/// Returns the user's file, or what it is a link to.
fn file() -> Result<PathBuf, CommandError> {
    let named = std::env::var_os("PGSERVICEFILE").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".pg_service.conf"));
    let path = named.or_else(home).ok_or_else(|| CommandError::refused("there is no home folder"))?;
    Ok(fs::canonicalize(&path).unwrap_or(path))
}

/// Writes the file anew, with the permissions that it has, else for its owner alone.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    durable::replace(folder, path, text.as_bytes())?;
    mode.map_or(Ok(()), |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
}

fn install(cx: &mut Cx, repo: &Repo, services: Vec<Service>) -> CmdResult {
    let path = file()?;
    let failed = |error: io::Error| CommandError::refused(format!("cannot use '{}': {error}", path.display()));
    let old = match regular::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    // One line, whatever the path has in it.
    let owner = format!("what zenith service-file --install wrote for {:?}", repo.dir());
    let Some((text, taken)) = merge(&old, &owner, services) else {
        let error = format!("'{}' has the begin of what zenith wrote, but not its end", path.display());
        return Err(CommandError::refused(error).hint(format!("give it the line: # end of {owner}")));
    };
    if text != old {
        write(&path, &text).map_err(failed)?;
    }
    for name in taken {
        cx.ui.warning(format!("'{}' has a service '{name}' of its own, which stays as it is", path.display()));
    }
    cx.say(path.display())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let services = services(cx, &repo)?;
    if args.install {
        return install(cx, &repo, services);
    }
    for Service { name, lines } in services {
        writeln!(cx.out, "[{name}]\n{lines}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(names: &[&str]) -> Vec<Service> {
        names.iter().map(|name| Service { name: (*name).to_owned(), lines: "port=1\n".to_owned() }).collect()
    }

    #[test]
    fn what_others_wrote_stays() {
        let old = "# mine\n[shop]\nhost=db";
        let (once, taken) = merge(old, "a", services(&["main", "try"])).unwrap();
        let own = "# begin of a\n[main]\nport=1\n\n[try]\nport=1\n# end of a\n";
        assert_eq!((once.as_str(), taken.len()), (format!("{old}\n{own}").as_str(), 0));
        // Again, with fewer branches, and something behind it; another repository has a place of its own.
        let (again, _) = merge(&format!("{once}[after]\n"), "a", services(&["main"])).unwrap();
        assert_eq!(again, format!("{old}\n# begin of a\n[main]\nport=1\n# end of a\n[after]\n"));
        let (both, taken) = merge(&again, "b", services(&["main", "shop", "other"])).unwrap();
        assert_eq!(taken, ["main", "shop"]);
        assert_eq!(both, format!("{again}# begin of b\n[other]\nport=1\n# end of b\n"));
        assert!(merge("# begin of a\n[main]\n", "a", services(&[])).is_none());
        assert_eq!(merge("", "a", services(&[])).unwrap().0, "# begin of a\n# end of a\n");
    }
}
