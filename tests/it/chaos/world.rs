//! What a run shares: the repository, its branches, what was counted, and the first thing that went wrong.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ledger::Ledger;
use super::processes;
use super::schedule::SLOTS;
use crate::support::Env;

/// The longest that a command may take, and anything that a client waits for.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same for what reads the whole repository, and so takes as long as that.
const READ_ALL: Duration = Duration::from_secs(300);
/// From when on it is noted what a command does that takes long, and how often.
const LONG: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_secs(3);

/// A branch, or a tag, and what it holds.
#[derive(Debug)]
pub struct Branch {
    pub name: String,
    pub ledger: Mutex<Ledger>,
}

#[derive(Default)]
pub struct Figures {
    /// What happened, and how often.
    pub counts: BTreeMap<String, u64>,
    /// The longest that each kind of command took.
    pub longest: BTreeMap<String, Duration>,
    /// What failed, in whose words.
    pub complaints: BTreeMap<String, u64>,
}

pub struct World {
    pub env: Env,
    /// The first one is main, for ever.
    pub slots: Mutex<Vec<Option<Arc<Branch>>>>,
    pub tags: Mutex<Vec<Arc<Branch>>>,
    pub figures: Mutex<Figures>,
    violation: Mutex<Option<String>>,
    ids: AtomicI64,
    acknowledged: AtomicU64,
    commands: AtomicU64,
}

/// What became of a command.
pub struct Ran {
    pub out: String,
    pub err: String,
    pub status: Option<ExitStatus>,
}

impl Ran {
    pub fn is_ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl World {
    pub fn new(env: Env) -> World {
        let main = Branch { name: "main".into(), ledger: Mutex::default() };
        let mut slots: Vec<Option<Arc<Branch>>> = vec![None; SLOTS];
        slots[0] = Some(Arc::new(main));
        World {
            env,
            slots: Mutex::new(slots),
            tags: Mutex::default(),
            figures: Mutex::default(),
            violation: Mutex::default(),
            ids: AtomicI64::new(1),
            acknowledged: AtomicU64::new(1),
            commands: AtomicU64::new(1),
        }
    }

    pub fn next_id(&self) -> i64 {
        self.ids.fetch_add(1, Ordering::SeqCst)
    }

    /// Returns how many transactions were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self) -> u64 {
        self.acknowledged.fetch_add(1, Ordering::SeqCst)
    }

    pub fn branches(&self) -> Vec<Arc<Branch>> {
        lock(&self.slots).iter().flatten().cloned().collect()
    }

    /// Returns the branch in `slot`, or the next one.
    pub fn branch(&self, slot: usize) -> Arc<Branch> {
        let slots = lock(&self.slots);
        let from_there = slots.iter().cycle().skip(slot).flatten();
        from_there.clone().next().expect("main is always there").clone()
    }

    pub fn count(&self, what: impl Into<String>) {
        *lock(&self.figures).counts.entry(what.into()).or_default() += 1;
    }

    /// Notes how long something took that is not to take long.
    pub fn took(&self, what: &str, time: Duration) {
        let mut figures = lock(&self.figures);
        let longest = figures.longest.entry(what.to_owned()).or_default();
        *longest = time.max(*longest);
    }

    /// Notes what somebody said who could not do what he was asked to.
    pub fn complain(&self, who: &str, text: &str) {
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("(nothing)");
        let line = line.replace(&*self.env.path().to_string_lossy(), "");
        let words = line.split(' ').map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "#" } else { word });
        let text = format!("{who}: {}", words.collect::<Vec<_>>().join(" "));
        *lock(&self.figures).complaints.entry(text).or_default() += 1;
    }

    /// Notes that a promise was broken, the first time; and what all processes are doing at this moment.
    pub fn violate(&self, what: impl Into<String>) {
        let mut violation = lock(&self.violation);
        if violation.is_none() {
            *violation = Some(what.into());
            let path = self.env.path().join("autopsy");
            let _ = std::fs::write(path, processes::autopsy(self.env.path()));
        }
    }

    pub fn violation(&self) -> Option<String> {
        lock(&self.violation).clone()
    }

    /// Runs a zenith command. It may take no longer than anybody has patience for, and may be killed before.
    pub fn run(&self, args: &[&str], killed: Option<(u32, Signal)>) -> Ran {
        let number = self.commands.fetch_add(1, Ordering::SeqCst);
        // To files: what it leaves behind in the background may hold a pipe open.
        let path = |kind| self.env.path().join(format!("command-{number}.{kind}"));
        let file = |kind| Stdio::from(std::fs::File::create(path(kind)).unwrap());
        let kind =
            args.iter().take_while(|word| !word.starts_with('-')).take(if args[0] == "pageserver" { 2 } else { 1 });
        let kind = kind.copied().collect::<Vec<_>>().join(" ");
        let begun = Instant::now();
        let mut child =
            self.env.command(args).stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn().unwrap();
        let mut killed = killed.map(|(after, signal)| (Duration::from_millis(after.into()), signal));
        let patience = if kind == "fsck" { READ_ALL } else { PATIENCE };
        let mut looks = 0;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if let Some((after, signal)) = killed
                && begun.elapsed() >= after
            {
                let _ = kill(Pid::from_raw(child.id() as i32), signal); // not waited for yet, so it is the same
                killed = None;
                self.count(format!("command killed by {signal}"));
            }
            if begun.elapsed() > LONG + looks * LOOK {
                looks += 1;
                let does = processes::waits(child.id());
                println!("zenith {} has taken {:.0?}: {does}", args.join(" "), begun.elapsed());
            }
            if begun.elapsed() > patience {
                self.violate(format!(
                    "zenith {} (process {}) takes longer than {patience:?}",
                    args.join(" "),
                    child.id()
                ));
                let _ = child.kill();
                // It may be one that cannot die.
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.took(&kind, begun.elapsed());
        let read = |kind| {
            let text = std::fs::read(path(kind)).unwrap_or_default();
            let _ = std::fs::remove_file(path(kind));
            String::from_utf8_lossy(&text).into_owned()
        };
        let ran = Ran { out: read("out"), err: read("err"), status };
        if ran.err.contains("panicked at") {
            self.violate(format!("zenith {} panicked:\n{}", args.join(" "), ran.err));
        }
        match status.and_then(|status| status.code()) {
            Some(0) => self.count(format!("{kind}: done")),
            Some(_) => {
                self.count(format!("{kind}: refused"));
                self.complain(&kind, &ran.err);
            }
            None => self.count(format!("{kind}: killed")),
        }
        ran
    }

    /// Runs a zenith command at a quiet time: it has no reason to fail.
    pub fn must(&self, args: &[&str]) -> Option<String> {
        let ran = self.run(args, None);
        if !ran.is_ok() {
            self.violate(format!(
                "zenith {} failed, although nothing else happens:\n{}{}",
                args.join(" "),
                ran.out,
                ran.err
            ));
            return None;
        }
        Some(ran.out.trim().to_owned())
    }

    /// Returns what was counted, as tables.
    pub fn table(&self) -> String {
        let figures = lock(&self.figures);
        let mut text = String::new();
        let is_kill = |what: &str| {
            what.contains("kill")
                && !["nobody there", ": killed", "in reboots"].iter().any(|other| what.ends_with(other))
        };
        let kills: u64 = figures.counts.iter().filter(|(what, _)| is_kill(what)).map(|(_, count)| count).sum();
        let _ = writeln!(text, "{kills:>8}  kills, without those of reboots");
        for (what, count) in &figures.counts {
            let _ = writeln!(text, "{count:>8}  {what}");
        }
        text += "\nthe longest, seconds\n";
        for (what, time) in &figures.longest {
            let _ = writeln!(text, "{:>8.2}  {what}", time.as_secs_f64());
        }
        text += "\nwhat was refused or failed meanwhile\n";
        let mut complaints: Vec<_> = figures.complaints.iter().collect();
        complaints.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (what, count) in complaints.iter().take(40) {
            let _ = writeln!(text, "{count:>8}  {what}");
        }
        text
    }
}
