//! Creates a cluster.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::Error;
use super::account::Account;
use super::find::Binaries;
use super::server::session;
use super::settings::{Role, Settings};
use crate::objects::file_error::cannot;
use crate::objects::pg::control::Sizes;

/// The superuser of every cluster that zenith creates.
pub const SUPERUSER: &str = "postgres";

/// Creates a cluster in `dir`, which must be empty or absent: UTF-8, data checksums, the superuser
/// `postgres`, and a superuser and a database named like the OS user, so that plain `psql` works.
/// It is cleanly shut down afterwards.
pub fn initdb(binaries: &Binaries, account: &Account, dir: &Path, os_user: &str) -> Result<(), Error> {
    let program = binaries.program("initdb")?;
    let run = |locale: &str| {
        let mut command = account.command(&program);
        command.args(["-U", SUPERUSER, "-E", "UTF8", "--data-checksums", "--no-instructions"]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"]);
        command.arg(format!("--locale={locale}")).arg("-D").arg(dir);
        command.stdin(Stdio::null()).output().map_err(cannot::<Error>("run", &program))
    };
    let mut output = run("C.UTF-8")?;
    if !output.status.success() && text(&output).contains("locale") {
        output = run("C")?;
    }
    check("initdb", &output)?;
    if os_user == SUPERUSER {
        return Ok(());
    }
    let quoted = os_user.replace('"', "\"\"");
    single_user(
        binaries,
        account,
        dir,
        &[
            &format!("CREATE ROLE \"{quoted}\" SUPERUSER LOGIN;"),
            &format!("CREATE DATABASE \"{quoted}\" OWNER \"{quoted}\";"),
        ],
    )
}

/// Returns the names of the superusers who may connect to a cluster whose server does not run, `postgres` first, if it is one
/// of them, then the oldest. The files are recovered by that, if they have to be.
pub fn superusers(binaries: &Binaries, account: &Account, dir: &Path) -> Result<Vec<String>, Error> {
    const MARK: &str = "superuser=";
    let query = format!(
        "COPY (SELECT '{MARK}' || encode(textsend(rolname::text), 'hex') || '.' FROM pg_catalog.pg_authid \
         WHERE rolsuper AND rolcanlogin ORDER BY rolname <> '{SUPERUSER}', oid) TO STDOUT;\n"
    );
    let settings = Settings {
        port: 1,
        socket_dir: dir.to_owned(),
        tcp: None,
        name: "zenith".to_owned(),
        hba_file: dir.join("pg_hba.conf"),
        own: Vec::new(),
        is_live: false,
        replayed: Sizes::default(),
        role: Role::Primary { archive_command: "false".to_owned() },
    };
    let program = binaries.program("postgres")?;
    let mut command = account.command(&program);
    command.arg("--single").arg("-D").arg(dir).args(settings.arguments(binaries.major, dir));
    command.args(session(binaries.major).flat_map(|setting| ["-c", setting]));
    command.args(["-c", "shared_preload_libraries=", "template1"]);
    let output = feed(&mut command, &query).map_err(cannot::<Error>("run", &program))?;
    check("postgres --single", &output)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = said.split(MARK).skip(1).filter_map(|rest| from_hex(rest.split('.').next()?));
    let names: Vec<String> = found.collect();
    if names.is_empty() { Err(Error::NoSuperuser) } else { Ok(names) }
}

fn from_hex(digits: &str) -> Option<String> {
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// Runs a command with that standard input.
fn feed(command: &mut Command, input: &str) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // It may end before it has read all; what it says tells why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output()
}

/// Runs statements, one a line, on a cluster that is not running.
fn single_user(binaries: &Binaries, account: &Account, dir: &Path, statements: &[&str]) -> Result<(), Error> {
    let program = binaries.program("postgres")?;
    let mut command = account.command(&program);
    command.arg("--single").args(["-c", "fsync=off", "-D"]).arg(dir).arg("postgres");
    let lines: String = statements.iter().map(|statement| statement.replace('\n', " ") + "\n").collect();
    let output = feed(&mut command, &lines).map_err(cannot::<Error>("run", &program))?;
    let said = text(&output);
    if said.contains("ERROR:") {
        return Err(Error::Failed { program: "postgres --single", output: said });
    }
    check("postgres --single", &output)
}

fn check(program: &'static str, output: &Output) -> Result<(), Error> {
    if output.status.success() { Ok(()) } else { Err(Error::Failed { program, output: text(output) }) }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
