//! After a round: every branch holds what it must and nothing else, indexes agree with tables, and nothing is left lying about.

use std::collections::HashSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use zenith::objects::Repo;
use zenith::plumbing::instance;

use super::clients::{Way, ask, connect, flushed};
use super::faults::{Found, find, mode_name, start_page_server};
use super::processes;
use super::schedule::{Round, Source};
use super::world::{Branch, PATIENCE, World, lock};

/// Balances are the sums of what the ledger says: transactions are whole.
const BALANCES: &str = "select count(*) from account
    where balance <> coalesce((select sum(delta) from ledger where ledger.k = account.k), 0)";
/// Every index finds every row, and pages are sound.
const AMCHECK: &str = "select bt_index_check(i.indexrelid, true) from pg_index i
        join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
        where a.amname = 'btree' and i.indisvalid and c.relpersistence = 'p' and c.relnamespace = 'public'::regnamespace
    union all select bt_index_check(oid, true) from unnest(array['pg_class_oid_index', 'pg_class_relname_nsp_index',
        'pg_attribute_relid_attnum_index', 'pg_depend_reference_index']::regclass[]) oid";
const HEAPS: &str = "select 'ledger: ' || msg from verify_heapam('ledger') union all
    select 'account: ' || msg from verify_heapam('account') union all
    select 'pg_class: ' || msg from verify_heapam('pg_class') union all
    select 'pg_attribute: ' || msg from verify_heapam('pg_attribute')";
/// Where amcheck is not to be had: the same by two ways.
const BY_INDEX: &str =
    "set enable_seqscan = off; set enable_bitmapscan = off; select id from ledger order by id; reset all";
const HAS_AMCHECK: &str = "select count(*) from pg_extension where extname = 'amcheck'";

/// Returns the ids that a branch or revision holds.
async fn held(world: &World, name: &str, client: &Client) -> Result<HashSet<i64>, String> {
    let rows = ask(world, name, client, "select id from ledger").await?;
    Ok(rows.iter().filter_map(|id| id.parse().ok()).collect())
}

async fn check_structure(
    world: &World,
    name: &str,
    client: &Client,
    held: &HashSet<i64>,
) -> Result<Option<String>, String> {
    let wrong = ask(world, name, client, BALANCES).await?;
    if wrong != ["0"] {
        return Ok(Some(format!("{wrong:?} balances are not what the ledger says")));
    }
    if ask(world, name, client, HAS_AMCHECK).await? == ["0"] {
        let rows = ask(world, name, client, BY_INDEX).await?;
        let found: HashSet<i64> = rows.iter().filter_map(|id| id.parse().ok()).collect();
        return Ok((found != *held).then(|| "the index and the table do not agree".to_owned()));
    }
    // An index that does not agree is an error.
    ask(world, name, client, AMCHECK).await?;
    let damage = ask(world, name, client, HEAPS).await?;
    Ok((!damage.is_empty()).then(|| format!("damaged: {damage:?}")))
}

/// Checks a branch to which nobody writes.
async fn verify(world: &World, branch: &Branch, way: Way) -> Result<(), String> {
    let name = &branch.name;
    let client = connect(world, name, way).await?;
    let held = held(world, name, &client).await?;
    let lsn = flushed(world, name, &client).await?;
    let difference = lock(&branch.ledger).compare(&held);
    if !difference.is_empty() {
        world.violate(format!("branch {name} is not what its clients were told:\n{difference}"));
        return Ok(());
    }
    match check_structure(world, name, &client, &held).await {
        Ok(None) => {}
        Ok(Some(wrong)) => world.violate(format!("branch {name}: {wrong}")),
        Err(error) => world.violate(format!("branch {name}: {error}")),
    }
    lock(&branch.ledger).settle(&held, lsn);
    if !is_lazy(world, name) {
        world.violate(format!("branch {name} is not lazy: a run that quietly restored shows nothing"));
    }
    world.count("branches checked");
    Ok(())
}

/// Returns whether the data directory of a running branch is a mount, as it is where there is FUSE.
fn is_lazy(world: &World, name: &str) -> bool {
    let repo = Repo::open(&world.env.repo()).unwrap();
    let data = instance::of_branch(&repo, name).unwrap().and_then(|instance| instance.data_dir(&repo));
    let mounts = processes::mounts(world.env.path());
    data.is_none_or(|data| mounts.iter().any(|mount| data == Path::new(mount)))
}

/// Looks at a revision through the proxy, while things happen: it may not open, but must not show anything wrong.
pub fn look(world: &World, source: &Source) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(show(world, find(world, source))) {
        world.count("moments that did not open");
        world.complain("moment", &error);
    }
}

/// Compares what a revision shows with what was there then.
async fn show(world: &World, found: Found) -> Result<(), String> {
    let Found { mut revision, of, .. } = found;
    // What a branch's end or a time is changes while one looks at it.
    let is_tag = lock(&world.tags).iter().any(|tag| tag.name == revision);
    let ledger = if is_tag {
        lock(&of.ledger).clone()
    } else {
        let position = world.run(&["rev-parse", &revision], None).out;
        let lsn = position.trim().split('@').nth(1).and_then(|lsn| lsn.parse().ok());
        let lsn = lsn.ok_or("nobody can say where it is")?;
        revision = format!("{}@{lsn}", of.name);
        lock(&of.ledger).fork(lsn, None)
    };
    let client = connect(world, &revision, Way::Proxy).await?;
    let held = held(world, &revision, &client).await?;
    let difference = ledger.compare(&held);
    if !difference.is_empty() {
        world.violate(format!("{revision} is not what was there then:\n{difference}"));
    }
    world.count("moments checked");
    Ok(())
}

/// Checks all branches of a round, side by side.
pub fn branches(world: &World, round: &Round, runtime: &tokio::runtime::Runtime) {
    start_page_server(world);
    let way = if round.through_proxy { Way::Proxy } else { Way::Direct };
    let all = world.branches();
    std::thread::scope(|scope| {
        for part in all.chunks(all.len().div_ceil(3)) {
            scope.spawn(move || {
                for branch in part {
                    if way == Way::Direct && world.must(&["start", &branch.name]).is_none() {
                        return;
                    }
                    if let Err(error) = runtime.block_on(verify(world, branch, way)) {
                        world.violate(format!(
                            "branch {} does not answer, although nothing else happens: {error}",
                            branch.name
                        ));
                    }
                }
            });
        }
    });
}

/// Stops everything, and looks at what is left.
pub fn end(world: &World, round: &Round) {
    let stop_page_server = || world.must(&["pageserver", "stop"]);
    let stop_all = || world.must(&["stop", "--all", "--mode", mode_name(round.end)]);
    if stop_page_server().and_then(|_| stop_all()).is_none() {
        return;
    }
    let begun = Instant::now();
    // Packs are merged as long as others take the processors, and nobody waits for that.
    let merges = loop {
        let (left, mounts) = (processes::all(world.env.path()), processes::mounts(world.env.path()));
        if mounts.is_empty() && left.iter().all(processes::Process::merges) {
            break !left.is_empty();
        }
        if begun.elapsed() > PATIENCE {
            let pids: Vec<_> = left.iter().map(|process| (process.pid, process.kind)).collect();
            return world.violate(format!("all was stopped, but there are still {pids:?} {mounts:?}"));
        }
        sleep(Duration::from_millis(20));
    };
    world.took("everything is gone after a stop", begun.elapsed());
    for folder in if merges { &["datadirs"][..] } else { &["tmp", "datadirs"] } {
        let entries = std::fs::read_dir(world.env.repo().join(folder)).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // Copies of snapshots, which the next start without FUSE clones.
        let left: Vec<String> = names.filter(|name| name != "copies").collect();
        if !left.is_empty() {
            return world.violate(format!("all was stopped, but there are still in {folder}: {left:?}"));
        }
    }
    // It reads all that was ever written, so its time grows with each round.
    if round.number % 20 == 2 {
        let _ = world.must(&["fsck"]);
    }
    // Some branches end, so that others can begin.
    for slot in &round.retired {
        let branch = lock(&world.slots)[*slot].take();
        if let Some(branch) = branch {
            let _ = world.must(&["branch", "-d", &branch.name]);
        }
    }
}
