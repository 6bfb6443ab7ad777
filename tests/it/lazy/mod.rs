//! The lazy data directory, with real servers on it.

mod damage;
mod deltas;
mod kills;
mod modes;

use std::path::PathBuf;

use crate::support::{Env, checked, pg_program};

/// Makes a repository of a cluster with page checksums.
pub fn with_checksums() -> Env {
    let env = Env::new();
    let cluster = env.path().join("cluster");
    let account = zenith::plumbing::postgres::account::Account::detect().unwrap();
    let mut initdb = account.command(&crate::support::pg_bin().join("initdb"));
    checked(initdb.args(["-k", "-U", "postgres", "-A", "trust", "-D"]).arg(&cluster));
    env.run(["init", "--from", "cluster"]).ok();
    env
}

/// Returns the folder of a running branch's data directory, mount point and all.
fn datadir(env: &Env, branch: &str) -> PathBuf {
    let rows = env.json(["pg", "list", "--json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["branch"] == branch).unwrap().clone();
    env.repo().join("datadirs").join(row["timeline"].as_str().unwrap())
}

/// Returns the pid of the process behind a data directory.
fn file_system(env: &Env, branch: &str) -> i32 {
    std::fs::read_to_string(datadir(env, branch).join("lock")).unwrap().trim().parse().unwrap()
}

/// Runs a client program of PostgreSQL against a branch.
fn client(env: &Env, branch: &str, program: &str, args: &[&str]) -> String {
    checked(pg_program(program).args(args).envs(env.server_env(branch)))
}

/// Returns whether a data directory is a lazy one: a test that quietly restored shows nothing.
fn assert_lazy(env: &Env, branch: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let data = datadir(env, branch).join("data");
    assert!(mounts.contains(&*data.to_string_lossy()), "{} is not mounted", data.display());
}

/// Returns what is mounted below an environment's folder.
fn mounts(env: &Env) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = env.path().to_string_lossy().into_owned();
    mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
}
