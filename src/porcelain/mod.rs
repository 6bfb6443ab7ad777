//! Workflows: each file tells one user story by calling plumbing functions.

pub mod branch;
pub mod completions;
pub mod config;
pub mod help;
pub mod init;
pub mod log;
pub mod pageserver;
pub mod pg;
pub mod psql;
pub mod reflog;
pub mod restart;
pub mod restore;
pub mod service_file;
pub mod show;
pub mod snapshot;
pub mod start;
pub mod status;
pub mod stop;
pub mod tag;
pub mod trash;
pub mod url;
pub mod version;

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::refs::{RefName, Value, revision};
use crate::objects::timeline::Position;
use crate::plumbing::instance::{self, Instance, read_only};
use crate::plumbing::pageserver as daemon;
use crate::plumbing::postgres::server::{Endpoint, Status};
use crate::ui;

/// Counts what failed of a command on several things: each failure is told, and keeps none of the others from being done.
#[derive(Default)]
struct Failed {
    count: usize,
}

impl Failed {
    /// Notes how one of them went. Fails where the rest is not to be done either.
    fn note(&mut self, result: CmdResult) -> CmdResult {
        match result {
            Err(error) if matches!(error.class, Class::Interrupted | Class::BrokenPipe) => return Err(error),
            Err(error) => {
                ui::failure(&error);
                self.count += 1;
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Fails if one of them did, with `text` of how many.
    fn end(self, text: impl FnOnce(usize) -> String) -> CmdResult {
        if self.count == 0 { Ok(()) } else { Err(CommandError::refused(text(self.count))) }
    }
}

/// Deletes all of the refs that can be, and tells of each, or with `json` of all at the end. `kinds` are what one and several of them are
/// called; `delete` returns the row of one and where it was.
fn delete_each<T: serde::Serialize>(
    cx: &mut Cx,
    (kind, kinds): (&str, &str),
    names: &[String],
    json: bool,
    delete: impl Fn(&Cx, &str) -> Result<(T, Position), CommandError>,
) -> CmdResult {
    let (mut deleted, mut failed) = (Vec::new(), Failed::default());
    for name in names {
        let outcome = delete(cx, name).and_then(|(row, was)| {
            deleted.push(row);
            if json { Ok(()) } else { cx.say(format_args!("deleted {kind} {name} (was {was})")) }
        });
        match outcome {
            // Of one there is no more to say.
            Err(error) if names.len() == 1 => return Err(error),
            outcome => failed.note(outcome)?,
        }
    }
    if json {
        cx.json(&deleted)?;
    }
    failed.end(|count| format!("{count} of {} {kinds} were not deleted", names.len()))
}

/// Returns the branch that the user named, or HEAD; it must exist.
fn branch_or_head(repo: &Repo, name: Option<&str>) -> Result<RefName, CommandError> {
    let branch = match name {
        None | Some("HEAD" | "@") => repo.refs().head()?,
        Some(name) => RefName::branch(name)?,
    };
    match repo.refs().read(&branch)? {
        Some(Value::Branch(_)) => Ok(branch),
        // Says what there is instead.
        _ => match revision::resolve(repo, branch.short(), &jiff::Zoned::now()) {
            Err(error) => Err(error.into()),
            Ok(_) => Err(CommandError::refused(format!("'{}' is not a branch", branch.short()))
                .hint(format!("make one of it: zenith branch NAME {}", branch.short()))
                .hint(format!("or look at it: zenith start --read-only {}", branch.short()))),
        },
    }
}

/// Returns the instance that the user means: that of a branch or of HEAD, a read-only one by its revision, or
/// any by its own name. One that runs comes before one that does not.
fn find_instance(repo: &Repo, name: Option<&str>) -> Result<Option<Instance>, CommandError> {
    let is_open = |instance: &Instance| instance.timeline().is_some() || instance.status(repo) != Status::Stopped;
    let text = name.unwrap_or("HEAD");
    // One whose branch was deleted as a ref goes on.
    let branch = if matches!(text, "HEAD" | "@") { repo.refs().head().ok() } else { RefName::branch(text).ok() };
    let own = match branch {
        Some(branch) => instance::of_branch(repo, branch.short())?.filter(is_open),
        None => None,
    };
    let mut shown: Vec<Instance> = read_only::of_revision(repo, text)?.into_iter().filter(is_open).collect();
    shown.sort_by_key(|instance| !is_elsewhere(repo, instance));
    let shown = shown.pop();
    let found = own.or(shown).or_else(|| Instance::read(repo, text).ok().filter(is_open));
    if found.is_none() {
        // Says what is wrong with the name, if that is it.
        branch_or_head(repo, name)?;
    }
    Ok(found)
}

/// Returns whether a server shows what a tag was, and is no more.
fn is_elsewhere(repo: &Repo, instance: &Instance) -> bool {
    let text = &instance.config.branch;
    // Another revision is a moment that was found once, and is shown as long as the user likes.
    let is_name = !text.contains(['@', '~']) && instance.is_read_only();
    is_name && {
        let now = revision::resolve(repo, text, &jiff::Zoned::now());
        now.map_or(true, |now| instance.config.at != Some(now.position.to_string()))
    }
}

/// Returns the running instance that the user means, and where its server is.
fn running(repo: &Repo, name: Option<&str>) -> Result<(Instance, Endpoint), CommandError> {
    match find_instance(repo, name)?.filter(|instance| instance.status(repo) != Status::Stopped) {
        Some(instance) if is_elsewhere(repo, &instance) => {
            let text = &instance.config.branch;
            Err(CommandError::refused(format!(
                "the server of '{text}' shows what that was before it was moved or deleted"
            ))
            .hint(format!("see what it is now: zenith stop {text}; zenith start --read-only {text}")))
        }
        Some(instance) => {
            let endpoint = instance.endpoint(repo)?;
            Ok((instance, endpoint))
        }
        None => {
            let branch = branch_or_head(repo, name)?;
            Err(CommandError::refused(format!("'{}' is not running", branch.short()))
                .hint(format!("start it: zenith start {}", branch.short())))
        }
    }
}

/// Returns the revision that the user named, or the branch of HEAD by its name; it must exist.
fn named_revision(repo: &Repo, name: Option<&str>) -> Result<String, CommandError> {
    let text = match name {
        None | Some("HEAD" | "@") => repo.refs().head()?.short().to_owned(),
        Some(name) => name.to_owned(),
    };
    revision::resolve(repo, &text, &jiff::Zoned::now())?;
    Ok(text)
}

/// Returns where the user reaches a branch or revision, and with which options of the session: its own server
/// if that runs, else the page server, which starts it.
fn reach(repo: &Repo, name: Option<&str>) -> Result<(Endpoint, String), CommandError> {
    let error = match running(repo, name) {
        Ok((instance, endpoint)) => return Ok((endpoint, daemon::option(&instance.config.branch))),
        Err(error) => error,
    };
    let Some((_, addresses)) = daemon::running(repo)? else { return Err(error) };
    let text = named_revision(repo, name)?;
    let (superuser, major) = (repo.config().superuser().to_owned(), repo.config().postgres_major);
    let port = addresses.listen.port();
    let endpoint = Endpoint { socket_dir: addresses.socket_dir, port, superuser, major };
    Ok((endpoint, daemon::option(&text)))
}

/// Returns a time for people, in the user's zone.
fn date(time_us: i64, now: &jiff::Zoned) -> String {
    let time = jiff::Timestamp::from_microsecond(time_us).unwrap_or_default();
    time.to_zoned(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S %z").to_string()
}

/// Returns a number of bytes for people.
fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
