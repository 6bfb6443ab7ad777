//! `zenith completions`: prints what a shell needs to complete zenith's words.

use std::io::Write;

use clap_complete::env::Shells;

use crate::command::Cx;
use crate::error::{CmdResult, CommandError};

/// Print the completion script for a shell
///
/// Completes commands, options, branches and tags.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith completions bash > /etc/bash_completion.d/zenith\n  zenith completions fish > ~/.config/fish/completions/zenith.fish\n"
)]
pub struct Args {
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| CommandError::usage("an unknown shell"))?;
    let mut script = Vec::new();
    shell.write_registration("COMPLETE", "zenith", "zenith", "zenith", &mut script)?;
    Ok(cx.out.write_all(&script)?)
}
