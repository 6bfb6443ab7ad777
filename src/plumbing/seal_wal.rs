//! `zenith seal-wal`: stores the active WAL of a timeline. PostgreSQL's `archive_command` is this.

use std::fs;
use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::pg::{Lsn, segment};
use crate::objects::timeline::{self, TimelineId};
use crate::plumbing::datadir::wal::{Sealed, Upto, WalFilesError, hold, seal};
use crate::plumbing::datadir::wal_end;
use crate::plumbing::instance::{self, snapshot::snapshot_if_due};
use crate::plumbing::postgres::alive::Status;
use crate::plumbing::postgres::{self, server};

/// How long other commands are waited for that start a server or see to what it left, and between two looks.
const PATIENCE: Duration = Duration::from_secs(25);
const PAUSE: Duration = Duration::from_millis(10);

/// Seal the active WAL of a timeline
///
/// Checks the WAL that PostgreSQL has flushed, record by record, stores it as objects and notes
/// them in the timeline's log. Prints where the sealed WAL ends. With --segment, seals the WAL to
/// the end of that segment, which PostgreSQL has completed; this is what zenith sets as
/// PostgreSQL's archive_command.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith seal-wal main\n  zenith seal-wal --segment 000000010000000000000003 76cf99\n"
)]
pub struct Args {
    /// The timeline: a branch, or a timeline id
    #[arg(value_name = "REVISION", add = clap_complete::engine::ArgValueCandidates::new(crate::cli::complete::branch))]
    revision: String,
    /// The name of a completed segment file
    #[arg(long, value_name = "FILE")]
    segment: Option<String>,
}

impl From<WalFilesError> for CommandError {
    fn from(error: WalFilesError) -> CommandError {
        match error {
            WalFilesError::Timeline(error) => error.into(),
            WalFilesError::Store(error) => error.into(),
            WalFilesError::Repo(error) => error.into(),
            WalFilesError::Files(error) => error.into(),
            WalFilesError::Lock(error) => error.into(),
            WalFilesError::EndInDoubt { end, .. } => {
                let hint = format!(
                    "nothing was removed. Put the missing files back; or, if what lay behind {end} is lost for good, \
                     accept that end: zenith stop --accept-end {end} BRANCH"
                );
                CommandError::new(Class::Corrupt, error).hint(hint)
            }
            WalFilesError::Damaged { .. } | WalFilesError::Missing { .. } => CommandError::new(Class::Corrupt, error),
        }
    }
}

/// Seals what PostgreSQL has flushed of a timeline's active WAL: asks its server if one runs, and takes all up to an end
/// that is believed (INVARIANT 6) if none does. Waits for a server that is about to start, or whose remains are seen to.
/// Costs the WAL since the last call.
pub fn seal_active(repo: &Repo, timeline: TimelineId) -> Result<Option<Sealed>, CommandError> {
    let is_open = || Ok::<_, CommandError>(repo.datadir(timeline).exists() || wal_end::is_laid_out(repo, timeline)?);
    if active_timeline(repo, timeline).is_none() && !is_open()? {
        return Ok(None);
    }
    let alive = instance::alive(repo, timeline);
    let patience = Instant::now() + PATIENCE;
    loop {
        if let Some(flushed) = instance::ask(repo, timeline, server::flushed_lsn)? {
            return seal_upto(repo, timeline, flushed);
        }
        match alive.take_from_the_dead() {
            // Nobody is alive, and nobody starts meanwhile.
            Ok(_held) => {
                let end = wal_end::find(repo, timeline, None)?;
                return end.map_or(Ok(None), |end| seal_upto(repo, timeline, end));
            }
            // Dropped by the command that had the lock.
            Err(_) if !repo.timelines().exists(timeline) => return Err(timeline::Error::Unknown(timeline).into()),
            Err(postgres::Error::StillAlive { .. }) if Instant::now() < patience => sleep(PAUSE),
            // Not the server is in the way, but the command that sees to it.
            Err(postgres::Error::StillAlive { process, .. }) if alive.status()? == Status::Held => {
                let doing = format!("starting or stopping the server of timeline {timeline}");
                return Err(instance::Error::Busy { doing, process }.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns PostgreSQL's number of the timeline that the active WAL is of, if there is any.
fn active_timeline(repo: &Repo, timeline: TimelineId) -> Option<u32> {
    let names = fs::read_dir(repo.timelines().wal_dir(timeline)).into_iter().flatten().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let size = repo.config().wal_segment_size;
    names.find_map(|name| segment::parse_file_name(&name, size)).map(|(postgres_timeline, _)| postgres_timeline)
}

/// Seals the active WAL of a timeline up to an LSN, to which it is durable; `None` where there is none.
pub fn seal_upto(repo: &Repo, timeline: TimelineId, upto: Lsn) -> Result<Option<Sealed>, CommandError> {
    let Some(postgres_timeline) = active_timeline(repo, timeline) else { return Ok(None) };
    let active = repo.active_segments(timeline, postgres_timeline);
    Ok(Some(seal(repo, timeline, active, None, Upto::Record(upto))?))
}

/// Seals a completed segment.
pub fn seal_segment(repo: &Repo, timeline: TimelineId, file: &str) -> Result<Option<Sealed>, CommandError> {
    // Timeline history and backup label files hold nothing that zenith needs.
    let size = repo.config().wal_segment_size;
    let Some((postgres_timeline, start)) = segment::parse_file_name(file, size) else { return Ok(None) };
    let _held = hold(repo, &repo.timelines().wal_dir(timeline).join(file))?;
    let active = repo.active_segments(timeline, postgres_timeline);
    Ok(Some(seal(repo, timeline, active, None, Upto::Segment(start))?))
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let timeline = crate::objects::refs::revision::resolve(&repo, &args.revision, &now)?.position.timeline;
    let sealed = match &args.segment {
        Some(file) => {
            let sealed = seal_segment(&repo, timeline, file)?;
            // What goes wrong there must not keep PostgreSQL from going on.
            if let Err(error) = snapshot_if_due(&repo, timeline, now.timestamp().as_microsecond()) {
                cx.ui.warning(error.text());
            }
            sealed
        }
        None => seal_active(&repo, timeline)?,
    };
    let sealed = sealed.map_or_else(
        || repo.timelines().read(timeline).map(|timeline| timeline.sealed()),
        |sealed| Ok(sealed.sealed),
    )?;
    if args.segment.is_none() {
        writeln!(cx.out, "{sealed}")?;
    }
    Ok(())
}
