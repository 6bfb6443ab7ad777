//! Servers that come when somebody connects and go when nobody does.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Daemon;
use crate::it::alive::kill_file_system_and_guardian;
use crate::support::{Env, Random, checked, is_alive, wait_until};

#[test]
fn a_server_comes_with_its_client_and_goes_when_idle() {
    let daemon = Daemon::new(&["try"]);
    assert_eq!(daemon.running(), Vec::<String>::new());
    assert_eq!(daemon.ask("try", "insert into whoami values ('more'); select count(*) from whoami"), Ok("2".into()));
    assert_eq!(daemon.running(), ["try"]);
    // A client keeps it, however long it says nothing.
    let client = daemon.connect("try").unwrap();
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("main".into()));
    daemon.wait_until_running(&["try"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.running(), ["try"]);
    drop(client);
    daemon.wait_until_running(&[]);
    assert_eq!(daemon.ask("try", "select count(*) from whoami"), Ok("2".into()));
    // One that was started by hand stays, and one that the proxy started stays once it is asked for by hand.
    daemon.env.run(["start", "main"]).ok();
    daemon.env.run(["start", "try"]).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.running(), ["main", "try"]);
    daemon.env.run(["stop", "--all"]).ok();
    // A branch may have a time of its own, and settings.
    daemon.env.run(["config", "branch.try.idle_timeout", "1h"]).ok();
    daemon.env.run(["config", "branch.try.postgres.work_mem", "77MB"]).ok();
    assert_eq!(daemon.ask("try", "show work_mem"), Ok("77MB".into()));
    assert_eq!(daemon.ask("main", "show work_mem"), Ok("4MB".into()));
    daemon.wait_until_running(&["try"]);
}

#[test]
fn a_server_without_file_system_and_guardian_gets_a_fresh_one_for_its_next_client() {
    let daemon = Daemon::new(&[]);
    assert_eq!(daemon.ask("main", "insert into whoami values ('more'); select count(*) from whoami"), Ok("2".into()));
    kill_file_system_and_guardian(&daemon.env, "main");
    assert_eq!(daemon.ask("main", "select count(*) from whoami"), Ok("2".into()));
}

#[test]
fn twenty_clients_start_a_server_once() {
    let daemon = Daemon::new(&[]);
    let starts: Vec<String> = std::thread::scope(|scope| {
        let ask = || daemon.ask("main", "select pg_postmaster_start_time()").unwrap();
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(starts.iter().all(|start| *start == starts[0]), "{starts:?}");
    assert_eq!(daemon.metric("zenith_cold_start_seconds_count"), 1.0);
}

#[test]
fn any_moment_is_a_connection_away() {
    let daemon = Daemon::new(&[]);
    let before = daemon.env.run(["rev-parse", "main"]).ok();
    let lsn = before.split('@').nth(1).unwrap();
    daemon.env.run(["tag", "v1"]).ok();
    daemon.ask("main", "update whoami set name = 'changed'").unwrap();
    for revision in ["v1".to_owned(), format!("main@{lsn}"), before.clone()] {
        assert_eq!(daemon.ask(&revision, "select name from whoami"), Ok("main".into()), "{revision}");
        let error = daemon.ask(&revision, "delete from whoami").unwrap_err();
        assert!(error.starts_with("25006 "), "{error}");
    }
    let time = daemon.ask("main", "select to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.USOF')").unwrap();
    daemon.ask("main", "update whoami set name = 'again'").unwrap();
    assert_eq!(daemon.ask(&format!("main@{{{time}}}"), "select name from whoami"), Ok("changed".into()));
    assert_eq!(daemon.ask("main", "select name from whoami"), Ok("again".into()));
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    daemon.wait_until_running(&[]);
    // They are forgotten, a moment after their servers are gone.
    let patience = Instant::now() + Duration::from_secs(20);
    let left = || daemon.env.json(["pg", "list", "--json"]).as_array().unwrap().len();
    while left() != 1 {
        assert!(Instant::now() < patience, "{} are left", left());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_cannot_be_had_is_an_error_with_its_sqlstate() {
    let daemon = Daemon::new(&["heikki", "other"]);
    let error = daemon.ask("hekki", "select 1").unwrap_err();
    assert!(error.starts_with("3D000 ") && error.contains("hekki") && error.contains("heikki"), "{error}");
    let error = daemon.ask("main@{1000 days ago}", "select 1").unwrap_err();
    assert!(error.starts_with("3D000 ") && error.contains("the oldest position is @"), "{error}");
    daemon.env.run(["config", "branch.heikki.postgres.shared_buffers", "nonsense"]).ok();
    let error = daemon.ask("heikki", "select 1").unwrap_err();
    assert!(error.starts_with("57P03 ") && error.contains("shared_buffers"), "{error}");
    daemon.env.run(["config", "--unset", "branch.heikki.postgres.shared_buffers"]).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.ask("heikki", "select name from whoami"), Ok("heikki".into()));
    // No more than so many: an idle one makes room, one in use does not.
    daemon.env.run(["config", "proxy.max_instances", "1"]).ok();
    let client = daemon.connect("main").unwrap();
    assert_eq!(daemon.running(), ["main"]);
    let error = daemon.ask("other", "select 1").unwrap_err();
    assert!(error.starts_with("53300 ") && error.contains("max_instances"), "{error}");
    drop(client);
    assert_eq!(daemon.ask("other", "select name from whoami"), Ok("other".into()));
    assert_eq!(daemon.running(), ["other"]);
}

#[test]
fn who_waits_for_room_keeps_nobody_from_a_server_that_runs() {
    let daemon = Daemon::new(&["old", "young"]);
    daemon.env.run(["config", "proxy.max_instances", "2"]).ok();
    for branch in ["old", "young"] {
        daemon.ask(branch, "select 1").unwrap();
    }
    let repo = zenith::objects::Repo::open(&daemon.env.repo()).unwrap();
    let old = zenith::plumbing::instance::of_branch(&repo, "old").unwrap().unwrap();
    // Its stop takes as long as somebody else holds it.
    let held = old.hold(&repo, &zenith::progress::Hidden).unwrap();
    std::thread::scope(|scope| {
        let third = scope.spawn(|| daemon.ask("main", "select name from whoami"));
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        let young = daemon.ask("young", "select name from whoami");
        let took = begun.elapsed();
        drop(held);
        assert_eq!((young, third.join().unwrap()), (Ok("young".into()), Ok("main".into())));
        assert!(took < Duration::from_secs(15), "{took:?}");
    });
    assert_eq!(daemon.running(), ["main", "young"]);
}

#[test]
fn a_daemon_that_ends_takes_no_server_down() {
    let mut daemon = Daemon::new(&["try"]);
    let start = daemon.ask("try", "select pg_postmaster_start_time()").unwrap();
    daemon.env.run(["pageserver", "start", "--foreground"]).fails(1, &["runs already"]);
    daemon.env.run(["pageserver", "stop"]).ok();
    assert_eq!(daemon.running(), ["try"]);
    daemon.env.run(["pageserver", "stop"]).fails(1, &["does not run"]);
    daemon.start(&[]);
    assert_eq!(daemon.ask("try", "select pg_postmaster_start_time()").unwrap(), start);
    // Neither does one that is killed.
    let pid = daemon.env.json(["pageserver", "status", "--json"])["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("the page server's end", || !is_alive(pid));
    daemon.start(&[]);
    assert_eq!(daemon.ask("try", "select pg_postmaster_start_time()").unwrap(), start);
    // And the new one goes on where the old one ended.
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    daemon.wait_until_running(&[]);
    // A server that dies is started again.
    daemon.ask("try", "select 1").unwrap();
    kill(Pid::from_raw(daemon.env.postmaster("try")), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.ask("try", "select name from whoami"), Ok("try".into()));
}

#[test]
fn lines_that_cannot_be_logged_stop_nobody() {
    let mut daemon = Daemon::new(&["try"]);
    daemon.env.run(["pageserver", "stop"]).ok();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let words = ["pageserver", "start", "--foreground", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut child = daemon.env.command(words).stdout(Stdio::null()).stderr(full).spawn().unwrap();
    let runs = || daemon.env.json(["pageserver", "status", "--json"])["running"] == true;
    wait_until("the page server", || runs() || child.try_wait().unwrap().is_some());
    daemon.find();
    assert_eq!(daemon.ask("try", "select name from whoami"), Ok("try".into()));
    daemon.env.run(["pageserver", "stop"]).ok();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_page_server_that_ends_is_waited_for_by_the_next_one() {
    let env = Env::init();
    let start = ["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    env.run(start).ok();
    env.run(["pageserver", "stop"]).ok();
    // One that ends has the lock, and says no more where it listens.
    let lock = std::fs::File::open(env.repo().join("pageserver/lock")).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| env.run(start));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!next.is_finished());
        drop(lock);
        next.join().unwrap().ok();
    });
    // As an earlier version noted itself.
    let (lock, pid) =
        (env.repo().join("pageserver/lock"), || env.json(["pageserver", "status", "--json"])["pid"].take());
    let noted = pid();
    std::fs::write(&lock, noted.to_string()).unwrap();
    assert_eq!(pid(), noted);
    env.run(["pageserver", "stop"]).ok();
    wait_until("its end", || !is_alive(noted.as_i64().unwrap() as i32));
}

#[test]
fn a_page_server_that_is_suspended_before_it_listens_does_not_hold_up_its_start() {
    let env = Env::init();
    let words = ["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    env.run(words).ok();
    env.run(["pageserver", "stop"]).ok();
    // So that it is not ready before the signal comes.
    let lock = std::fs::File::open(env.repo().join("pageserver/lock")).unwrap();
    lock.lock().unwrap();
    let mut start = env.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut daemon = None;
    wait_until("it begins one", || {
        daemon = daemon_of(start.id());
        daemon.is_some()
    });
    kill(daemon.unwrap(), Signal::SIGSTOP).unwrap();
    wait_until("the start ends", || start.try_wait().unwrap().is_some());
    let said = start.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(1), "{}", String::from_utf8_lossy(&said.stderr));
    wait_until("it is gone", || !is_alive(daemon.unwrap().as_raw()));
    drop(lock);
    env.run(words).ok();
    env.run(["pageserver", "stop"]).ok();
}

/// Returns the page server that a command has begun.
fn daemon_of(command: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{command}/task/{command}/children")).unwrap_or_default();
    let words = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let daemon = children.split_whitespace().find(|pid| words(pid).contains("--daemon"))?;
    Some(Pid::from_raw(daemon.parse().unwrap()))
}

#[test]
fn looks_at_a_page_server_that_was_killed_disturb_nobody() {
    let env = Env::init();
    let start = ["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let status = || env.json(["pageserver", "status", "--json"]);
    let path = env.repo().join("pageserver/lock");
    env.run(start).ok();
    let pid = status()["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("the page server's end", || !is_alive(pid));
    assert!(env.repo().join("pageserver/address").exists());
    // Its number is another process's by now.
    let mut innocent = Command::new("sleep").arg("100").spawn().unwrap();
    let mut stopped = Vec::new();
    for note in [innocent.id().to_string(), format!("{} 1", innocent.id())] {
        for lock in [std::fs::File::lock_shared, std::fs::File::lock] {
            std::fs::write(&path, &note).unwrap();
            // Somebody looks, or begins and has not noted itself yet.
            let look = std::fs::File::open(&path).unwrap();
            lock(&look).unwrap();
            assert_eq!(status()["running"], false);
            std::thread::scope(|scope| {
                let stop = scope.spawn(|| env.run(["pageserver", "stop"]));
                std::thread::sleep(Duration::from_millis(500));
                drop(look);
                stopped.push(stop.join().unwrap());
            });
        }
    }
    let lives = innocent.try_wait().unwrap().is_none();
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert!(lives, "it was killed");
    stopped.into_iter().for_each(|stopped| stopped.fails(1, &["does not run"]));
    // A look keeps no page server from starting.
    let look = std::fs::File::open(&path).unwrap();
    look.lock_shared().unwrap();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| env.run(start));
        std::thread::sleep(Duration::from_millis(500));
        drop(look);
        next.join().unwrap().ok();
    });
    env.run(["pageserver", "stop"]).ok();
}

#[test]
fn a_server_that_is_full_is_not_taken_for_idle() {
    let daemon = Daemon::new(&[]);
    daemon.env.run(["config", "branch.main.postgres.max_connections", "10"]).ok();
    // Its clients come past the proxy, which knows nothing of them, and leave no room for a question.
    let ask = |sql| daemon.ask("main", sql).unwrap();
    let mut config = postgres::Config::new();
    config.host_path(ask("show unix_socket_directories")).port(ask("show port").parse().unwrap());
    config.user("postgres").dbname("postgres");
    let (mut clients, patience) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while clients.len() < 10 {
        assert!(Instant::now() < patience, "only {} came", clients.len());
        clients.extend(config.connect(postgres::NoTls).ok());
    }
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    std::thread::sleep(Duration::from_secs(4));
    assert!(clients.iter_mut().all(|client| client.simple_query("select 1").is_ok()));
    drop(clients);
    daemon.wait_until_running(&[]);
}

#[test]
fn who_was_told_that_a_server_runs_keeps_it() {
    let daemon = Daemon::new(&["try"]);
    daemon.env.run(["config", "proxy.idle_timeout", "1s"]).ok();
    daemon.ask("try", "select 1").unwrap();
    let repo = zenith::objects::Repo::open(&daemon.env.repo()).unwrap();
    let instance = || zenith::plumbing::instance::of_branch(&repo, "try").unwrap().unwrap();
    // As a start does that finds it running, just as the page server has found it idle.
    let held = instance().hold(&repo, &zenith::progress::Hidden).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let mut claimed = instance();
    claimed.config.on_demand = false;
    claimed.write(&repo).unwrap();
    drop(held);
    std::thread::sleep(Duration::from_secs(2));
    daemon.wait_until_running(&["try"]);
}

/// Connects just when a server is being stopped, again and again: every insert that was acknowledged is there, and
/// nobody gets an error.
fn races(rounds: u64) {
    let daemon = Daemon::new(&["one", "two", "three"]);
    daemon.env.run(["config", "proxy.idle_timeout", "10ms"]).ok();
    let longest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (number, branch) in ["one", "two", "three"].into_iter().enumerate() {
            let (daemon, longest) = (&daemon, &longest);
            scope.spawn(move || {
                let mut random = Random(0x9E37_79B9 + number as u64);
                for round in 1..=rounds {
                    std::thread::sleep(Duration::from_millis(random.below(900)));
                    let begun = Instant::now();
                    let count =
                        daemon.ask(branch, "insert into whoami values ('more'); select count(*) - 1 from whoami");
                    assert_eq!(count, Ok(round.to_string()), "{branch}");
                    longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let starts = daemon.metric("zenith_cold_start_seconds_count");
    assert!(starts > rounds as f64, "only {starts} starts: nothing was raced for");
    println!("{} connections, {starts} starts, none failed; the longest took {longest:?} ms", rounds * 3);
}

#[test]
fn clients_that_meet_a_stop_get_a_fresh_server() {
    races(15);
}

#[test]
#[ignore = "takes minutes: make races"]
fn hundreds_of_races() {
    races(150);
}

#[test]
fn psql_and_urls_go_through_the_proxy() {
    let daemon = Daemon::new(&["try/this"]);
    let env = &daemon.env;
    assert_eq!(env.sql("try/this", "select name from whoami"), "try/this");
    // It runs by now, and is reached without the page server.
    let branch = "select current_setting('zenith.branch')";
    assert_eq!(env.run(["psql", "try/this", "--", "-XqAtc", branch]).ok(), "try/this");
    let said = env.run(["psql", "dbname=postgres branch=try/this", "--", "-XqAtc", "select name from whoami"]).ok();
    assert_eq!(said, "try/this");
    let url = env.run(["url", "try/this"]).ok();
    let asked = crate::support::pg_program("psql").args([&url, "-XqAtc", "select name from whoami"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "try/this", "{asked:?}");
    let file = env.path().join("services");
    std::fs::write(&file, env.run(["service-file"]).ok()).unwrap();
    let mut psql = crate::support::pg_program("psql");
    psql.env("PGSERVICEFILE", &file).args(["service=try/this", "-XqAtc", "select name from whoami"]);
    assert_eq!(crate::support::checked(&mut psql).trim(), "try/this");
    env.run(["psql", "nothing"]).fails(1, &["nothing"]);
    assert!(env.run(["pageserver", "unit", "--for", "systemd"]).ok().contains("pageserver start --foreground"));
    assert!(env.run(["pageserver", "unit", "--for", "launchd"]).ok().contains("<string>pageserver</string>"));
}

#[test]
fn units_are_what_their_managers_take() {
    let env = Env::new();
    let odd = env.path().join(r#"50% of "it" \ $HOME & <more>"#);
    std::fs::create_dir(&odd).unwrap();
    let repo = odd.join(".zenith");
    let run = |arguments: &[&str]| {
        let output = env.command(arguments).current_dir(&odd).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["init"]);
    let list = env.path().join("zenith.plist");
    std::fs::write(&list, run(&["pageserver", "unit", "--for", "launchd"])).unwrap();
    let program = "import plistlib, sys; print(plistlib.load(open(sys.argv[1], 'rb'))['ProgramArguments'][2])";
    assert_eq!(checked(Command::new("python3").args(["-c", program]).arg(&list)).trim(), repo.to_str().unwrap());
    let unit = env.path().join("zenith.service");
    std::fs::write(&unit, run(&["pageserver", "unit", "--for", "systemd"])).unwrap();
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: systemd-analyze is not here: see scripts/install-deps");
        return;
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--user"]).arg(&unit).env("XDG_RUNTIME_DIR", env.path());
    let output = verify.output().unwrap();
    // It tells of what it does not know or cannot find.
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn servers_that_have_ended_are_no_zombies() {
    let daemon = Daemon::new(&["a", "b"]);
    let parent = daemon.env.json(["pageserver", "status", "--json"])["pid"].to_string();
    for name in ["a", "b"] {
        assert_eq!(daemon.ask(name, "select name from whoami").unwrap(), name);
    }
    assert!(!children(&parent).is_empty());
    daemon.env.run(["stop", "--all"]).ok();
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !children(&parent).is_empty() {
        assert!(std::time::Instant::now() < patience, "{:?}", children(&parent));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Returns the name and state of each child of a process.
fn children(parent: &str) -> Vec<String> {
    let stat = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("stat")).ok();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(stat);
    let is_child =
        |stat: &String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(parent));
    processes.filter(is_child).map(|stat| stat.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_page_server_stays_although_who_started_it_is_gone() {
    let env = Env::init();
    let mut command =
        env.command(["pageserver", "start", "--foreground", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let mut daemon = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(daemon.stdout.take());
    wait_until("it runs", || env.run(["pageserver", "status"]).code == 0);
    std::thread::sleep(Duration::from_millis(200));
    env.run(["pageserver", "stop"]).ok();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_name_or_a_port_that_another_branch_got_leads_nobody_there() {
    let daemon = Daemon::new(&["a", "b"]);
    let (run, name) = (|args: &[&str]| drop(daemon.env.run(args).ok()), "select name from whoami");
    let port_of = |branch: &str| {
        let rows = daemon.env.json(["pg", "list", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == branch).unwrap().clone();
        row["port"].as_u64().unwrap().to_string()
    };
    // The port of one that was stopped by hand.
    assert_eq!(daemon.ask("a", name), Ok("a".into()));
    let port = port_of("a");
    run(&["stop", "a"]);
    run(&["start", "b", "--port", &port]);
    assert_eq!(daemon.ask("a", name), Ok("a".into()));
    assert_eq!(daemon.ask("b", name), Ok("b".into()));
    run(&["stop", "--all"]);
    // The instance, too.
    assert_eq!(daemon.ask("a", name), Ok("a".into()));
    run(&["stop", "a"]);
    run(&["branch", "-d", "a"]);
    run(&["branch", "a", "main"]);
    run(&["branch", "c", "main"]);
    run(&["start", "c"]);
    daemon.env.sql("c", "update whoami set name = 'c'");
    assert_eq!(daemon.ask("a", name), Ok("main".into()));
    assert_eq!(daemon.ask("c", name), Ok("c".into()));
    // A branch that got the name of another.
    run(&["stop", "--all"]);
    assert_eq!(daemon.ask("c", name), Ok("c".into()));
    run(&["stop", "c"]);
    run(&["branch", "-m", "c", "d"]);
    run(&["branch", "c", "b"]);
    assert_eq!(daemon.ask("c", name), Ok("b".into()));
    assert_eq!(daemon.ask("d", name), Ok("c".into()));
}

#[test]
fn a_tag_that_moves_is_another_place_at_once() {
    let daemon = Daemon::new(&[]);
    let env = &daemon.env;
    env.run(["tag", "v"]).ok();
    assert_eq!(daemon.ask("v", "select name from whoami").unwrap(), "main");
    env.sql("main", "update whoami set name = 'later'");
    env.run(["tag", "-f", "v", "main"]).ok();
    assert_eq!(daemon.ask("v", "select name from whoami").unwrap(), "later");
    assert_eq!(env.sql("v", "select name from whoami"), "later");
    env.run(["tag", "-d", "v"]).ok();
    assert!(daemon.ask("v", "select name from whoami").unwrap_err().starts_with("3D000"));
    env.run(["psql", "v", "--", "-c", "select 1"]).fails(1, &["unknown revision 'v'"]);
    env.run(["stop", "v"]).ok();
}
