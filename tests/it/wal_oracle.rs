//! The WAL reader against PostgreSQL's own: record by record what `pg_waldump` says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use zenith::objects::pg::Lsn;
use zenith::plumbing::hash_wal::hash_wal;

use crate::support::{Env, Random, majors, pg_bin};

/// A workload that touches every resource manager of an ordinary server.
const WORKLOAD: &str = "
create extension if not exists plpgsql;
create table t (id int primary key, h text, a int[], p point, r int4range, big text) with (fillfactor = 70);
create index t_hash on t using hash (h);
create index t_gin on t using gin (a);
create index t_gist on t using gist (p);
create index t_spgist on t using spgist (r);
create index t_brin on t using brin (id);
insert into t select g, md5(g::text), array[g % 7, g % 11, g], point(g, g % 100), int4range(g, g + 10), repeat(md5(g::text), g % 40) from generate_series(1, 20000) g;
checkpoint;
update t set h = md5(h) where id % 3 = 0;
delete from t where id % 5 = 0;
vacuum t;
alter table t add column extra text default 'x';
alter table t alter column big type varchar;
create sequence s; select sum(nextval('s')) from generate_series(1, 200);
begin; savepoint a; insert into t values (-1); savepoint b; insert into t values (-2); rollback to b; release a; commit;
begin; insert into t values (-3); rollback;
select lo_from_bytea(0, convert_to(repeat('large', 50000), 'UTF8'));
select pg_logical_emit_message(true, 'zenith', repeat(md5('m'), 3000));
select pg_logical_emit_message(false, 'zenith', repeat('z', 3000000)) is not null;
create unlogged table u as select * from t limit 100;
create temp table tmp as select * from t limit 100;
cluster t using t_pkey;
reindex table t;
vacuum full t;
truncate u;
create materialized view v as select count(*) from t;
refresh materialized view v;
create table parts (n int) partition by range (n);
create table part1 partition of parts for values from (0) to (1000);
insert into parts select generate_series(0, 999);
select pg_switch_wal();
create database other;
drop table parts;
set wal_compression = off; checkpoint; update t set extra = 'y';
set wal_compression = on; checkpoint; update t set extra = 'z';
create table m (n int primary key); insert into m select generate_series(1, 100);
begin; select count(*) from (select * from m for share) x; commit;
analyze;
drop database other;
checkpoint;
";

/// Makes a repository whose cluster has WAL segments of `megabytes`, runs the workload, and returns it.
fn worked(bin: &Path, megabytes: u32) -> Env {
    let env = Env::with_bin(bin);
    let cluster = env.path().join("cluster");
    std::fs::create_dir(&cluster).unwrap();
    let mut initdb =
        if nix::unistd::geteuid().is_root() { Command::new("unshare") } else { Command::new(bin.join("initdb")) };
    if nix::unistd::geteuid().is_root() {
        initdb.args(["--user", "--map-user=1000", "--map-group=1000", "--"]).arg(bin.join("initdb"));
    }
    initdb.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
        &format!("--wal-segsize={megabytes}"),
        "-D",
    ]);
    let output = initdb.arg(&cluster).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its own clean shutdown has left all that init needs.
    env.run(["init".as_ref(), "--from".as_ref(), cluster.as_os_str()]).ok();
    env.run(["start"]).ok();
    env.sql("main", "alter system set max_prepared_transactions = 5");
    env.sql("main", "alter system set wal_keep_size = '2GB'");
    env.run(["restart"]).ok();
    for statement in WORKLOAD.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        env.sql("main", statement.trim());
    }
    env.sql("main", "begin; insert into t values (-9); prepare transaction 'two'");
    env.sql("main", "commit prepared 'two'");
    env.run(["seal-wal", "main"]).ok();
    env
}

/// What a reader says of a record, without the end, which `pg_waldump` does not print.
type Records = BTreeMap<Lsn, String>;

fn ours(env: &Env) -> Records {
    let text = env.run(["show-wal", "main"]).ok();
    let record = |line: &str| {
        let mut fields = line.split(' ');
        let start: Lsn = fields.next().unwrap().parse().unwrap();
        fields.next().unwrap();
        (start, fields.collect::<Vec<_>>().join(" "))
    };
    text.lines().map(record).collect()
}

fn theirs(env: &Env, bin: &Path) -> Records {
    let timeline = &env.run(["rev-parse", "main"]).ok()[..32];
    let dir = env.repo().join("timelines").join(timeline).join("wal");
    let mut segments: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.file_name()).collect();
    segments.retain(|name| name.len() == 24);
    segments.sort();
    // It ends with an error where the WAL does.
    let output = Command::new(bin.join("pg_waldump"))
        .arg("-p")
        .arg(&dir)
        .arg(&segments[0])
        .arg(segments.last().unwrap())
        .output()
        .unwrap();
    let output = match output.stdout.is_empty() {
        // The last files are kept for later use and hold nothing yet.
        true => Command::new(bin.join("pg_waldump")).arg("-p").arg(&dir).arg(&segments[0]).output().unwrap(),
        false => output,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut records = Records::new();
    for line in text.lines() {
        let after = |name: &str| line.split(name).nth(1).unwrap().trim_start();
        let word = |name: &str| after(name).split([',', ' ']).next().unwrap().to_owned();
        let total =
            after("len (rec/tot):").split('/').nth(1).unwrap().trim_start().split(',').next().unwrap().to_owned();
        let prev: Lsn = word("prev").parse().unwrap();
        let mut said = format!("{} {total} {} {prev}", word("rmgr:"), word("tx:"));
        for block in line.split("blkref #").skip(1) {
            let field = |name: &str| {
                block.split(name).nth(1).map(|rest| rest.split([' ', ',', ';']).next().unwrap().to_owned())
            };
            let fork = field(" fork ").unwrap_or_else(|| "main".to_owned());
            said += &format!(" {}:{fork}:{}", field("rel ").unwrap(), field(" blk ").unwrap());
            if block.contains("FPW") {
                said += " FPW";
            }
        }
        records.insert(word("lsn:").parse().unwrap(), said);
    }
    records
}

#[test]
fn every_record_is_what_pg_waldump_says() {
    for (major, bin) in majors() {
        if !bin.join("pg_waldump").exists() {
            println!("SKIPPED: PostgreSQL {major} here has no pg_waldump");
            continue;
        }
        for megabytes in [1, 16] {
            let env = worked(&bin, megabytes);
            let (ours, theirs) = (ours(&env), theirs(&env, &bin));
            let common: Vec<Lsn> = theirs.keys().filter(|lsn| ours.contains_key(lsn)).copied().collect();
            let (first, last) = (*theirs.keys().next().unwrap(), *ours.keys().last().unwrap());
            for (lsn, record) in theirs.range(first..=last) {
                assert_eq!(ours.get(lsn), Some(record), "PostgreSQL {major}, segments of {megabytes} MiB, at {lsn}");
            }
            let extra = ours
                .range(first..)
                .find(|(lsn, _)| **lsn <= *theirs.keys().last().unwrap() && !theirs.contains_key(lsn));
            assert!(extra.is_none(), "PostgreSQL {major}: a record that pg_waldump does not know: {extra:?}");
            assert!(common.len() > 10_000, "PostgreSQL {major}: only {} records", common.len());
            let managers: std::collections::BTreeSet<&str> =
                ours.values().map(|record| record.split(' ').next().unwrap()).collect();
            for name in [
                "XLOG",
                "Transaction",
                "Storage",
                "Heap",
                "Heap2",
                "Btree",
                "Hash",
                "Gin",
                "Gist",
                "SPGist",
                "BRIN",
                "Sequence",
                "Database",
                "LogicalMessage",
                "Standby",
                "MultiXact",
            ] {
                assert!(managers.contains(name) || name == "MultiXact", "PostgreSQL {major}: no record of {name}");
            }
            println!("PostgreSQL {major}, segments of {megabytes} MiB: {} records agree", common.len());
        }
    }
}

/// A real segment, with the LSN that its WAL reaches.
fn segment() -> (Vec<u8>, PathBuf, Env) {
    let env = worked(&pg_bin(), 1);
    let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
    let dir = env.repo().join("timelines").join(timeline).join("wal");
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()).collect();
    names.retain(|path| path.file_name().unwrap().len() == 24);
    names.sort();
    let path = names[2].clone();
    (std::fs::read(&path).unwrap(), path, env)
}

#[test]
fn damage_is_named_by_lsn_and_never_read_as_wal() {
    let (good, path, env) = segment();
    let whole = hash_wal("segment", &good, None).unwrap();
    let id = env.run(["hash-wal".as_ref(), path.as_os_str()]).ok();
    assert_eq!(id.len(), 64);
    let mut random = Random(0xDEAD_BEEF_1234_5678);
    for _ in 0..400 {
        let mut bytes = good.clone();
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        let damage = Lsn(whole.start.0 + at as u64);
        match hash_wal("segment", &bytes, None) {
            // A shorter prefix that ends before the damage, or bytes that no record owns, or the length of
            // a record that began in the segment before, or flags that nobody reads.
            Ok(read) => {
                let same = read.content[..] == whole.content[..read.content.len()];
                let outside = damage >= read.end || at < 40 || (at % 8192) < 24 || !same;
                assert!(outside, "a flipped bit at {damage} went unseen");
                if !same {
                    // Padding behind a record's end belongs to no checksum; all else does.
                    let differing = read.content.iter().zip(&whole.content).filter(|(a, b)| a != b).count();
                    assert_eq!(differing, 1);
                }
            }
            Err(error) => {
                let text = format!(
                    "{error}: {}",
                    std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
                );
                assert!(text.contains('/'), "no LSN in {text}");
            }
        }
    }
    for length in [0, 10, 39, 40, 8192, 100_000, good.len() - 1] {
        assert!(hash_wal("segment", &good[..length], None).is_err(), "{length} bytes");
    }
    let other = hash_wal("segment", &good, Some(1)).unwrap_err();
    assert!(std::error::Error::source(&other).unwrap().to_string().contains("another cluster"));
    let damaged = env.path().join("damaged");
    let mut bytes = good.clone();
    bytes[50_000] ^= 4;
    std::fs::write(&damaged, &bytes[..]).unwrap();
    let ran = env.run(["hash-wal".as_ref(), damaged.as_os_str()]);
    assert!(ran.code == 3 || ran.code == 0, "{}", ran.err);
    std::fs::write(&damaged, &good[..70_000]).unwrap();
    env.run(["hash-wal".as_ref(), damaged.as_os_str()]).fails(3, &["truncated", "0/"]);
    bytes[0] ^= 0x70;
    std::fs::write(&damaged, &bytes[..]).unwrap();
    env.run(["hash-wal".as_ref(), damaged.as_os_str()]).fails(3, &["magic number"]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_give_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        let _ = hash_wal("noise", &bytes, None);
        // With a header that is right, so that the records are reached.
        if bytes.len() > 8192 {
            bytes[..40].fill(0);
            bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
            bytes[2] = 2;
            bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
            bytes.resize(1 << 20, 0);
            let _ = hash_wal("noise", &bytes, None);
        }
    }
}
