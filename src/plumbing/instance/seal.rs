//! Seals the active WAL of a timeline, whether or not its server runs.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use super::unchanged::is_all_noise;
use super::{Error, PATIENCE, PAUSE, alive, ask};
use crate::error::CommandError;
use crate::objects::file_error::cannot;
use crate::objects::pg::{Lsn, segment};
use crate::objects::timeline::wal::KEPT;
use crate::objects::timeline::{self, TimelineId};
use crate::objects::{Repo, durable};
use crate::plumbing::datadir::wal::{Sealed, Upto, copy_pages, hold, seal};
use crate::plumbing::datadir::wal_end;
use crate::plumbing::postgres::alive::Status;
use crate::plumbing::postgres::{self, server};

/// Seals what PostgreSQL has flushed of a timeline's active WAL: asks its server if one runs, and takes all up to an end
/// that is believed (INVARIANT 6) if none does. Waits for a server that is about to start, or whose remains are seen to.
/// Costs the WAL since the last call.
pub fn seal_active(repo: &Repo, timeline: TimelineId) -> Result<Option<Sealed>, CommandError> {
    let is_open = || Ok::<_, CommandError>(repo.has_datadir(timeline)? || repo.timelines().run(timeline)?.is_some());
    if wal_end::active_timeline(repo, timeline)?.is_none() && !is_open()? {
        return Ok(None);
    }
    let alive = alive(repo, timeline);
    let patience = Instant::now() + PATIENCE;
    loop {
        if let Some(flushed) = ask(repo, timeline, server::flushed_lsn)? {
            return seal_upto(repo, timeline, flushed);
        }
        match alive.take_from_the_dead() {
            // Nobody is alive, and nobody starts meanwhile.
            Ok(_held) => {
                let end = wal_end::find(repo, timeline, None)?;
                return end.map_or(Ok(None), |end| seal_upto(repo, timeline, end));
            }
            // Removed meanwhile.
            Err(_) if repo.timelines().is_gone(timeline) => return Err(timeline::Error::Unknown(timeline).into()),
            Err(postgres::Error::StillAlive { .. }) if Instant::now() < patience => sleep(PAUSE),
            // Not the server is in the way, but the command that sees to it.
            Err(postgres::Error::StillAlive { process, .. }) if alive.status()? == Status::Held => {
                let doing = format!("starting or stopping the server of timeline {timeline}");
                return Err(Error::Busy { doing, process }.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Seals the active WAL of a timeline up to an LSN, to which it is durable; `None` where there is none.
pub fn seal_upto(repo: &Repo, timeline: TimelineId, upto: Lsn) -> Result<Option<Sealed>, CommandError> {
    let Some(postgres_timeline) = wal_end::active_timeline(repo, timeline)? else { return Ok(None) };
    let active = repo.active_segments(timeline, postgres_timeline);
    Ok(Some(seal(repo, timeline, active, None, Upto::Record(upto))?))
}

/// Seals a completed segment; as long as nothing of the run counts, keeps a copy of it instead, so that all of the run can be taken back.
pub fn seal_segment(repo: &Repo, timeline: TimelineId, file: &str) -> Result<Option<Sealed>, CommandError> {
    // Timeline history and backup label files hold nothing that zenith needs.
    let size = repo.config().wal_segment_size;
    let Some((postgres_timeline, start)) = segment::parse_file_name(file, size) else { return Ok(None) };
    let path = repo.timelines().wal_dir(timeline).join(file);
    let _held = hold(repo, &path)?;
    if is_all_noise(repo, timeline, start.plus(u64::from(size)))? {
        keep(repo, &path).map_err(cannot::<timeline::Error>("keep", &path))?;
        return Ok(None);
    }
    let active = repo.active_segments(timeline, postgres_timeline);
    Ok(Some(seal(repo, timeline, active, None, Upto::Segment(start))?))
}

/// Keeps a copy of a completed segment, durably, which PostgreSQL may recycle then.
fn keep(repo: &Repo, segment: &Path) -> io::Result<()> {
    let folder = segment.with_file_name(KEPT);
    let copy = durable::temp_file(repo.tmp().map_err(io::Error::other)?)?;
    copy_pages(segment, 0, copy.as_file())?;
    durable::create_dir_all(&folder)?;
    durable::replace_with(copy, &folder.join(segment.file_name().unwrap_or_default()))
}
