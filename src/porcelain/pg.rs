//! `zenith pg`: works with instances by their own names.

use std::io::Write;
use std::time::Duration;

use super::branch_or_head;
use super::start::{report, start_branch};
use super::stop::stop_and_report;
use crate::command::Cx;
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::plumbing::datadir::control::{self, Control};
use crate::plumbing::instance::lost::{self, Damaged};
use crate::plumbing::instance::start::Wish;
use crate::plumbing::instance::{self, Instance};
use crate::plumbing::postgres::server::{Mode, Status};

/// Work with instances by their names
///
/// An instance is a branch and a port: pg1, pg2, ... The commands start and stop are the short way.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith pg create try\n  zenith pg start pg1\n  zenith pg stop pg1\n  zenith pg list\n"
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make an instance of a branch; prints the branch's timeline, the instance and its port
    Create {
        /// The branch; otherwise HEAD
        #[arg(add = clap_complete::engine::ArgValueCandidates::new(crate::command::complete::branch))]
        branch: Option<String>,
        /// The port; otherwise a free one
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
    },
    /// Start an instance
    Start { name: String },
    /// Stop an instance
    Stop { name: String },
    /// List the instances: name, branch, port, state
    List {
        /// Print one line of JSON: a list of name, branch, port, running and timeline
        #[arg(long)]
        json: bool,
    },
}

/// An instance, for people and scripts.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    pub name: String,
    pub branch: String,
    pub port: u16,
    pub running: bool,
    /// That of the open epoch.
    pub timeline: Option<String>,
    /// Its server is gone although it was not stopped.
    pub crashed: bool,
    /// Its config cannot be read: nothing else is known of it.
    pub damaged: bool,
    /// What it shows, if it is read-only: a timeline and an LSN.
    pub at: Option<String>,
    /// How its lazy data directory is doing.
    pub lazy: Option<control::Status>,
}

/// Returns what there is to say of each instance.
pub fn rows(repo: &Repo) -> Result<Vec<Row>, instance::Error> {
    let row = |instance: Instance| {
        let running = instance.status(repo) != Status::Stopped;
        let data = instance.data_dir(repo).filter(|_| running);
        let lazy = data.and_then(|data| Control::of(&data).ok()??.status().ok());
        let Instance { name, config } = instance;
        Row {
            name,
            running,
            crashed: !running && config.timeline.is_some(),
            damaged: false,
            branch: config.branch,
            port: config.port,
            timeline: config.timeline,
            at: config.at,
            lazy,
        }
    };
    let damaged = |damaged: Damaged| Row {
        name: damaged.name,
        branch: String::new(),
        port: 0,
        running: false,
        timeline: None,
        crashed: false,
        damaged: true,
        at: None,
        lazy: None,
    };
    Ok(instance::list(repo)?.into_iter().map(row).chain(lost::damaged(repo)?.into_iter().map(damaged)).collect())
}

/// Prints a table of instances.
pub fn print_table(cx: &mut Cx, rows: &[Row]) -> CmdResult {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["INSTANCE", "BRANCH", "PORT", "STATE"]);
    for row in rows {
        let read_only = if row.at.is_some() { ", read-only" } else { "" };
        let state = match row {
            Row { damaged: true, .. } => "damaged",
            Row { running: true, .. } => "running",
            Row { crashed: true, .. } => "crashed",
            _ => "stopped",
        };
        table.add_row([row.name.clone(), row.branch.clone(), row.port.to_string(), format!("{state}{read_only}")]);
    }
    Ok(table.lines().try_for_each(|line| writeln!(cx.out, "{}", line.trim()))?)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    match args.action {
        Action::Create { branch, port } => {
            let branch = branch_or_head(&repo, branch.as_deref())?;
            let timeline = repo.refs().read_branch(&branch)?;
            let (_held, mut instance) = instance::hold_or_create(&repo, branch.short(), &cx.ui)?;
            if let Some(port) = port.filter(|port| *port != instance.config.port) {
                if instance.timeline().is_some() {
                    return Err(CommandError::refused(format!("{} is running and keeps its port", instance.name))
                        .hint(format!("stop it first: zenith stop {}", branch.short())));
                }
                instance.config.port = port;
                instance.write(&repo)?;
            }
            writeln!(cx.out, "{timeline}")?;
            writeln!(cx.out, "{} on port {}", instance.name, instance.config.port)?;
            Ok(())
        }
        Action::Start { name } => {
            let branch = Instance::read(&repo, &name)?.config.branch;
            let branch = branch_or_head(&repo, Some(&branch))?;
            let outcome = start_branch(cx, &repo, branch.short(), Wish::default())?;
            report(cx, &repo, &outcome)
        }
        Action::Stop { name } => {
            lost::take_up(&repo, &cx.ui)?;
            let instance = Instance::read(&repo, &name)?;
            stop_and_report(cx, &repo, &instance, Mode::Fast, Duration::from_secs(60))
        }
        Action::List { json } => {
            let rows = rows(&repo)?;
            if json { cx.json(&rows) } else { print_table(cx, &rows) }
        }
    }
}
