//! The whole life of a repository on every PostgreSQL version that is to be had.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::objects::pg::control::ControlFile;
use zenith::objects::pg::version::Version;

use crate::support::{Env, majors};

#[test]
fn every_version_lives_a_whole_life() {
    for (major, bin) in majors() {
        println!("PostgreSQL {major}");
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        assert_eq!(env.json(["status", "--json"])["postgres"], major);
        env.run(["start"]).ok();
        let server: u32 = env.sql("main", "show server_version_num").parse().unwrap();
        assert_eq!(server / 10_000, major);
        env.sql("main", "create table t as select generate_series(1, 1000) i");
        let said = env.run(["branch", "try"]).ok();
        let lsn = said.rsplit(' ').next().unwrap().to_owned();
        let time = env.sql("main", "select clock_timestamp()");
        std::thread::sleep(std::time::Duration::from_millis(20));
        env.sql("main", "delete from t where i <= 400");
        env.sql("main", "select pg_switch_wal()");
        env.sql("main", "delete from t where i <= 500");
        env.run(["branch", "timed", &format!("main@{{{time}}}")]).ok();
        env.run(["branch", "again", &format!("main@{lsn}")]).ok();
        for (branch, rows) in [("try", "1000"), ("timed", "1000"), ("again", "1000"), ("main", "500")] {
            env.run(["start", branch]).ok();
            assert_eq!(env.sql(branch, "select count(*) from t"), rows, "PostgreSQL {major}, {branch}");
            if branch != "main" {
                env.run(["stop", branch]).ok();
            }
        }
        // A crash: what was committed is there, without the data directory.
        env.sql("main", "insert into t select generate_series(2000, 2099)");
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        env.discard_datadirs();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from t"), "600");
        // Tablespaces become folders in the data directory.
        env.sql("main", "create tablespace inplace location ''");
        env.sql("main", "create table there tablespace inplace as select 7 as seven");
        env.run(["stop"]).ok();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select seven from there"), "7", "PostgreSQL {major}");
        env.run(["stop"]).ok();
        env.run(["fsck"]).ok();
        check_control(&env, major, &bin);
    }
}

fn check_control(env: &Env, major: u32, bin: &std::path::Path) {
    let dir = env.path().join("plain");
    env.run(["restore".as_ref(), "main".as_ref(), dir.as_os_str()]).ok();
    let bytes = std::fs::read(dir.join("global/pg_control")).unwrap();
    let control = ControlFile::parse(&bytes, Version::of_major(major).unwrap()).unwrap();
    if !bin.join("pg_controldata").exists() {
        println!("SKIPPED: PostgreSQL {major} here has no pg_controldata");
        return;
    }
    let output = Command::new(bin.join("pg_controldata")).env("LC_ALL", "C").arg(&dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(said("Database system identifier:"), control.system_identifier.to_string());
    assert_eq!(said("Catalog version number:"), control.catalog_version.to_string());
    assert_eq!(said("Latest checkpoint location:"), control.checkpoint.to_string());
    assert_eq!(said("Latest checkpoint's REDO location:"), control.redo.to_string());
    assert_eq!(said("Latest checkpoint's TimeLineID:"), control.timeline.to_string());
    assert_eq!(said("Bytes per WAL segment:"), control.wal_segment_size.to_string());
    assert_eq!(said("Database cluster state:"), "shut down");
    assert_eq!(said("Data page checksum version:") != "0", control.data_checksums);
}

#[test]
fn a_tablespace_elsewhere_is_never_shared_and_never_lost() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        let elsewhere = env.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        env.run(["start"]).ok();
        env.sql("main", &format!("create tablespace far location '{}'", elsewhere.display()));
        env.sql("main", "create table there tablespace far as select 7 as seven");
        // Replayed from before, it is a folder of the branch's own.
        env.run(["branch", "early"]).ok();
        env.run(["start", "early"]).ok();
        env.sql("early", "update there set seven = 9");
        assert_eq!(env.sql("main", "select seven from there"), "7", "PostgreSQL {major}");
        // So it is from a snapshot, in which nothing that changed since the last one is missing.
        env.run(["snapshot"]).ok();
        env.sql("main", "update there set seven = 8");
        env.run(["branch", "late"]).ok();
        env.run(["stop"]).ok();
        for branch in ["main", "late"] {
            env.run(["start", branch]).ok();
            assert_eq!(env.sql(branch, "select seven from there"), "8", "PostgreSQL {major}, {branch}");
        }
        env.sql("late", "update there set seven = 10");
        assert_eq!(env.sql("main", "select seven from there"), "8");
        // After a crash, with one more that was made since the start.
        let other = env.path().join("other");
        std::fs::create_dir(&other).unwrap();
        env.sql("main", &format!("create tablespace other location '{}'", other.display()));
        env.sql("main", "create table more tablespace other as select 5 as five");
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select seven, five from there, more"), "8|5", "PostgreSQL {major}");
        assert_eq!(env.sql("early", "select seven from there"), "9");
    }
}
