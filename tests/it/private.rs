//! Who may read what zenith writes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Env, checked, is_root};

/// Returns everything of a repository with its mode: not what is behind a mount, and no links.
fn all(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() || entry.file_name() == "data" {
            continue;
        }
        // A server's files come and go.
        let Ok(metadata) = entry.metadata() else { continue };
        found.push((entry.path(), metadata.mode() & 0o7777));
        if kind.is_dir() {
            found.extend(all(&entry.path()));
        }
    }
    found
}

/// Returns a command of the program whose user's umask is the usual one.
fn command(env: &Env, words: &[&str]) -> Command {
    let plain = env.command(words);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 022; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(env.path());
    command
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Fills a repository with one of everything.
fn live(env: &Env) {
    let run = |words: &[&str]| checked(&mut command(env, words));
    run(&["start"]);
    run(&["psql", "main", "--", "-Xqc", "create table t as select generate_series(1, 100000)"]);
    run(&["branch", "try"]);
    run(&["tag", "v1"]);
    run(&["snapshot"]);
    run(&["start", "try"]);
    run(&["psql", "try", "--", "-Xqc", "update t set generate_series = 0"]);
    run(&["start", "--read-only", "v1"]);
    run(&["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    run(&["stop", "try"]);
}

#[test]
fn nobody_but_the_owner_reads_a_repository() {
    let env = Env::new();
    checked(&mut command(&env, &["init"]));
    live(&env);
    let open = |allowed: u32| {
        let mut open = all(&env.repo());
        assert!(open.len() > 50, "{open:?}");
        open.push((env.repo(), mode(&env.repo())));
        open.retain(|(_, mode)| mode & 0o7077 & !allowed != 0);
        open
    };
    assert_eq!(open(0), []);
    // One that an older program made, with servers that run, is closed by whoever opens it next.
    for (path, mode) in all(&env.repo()).into_iter().chain([(env.repo(), 0o700)]) {
        let more = if path.is_dir() { 0o055 } else { 0o044 };
        let _ = fs::set_permissions(&path, Permissions::from_mode(mode | more));
    }
    assert!(open(0).len() > 50);
    checked(&mut command(&env, &["status"]));
    let open = open(0);
    assert!(open.iter().all(|(path, _)| path.starts_with(env.repo().join("run"))), "{open:?}");
    assert_eq!(
        checked(&mut command(&env, &["psql", "main", "--", "-XqAtc", "select count(*) from t"])).trim(),
        "100000"
    );
}

#[test]
fn what_the_user_asks_for_elsewhere_has_the_users_modes() {
    let env = Env::new();
    checked(&mut command(&env, &["init", "shop"]));
    assert_eq!(mode(&env.path().join("shop")), 0o755);
    assert_eq!(mode(&env.path().join("shop/.zenith")), 0o700);
    let run = |words: &[&str]| checked(command(&env, words).current_dir(env.path().join("shop")));
    run(&["start"]);
    run(&["psql", "main", "--", "-Xqc", "\\copy (select 1) to '../rows'"]);
    assert_eq!(mode(&env.path().join("rows")), 0o644);
    run(&["restore", "main", "../restored"]);
    assert_eq!(mode(&env.path().join("restored")), 0o700);
    run(&["stop", "--mode", "immediate"]);
}

#[test]
fn a_group_shares_a_repository() {
    if !is_root() {
        return;
    }
    let env = Env::new();
    // The group of the folder, not that of who makes the repository.
    checked(Command::new("chgrp").arg("65534").arg(env.path()));
    fs::set_permissions(env.path(), Permissions::from_mode(0o2755)).unwrap();
    checked(&mut command(&env, &["init", "--shared"]));
    live(&env);
    checked(&mut command(&env, &["stop", "--all"]));
    assert_eq!(mode(&env.repo()), 0o2770);
    let is_private = |path: &Path| ["run", "server.key"].iter().any(|name| path.ends_with(name));
    for (path, mode) in all(&env.repo()).into_iter().filter(|(path, _)| !is_private(path)) {
        assert_eq!(mode & 0o007, 0, "{} has mode {mode:o}", path.display());
        let is_by_postgres =
            path.parent().unwrap().ends_with("wal") || path.parent().unwrap().ends_with("archive_status");
        let wanted = if path.is_dir() { 0o2070 } else { 0o040 | if is_by_postgres { 0 } else { mode >> 3 & 0o020 } };
        assert_eq!(mode & wanted, wanted, "{} has mode {mode:o}", path.display());
    }
    // Somebody else of the group reads and writes.
    let of_group = |user: &str, words: &[&str]| {
        let plain = env.command(words);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid=65534", "--clear-groups", "--"]).arg(plain.get_program()).args(words);
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(env.path());
        command
    };
    // One that lies in a folder above may be anybody's, and names programs that would be run.
    let found = of_group("65534", &["log"]).output().unwrap();
    let told = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(!found.status.success() && told.contains("belongs to another user: root"), "{told}");
    let of_group = |user: &str, words: &[&str]| checked(of_group(user, words).env("ZENITH_DIR", env.repo()));
    let member = |words: &[&str]| of_group("65534", words);
    assert!(member(&["log"]).contains("main"));
    member(&["branch", "theirs", "v1"]);
    member(&["fsck"]);
    assert!(checked(&mut command(&env, &["branch"])).contains("theirs"));
    checked(&mut command(&env, &["pageserver", "stop"]));
    // And has servers, of what others made too, but no way to theirs.
    let sql = "insert into t values (-7); select count(*) from t where generate_series = -7";
    for (user, branch, count) in [("65534", "theirs", "1"), ("65534", "main", "1"), ("1", "main", "2")] {
        of_group(user, &["start", branch]);
        assert_eq!(of_group(user, &["psql", branch, "--", "-XqAtc", sql]).trim(), count, "{user}, {branch}");
        assert_eq!(mode(&env.repo().join(format!("run.{user}"))) & 0o777, 0o700);
        of_group(user, &["stop", branch]);
    }
    checked(&mut command(&env, &["fsck"]));
}

#[test]
fn root_makes_nothing_in_the_repository_of_somebody_else() {
    if !is_root() {
        return;
    }
    let env = Env::init();
    crate::support::checked(Command::new("chown").args(["-R", "nobody"]).arg(env.repo()));
    let repo = env.repo().display().to_string();
    let refused = env.run(["--repo", &repo, "branch", "x"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("belongs to nobody") && refused.err.contains("runuser -u nobody"), "{}", refused.err);
    env.run(["--repo", &repo, "log"]).ok();
    env.run(["--repo", &repo, "fsck"]).ok();
    // Nor are its modes set right by who only looks.
    fs::set_permissions(env.repo(), Permissions::from_mode(0o755)).unwrap();
    env.run(["--repo", &repo, "log"]).ok();
    assert_eq!(mode(&env.repo()), 0o755);
    // Nor is anything noted in its locks, which may be links.
    let (precious, lock) = (env.path().join("precious"), env.repo().join("instances/lock"));
    fs::write(&precious, "text").unwrap();
    let _ = fs::remove_file(&lock);
    std::os::unix::fs::symlink(&precious, &lock).unwrap();
    let open = env.run(["--repo", &repo, "rev-parse", "main"]).ok()[..32].to_owned();
    fs::create_dir_all(env.repo().join("datadirs").join(open)).unwrap();
    for look in [&["status"][..], &["show", "main"], &["pg", "list"], &["branch"], &["stop", "--all"], &["start"]] {
        let _ = env.run([&["--repo", &repo], look].concat());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "text", "{look:?}");
    }
    // The servers' user is no exception where root's servers run as root.
    if let Ok(Some(_)) = nix::unistd::User::from_name("postgres") {
        crate::support::checked(Command::new("chown").args(["-R", "postgres"]).arg(env.repo()));
        env.run(["log"]).fails(1, &["belongs to another user: postgres"]);
        env.run(["--repo", &repo, "branch", "x"]).fails(1, &["belongs to postgres"]);
    }
}
