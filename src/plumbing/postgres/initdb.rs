//! Creates a cluster.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use super::Error;
use super::account::Account;
use super::find::Binaries;

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
        command.stdin(Stdio::null()).output().map_err(Error::io("run", &program))
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

/// Runs statements, one a line, on a cluster that is not running.
fn single_user(binaries: &Binaries, account: &Account, dir: &Path, statements: &[&str]) -> Result<(), Error> {
    let program = binaries.program("postgres")?;
    let mut command = account.command(&program);
    command.arg("--single").args(["-c", "fsync=off", "-D"]).arg(dir).arg("postgres");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            statements.iter().try_for_each(|statement| writeln!(stdin, "{}", statement.replace('\n', " ")))?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(Error::io("run", &program))?;
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
