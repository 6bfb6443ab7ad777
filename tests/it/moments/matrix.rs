//! Every kind of moment, on every kind of branch, of every version: shown, and started as a branch, against a ledger.
//!
//! A history is made once for each version: the ledger notes an LSN and what had committed by then, before, amid and
//! after each event. Then each moment is started, as a server to read and as a branch to write.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use zenith::objects::pg::Lsn;

use crate::support::{Env, Random, majors};

/// What a database holds: of each table the number of rows by heap and by index, and their sum; databases; and what is
/// prepared, which a standby does not tell.
const LOOK: &str = "create function look() returns text language plpgsql as $$
    declare t record; by_heap text; by_index text; found text := '';
    begin
        for t in select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1 loop
            perform set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true),
                set_config('enable_indexonlyscan', 'off', true), set_config('enable_bitmapscan', 'off', true);
            execute format('select count(*) || ''/'' || coalesce(sum(i), 0) from %I where i > 0', t.relname) into by_heap;
            perform set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'on', true);
            execute format('select count(*) || ''/'' || coalesce(sum(i), 0) from %I where i > 0', t.relname) into by_index;
            found := found || format('%s %s ', t.relname, by_heap);
            if by_heap <> by_index then
                found := found || format('(by index %s) ', by_index);
            end if;
        end loop;
        found := found || coalesce((select string_agg(datname, ' ' order by 1) from pg_database where datname ~ '^d'), '');
        return found || ' | ' || coalesce((select string_agg(gid, ' ' order by 1) from pg_prepared_xacts), '');
    end $$";

/// How a branch came to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// The first one.
    Main,
    /// Forked from a branch whose server runs.
    Live,
    /// From one that is stopped.
    Rested,
    /// From a moment amid a transaction.
    Past,
    /// Moved there by force.
    Moved,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Main, Kind::Live, Kind::Rested, Kind::Past, Kind::Moved];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A line of the ledger.
struct Moment {
    what: String,
    revision: String,
    expected: String,
}

struct History<'a> {
    env: &'a Env,
    ledger: Vec<Moment>,
}

/// A branch whose server runs, and a session with it.
struct Session<'h, 'e> {
    history: &'h mut History<'e>,
    branch: String,
    client: Client,
}

fn connect(env: &Env, branch: &str) -> Client {
    let server = env.server_env(branch);
    let of = |name: &str| server.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let mut config = postgres::Config::new();
    config.host_path(of("PGHOST")).port(of("PGPORT").parse().unwrap()).user("postgres").dbname("postgres");
    config.connect(NoTls).unwrap()
}

impl Session<'_, '_> {
    fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.branch));
    }

    fn value(&mut self, sql: &str) -> String {
        self.client.query_one(sql, &[]).unwrap().get(0)
    }

    fn lsn(&mut self) -> Lsn {
        self.value("select pg_current_wal_insert_lsn()::text").parse().unwrap()
    }

    fn look(&mut self) -> String {
        self.value("select look()")
    }

    fn note(&mut self, what: &str, lsn: Lsn, expected: &str) {
        let (what, revision) = (format!("{what} on {}", self.branch), format!("{}@{lsn}", self.branch));
        self.history.ledger.push(Moment { what, revision, expected: expected.to_owned() });
    }

    /// Notes this moment, and returns what there is.
    fn now(&mut self, what: &str) -> String {
        let (found, lsn) = (self.look(), self.lsn());
        self.note(what, lsn, &found);
        found
    }

    /// A transaction: before it, while it is open, and after its end.
    fn transaction(&mut self, what: &str, sql: &str, end: &str) {
        let before = self.now(&format!("before {what}"));
        self.run(&format!("begin; {sql}"));
        let open = self.lsn();
        self.note(&format!("amid {what}"), open, &before);
        self.run(end);
        self.now(&format!("after {what}"));
    }

    /// A statement that is its own transaction.
    fn statement(&mut self, what: &str, sql: &str) {
        self.now(&format!("before {what}"));
        self.run(sql);
        self.now(&format!("after {what}"));
    }

    fn reconnect(&mut self) {
        self.client = connect(self.history.env, &self.branch);
    }

    fn live(&mut self) {
        let branch = self.branch.clone();
        let env = self.history.env;
        // A fork has those of its parent.
        self.run("drop table if exists dropped, truncated, packed");
        for table in ["dropped", "truncated", "packed"] {
            self.run(&format!(
                "create table {table} (i int primary key); insert into {table} select generate_series(1, 500)"
            ));
        }
        self.transaction("a commit", "insert into kept select coalesce(max(i), 0) + 1 from kept", "commit");
        self.transaction("a rollback", "insert into kept select generate_series(1000, 1100)", "rollback");
        self.transaction("a drop", "drop table dropped", "commit");
        self.transaction("a truncate", "truncate truncated", "commit");
        self.run("delete from packed where i > 100");
        let begun = self.lsn();
        let found = self.look();
        self.statement("a vacuum full", "vacuum full packed");
        let amid = Lsn((begun.0 + self.lsn().0) / 2);
        self.note("amid a vacuum full", amid, &found);
        self.statement("a create database", &format!("create database d{branch}"));
        let insert = "insert into kept select coalesce(max(i), 0) + 10 from kept";
        self.transaction("a prepare", insert, &format!("prepare transaction 'p{branch}'"));
        self.now("before a fork");
        env.run(["branch", &format!("of-{branch}"), &branch]).ok();
        self.now("after a fork");
        self.statement("a commit prepared", &format!("commit prepared 'p{branch}'"));
        self.now("before a snapshot");
        env.run(["snapshot", &branch]).ok();
        self.now("after a snapshot");
        self.transaction("a commit after it", "delete from kept where i in (select min(i) from kept)", "commit");
        self.run("checkpoint");
        self.now("before a crash");
        self.run("begin; truncate truncated, packed; insert into kept values (5000)");
        kill(Pid::from_raw(env.postmaster(&branch)), Signal::SIGKILL).unwrap();
        env.run(["start", &branch]).ok();
        self.reconnect();
        self.now("after a crash");
        env.run(["stop", &branch]).ok();
        env.run(["start", &branch]).ok();
        self.reconnect();
        self.now("after an idle stop");
        self.run("insert into kept select max(i) + 1000 from kept");
        self.now("at the end");
    }
}

/// Makes branches of these kinds, and the ledger of what happened on them.
fn generate<'a>(env: &'a Env, kinds: &[Kind]) -> History<'a> {
    let mut history = History { env, ledger: Vec::new() };
    env.run(["init"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "alter system set max_prepared_transactions = 10");
    env.run(["restart"]).ok();
    env.sql("main", "create table kept (i int primary key)");
    env.sql("main", "insert into kept select generate_series(1, 100)");
    env.sql("main", LOOK);
    let mut live = |kind: Kind| {
        let branch = kind.name();
        env.run(["start", &branch]).ok();
        let client = connect(env, &branch);
        Session { history: &mut history, branch, client }.live();
    };
    live(Kind::Main);
    if kinds.contains(&Kind::Live) {
        env.run(["branch", "live", "main"]).ok();
        live(Kind::Live);
    }
    let wants_moment = kinds.iter().any(|kind| [Kind::Past, Kind::Moved].contains(kind));
    if wants_moment {
        let revision = |what: &str| {
            history.ledger.iter().find(|moment| moment.what == format!("{what} on main")).unwrap().revision.clone()
        };
        let (past, moved) = (revision("amid a truncate"), revision("amid a commit"));
        env.run(["branch", "past", &past]).ok();
        env.run(["branch", "moved", "main"]).ok();
        env.run(["branch", "-f", "moved", &moved]).ok();
    }
    let mut live = |kind: Kind| {
        let branch = kind.name();
        env.run(["start", &branch]).ok();
        let client = connect(env, &branch);
        Session { history: &mut history, branch: branch.clone(), client }.live();
        env.run(["stop", &branch]).ok();
    };
    if kinds.contains(&Kind::Rested) {
        env.run(["stop", "main"]).ok();
        env.run(["branch", "rested", "main"]).ok();
        live(Kind::Rested);
    }
    for kind in [Kind::Past, Kind::Moved] {
        if kinds.contains(&kind) {
            live(kind);
        }
    }
    history
}

impl History<'_> {
    /// Starts each moment both ways. Returns what differs from the ledger.
    fn check(&self, numbers: impl Iterator<Item = usize>) -> Vec<String> {
        numbers.flat_map(|number| self.check_one(number, &self.ledger[number])).collect()
    }

    fn check_one(&self, number: usize, moment: &Moment) -> Vec<String> {
        let Moment { what, revision, expected } = moment;
        let mut wrong = Vec::new();
        let mut look = |name: &str, start: &[&str], expected: &str| {
            let started = self.env.run(start);
            if started.code != 0 {
                wrong.push(format!("{what} ({revision}): {start:?}: {}", started.err));
                return;
            }
            // Whoever is locked out waits for ever: that is an error here.
            let sql = "set statement_timeout = '120s'; select look()";
            let looked = self.env.run(["psql", name, "--", "-XqAt", "-c", sql]);
            if looked.out.trim_end_matches('\n') != expected {
                wrong.push(format!("{what} ({revision}): {start:?}: {}{}, not {expected}", looked.out, looked.err));
            }
            self.env.run(["stop", name, "--mode", "immediate"]).ok();
        };
        let committed = expected.split('|').next().unwrap();
        look(revision, &["start", "--read-only", revision], &format!("{committed}| "));
        let name = format!("look{number}");
        self.env.run(["branch", &name, revision]).ok();
        look(&name, &["start", &name], expected);
        self.env.run(["branch", "-d", &name]).ok();
        wrong
    }
}

/// Checks `sample` moments of a version, or all.
fn version(major: u32, bin: &Path, kinds: &[Kind], sample: Option<usize>, random: &mut Random) -> Vec<String> {
    let env = Env::with_bin(bin);
    let history = generate(&env, kinds);
    let count = history.ledger.len();
    println!("PostgreSQL {major}: {count} moments on {kinds:?}, {} checked", sample.unwrap_or(count));
    let found = match sample {
        None => history.check(0..count),
        Some(sample) => history.check((0..sample).map(|_| random.below(count as u64) as usize)),
    };
    found.into_iter().map(|wrong| format!("PostgreSQL {major}: {wrong}")).collect()
}

/// Returns the seed, printed so that a run can be repeated.
fn random() -> Random {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64);
    println!("SEED={seed}");
    Random(seed | 1)
}

#[test]
fn a_sample_of_moments_is_what_the_ledger_says() {
    let mut random = random();
    let mut majors = majors();
    // This machine's own version, and another one.
    let mut chosen = vec![majors.remove(0)];
    if !majors.is_empty() {
        chosen.push(majors.swap_remove(random.below(majors.len() as u64) as usize));
    }
    let mut wrong = Vec::new();
    for (major, bin) in chosen {
        let other = Kind::ALL[1 + random.below(4) as usize];
        wrong.extend(version(major, &bin, &[Kind::Main, other], Some(12), &mut random));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "takes half an hour: make moments"]
fn all_moments_are_what_the_ledger_says() {
    let mut random = random();
    let check = |(major, bin): (u32, std::path::PathBuf)| version(major, &bin, &Kind::ALL, None, &mut random);
    let wrong: Vec<String> = majors().into_iter().flat_map(check).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
