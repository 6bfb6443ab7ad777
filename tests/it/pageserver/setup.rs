//! Setting a page server up: ports, addresses, settings, its log, services for libpq.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::Daemon;
use crate::support::{Env, checked, pg_program};

fn listen(env: &Env) -> SocketAddr {
    env.json(["pageserver", "status", "--json"])["listen"].as_str().unwrap().parse().unwrap()
}

#[test]
fn ports_that_are_taken_are_no_obstacle() {
    let env = Env::init();
    // Where these fail, somebody else has taken them.
    let _taken: Vec<_> = [5432, 64000].map(|port| TcpListener::bind(("127.0.0.1", port))).into();
    let ran = env.run(["pageserver", "start"]);
    assert!(ran.err.contains("127.0.0.1:5432 is taken") && ran.err.contains("proxy.http is 127.0.0.1:"), "{}", ran.err);
    ran.ok();
    let found = listen(&env);
    assert!(found.port() > 5432, "{found}");
    // It is remembered, and no server of the repository gets the port.
    assert_eq!(env.run(["config", "proxy.listen"]).ok(), found.to_string());
    env.run(["pageserver", "stop"]).ok();
    env.run(["start"]).ok();
    let port = env.json(["pg", "list", "--json"])[0]["port"].as_u64().unwrap();
    assert_ne!(port, u64::from(found.port()));

    // A server of the repository has it: its socket lies in the same folder.
    let server = port.to_string();
    let words = ["pageserver", "start", "--http", "127.0.0.1:0", "--listen"];
    env.run(words.iter().chain([&&*server])).fails(1, &["the server of 'main' does", "--listen 127.0.0.1:"]);

    // Who chose a port is asked.
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = own.local_addr().unwrap().to_string();
    env.run(words.iter().chain([&&*address])).fails(1, &[&address, "another program", "--listen 127.0.0.1:"]);
    env.run(["config", "proxy.listen", &address]).ok();
    env.run(["pageserver", "start", "--http", "0"]).fails(1, &[&address, "zenith config proxy.listen 127.0.0.1:"]);
}

#[test]
fn a_certificate_that_a_crash_left_empty_is_made_anew() {
    let env = Env::init();
    let start = || env.run(["pageserver", "start", "--listen", "0", "--http", "0"]).ok();
    start();
    env.run(["pageserver", "stop"]).ok();
    for name in ["server.key", "server.crt"] {
        fs::write(env.repo().join("pageserver").join(name), "").unwrap();
        start();
        env.run(["pageserver", "stop"]).ok();
        assert!(fs::metadata(env.repo().join("pageserver").join(name)).unwrap().len() > 0);
    }
    assert_eq!(
        fs::metadata(env.repo().join("pageserver").join("server.key")).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn addresses_are_what_people_type_and_a_second_start_is_no_error() {
    let env = Env::init();
    env.run(["pageserver", "start", "--listen", "example.org:5432"]).fails(2, &["localhost:5432"]);
    env.run(["pageserver", "start", "--listen", "localhost:0", "--http", "0"]).ok();
    let found = listen(&env);
    assert!(found.ip().is_loopback());
    let again = env.run(["pageserver", "start"]);
    assert!(again.err.contains("runs already"), "{}", again.err);
    assert!(again.ok().contains(&found.to_string()));
    env.run(["pageserver", "start", "--listen", &found.port().to_string()]).ok();
    env.run(["pageserver", "start", "--listen", "1"]).fails(1, &["runs already", "restart"]);
    assert_eq!(listen(&env), found);
    // What a restart cannot have does not cost the one that runs.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for option in ["--listen", "--http"] {
        env.run(["pageserver", "restart", option, &address]).fails(1, &[&address, "another program"]);
        assert_eq!(listen(&env), found);
    }
    env.run(["config", "proxy.listen", "localhost:5499"]).ok();
    env.run(["config", "proxy.http", "64999"]).ok();
    env.run(["pageserver", "status"]).ok();
}

#[test]
fn mistakes_in_settings_are_told_in_their_words() {
    let env = Env::init();
    let cases = [
        ("proxy.max_instances", "many", "'many' is no value for proxy.max_instances, which takes a number from 0 on"),
        ("core.compression_level", "23", "a number from 1 to 22"),
        ("proxy.idle_timeout", "min", "a time such as 30s, 5min or 1h, or never"),
        ("proxy.idle_timeout", "soon", "a time such as"),
        ("branch.main.idle_timeout", "h", "branch.main.idle_timeout"),
        ("proxy.listen", "nowhere", "an address such as 127.0.0.1:5432"),
        ("proxy.default", "main", "head or none"),
        ("gc.trash", "14", "a time with its unit, such as 12h or 14 days, or never"),
        ("snapshot.wal_threshold", "64X", "a size such as 64MB"),
        ("branch.nosuch.idle_timeout", "1h", "there is no branch 'nosuch'"),
        ("branch.nosuch.postgres.work_mem", "1MB", "there is no branch 'nosuch'"),
    ];
    for (key, value, said) in cases {
        let ran = env.run(["config", key, value]);
        assert!(!ran.err.contains("TOML") && !ran.err.contains("expected"), "{}", ran.err);
        ran.fails(1, &[said]);
    }
    for value in ["never", "0", "90", "5min", "1h 30m"] {
        env.run(["config", "proxy.idle_timeout", value]).ok();
        env.run(["config", "branch.main.idle_timeout", value]).ok();
    }
    for (key, value) in [("gc.trash", "14 days"), ("gc.trash_limit", "2GB"), ("snapshot.wal_threshold", "67108864")] {
        env.run(["config", key, value]).ok();
    }
    // A file that somebody edited.
    let path = env.repo().join("config");
    let text = fs::read_to_string(&path).unwrap();
    // An earlier version took it for seconds.
    fs::write(&path, text.replace("trash = \"14 days\"", "trash = 604800")).unwrap();
    env.run(["config", "gc.trash"]).ok();
    fs::write(&path, text.replace("max_instances = 0", "max_instances = \"many\"")).unwrap();
    env.run(["status"]).fails(1, &["'many' is no value for proxy.max_instances", "correct it in"]);
}

#[test]
fn an_idle_timeout_of_never_is_that() {
    let daemon = Daemon::new(&["try"]);
    daemon.env.run(["config", "proxy.idle_timeout", "10ms"]).ok();
    daemon.env.run(["config", "branch.try.idle_timeout", "never"]).ok();
    daemon.ask("try", "select 1").unwrap();
    daemon.ask("main", "select 1").unwrap();
    daemon.wait_until_running(&["try"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(daemon.running(), ["try"]);
}

#[test]
fn the_log_is_for_people_and_for_programs() {
    let daemon = Daemon::new(&[]);
    daemon.ask("main", "select 1").unwrap();
    let text = daemon.env.run(["pageserver", "logs"]).ok();
    let started = text.lines().find(|line| line.contains(" started ")).unwrap_or_else(|| panic!("{text}"));
    assert!(started.contains(" INFO ") && started.contains("branch=main") && !started.contains('{'), "{started}");
    let raw = daemon.env.run(["pageserver", "logs", "--json", "-n", "1000"]).ok();
    let parsed = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    assert!(raw.lines().any(|line| parsed(line)["message"] == "started"));
    assert_eq!(daemon.env.run(["pageserver", "logs", "-n", "1"]).ok().lines().count(), 1);
}

#[test]
fn services_are_merged_into_the_users_file() {
    let daemon = Daemon::new(&["try/this"]);
    let env = &daemon.env;
    let file = env.path().join(".pg_service.conf");
    assert_eq!(env.run(["service-file", "--install"]).ok(), file.display().to_string());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |service: &str| {
        let mut psql = pg_program("psql");
        psql.env("HOME", env.path()).env_remove("PGSERVICEFILE").env("PGSYSCONFDIR", env.path());
        checked(psql.args([&format!("service={service}"), "-XqAtc", "select name from whoami"])).trim().to_owned()
    };
    assert_eq!(ask("try/this"), "try/this");
    assert_eq!(ask("main"), "main");

    // What the user wrote stays, byte for byte, and so does a link and who may read the file.
    let own = "# mine\n[main]\nhost=/nowhere\n\n[other]\nhost=elsewhere";
    let dotfiles = env.path().join("dotfiles");
    fs::create_dir(&dotfiles).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(dotfiles.join("services"), own).unwrap();
    fs::set_permissions(dotfiles.join("services"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink(dotfiles.join("services"), &file).unwrap();
    let ran = env.run(["service-file", "--install"]);
    assert!(ran.err.contains("a service 'main' of its own"), "{}", ran.err);
    ran.ok();
    env.run(["branch", "later"]).ok();
    env.run(["service-file", "--install"]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with(own) && text.matches("[later]").count() == 1, "{text}");
    assert_eq!((text.matches("[main]").count(), text.matches("[try/this]").count()), (1, 1), "{text}");
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(ask("try/this"), "try/this");
    // Half a place is nothing to guess about.
    fs::write(&file, text.split("# end of").next().unwrap()).unwrap();
    env.run(["service-file", "--install"]).fails(1, &["not its end", "# end of"]);
}
