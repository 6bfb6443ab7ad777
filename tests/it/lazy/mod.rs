//! The lazy data directory, with real servers on it.

mod damage;
mod deltas;
mod kills;
mod modes;

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

/// Runs a client program of PostgreSQL against a branch.
fn client(env: &Env, branch: &str, program: &str, args: &[&str]) -> String {
    checked(pg_program(program).args(args).envs(env.server_env(branch)))
}

/// Returns whether a data directory is a lazy one: a test that quietly restored shows nothing.
fn assert_lazy(env: &Env, branch: &str) {
    let mounts = String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let data = env.datadir(branch).join("data");
    assert!(mounts.contains(&*data.to_string_lossy()), "{} is not mounted", data.display());
}
