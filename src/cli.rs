//! The table of commands, and how one gets from words to an exit code.
//!
//! To add a command: a file with `Args` (whose doc comment is the help), a function that does the
//! work and returns a value, and `run`, which prints it; and a line in [`COMMANDS`]. Help, man pages
//! and completions follow from these.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Args, Command as Clap, FromArgMatches};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::umask;

use crate::command::{Command, Cx, Group, PRIVATE};
use crate::error::{Class, CommandError};
use crate::plumbing::postgres::alive::close_inherited;
use crate::ui::{self, Ui};
use crate::{plumbing, porcelain};

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
pub static COMMANDS: [Command; 44] = [
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
    command!(Maintain, "migrate", plumbing::migrate),
    command!(Maintain, "help", porcelain::help),
    command!(Maintain, "version", porcelain::version),
    command!(Maintain, "completions", porcelain::completions),
    command!(Manipulate, "hash-wal", plumbing::hash_wal),
    command!(Manipulate, "seal-wal", plumbing::seal_wal),
    command!(Manipulate, "write-snapshot", plumbing::write_snapshot),
    command!(Manipulate, "read-snapshot", plumbing::read_snapshot),
    command!(Manipulate, "repack", plumbing::repack),
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

/// Threads that work on the same thing at a time, at most, whatever the environment wishes.
const MOST_THREADS: usize = 64;

fn bound_threads() {
    let wished = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse::<usize>().ok());
    if wished.is_some_and(|number| number > MOST_THREADS) {
        // There is no pool yet.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(MOST_THREADS).build_global();
    }
}

/// Runs the program. Returns its exit code.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    close_inherited();
    // A file that becomes too large is an error like any other, as for PostgreSQL.
    let mut too_large = SigSet::empty();
    too_large.add(Signal::SIGXFSZ);
    let _ = too_large.thread_block(); // else it ends the program
    bound_threads();
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
        commands: &COMMANDS,
        program: clap,
        ui: Ui::new(matches.get_flag("quiet"))?,
        repo_dir: matches.get_one::<PathBuf>("repo").map(|dir| folder.join(dir)),
        folder,
        pg_bin: matches.get_one::<PathBuf>("pg-bin").cloned(),
        now: jiff::Zoned::now(),
        changes: false,
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
    cx.changes = command.changes();
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
