//! `zenith symbolic-ref`: reads and sets HEAD.

use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::refs::RefName;

/// Print or set the branch that HEAD names
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith symbolic-ref\n  zenith symbolic-ref refs/branches/try\n")]
pub struct Args {
    /// Full name of the branch that HEAD shall name
    #[arg(value_name = "REF")]
    name: Option<String>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let signature = cx.sign("symbolic-ref");
    let repo = cx.take_repo()?;
    match args.name {
        Some(name) => Ok(repo.refs().set_head(repo.tmp()?, &RefName::full(&name)?, &signature)?),
        None => Ok(writeln!(cx.out, "{}", repo.refs().head()?)?),
    }
}
