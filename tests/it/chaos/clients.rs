//! Clients: through the proxy, over TCP and its unix socket, and straight to a server. Each notes what it tries and what it is told.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use zenith::objects::Repo;
use zenith::objects::pg::Lsn;
use zenith::plumbing::instance;

use super::world::{Branch, PATIENCE, World, lock};
use crate::support::Random;

/// Rows whose balances the transactions move.
pub const ACCOUNTS: u64 = 200;

/// How a client gets to a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Proxy,
    ProxySocket,
    /// To the server's own socket, if it runs.
    Direct,
}

/// A failure that a client tells apart from no answer.
type Told<T> = Result<T, String>;

/// Waits for an answer as long as anybody has patience for.
pub async fn patiently<T>(
    world: &World,
    what: &str,
    branch: &str,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Told<T> {
    let begun = Instant::now();
    let answer = timeout(PATIENCE, answer).await;
    world.took(what, begun.elapsed());
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(match error.as_db_error() {
            Some(error) => format!("{} {}", error.code().code(), error.message()),
            None => std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
        }),
        Err(_) => {
            world.violate(format!("{what} on branch {branch} has no answer after {PATIENCE:?}"));
            Err("no answer".to_owned())
        }
    }
}

/// Returns where `name` is to be found that way; `None` where nothing listens.
fn config(world: &World, name: &str, way: Way) -> Option<Config> {
    let mut config = Config::new();
    config.user("postgres").dbname("postgres").application_name("chaos");
    if way == Way::Direct {
        let repo = Repo::open(&world.env.repo()).ok()?;
        let instance = instance::of_branch(&repo, name).ok()??;
        let endpoint = instance.endpoint(&repo).ok()?;
        config.host_path(endpoint.socket_dir).port(endpoint.port);
        return Some(config);
    }
    let text = std::fs::read(world.env.repo().join("pageserver/address")).ok()?;
    let addresses: zenith::plumbing::pageserver::Addresses = serde_json::from_slice(&text).ok()?;
    config.port(addresses.listen.port());
    config.options(format!("-c zenith.branch={}", name.replace(' ', "\\ ")));
    match way {
        Way::Proxy => config.host(addresses.listen.ip().to_string()),
        _ => config.host_path(addresses.socket_dir),
    };
    Some(config)
}

/// Connects to a branch or revision.
pub async fn connect(world: &World, name: &str, way: Way) -> Told<Client> {
    let config = config(world, name, way).ok_or("nothing listens")?;
    let (client, connection) = patiently(world, "connecting", name, config.connect(NoTls)).await?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

/// Returns the first column of the answer to a question.
pub async fn ask(world: &World, branch: &str, client: &Client, sql: &str) -> Told<Vec<String>> {
    let messages = patiently(world, "a statement", branch, client.simple_query(sql)).await?;
    let value = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(messages.iter().filter_map(value).collect())
}

pub async fn flushed(world: &World, branch: &str, client: &Client) -> Told<Lsn> {
    let rows = ask(world, branch, client, "select pg_current_wal_flush_lsn()").await?;
    rows.first().and_then(|text| text.parse().ok()).ok_or_else(|| format!("no LSN: {rows:?}"))
}

/// Writes to one branch after the other until `end`.
pub async fn client(world: Arc<World>, seed: u64, end: Instant) {
    let mut random = Random(seed | 1);
    while Instant::now() < end && world.violation().is_none() {
        let branch = world.branch(random.below(super::schedule::SLOTS as u64) as usize);
        let way = [Way::Proxy, Way::Proxy, Way::ProxySocket, Way::Direct][random.below(4) as usize];
        match connect(&world, &branch.name, way).await {
            Ok(client) => {
                world.count(format!("sessions: {way:?}"));
                if let Err(error) = session(&world, &branch, &client, &mut random, end).await {
                    world.count("sessions that ended with an error");
                    world.complain("session", &error);
                }
            }
            Err(error) => {
                world.count(format!("connections refused: {way:?}"));
                if way != Way::Direct {
                    world.complain("connection", &error);
                }
            }
        }
        sleep(Duration::from_millis(20 + random.below(100))).await;
    }
}

async fn session(world: &World, branch: &Branch, client: &Client, random: &mut Random, end: Instant) -> Told<()> {
    let mut flushed_before = flushed(world, &branch.name, client).await?;
    for _ in 0..1 + random.below(40) {
        if Instant::now() > end {
            break;
        }
        match random.below(40) {
            0 => churn(world, branch, client, random).await?,
            1 => drop(ask(world, &branch.name, client, "select pg_switch_wal()").await?),
            2 => drop(ask(world, &branch.name, client, "checkpoint").await?),
            3..6 => roll_back(world, branch, client, random, flushed_before).await?,
            what => {
                let ids = transaction(world, branch, client, random, flushed_before, what < 10).await?;
                flushed_before = flushed(world, &branch.name, client).await?;
                let mut ledger = lock(&branch.ledger);
                ids.iter().for_each(|id| ledger.flushed_after(*id, flushed_before));
            }
        }
        sleep(Duration::from_millis(random.below(30))).await;
    }
    Ok(())
}

/// Returns a statement that notes `id` and moves a balance with it: both or none are to be there.
fn statement(id: i64, random: &mut Random) -> String {
    let (account, delta, length) = (random.below(ACCOUNTS), 1 + random.below(1000), random.below(60));
    format!(
        "with noted as (insert into ledger values ({id}, {account}, {delta}, repeat(md5('{id}'), {length})) returning k, delta)
         update account set balance = balance + noted.delta from noted where account.k = noted.k;"
    )
}

fn try_some(world: &World, branch: &Branch, count: usize, before: Lsn) -> Vec<i64> {
    let ids: Vec<i64> = (0..count).map(|_| world.next_id()).collect();
    let mut ledger = lock(&branch.ledger);
    ids.iter().for_each(|id| ledger.try_one(*id, before));
    ids
}

/// Commits one id, or some at once.
async fn transaction(
    world: &World,
    branch: &Branch,
    client: &Client,
    random: &mut Random,
    before: Lsn,
    is_long: bool,
) -> Told<Vec<i64>> {
    world.count("transactions tried");
    let ids = try_some(world, branch, if is_long { 3 } else { 1 }, before);
    if is_long {
        ask(world, &branch.name, client, "begin").await?;
    }
    for id in &ids {
        ask(world, &branch.name, client, &statement(*id, random)).await?;
    }
    if is_long {
        ask(world, &branch.name, client, "commit").await?;
    }
    let mut ledger = lock(&branch.ledger);
    ids.iter().for_each(|id| ledger.acknowledge(*id, world.acknowledge()));
    drop(ledger);
    world.count("transactions acknowledged");
    Ok(ids)
}

async fn roll_back(world: &World, branch: &Branch, client: &Client, random: &mut Random, before: Lsn) -> Told<()> {
    let ids = try_some(world, branch, 1, before);
    ask(world, &branch.name, client, "begin").await?;
    ask(world, &branch.name, client, &statement(ids[0], random)).await?;
    ask(world, &branch.name, client, "rollback").await?;
    lock(&branch.ledger).roll_back(ids[0]);
    world.count("transactions rolled back");
    Ok(())
}

/// Makes files come and go, and old rows change.
async fn churn(world: &World, branch: &Branch, client: &Client, random: &mut Random) -> Told<()> {
    let id = world.next_id();
    let statements = [
        format!(
            "create table churn_{id} as select g, md5(g::text) from generate_series(1, {}) g",
            100 + random.below(4000)
        ),
        format!("create index on churn_{id} (g)"),
        format!("update ledger set filler = 'changed' where id % 97 = {}", random.below(97)),
        format!("drop table churn_{id}"),
        "vacuum ledger".to_owned(),
    ];
    for sql in statements {
        ask(world, &branch.name, client, &sql).await?;
    }
    Ok(())
}
