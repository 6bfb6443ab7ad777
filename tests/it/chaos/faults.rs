//! Does what the schedule says, to whom it meets.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use zenith::objects::Repo;
use zenith::objects::pg::Lsn;
use zenith::plumbing::instance;

use super::processes::{self, Process};
use super::schedule::{Action, Mode, Moment, SLOTS, Source, Victim, What};
use super::world::{Branch, World, lock};

/// How long a process that was killed may be there.
const DEATH: Duration = Duration::from_secs(15);
/// How long there is no page server after one was killed: as long as who minds it needs to notice.
const ABSENCE: Duration = Duration::from_millis(500);
/// Commands that change nothing, and are asked at any time.
const READS: [&[&str]; 7] = [
    &["status"],
    &["log"],
    &["branch", "-v"],
    &["pg", "list", "--json"],
    &["tag", "-v"],
    &["pageserver", "status"],
    &["rev-list", "--all"],
];

pub fn act(world: &World, action: &Action) {
    match action {
        Action::Kill { victim, signal, slot } => strike(world, *victim, *signal, *slot),
        Action::Suspend { slot, for_ms } => suspend(world, *slot, Duration::from_millis((*for_ms).into())),
        Action::Reboot => reboot(world),
        Action::Run { what, killed } => run(world, what, *killed),
    }
}

/// Returns the process of that kind of the branch in `slot`, or another one of that kind.
fn meet(world: &World, victim: Victim, slot: usize) -> Option<Process> {
    let branch = world.branch(slot);
    let repo = Repo::open(&world.env.repo()).ok()?;
    let instance = instance::of_branch(&repo, &branch.name).ok().flatten().map(|instance| instance.name);
    let mut all: Vec<Process> =
        processes::all(world.env.path()).into_iter().filter(|process| process.kind == victim).collect();
    if all.is_empty() {
        return None;
    }
    let mut own: Vec<usize> =
        (0..all.len()).filter(|index| instance.is_some() && all[*index].instance == instance).collect();
    if own.is_empty() {
        own = (0..all.len()).collect();
    }
    Some(all.swap_remove(own[slot % own.len()]))
}

fn strike(world: &World, victim: Victim, signal: Signal, slot: usize) {
    let what = format!("kills: {victim:?} {signal}");
    match meet(world, victim, slot) {
        Some(process) if process.signal(signal) => {
            world.count(what);
            if victim == Victim::PageServer {
                sleep(ABSENCE);
                start_page_server(world);
            }
        }
        _ => world.count(format!("{what}, nobody there")),
    }
}

fn suspend(world: &World, slot: usize, time: Duration) {
    match meet(world, Victim::FileSystem, slot) {
        Some(process) if process.signal(Signal::SIGSTOP) => {
            world.count("kills: FileSystem SIGSTOP");
            let end = Instant::now() + time;
            while Instant::now() < end && world.violation().is_none() {
                sleep(Duration::from_millis(10));
            }
            if process.signal(Signal::SIGCONT) {
                world.count("SIGCONT met whom SIGSTOP had met");
            }
        }
        _ => world.count("kills: FileSystem SIGSTOP, nobody there"),
    }
}

/// Kills everything until nothing is left, and detaches what is mounted: the machine was switched off, but its disk has
/// what was written.
pub fn reboot(world: &World) {
    if let Some(killed) = kill_all(world) {
        world.count("reboots");
        (0..killed).for_each(|_| world.count("kills: in reboots"));
        start_page_server(world);
    }
}

/// Returns how many were killed, if all are gone.
pub fn kill_all(world: &World) -> Option<usize> {
    let begun = Instant::now();
    let mut killed = 0;
    loop {
        let all = processes::all(world.env.path());
        if all.is_empty() {
            break;
        }
        if begun.elapsed() > DEATH {
            world.violate(format!("{} processes do not die of kill -9", all.len()));
            processes::detach(world.env.path(), true);
            return None;
        }
        killed += all.iter().filter(|process| process.signal(Signal::SIGKILL)).count();
        sleep(Duration::from_millis(5));
    }
    processes::detach(world.env.path(), false);
    world.took("everything dies of kill -9", begun.elapsed());
    Some(killed)
}

/// Starts it on any free ports; if there is one already, all is well.
pub fn start_page_server(world: &World) {
    let _ = world.run(&["pageserver", "start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"], None);
}

pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Smart => "smart",
        Mode::Fast => "fast",
        Mode::Immediate => "immediate",
    }
}

fn run(world: &World, what: &What, killed: Option<(u32, Signal)>) {
    let on = |slot: &usize| world.branch(*slot).name.clone();
    let ran = match what {
        What::Start(slot) => world.run(&["start", &on(slot)], killed),
        // Some clients stay for longer.
        What::Stop(slot, mode) => {
            world.run(&["stop", "--timeout", "20", "--mode", mode_name(*mode), &on(slot)], killed)
        }
        What::Restart(slot) => world.run(&["restart", &on(slot)], killed),
        What::Snapshot(slot) => world.run(&["snapshot", &on(slot)], killed),
        What::Read(index) => world.run(READS[index % READS.len()], killed),
        What::RestartPageServer => {
            world.run(&["pageserver", "restart", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"], killed)
        }
        What::Branch(source) => return make_branch(world, source, killed),
        What::Tag(source) => return make_tag(world, source, killed),
        What::Look(source) => return super::check::look(world, source),
    };
    drop(ran);
}

/// A revision, and what is known of what it holds.
pub struct Found {
    pub revision: String,
    pub of: Arc<Branch>,
    /// It is the branch's end.
    is_end: bool,
    /// How many transactions had been acknowledged by now.
    known: u64,
}

/// Returns what a source of the schedule is at this moment.
pub fn find(world: &World, source: &Source) -> Found {
    let mut of = world.branch(source.slot);
    let known = world.acknowledged();
    let mut is_end = false;
    let revision = match source.moment {
        Moment::Now => None,
        Moment::Lsn(per_mille) => lock(&of.ledger).lsn_at(per_mille).map(|lsn| format!("{}@{lsn}", of.name)),
        Moment::SecondsAgo(seconds) => Some(format!("{}@{{{seconds} seconds ago}}", of.name)),
        Moment::Tag(index) => {
            let tags = lock(&world.tags);
            let tag = (!tags.is_empty()).then(|| tags[index as usize % tags.len()].clone());
            tag.map(|tag| {
                of = tag;
                of.name.clone()
            })
        }
    };
    let revision = revision.unwrap_or_else(|| {
        is_end = true;
        of.name.clone()
    });
    Found { revision, of, is_end, known }
}

impl Found {
    /// Returns the branch `name` that was made from it, and begins at `lsn`.
    fn fork(&self, name: String, lsn: Lsn) -> Arc<Branch> {
        let ledger = lock(&self.of.ledger).fork(lsn, self.is_end.then_some(self.known));
        Arc::new(Branch { name, ledger: ledger.into() })
    }
}

/// Returns where a new name begins, or `None` where there is no such name. Nobody else knows of it yet.
fn begins_at(world: &World, file: &str, name: &str, said_done: bool) -> Option<Lsn> {
    if !world.env.repo().join("refs").join(file).join(name).exists() {
        if said_done {
            world.violate(format!("'{name}' was made, said zenith, but is not there"));
        }
        return None;
    }
    // It may be killed itself.
    for _ in 0..20 {
        let ran = world.run(&["rev-parse", name], None);
        if let Some(lsn) = ran.out.trim().split('@').nth(1).and_then(|lsn| lsn.parse().ok()) {
            return Some(lsn);
        }
    }
    world.violate(format!("'{name}' is there, but nobody can say where it begins"));
    None
}

fn make_branch(world: &World, source: &Source, killed: Option<(u32, Signal)>) {
    if lock(&world.slots).iter().filter(|slot| slot.is_none()).count() == 0 {
        return world.count("branch: all slots are taken");
    }
    let name = format!("b{}", world.next_id());
    let found = find(world, source);
    let ran = world.run(&["branch", &name, &found.revision], killed);
    let Some(lsn) = begins_at(world, "branches", &name, ran.is_ok()) else { return };
    let branch = found.fork(name, lsn);
    let mut slots = lock(&world.slots);
    if let Some(free) = (0..SLOTS).find(|slot| slots[*slot].is_none()) {
        slots[free] = Some(branch);
        drop(slots);
        world.count(format!("branches made: {}", kind(source)));
    }
}

fn make_tag(world: &World, source: &Source, killed: Option<(u32, Signal)>) {
    let name = format!("t{}", world.next_id());
    let found = find(world, source);
    let ran = world.run(&["tag", &name, &found.revision], killed);
    let Some(lsn) = begins_at(world, "tags", &name, ran.is_ok()) else { return };
    let tag = found.fork(name, lsn);
    lock(&world.tags).push(tag);
    world.count(format!("tags made: {}", kind(source)));
}

fn kind(source: &Source) -> &'static str {
    match source.moment {
        Moment::Now => "of an end",
        Moment::Lsn(_) => "of an LSN",
        Moment::SecondsAgo(_) => "of a time",
        Moment::Tag(_) => "of a tag",
    }
}
