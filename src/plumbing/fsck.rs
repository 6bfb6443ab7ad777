//! `zenith fsck`: checks everything.

use std::collections::HashSet;
use std::io::Write;

use rayon::prelude::*;

use super::rev_list::{Reachable, all_positions, rev_list, walk_objects};
use crate::cli::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::store::file::StoredFile;
use crate::objects::{Kind, ObjectId, Repo};
use crate::progress::Progress;

/// Check every object, every timeline and every ref
///
/// Reads every object and checks it against its id, checks packs and their indexes, and that
/// everything that refs, timelines and snapshots need is there. Prints a line for each fault, and
/// exits with 3 if there is one.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith fsck\n  zenith fsck --json\n")]
pub struct Args {
    /// Print one line of JSON: objects, unreachable, faults
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Outcome {
    /// Objects that were read.
    pub objects: usize,
    /// Those of them that no ref needs: gc would remove them.
    pub unreachable: usize,
    pub faults: Vec<String>,
}

/// Checks a repository. Faults are part of the outcome; errors are what keeps it from being checked.
pub fn fsck(repo: &Repo, progress: &dyn Progress) -> Result<Outcome, CommandError> {
    let mut faults = Vec::new();
    let packs = repo.store().packs();
    faults.extend(packs.iter().filter_map(|pack| pack.verify().err()).map(|error| CommandError::from(error).text()));
    faults.extend(repo.store().broken_packs().into_iter().map(|(_, why)| why));
    let ids = repo.store().ids()?;
    progress.start("checking", ids.len() as u64);
    let check = |id: &ObjectId| {
        progress.advance(1);
        let read = repo.store().read(id).and_then(|object| match object.kind {
            Kind::Map => repo.store().map(id).map(drop),
            Kind::Snapshot => repo.store().snapshot(id).map(drop),
            Kind::Frame | Kind::Wal => Ok(()),
        });
        read.err().map(|error| CommandError::from(error).text())
    };
    // In chunks, so that Ctrl-C is heard.
    for chunk in ids.chunks(4096) {
        progress.check()?;
        faults.extend(chunk.par_iter().filter_map(check).collect::<Vec<_>>());
    }
    progress.finish();
    let unreachable = match check_reachable(repo, &mut faults) {
        Ok(reachable) => ids.iter().filter(|id| !reachable.contains(id)).count(),
        Err(error) => {
            faults.push(error.text());
            0
        }
    };
    faults.sort_unstable();
    faults.dedup();
    Ok(Outcome { objects: ids.len(), unreachable, faults })
}

/// Checks that all that refs and timelines name is there. Returns the objects.
fn check_reachable(repo: &Repo, faults: &mut Vec<String>) -> Result<HashSet<ObjectId>, CommandError> {
    repo.refs().head()?;
    for id in repo.timelines().list()? {
        match repo.timelines().read(id) {
            Ok(timeline) => {
                let missing = timeline.log.wal.iter().filter(|interval| !repo.store().contains(&interval.object));
                faults.extend(
                    missing.map(|interval| format!("object {} is missing: WAL of timeline {id}", interval.object)),
                );
            }
            Err(error) => faults.push(CommandError::from(error).text()),
        }
    }
    let reachable = rev_list(repo, &all_positions(repo)?)?;
    let mut objects = HashSet::new();
    for item in &reachable {
        let walked = walk_objects(repo, std::slice::from_ref(item), &mut |_, id| {
            objects.insert(id);
            if repo.store().contains(&id) {
                Ok(())
            } else {
                Err(CommandError::refused(format!("object {id} is missing")))
            }
        });
        if let Err(error) = walked {
            faults.push(error.text());
        }
        if let Reachable::Snapshot { id, .. } = item {
            check_lengths(repo, *id, faults);
        }
    }
    Ok(objects)
}

/// Checks that the maps of a snapshot cover its files.
fn check_lengths(repo: &Repo, id: ObjectId, faults: &mut Vec<String>) {
    let Ok(snapshot) = repo.store().snapshot(&id) else { return };
    for entry in &snapshot.entries {
        if let Err(error) = StoredFile::of_entry(repo.store(), entry) {
            let path = String::from_utf8_lossy(&entry.path);
            faults.push(format!("snapshot {id}: '{path}': {}", CommandError::from(error).text()));
        }
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let outcome = fsck(&repo, &cx.ui)?;
    if args.json {
        cx.json(&outcome)?;
    } else {
        outcome.faults.iter().try_for_each(|fault| writeln!(cx.out, "{fault}"))?;
        cx.ui.status(format!("{} objects checked, {} unreachable", outcome.objects, outcome.unreachable));
    }
    cx.out.flush()?;
    match outcome.faults.len() {
        0 => Ok(()),
        1 => Err(CommandError::new(Class::Corrupt, "the repository has a fault")),
        count => Err(CommandError::new(Class::Corrupt, format!("the repository has {count} faults"))),
    }
}
