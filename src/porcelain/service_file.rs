//! `zenith service-file`: the branches for `pg_service.conf`.

use std::io::Write;

use crate::cli::Cx;
use crate::error::CmdResult;
use crate::objects::refs::RefKind;
use crate::plumbing::pageserver;

/// Print the branches as services for libpq
///
/// Each branch becomes a section of a file pg_service.conf, by which psql and all that use libpq
/// reach it through the page server: psql service=try.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith service-file > ~/.pg_service.conf\n  psql service=main\n")]
pub struct Args {}

pub fn run(cx: &mut Cx, _: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let listen = match pageserver::running(&repo)? {
        Some((_, addresses)) => addresses.listen,
        None => {
            cx.ui.status("the page server does not run (use \"zenith pageserver start\" to start it)");
            repo.config().proxy.listen
        }
    };
    for (name, _) in repo.refs().list(RefKind::Branch)? {
        let (name, host, port) = (name.short(), listen.ip(), listen.port());
        writeln!(cx.out, "[{name}]\nhost={host}\nport={port}\nuser=postgres\ndbname=postgres")?;
        writeln!(cx.out, "options=-c zenith.branch={name}\n")?;
    }
    Ok(())
}
