//! Everything dies at any moment, and nothing acknowledged is lost, nothing hangs, nothing is left.
//!
//! ```text
//! schedule   what is done when: follows from the seed     processes  who belongs to the repository, and what they do
//! faults     does it                                      clients    write, and note what they are told
//! ledger     what a branch must hold                      check      looks whether it does
//! ```
//!
//! `make chaos SEED=n SECONDS=s` runs it for longer, with both processors busy elsewhere.

mod check;
mod clients;
mod faults;
mod ledger;
mod processes;
mod schedule;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schedule::{ROUND_MS, Round};
use world::World;

use super::lazy::with_checksums;
use crate::support::Random;

const CLIENTS: usize = 8;

/// How a run is to be.
struct Plan {
    seed: u64,
    time: Duration,
    /// Threads that keep processors busy, and how nice they are.
    burners: usize,
    niceness: i32,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs round after round until the time is over; panics at the first promise that is broken.
fn run(plan: &Plan) {
    let world = Arc::new(World::new(with_checksums()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("seed {}, {:?}, in {}", plan.seed, plan.time, world.env.path().display());
    set_up(&world);
    let (begun, over, mut rounds) = (Instant::now(), AtomicBool::new(false), 0);
    let mut at = String::new();
    std::thread::scope(|scope| {
        for _ in 0..plan.burners {
            scope.spawn(|| burn(plan.niceness, &over));
        }
        while begun.elapsed() < plan.time && world.violation().is_none() {
            let round = schedule::round(plan.seed, rounds);
            at = play(&world, &round, &runtime);
            rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    if world.violation().is_none() {
        let _ = world.must(&["fsck"]);
    }
    println!("seed {}: {rounds} rounds in {:.0?}\n{}", plan.seed, begun.elapsed(), world.table());
    if let Some(violation) = world.violation() {
        let _ = faults::kill_all(&world);
        let kept = world.env.path().to_owned();
        // All of it is kept for whoever wants to know why.
        std::mem::forget(world);
        panic!("seed {}, {at}: {violation}\nkept: {}, what ran then: autopsy", plan.seed, kept.display());
    }
}

fn set_up(world: &World) {
    let env = &world.env;
    env.run(["start"]).ok();
    let accounts = clients::ACCOUNTS;
    env.sql("main", "create table account (k int primary key, balance bigint not null, filler text)");
    env.sql(
        "main",
        &format!("insert into account select g, 0, repeat('x', 200) from generate_series(0, {accounts} - 1) g"),
    );
    env.sql("main", "create table ledger (id bigint primary key, k int not null, delta bigint not null, filler text)");
    env.sql("main", "create index on ledger (k, delta)");
    let has_amcheck = env.sql("main", "select count(*) from pg_available_extensions where name = 'amcheck'") == "1";
    match has_amcheck {
        true => drop(env.sql("main", "create extension amcheck")),
        false => println!("SKIPPED: amcheck is not here: indexes are compared by reading both ways"),
    }
    env.run(["stop"]).ok();
    // Servers go soon when nobody uses them, and snapshots come often.
    env.run(["config", "proxy.idle_timeout", "2s"]).ok();
    env.run(["config", "snapshot.wal_threshold", "33554432"]).ok();
    faults::start_page_server(world);
}

/// Plays a round and checks what came of it. Returns where it was, for people.
fn play(world: &Arc<World>, round: &Round, runtime: &tokio::runtime::Runtime) -> String {
    let begun = Instant::now();
    let end = begun + Duration::from_millis(ROUND_MS.into());
    let mut random = Random(round.seed);
    faults::start_page_server(world);
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| runtime.spawn(clients::client(world.clone(), random.below(u64::MAX), end))).collect();
    let mut at = format!("round {}", round.number);
    std::thread::scope(|scope| {
        for (index, step) in round.steps.iter().enumerate() {
            let due = begun + Duration::from_millis(step.at_ms.into());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if world.violation().is_some() {
                break;
            }
            at = format!("round {}, step {index}: {:?}", round.number, step.action);
            scope.spawn(|| faults::act(world, &step.action));
        }
    });
    runtime.block_on(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    let faults = begun.elapsed();
    if world.violation().is_none() {
        at = format!("round {}, its checks", round.number);
        check::branches(world, round, runtime);
    }
    if world.violation().is_none() {
        at = format!("round {}, its end", round.number);
        check::end(world, round);
    }
    let (checks, acknowledged) = (begun.elapsed() - faults, world.acknowledged());
    println!("round {}: faults {faults:.1?}, checks {checks:.1?}, {acknowledged} acknowledged in all", round.number);
    at
}

/// Keeps a processor busy.
fn burn(niceness: i32, over: &AtomicBool) {
    let _ = rustix::process::nice(niceness); // of this thread
    let mut number = 1_u64;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..1_000_000 {
            number = std::hint::black_box(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
    }
}

#[test]
fn two_minutes_of_chaos_lose_nothing() {
    run(&Plan { seed: 1, time: Duration::from_secs(120), burners: 1, niceness: 19 });
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn campaign() {
    let seed = number("ZENITH_CHAOS_SEED").unwrap_or(1);
    let time = Duration::from_secs(number("ZENITH_CHAOS_SECONDS").unwrap_or(600));
    let burners = number("ZENITH_CHAOS_BURNERS").unwrap_or(2) as usize;
    run(&Plan { seed, time, burners, niceness: 0 });
}
