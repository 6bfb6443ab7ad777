//! `zenith help`: lists the commands, or explains one.

use std::io::Write;

use crate::command::{Cx, Group};
use crate::error::{CmdResult, CommandError};
use crate::ui::{STRONG, paint};

/// List the commands, or explain one
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith help\n  zenith help -a\n  zenith help branch\n")]
pub struct Args {
    /// List the plumbing too
    #[arg(short, long)]
    all: bool,
    /// The command to explain
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints the commands by group.
pub fn overview(cx: &mut Cx, all: bool) -> CmdResult {
    writeln!(cx.out, "usage: zenith [--repo DIR] [-C DIR] <command> [<args>]\n")?;
    writeln!(cx.out, "git for PostgreSQL: every version of a cluster, and a server on any of them.\n")?;
    for group in Group::ALL.into_iter().filter(|group| all || !group.is_plumbing()) {
        writeln!(cx.out, "{}", paint(STRONG, group.title()))?;
        for command in cx.commands.iter().filter(|command| command.group == group) {
            let about = (command.clap)().get_about().map(ToString::to_string).unwrap_or_default();
            writeln!(cx.out, "   {:<15} {about}", command.name)?;
        }
        writeln!(cx.out)?;
    }
    let more = if all { "" } else { " 'zenith help -a' lists the plumbing too." };
    Ok(writeln!(cx.out, "See 'zenith help <command>' to read about one.{more}")?)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let Some(name) = args.command else { return overview(cx, args.all) };
    if !cx.commands.iter().any(|command| command.name == name) {
        return Err(
            CommandError::refused(format!("there is no command '{name}'")).hint("see what there is: zenith help -a")
        );
    }
    let mut program = (cx.program)();
    program.build();
    let command = program.find_subcommand_mut(&name).expect("invariant: in the table");
    Ok(write!(cx.out, "{}", command.render_long_help().ansi())?)
}
