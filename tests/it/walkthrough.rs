//! The main job, as the README shows it.

use std::process::Command;

use crate::support::{Env, checked, pg_bin};

#[test]
fn the_walkthrough_works_as_written() {
    let env = Env::new();
    assert_eq!(env.run(["init"]).ok(), "created main branch\nnew zenith repository was created in .zenith");
    env.run(["start", "main"]).ok();
    env.sql("main", "create table t as select generate_series(1,1000) i");
    let said = env.run(["branch", "heikki", "main"]).ok();
    let lsn = said.strip_prefix("branching at end of WAL: ").unwrap().to_owned();
    env.sql("main", "delete from t");
    env.run(["start", "heikki"]).ok();
    assert_eq!(env.sql("heikki", "select count(*) from t"), "1000");
    assert_eq!(env.sql("main", "select count(*) from t"), "0");
    env.run(["tag", "before-delete", "heikki"]).ok();
    let graph = env.run(["log", "--graph"]).ok();
    for text in ["heikki", "tag: before-delete", "HEAD -> main", "Snapshot:"] {
        assert!(graph.contains(text), "{text} is not in:\n{graph}");
    }
    env.run(["stop", "heikki"]).ok();
    env.run(["branch", "again", &format!("main@{lsn}")]).ok();
    env.run(["start", "again"]).ok();
    assert_eq!(env.sql("again", "select count(*) from t"), "1000");
    let dir = env.path().join("some dir");
    env.run(["restore".as_ref(), "before-delete".as_ref(), dir.as_os_str()]).ok();
    assert_eq!(with_plain_postgresql(&env, &dir, "select count(*) from t"), "1000");
    assert_eq!(env.run(["fsck"]).ok(), "");
}

/// Starts a restored folder with PostgreSQL's own tools alone, and stops it. Returns what it says to `sql`.
pub fn with_plain_postgresql(env: &Env, dir: &std::path::Path, sql: &str) -> String {
    let socket = env.path().join("s");
    std::fs::create_dir_all(&socket).unwrap();
    let options = format!("-c unix_socket_directories='{}' -c port=7654 -c listen_addresses=", socket.display());
    let pg_ctl = |words: &[&str]| {
        let root = nix::unistd::geteuid().is_root();
        let program = pg_bin().join("pg_ctl");
        let mut command = if root { Command::new("unshare") } else { Command::new(&program) };
        if root {
            command.args(["--user", "--map-user=1000", "--map-group=1000", "--"]).arg(&program);
        }
        command.arg("-D").arg(dir).arg("-w").args(words).arg("-l").arg(env.path().join("plain.log"));
        let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(env.path().join("plain.log")).unwrap_or_default());
    };
    pg_ctl(&["-o", &options, "start"]);
    let mut psql = Command::new(pg_bin().join("psql"));
    let said = checked(psql.arg("-h").arg(&socket).args(["-p", "7654", "-U", "postgres", "-Atc", sql, "postgres"]));
    pg_ctl(&["stop"]);
    said.trim().to_owned()
}

#[test]
fn the_older_form_works() {
    let env = Env::init();
    env.run(["branch", "heikki"]).ok();
    let created = env.run(["pg", "create", "heikki"]).ok();
    let (timeline, instance) = created.split_once('\n').unwrap();
    assert_eq!(timeline.len(), 32);
    assert!(instance.starts_with("pg1 on port "), "{instance}");
    env.run(["pg", "start", "pg1"]).ok();
    assert_eq!(env.sql("heikki", "select 1"), "1");
    assert!(env.run(["pg", "list"]).ok().contains("running"));
    env.run(["pg", "stop", "pg1"]).ok();
    assert!(env.run(["pg", "list"]).ok().contains("stopped"));
}

#[test]
fn a_run_that_commits_nothing_leaves_no_trace_and_one_that_sets_something_is_kept() {
    let env = Env::init();
    // The first readers of what was committed leave hint bits, which are kept.
    env.run(["start"]).ok();
    env.sql("main", "select 1");
    env.run(["stop"]).ok();
    let before = env.run(["rev-parse", "main"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "select 1");
    assert!(env.run(["stop"]).ok().contains("nothing was committed"));
    assert_eq!(env.run(["rev-parse", "main"]).ok(), before);
    env.run(["start"]).ok();
    env.sql("main", "alter system set work_mem = '9MB'");
    env.run(["stop"]).ok();
    assert_ne!(env.run(["rev-parse", "main"]).ok(), before);
    env.run(["start"]).ok();
    assert_eq!(env.sql("main", "show work_mem"), "9MB");
    env.run(["merge-base", "--is-ancestor", &before, "main"]).ok();
}

#[test]
fn an_epoch_that_only_prepares_is_kept() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "alter system set max_prepared_transactions = 3");
    env.sql("main", "create table t (i int)");
    env.run(["restart"]).ok();
    let mut psql = env.command(["psql", "main", "--", "-Xq", "-f", "-"]);
    let mut child = psql.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(
        &mut child.stdin.take().unwrap(),
        b"begin; insert into t values (7); prepare transaction 'p';",
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!env.run(["stop"]).ok().contains("nothing was committed"));
    env.run(["start"]).ok();
    env.sql("main", "commit prepared 'p'");
    assert_eq!(env.sql("main", "select i from t"), "7");
}

#[test]
fn a_cleanly_stopped_cluster_becomes_a_repository_and_a_backup_a_branch() {
    let env = Env::init();
    env.run(["config", "branch.main.replication", "true"]).ok();
    env.run(["start", "--tcp"]).ok();
    env.sql("main", "create table a as select 1 as x; create unlogged table u as select 2 as y");
    let backup = Command::new(pg_bin().join("pg_basebackup"))
        .args(["-D", "-", "-F", "tar", "-X", "fetch", "-c", "fast"])
        .envs(env.server_env("main"))
        .output()
        .unwrap();
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    env.sql("main", "drop table a");
    let mut write = env.command(["write-snapshot", "--json", "-"]);
    let mut child = write.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &backup.stdout).unwrap();
    let output = child.wait_with_output().unwrap();
    let written: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    env.run(["update-ref", "refs/branches/backup", written["timeline"].as_str().unwrap()]).ok();
    env.run(["start", "backup"]).ok();
    assert_eq!(env.sql("backup", "select x from a"), "1");
    assert_eq!(env.sql("backup", "select count(*) from u"), "0");
    env.run(["stop", "main"]).ok();
    let dir = env.path().join("plain");
    env.run(["read-snapshot".as_ref(), "main".as_ref(), dir.as_os_str()]).ok();
    // As read-snapshot says, the WAL is missing; init says so too.
    env.run(["init".as_ref(), "--from".as_ref(), dir.as_os_str(), "second".as_ref()]).fails(1, &["holds no WAL"]);
    assert!(!env.path().join("second/.zenith").exists());
}
