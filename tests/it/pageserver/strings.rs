//! The table of clients and their strings in zenith-clients(7): each row is tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Daemon;
use super::clients::{fetched, source};
use crate::support::{checked, pg_program};

const SQL: &str = "select name || ' ' || current_setting('zenith.branch') from whoami";

/// Returns the tables of the manual: clients and their strings, as a reader sees them.
fn tables() -> Vec<Vec<(String, Vec<String>)>> {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man/zenith-clients.7");
    let page = std::fs::read_to_string(page).unwrap();
    let table = |text: &str| {
        let mut clients: Vec<(String, Vec<String>)> = Vec::new();
        let rows = text.split(".TE\n").next().unwrap().lines().filter_map(|line| line.split_once('\t'));
        for (client, string) in rows {
            let string = string.replace("\\-", "-");
            match clients.last_mut().filter(|(known, _)| known == client) {
                Some((_, strings)) => strings.push(string),
                None => clients.push((client.to_owned(), vec![string])),
            }
        }
        clients
    };
    page.split(".TS\n").skip(1).map(table).collect()
}

/// Connects a client as each of its strings says; returns what it printed for each.
fn told(dir: &Path, daemon: &Daemon, client: &str, strings: &[String]) -> Vec<String> {
    let port = daemon.listen.port().to_string();
    let own =
        |string: &String| string.replace(":5432", &format!(":{port}")).replace("port=5432", &format!("port={port}"));
    let strings: Vec<String> = strings.iter().map(own).collect();
    let mut command = match client {
        "psql" => {
            let ask = |string: &String| checked(pg_program("psql").args([string, "-XqAtc", SQL])).trim().to_owned();
            return strings.iter().map(ask).collect();
        }
        "rust-postgres" => {
            let connect = |string: &String| postgres::Client::connect(string, postgres::NoTls).unwrap();
            return strings.iter().map(|string| connect(string).query_one(SQL, &[]).unwrap().get(0)).collect();
        }
        "psycopg" | "psycopg2" | "SQLAlchemy" | "asyncpg" | "pg8000" => {
            let mut python = Command::new(dir.join("python/bin/python"));
            python.arg(source("strings.py")).arg(client);
            python
        }
        "node-postgres" | "postgres.js" | "Knex" | "Sequelize" | "TypeORM" => {
            let mut node = Command::new("node");
            node.arg(source("strings.mjs")).arg(dir.join("node/node_modules")).arg(client);
            node
        }
        "JDBC" => {
            let mut java = Command::new("java");
            java.arg("-cp").arg(std::fs::read_to_string(dir.join("jdbc.path")).unwrap().trim());
            java.arg(source("Strings.java"));
            java
        }
        other => panic!("the manual has a client that is not tried: {other}"),
    };
    checked(command.args(strings)).lines().map(str::to_owned).collect()
}

#[test]
fn every_string_of_the_manual_reaches_its_branch() {
    let Some(dir) = fetched() else { return };
    let daemon = Daemon::new(&["try"]);
    let tables = tables();
    let [named, unnamed] = &tables[..] else { panic!("the manual has {} tables", tables.len()) };
    assert!(named.len() > 8 && unnamed.len() > 1, "{tables:?}");
    let all_are = |rows: &[(String, Vec<String>)], expected: &str| {
        for (client, strings) in rows {
            let told = told(&dir, &daemon, client, strings);
            let wrong = strings.iter().zip(&told).find(|(_, told)| *told != expected);
            assert!(wrong.is_none() && told.len() == strings.len(), "{client}: {wrong:?}, not {expected}");
        }
    };
    all_are(named, "try try");
    all_are(unnamed, "main main");
    // All that names a branch goes on where there is no default, and nothing else does.
    daemon.env.run(["config", "proxy.default", "none"]).ok();
    all_are(unnamed, "3D000");
    all_are(&named[..1], "try try");
}

#[test]
fn a_session_knows_its_branch_and_need_not_have_a_default() {
    let daemon = Daemon::new(&["try"]);
    let connect = |user: &str, options: &str| {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(daemon.listen.port()).user(user).dbname("postgres").options(options);
        let mut client = config.connect(postgres::NoTls).map_err(super::told)?;
        Ok::<String, String>(client.query_one(SQL, &[]).map_err(super::told)?.get(0))
    };
    assert_eq!(connect("postgres", ""), Ok("main main".into()));
    assert_eq!(connect("postgres@HEAD", ""), Ok("main main".into()));
    assert_eq!(connect("postgres%40try", ""), Ok("try try".into()));
    assert_eq!(connect("postgres", "-c ZENITH.BRANCH=try"), Ok("try try".into()));
    assert_eq!(connect("postgres", "-c zenith.branch=main -c Branch=try"), Ok("try try".into()));
    let lsn = daemon.env.run(["rev-parse", "try"]).ok();
    let lsn = lsn.trim().split('@').nth(1).unwrap();
    let told = connect(&format!("postgres@try@{lsn}"), "");
    assert_eq!(told, Ok(format!("try try@{lsn}")));
    daemon.env.run(["config", "proxy.default", "none"]).ok();
    let error = connect("postgres", "").unwrap_err();
    assert!(error.starts_with("3D000 ") && error.contains("postgres@main"), "{error}");
    assert_eq!(connect("postgres@HEAD", ""), Ok("main main".into()));
    assert_eq!(connect("postgres", "-c branch=try"), Ok("try try".into()));
}

#[test]
fn the_url_of_a_branch_is_what_every_client_takes() {
    let daemon = Daemon::new(&["try/this"]);
    let port = daemon.listen.port();
    let url = daemon.env.run(["url", "try/this"]).ok();
    assert_eq!(url.trim(), format!("postgresql://postgres%40try%2Fthis@127.0.0.1:{port}/postgres"));
    let asked = checked(pg_program("psql").args([url.trim(), "-XqAtc", SQL]));
    assert_eq!(asked.trim(), "try/this try/this");
    // An address to listen on is none to connect to.
    daemon.env.run(["pageserver", "stop"]).ok();
    daemon.env.run(["pageserver", "start", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--allow-remote"]).ok();
    for words in [&["url", "main"][..], &["service-file"], &["pageserver", "status"]] {
        let said = daemon.env.run(words).ok();
        assert!(said.contains("127.0.0.1"), "{said}");
        assert!(words[0] == "pageserver" || !said.contains("0.0.0.0"), "{said}");
    }
    let url = daemon.env.run(["url", "main"]).ok();
    assert_eq!(checked(pg_program("psql").args([url.trim(), "-XqAtc", SQL])).trim(), "main main");
}
