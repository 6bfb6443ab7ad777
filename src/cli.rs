//! The table of commands, and how one gets from words to an exit code.
//!
//! To add a command: a file with `Args` (whose doc comment is the help), a function that does the
//! work and returns a value, and `run`, which prints it; and a line in [`COMMANDS`]. Help, man pages
//! and completions follow from these.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Args, Command as Clap, FromArgMatches};
use nix::sys::stat::{Mode, umask};
use nix::unistd::User;

use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::format::Shared;
use crate::objects::lock::Patience;
use crate::plumbing::postgres::alive::close_inherited;
use crate::plumbing::postgres::find::{self, Binaries, Search};
use crate::plumbing::postgres::settings::is_ours;
use crate::ui::{self, Ui};
use crate::{plumbing, porcelain};

/// Whom a command is for, and where `zenith help` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Begin,
    Grow,
    Run,
    Examine,
    Maintain,
    /// Plumbing that changes the repository.
    Manipulate,
    /// Plumbing that only looks.
    Interrogate,
}

impl Group {
    /// All groups in the order of the help: those for people, then the plumbing.
    pub const ALL: [Group; 7] =
        [Group::Begin, Group::Grow, Group::Run, Group::Examine, Group::Maintain, Group::Manipulate, Group::Interrogate];

    /// Returns the heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Begin => "start a repository",
            Group::Grow => "grow and mark your history",
            Group::Run => "run PostgreSQL on any version",
            Group::Examine => "examine the history and state",
            Group::Maintain => "help and maintenance",
            Group::Manipulate => "plumbing: change the repository",
            Group::Interrogate => "plumbing: interrogate the repository",
        }
    }

    /// Returns whether the group is for scripts.
    pub fn is_plumbing(self) -> bool {
        matches!(self, Group::Manipulate | Group::Interrogate)
    }
}

/// A command.
pub struct Command {
    pub name: &'static str,
    pub group: Group,
    /// Returns its definition.
    pub clap: fn() -> Clap,
    run: fn(&mut Cx, &ArgMatches) -> CmdResult,
}

macro_rules! command {
    ($group:ident, $name:literal, $($module:ident)::+) => {
        Command {
            name: $name,
            group: Group::$group,
            clap: || $($module)::+::Args::augment_args(Clap::new($name)),
            run: |cx, matches| {
                let args = $($module)::+::Args::from_arg_matches(matches);
                $($module)::+::run(cx, args.map_err(|error| CommandError::new(Class::Usage, error))?)
            },
        }
    };
}

/// All commands, in the order of the help.
pub static COMMANDS: [Command; 42] = [
    command!(Begin, "init", porcelain::init),
    command!(Grow, "branch", porcelain::branch),
    command!(Grow, "tag", porcelain::tag),
    command!(Grow, "snapshot", porcelain::snapshot),
    command!(Run, "start", porcelain::start),
    command!(Run, "stop", porcelain::stop),
    command!(Run, "restart", porcelain::restart),
    command!(Run, "psql", porcelain::psql),
    command!(Run, "url", porcelain::url),
    command!(Run, "pageserver", porcelain::pageserver),
    command!(Run, "service-file", porcelain::service_file),
    command!(Run, "pg", porcelain::pg),
    command!(Run, "restore", porcelain::restore),
    command!(Examine, "status", porcelain::status),
    command!(Examine, "log", porcelain::log),
    command!(Examine, "show", porcelain::show),
    command!(Examine, "reflog", porcelain::reflog),
    command!(Maintain, "config", porcelain::config),
    command!(Maintain, "trash", porcelain::trash),
    command!(Maintain, "fsck", plumbing::fsck),
    command!(Maintain, "help", porcelain::help),
    command!(Maintain, "version", porcelain::version),
    command!(Maintain, "completions", porcelain::completions),
    command!(Manipulate, "hash-wal", plumbing::hash_wal),
    command!(Manipulate, "seal-wal", plumbing::seal_wal),
    command!(Manipulate, "write-snapshot", plumbing::write_snapshot),
    command!(Manipulate, "read-snapshot", plumbing::read_snapshot),
    command!(Manipulate, "update-ref", plumbing::update_ref),
    command!(Manipulate, "symbolic-ref", plumbing::symbolic_ref),
    command!(Manipulate, "fork-timeline", plumbing::fork_timeline),
    command!(Manipulate, "mount-datadir", plumbing::mount_datadir),
    command!(Manipulate, "guard-datadir", plumbing::guard_datadir),
    command!(Manipulate, "read-ahead", plumbing::read_ahead),
    command!(Interrogate, "cat-object", plumbing::cat_object),
    command!(Interrogate, "cat-timeline", plumbing::cat_timeline),
    command!(Interrogate, "cat-wal", plumbing::cat_wal),
    command!(Interrogate, "ls-snapshot", plumbing::ls_snapshot),
    command!(Interrogate, "merge-base", plumbing::merge_base),
    command!(Interrogate, "rev-list", plumbing::rev_list),
    command!(Interrogate, "rev-parse", plumbing::rev_parse),
    command!(Interrogate, "show-ref", plumbing::show_ref),
    command!(Interrogate, "show-wal", plumbing::show_wal),
];

/// Opens the repository that the user named, or the one that `folder` lies in. One that belongs to somebody else has to be named:
/// whoever made it in a folder that others work below, such as `/tmp`, would have his programs run as them.
fn find_repo(named: Option<&Path>, folder: &Path) -> Result<Repo, CommandError> {
    let dir = Repo::locate(named.unwrap_or(folder))?;
    let owner = std::fs::metadata(&dir)?.uid();
    if named.is_none() && !is_ours(owner) {
        let user = User::from_uid(owner.into()).ok().flatten().map_or_else(|| owner.to_string(), |user| user.name);
        let refused = format!("the repository '{}' belongs to another user: {user}", dir.display());
        let hint = format!("if you trust that user, name it: zenith --repo '{}'", dir.display());
        return Err(CommandError::refused(refused).hint(hint));
    }
    Ok(Repo::open(&dir)?)
}

/// What a command works with.
pub struct Cx {
    /// Standard output: the answer, and nothing else.
    pub out: Box<dyn Write>,
    pub ui: Ui,
    /// The folder that the command is about.
    pub folder: PathBuf,
    /// `--repo`
    repo_dir: Option<PathBuf>,
    /// `--pg-bin`
    pub pg_bin: Option<PathBuf>,
    /// The time at which the command began, in the user's zone.
    pub now: jiff::Zoned,
    /// The user's umask; see [`Cx::as_the_user`].
    umask: Mode,
    repo: Option<Repo>,
}

/// Until the repository says otherwise, what is written is its user's alone.
const PRIVATE: Mode = Mode::from_bits_truncate(0o077);

impl Cx {
    /// Returns the repository, found and opened at the first call.
    pub fn repo(&mut self) -> Result<&Repo, CommandError> {
        if self.repo.is_none() {
            let repo = find_repo(self.repo_dir.as_deref(), &self.folder)?;
            let repo = repo.with_patience(Patience::default().heeding(self.ui.stop_flag()));
            self.share(repo.config().core.shared);
            self.repo = Some(repo);
        }
        Ok(self.repo.as_ref().expect("set above"))
    }

    /// Has files made with the modes that they have in a repository that is shared so.
    pub fn share(&self, shared: Shared) {
        umask(Mode::from_bits_truncate(shared.umask().into()));
    }

    /// Does what the user could have done without zenith: with the user's umask.
    pub fn as_the_user<T>(&self, work: impl FnOnce() -> T) -> T {
        let own = umask(self.umask);
        let done = work();
        umask(own);
        done
    }

    /// Opens the repository, for commands that print while they use it.
    pub fn take_repo(&mut self) -> Result<Repo, CommandError> {
        self.repo()?;
        Ok(self.repo.take().expect("opened above"))
    }

    /// Finds PostgreSQL's programs: those that the user or the repository's config names, else the
    /// newest of the wanted version.
    pub fn binaries(&self, repo: Option<&Repo>) -> Result<Binaries, CommandError> {
        let configured = repo.and_then(|repo| repo.config().postgres.bin.clone());
        Ok(find::find(&Search {
            explicit: self.pg_bin.clone().or(configured),
            path: std::env::var_os("PATH"),
            major: repo.map(|repo| repo.config().postgres_major),
        })?)
    }

    /// Returns who does this and when, for the reflog.
    pub fn sign(&self, why: impl Into<String>) -> crate::objects::refs::Signature {
        crate::objects::refs::Signature {
            who: os_user(),
            time_us: self.now.timestamp().as_microsecond(),
            why: why.into(),
        }
    }

    /// Makes standard output one for bytes that are no text.
    pub fn print_bytes(&mut self) {
        self.out = ui::binary_stdout();
    }

    /// Prints a line on what was done, for people; not with `--quiet`.
    pub fn say(&mut self, text: impl std::fmt::Display) -> CmdResult {
        if !self.ui.is_quiet() {
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    /// Prints a value as one line of JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> CmdResult {
        serde_json::to_writer(&mut self.out, value).map_err(std::io::Error::from)?;
        Ok(writeln!(self.out)?)
    }
}

/// Returns the name of the OS user.
pub fn os_user() -> String {
    let user = User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map(|user| user.name).or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "postgres".to_owned())
}

/// Returns the definition of the whole program.
pub fn clap() -> Clap {
    let program = Clap::new("zenith")
        .version(env!("CARGO_PKG_VERSION"))
        .about("git for PostgreSQL")
        .long_about(
            "git for PostgreSQL: a repository holds every version of a cluster, and an unmodified PostgreSQL starts \
             on any branch, tag, LSN or moment of it.",
        )
        .arg_required_else_help(false)
        .disable_help_subcommand(true)
        .allow_external_subcommands(true)
        .args(global_args())
        .after_long_help(
            "Examples:\n  zenith init                       # a new cluster, on the branch main\n  \
             zenith start main\n  zenith psql main -- -c 'select 1'\n  zenith branch try main            # a copy, at once\n",
        );
    COMMANDS.iter().fold(program, |program, command| program.subcommand((command.clap)()))
}

fn global_args() -> [Arg; 5] {
    let path = || clap::builder::ValueParser::path_buf();
    [
        Arg::new("repo")
            .long("repo")
            .value_name("DIR")
            .env("ZENITH_DIR")
            .global(true)
            .help_heading("Global options")
            .value_parser(path())
            .hide_env_values(true)
            .help("Use the repository in this folder instead of the one found from the current folder upwards"),
        Arg::new("folder")
            .short('C')
            .value_name("DIR")
            .value_parser(path())
            .action(ArgAction::Append)
            .help("Run as if started in this folder"),
        Arg::new("pg-bin")
            .long("pg-bin")
            .value_name("DIR")
            .env("ZENITH_PG_BIN")
            .global(true)
            .help_heading("Global options")
            .value_parser(path())
            .hide_env_values(true)
            .help("Use PostgreSQL's programs in this folder"),
        Arg::new("quiet")
            .short('q')
            .long("quiet")
            .global(true)
            .help_heading("Global options")
            .action(ArgAction::SetTrue)
            .help("Say only what was asked for and what goes wrong"),
        Arg::new("color")
            .long("color")
            .value_name("WHEN")
            .global(true)
            .help_heading("Global options")
            .value_parser(["auto", "always", "never"])
            .default_value("auto")
            .help("When to use colours; auto respects NO_COLOR"),
    ]
}

/// Runs the program. Returns its exit code.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    close_inherited();
    clap_complete::CompleteEnv::with_factory(clap).complete();
    let matches = match clap().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Class::Usage as u8 } else { 0 });
        }
    };
    match run(&matches) {
        Ok(code) => code,
        Err(error) if error.class == Class::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            match error.source.downcast_ref::<clap::Error>() {
                Some(error) => drop(error.print()),
                None => ui::failure(&error),
            }
            ExitCode::from(error.class as u8)
        }
    }
}

fn run(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    if let Some(file) = std::env::var_os("ZENITH_TRACE_SYNC") {
        crate::objects::durable::trace_syncs(std::path::Path::new(&file));
    }
    match matches.get_one::<String>("color").map(String::as_str) {
        Some("always") => anstream::ColorChoice::Always.write_global(),
        Some("never") => anstream::ColorChoice::Never.write_global(),
        _ => anstream::ColorChoice::Auto.write_global(),
    }
    let mut folder = std::env::current_dir()?;
    for dir in matches.get_many::<PathBuf>("folder").into_iter().flatten() {
        folder.push(dir);
    }
    let mut cx = Cx {
        out: ui::stdout(),
        ui: Ui::new(matches.get_flag("quiet"))?,
        repo_dir: matches.get_one::<PathBuf>("repo").map(|dir| folder.join(dir)),
        folder,
        pg_bin: matches.get_one::<PathBuf>("pg-bin").cloned(),
        now: jiff::Zoned::now(),
        umask: umask(PRIVATE),
        repo: None,
    };
    let Some((name, arguments)) = matches.subcommand() else {
        // As git: the overview, but it was not a command.
        porcelain::help::overview(&mut cx, false)?;
        cx.out.flush()?;
        return Ok(ExitCode::FAILURE);
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else { return Err(unknown(name)) };
    (command.run)(&mut cx, arguments)?;
    cx.out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn unknown(name: &str) -> CommandError {
    let likeness = |command: &&Command| strsim::jaro_winkler(command.name, name);
    let nearest = COMMANDS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let error = CommandError::usage(format!("'{name}' is not a zenith command. See 'zenith help'."));
    match nearest.filter(|command| likeness(command) > 0.75) {
        Some(command) => error.hint(format!("the most similar command is '{}'", command.name)),
        None => error,
    }
}

/// Completes words with names from the repository of the current folder: fast, and silent where
/// there is none.
pub mod complete {
    use clap_complete::engine::CompletionCandidate;

    use crate::objects::refs::RefKind;

    fn names(kinds: &[RefKind]) -> Vec<CompletionCandidate> {
        let named = std::env::var_os("ZENITH_DIR").map(std::path::PathBuf::from);
        let Ok(repo) = super::find_repo(named.as_deref(), ".".as_ref()) else { return Vec::new() };
        let refs = kinds.iter().flat_map(|kind| repo.refs().list(*kind).unwrap_or_default());
        refs.map(|(name, _)| CompletionCandidate::new(name.short())).collect()
    }

    /// Completes branches.
    pub fn branch() -> Vec<CompletionCandidate> {
        names(&[RefKind::Branch])
    }

    /// Completes tags.
    pub fn tag() -> Vec<CompletionCandidate> {
        names(&[RefKind::Tag])
    }

    /// Completes whatever can begin a revision.
    pub fn revision() -> Vec<CompletionCandidate> {
        let mut names = names(&[RefKind::Branch, RefKind::Tag, RefKind::Remote]);
        names.push(CompletionCandidate::new("HEAD"));
        names
    }
}
