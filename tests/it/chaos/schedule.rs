//! What is done to whom, and when: all of it follows from the seed, as a value, before anything runs.
//!
//! A target is a slot, in which a branch lives for a while. Whether its server runs when its turn comes is the business
//! of the run, which takes the next one that does.

use std::ops::Range;

use nix::sys::signal::Signal;

use crate::support::Random;

/// Branches at a time.
pub const SLOTS: usize = 12;
/// How long a round's faults go on, milliseconds.
pub const ROUND_MS: u32 = 10_000;
/// Between two steps of a round, milliseconds.
const PAUSES_MS: Range<u64> = 120..520;
/// Branches that end after a round, to make room for new ones.
const RETIRED: u64 = 3;

/// A round: faults, commands and clients at the same time; then everything is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    pub number: u64,
    /// For the clients, each of which has a source of its own.
    pub seed: u64,
    pub steps: Vec<Step>,
    /// The slots that are emptied after the round.
    pub retired: Vec<usize>,
    /// Whether its checks come through the page server, or to servers started by hand.
    pub through_proxy: bool,
    /// How all servers are stopped after the checks.
    pub end: Mode,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub at_ms: u32,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A signal to a process; to that of the branch in `slot`, where it has one.
    Kill { victim: Victim, signal: Signal, slot: usize },
    /// SIGSTOP to a file system, and later SIGCONT.
    Suspend { slot: usize, for_ms: u32 },
    /// kill -9 to everything at once, and what is mounted is detached.
    Reboot,
    /// A zenith command, which may be killed itself.
    Run { what: What, killed: Option<(u32, Signal)> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Victim {
    Postmaster,
    Backend,
    FileSystem,
    Guardian,
    PageServer,
    Command,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Start(usize),
    Stop(usize, Mode),
    Restart(usize),
    Snapshot(usize),
    /// A branch in the first free slot.
    Branch(Source),
    Tag(Source),
    /// A read-only server, and what is to be seen there.
    Look(Source),
    RestartPageServer,
    /// One of the commands that only look.
    Read(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Smart,
    Fast,
    Immediate,
}

/// A revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub slot: usize,
    pub moment: Moment,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Moment {
    Now,
    /// That of the commit which is behind so much of what was committed, per mille.
    Lsn(u64),
    SecondsAgo(u64),
    /// One of the tags, which have a branch of their own.
    Tag(u64),
}

/// Returns the round `number` of a seed.
pub fn round(seed: u64, number: u64) -> Round {
    // Neighbours have nothing in common (splitmix64), and xorshift never gets zero.
    let mut mixed = seed.wrapping_add((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let mut random = Random((mixed ^ (mixed >> 31)) | 1);
    let client_seed = random.below(u64::MAX) | 1;
    let mut steps = if number == 0 { first_branches(&mut random) } else { Vec::new() };
    let mut at_ms = 300;
    while at_ms < ROUND_MS {
        steps.push(Step { at_ms, action: action(&mut random) });
        at_ms += within(&mut random, PAUSES_MS) as u32;
    }
    Round {
        number,
        seed: client_seed,
        steps,
        retired: (0..RETIRED).map(|_| 1 + random.below(SLOTS as u64 - 1) as usize).collect(),
        through_proxy: random.below(2) == 0,
        end: [Mode::Fast, Mode::Fast, Mode::Immediate][random.below(3) as usize],
    }
}

/// In the first round there is one branch only: the others come at once.
fn first_branches(random: &mut Random) -> Vec<Step> {
    let branch = |moment| Action::Run { what: What::Branch(Source { slot: 0, moment }), killed: None };
    let moments = (1..SLOTS).map(|_| if random.below(2) == 0 { Moment::Now } else { Moment::Lsn(random.below(1000)) });
    moments.enumerate().map(|(index, moment)| Step { at_ms: index as u32 * 20, action: branch(moment) }).collect()
}

fn within(random: &mut Random, range: Range<u64>) -> u64 {
    range.start + random.below(range.end - range.start)
}

fn slot(random: &mut Random) -> usize {
    random.below(SLOTS as u64) as usize
}

fn source(random: &mut Random) -> Source {
    let moment = match random.below(8) {
        0..3 => Moment::Now,
        3..6 => Moment::Lsn(random.below(1001)),
        6 => Moment::SecondsAgo(random.below(9)),
        _ => Moment::Tag(random.below(1000)),
    };
    Source { slot: slot(random), moment }
}

fn mode(random: &mut Random) -> Mode {
    [Mode::Smart, Mode::Fast, Mode::Fast, Mode::Immediate][random.below(4) as usize]
}

fn action(random: &mut Random) -> Action {
    use Signal::{SIGINT, SIGKILL, SIGTERM};
    let kills = [
        (9, Victim::Postmaster, SIGKILL),
        (6, Victim::Backend, SIGKILL),
        (8, Victim::FileSystem, SIGKILL),
        (5, Victim::FileSystem, SIGTERM),
        (3, Victim::Guardian, SIGKILL),
        (1, Victim::Guardian, SIGTERM),
        (2, Victim::PageServer, SIGKILL),
        (1, Victim::PageServer, SIGTERM),
        (5, Victim::Command, SIGKILL),
        (1, Victim::Command, SIGINT),
        (1, Victim::Command, SIGTERM),
    ];
    let mut choice = random.below(100);
    for (weight, victim, signal) in kills {
        if choice < weight {
            return Action::Kill { victim, signal, slot: slot(random) };
        }
        choice -= weight;
    }
    // 58 are left.
    let what = match choice {
        0..4 => return Action::Suspend { slot: slot(random), for_ms: within(random, 50..12_000) as u32 },
        4..6 => return Action::Reboot,
        6..14 => What::Start(slot(random)),
        14..23 => What::Stop(slot(random), mode(random)),
        23..26 => What::Restart(slot(random)),
        26..32 => What::Snapshot(slot(random)),
        32..42 => What::Branch(source(random)),
        42..48 => What::Tag(source(random)),
        48..52 => What::Look(source(random)),
        52..53 => What::RestartPageServer,
        _ => What::Read(random.below(100) as usize),
    };
    let killed = (random.below(4) == 0).then(|| {
        let signal = [SIGKILL, SIGKILL, SIGKILL, SIGINT, SIGTERM][random.below(5) as usize];
        (random.below(700) as u32, signal)
    });
    Action::Run { what, killed }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::mem::discriminant;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_one_does_not() {
        for number in 0..20 {
            assert_eq!(round(7, number), round(7, number));
            assert_ne!(round(7, number).steps, round(8, number).steps);
            assert_ne!(round(7, number).steps, round(7, number + 1).steps);
        }
    }

    #[test]
    fn everything_has_its_turn() {
        let actions: Vec<Action> = (0..40).flat_map(|number| round(1, number).steps).map(|step| step.action).collect();
        let killed = actions.iter().filter_map(|action| match action {
            Action::Kill { victim, signal, .. } => Some((*victim, *signal as i32)),
            _ => None,
        });
        assert_eq!(killed.collect::<HashSet<_>>().len(), 11);
        let run = actions.iter().filter_map(|action| match action {
            Action::Run { what, .. } => Some(discriminant(what)),
            _ => None,
        });
        assert_eq!(run.collect::<HashSet<_>>().len(), 9);
        let others = actions.iter().map(discriminant);
        assert_eq!(others.collect::<HashSet<_>>().len(), 4);
    }
}
