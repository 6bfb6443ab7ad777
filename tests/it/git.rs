//! A repository that lies in a git working tree, as most will, with the real git.

use std::fs;
use std::process::Command;

use crate::support::{Env, checked};

fn git(env: &Env, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(env.path()).env("HOME", env.path()).env("GIT_CONFIG_NOSYSTEM", "1");
    checked(&mut git)
}

#[test]
fn git_does_not_see_a_repository_and_does_not_clean_it_away() {
    let env = Env::new();
    git(&env, &["init", "-q"]);
    env.run(["init"]).ok();
    assert_eq!(git(&env, &["status", "--porcelain"]), "");
    git(&env, &["add", "-A"]);
    assert_eq!(git(&env, &["ls-files"]), "");
    fs::write(env.path().join("scratch"), "").unwrap();
    git(&env, &["clean", "-fdq"]);
    assert!(!env.path().join("scratch").exists() && env.repo().join("HEAD").exists());
    // What the manual warns of, and what it says instead.
    assert!(git(&env, &["clean", "-fdxn"]).contains(".zenith"));
    assert_eq!(git(&env, &["clean", "-fdxn", "-e", ".zenith"]), "");

    // One that was made without the file gets it from the first command that writes.
    let file = env.repo().join(".gitignore");
    fs::remove_file(&file).unwrap();
    assert!(git(&env, &["status", "--porcelain"]).contains(".zenith"));
    env.run(["branch"]).ok();
    assert!(!file.exists(), "a command that only looks wrote");
    env.run(["branch", "try"]).ok();
    assert_eq!(git(&env, &["status", "--porcelain"]), "");
    // Who wants to see it can.
    fs::write(&file, "").unwrap();
    env.run(["branch", "again"]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
}
