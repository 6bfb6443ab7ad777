//! Who may connect.

use std::process::Command;

use nix::unistd::geteuid;

use super::Daemon;

/// Runs psql as somebody else.
fn as_nobody(daemon: &Daemon, branch: &str, password: Option<&str>) -> (String, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(crate::support::pg_bin().join("psql"));
    command.args(["-w", "-XqAt", "-h", "127.0.0.1", "-p"]).arg(daemon.listen.port().to_string());
    command.args(["-U", "postgres", "-c", "select name from whoami", &format!("postgres@{branch}")]);
    command.env_remove("PGPASSWORD").current_dir("/");
    password.map(|password| command.env("PGPASSWORD", password));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn others_need_a_password_and_start_little() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can connect as somebody else");
        return;
    }
    let daemon = Daemon::new(&["a", "b", "c"]);
    let (out, err) = as_nobody(&daemon, "main", None);
    assert!(out.is_empty() && err.contains("no password supplied"), "{out} {err}");
    daemon.ask("main", "alter role postgres password 'secret'").unwrap();
    let (out, err) = as_nobody(&daemon, "main", Some("wrong"));
    assert!(out.is_empty() && err.contains("password authentication failed"), "{out} {err}");
    assert_eq!(as_nobody(&daemon, "main", Some("secret")).0, "main");
    // What the cluster itself would let in does not count.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let refused: Vec<String> = ["a", "b", "c"].map(|branch| as_nobody(&daemon, branch, None).1).to_vec();
    assert!(refused.iter().any(|error| error.contains("have not authenticated")), "{refused:?}");
    // To look for a revision may cost as much as a start.
    let refused: Vec<String> =
        ["main@0/1", "main@0/2", "main@0/3"].map(|revision| as_nobody(&daemon, revision, None).1).to_vec();
    assert!(refused.iter().any(|error| error.contains("have not authenticated")), "{refused:?}");
    assert!(daemon.metric("zenith_anonymous_starts_total") >= 1.0);
    assert!(daemon.metric("zenith_anonymous_starts_refused_total") >= 1.0);
}

#[test]
fn other_machines_are_let_in_only_on_demand() {
    let daemon = Daemon::new(&[]);
    daemon.env.run(["pageserver", "stop"]).ok();
    daemon
        .env
        .run(["pageserver", "start", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"])
        .fails(1, &["--allow-remote"]);
    let words = ["pageserver", "start", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--allow-remote"];
    let ran = daemon.env.run(words);
    assert!(ran.err.contains("warning"), "{}", ran.err);
    ran.ok();
}
