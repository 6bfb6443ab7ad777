//! Each client names a branch in its own way, runs a transaction, a COPY and a cancel.

use std::path::PathBuf;
use std::process::Command;

use super::Daemon;
use crate::support::{Env, checked, majors};

/// Returns the folder of the clients that `scripts/get-clients` fetched.
pub fn fetched() -> Option<PathBuf> {
    let dir = std::env::var_os("ZENITH_TEST_CLIENTS").map(PathBuf::from);
    if dir.is_none() {
        println!("SKIPPED: ZENITH_TEST_CLIENTS does not name the clients: see scripts/get-clients");
    }
    dir
}

pub fn source(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

#[track_caller]
fn python(dir: &std::path::Path, daemon: &Daemon, client: &str, branch: &str) {
    let mut command = Command::new(dir.join("python/bin/python"));
    command.arg(source("clients.py")).args([client, "127.0.0.1", &daemon.listen.port().to_string(), branch]);
    assert_eq!(checked(&mut command).trim(), "ok", "{client}");
}

#[test]
fn python_clients() {
    let Some(dir) = fetched() else { return };
    let daemon = Daemon::new(&["try"]);
    let clients = [
        "psycopg_options",
        "psycopg_database",
        "psycopg_tls",
        "psycopg_sni",
        "psycopg_direct_tls",
        "psycopg_latest_protocol",
        "asyncpg",
        "pg8000",
        "pg8000_user",
        "tls_without_alpn",
    ];
    clients.iter().for_each(|client| python(&dir, &daemon, client, "try"));
}

#[test]
fn longer_cancel_keys_of_protocol_3_2() {
    let Some(dir) = fetched() else { return };
    let Some((_, bin)) = majors().into_iter().find(|(major, _)| *major == 18) else {
        println!("SKIPPED: PostgreSQL 18 is not here");
        return;
    };
    let env = Env::with_bin(&bin);
    env.run(["init"]).ok();
    let daemon = Daemon::of(env, &["try"]);
    python(&dir, &daemon, "psycopg_latest_protocol", "try");
}

#[test]
fn node_postgres() {
    let Some(dir) = fetched() else { return };
    let daemon = Daemon::new(&["try"]);
    let mut command = Command::new("node");
    command.arg(source("client.mjs")).arg(dir.join("node/node_modules"));
    command.args(["127.0.0.1", &daemon.listen.port().to_string(), "try"]);
    assert_eq!(checked(&mut command).trim(), "ok");
}

#[test]
fn jdbc() {
    let Some(dir) = fetched() else { return };
    let daemon = Daemon::new(&["try"]);
    let mut command = Command::new("java");
    command.arg("-cp").arg(std::fs::read_to_string(dir.join("jdbc.path")).unwrap().trim()).arg(source("Client.java"));
    command.args(["127.0.0.1", &daemon.listen.port().to_string(), "try"]);
    assert_eq!(checked(&mut command).trim(), "ok");
}

#[test]
fn rust_postgres() {
    use std::io::{Read, Write};
    let daemon = Daemon::new(&["try"]);
    let mut client = daemon.connect("try").unwrap();
    let name: String = client.query_one("select name from whoami", &[]).unwrap().get(0);
    assert_eq!(name, "try");
    let mut transaction = client.transaction().unwrap();
    transaction.batch_execute("create temp table t (i int)").unwrap();
    let mut writer = transaction.copy_in("copy t from stdin").unwrap();
    (0..20_000).for_each(|i| writeln!(writer, "{i}").unwrap());
    writer.finish().unwrap();
    transaction.commit().unwrap();
    let mut text = String::new();
    client.copy_out("copy t to stdout").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 20_000);
    let cancel = client.cancel_token();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        cancel.cancel_query(postgres::NoTls).unwrap();
    });
    let error = client.batch_execute("select pg_sleep(30)").unwrap_err();
    assert_eq!(error.code(), Some(&postgres::error::SqlState::QUERY_CANCELED));
    canceller.join().unwrap();
}
