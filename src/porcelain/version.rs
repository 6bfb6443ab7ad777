//! `zenith version`: says what this is.

use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::format::FORMAT_VERSION;
use crate::objects::pg::version::VERSIONS;

/// Print the version, the repository format and the PostgreSQL versions
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith version\n")]
pub struct Args {}

pub fn run(cx: &mut Cx, _: Args) -> CmdResult {
    writeln!(cx.out, "zenith {}", env!("CARGO_PKG_VERSION"))?;
    let majors: Vec<String> = VERSIONS.iter().map(|version| version.major.to_string()).collect();
    Ok(writeln!(cx.out, "repository format {FORMAT_VERSION}, PostgreSQL {}", majors.join(", "))?)
}
