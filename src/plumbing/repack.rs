//! `zenith repack`: merges packs and packs loose objects.

use std::io::Write;

use rustix::fs::statvfs;

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::store::repack::{Extent, Outcome, Plan, RepackError, execute, is_due, plan};
use crate::progress::Progress;

/// Merge packs, and pack loose objects
///
/// Keeps packs as long as each is at least twice as large as all smaller ones together, and merges the others, with the objects
/// that lie by themselves, into one. Each object is checked on the way; one that is damaged stays where it is. It can be killed at any
/// time, and no other command waits for it. zenith runs it by itself when there are many, in the background. Nothing is merged
/// while somebody else has the lock on objects/pack/repack.lock, as who copies the repository's files should:
/// flock .zenith/objects/pack/repack.lock cp -a .zenith COPY
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith repack\n  zenith repack --dry-run\n  zenith repack --all --json\n")]
pub struct Args {
    /// Merge everything into one pack
    #[arg(short, long)]
    all: bool,
    /// Only if there are many packs or loose objects, and at the lowest priority
    #[arg(long, conflicts_with = "all")]
    auto: bool,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print one line of JSON: pack, objects, packs, loose, packs_now and damaged; with --dry-run packs, kept, loose and bytes
    #[arg(long)]
    json: bool,
}

impl From<RepackError> for CommandError {
    fn from(error: RepackError) -> CommandError {
        match error {
            RepackError::Store(error) => error.into(),
            RepackError::Lock(error) => error.into(),
            RepackError::Interrupted(error) => error.into(),
        }
    }
}

/// Merges packs. Returns `None` where another command does that. Costs reading and writing what is merged.
pub fn repack(repo: &Repo, plan: &Plan, progress: &dyn Progress) -> Result<Option<Outcome>, CommandError> {
    if plan.is_empty() {
        let packs_now = repo.store().packs().all().len() as u64;
        return Ok(Some(Outcome { packs_now, ..Outcome::default() }));
    }
    Ok(execute(repo.store(), repo.tmp()?, plan, progress)?)
}

/// Room that a merge leaves, bytes: servers stop when there is none.
const RESERVE: u64 = 1 << 30;

/// Returns how many bytes are free for a merge.
fn room(repo: &Repo) -> Result<u64, CommandError> {
    let disk = statvfs(repo.dir()).map_err(std::io::Error::from)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(free.saturating_sub(RESERVE.min(disk.f_blocks.saturating_mul(disk.f_frsize) / 20)))
}

/// Has everybody else go first.
fn stand_back() {
    // Where it is not permitted it takes its turn.
    let _ = rustix::process::nice(19);
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    if args.auto {
        if !is_due(repo.store())? {
            return Ok(());
        }
        stand_back();
    }
    let plan = plan(repo.store(), if args.all { Extent::All } else { Extent::Geometric })?;
    if args.dry_run {
        return show(cx, &plan, args.json);
    }
    let room = room(&repo)?;
    if plan.bytes > room {
        // In the background it waits for better days: status says that the disk is nearly full.
        let Plan { bytes, .. } = plan;
        let refused = format!("a merge of {bytes} bytes needs as much room once more, and there are {room} bytes");
        return if args.auto {
            Ok(())
        } else {
            Err(CommandError::refused(refused).hint("free some space: zenith trash empty"))
        };
    }
    let Some(outcome) = repack(&repo, &plan, &cx.ui)? else {
        cx.ui.status("another command merges packs right now");
        return Ok(());
    };
    if args.json {
        cx.json(&outcome)?;
    } else if plan.is_empty() {
        cx.say("nothing to merge")?;
    } else {
        let Outcome { objects, packs, loose, packs_now, .. } = &outcome;
        cx.say(format_args!(
            "packed {objects} objects, of {packs} packs and {loose} loose ones; packs now: {packs_now}"
        ))?;
    }
    match outcome.damaged.first() {
        None => Ok(()),
        Some(first) => {
            let text = format!("{}, which stays where it is, and so do {} others", first, outcome.damaged.len() - 1);
            Err(CommandError::new(Class::Corrupt, text).hint("see what is damaged: zenith fsck"))
        }
    }
}

fn show(cx: &mut Cx, plan: &Plan, json: bool) -> CmdResult {
    let (packs, loose) = (plan.packs.len(), plan.loose.len());
    if json {
        return cx.json(&serde_json::json!({
            "packs": packs, "kept": plan.kept, "loose": loose, "bytes": plan.bytes,
        }));
    }
    let Plan { bytes, kept, .. } = plan;
    Ok(writeln!(cx.out, "would merge {packs} packs and {loose} loose objects, {bytes} bytes; {kept} packs stay")?)
}
