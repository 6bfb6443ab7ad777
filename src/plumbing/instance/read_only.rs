//! Read-only instances: a server that shows a moment of the past, beside all others.
//!
//! It is a standby that has replayed all WAL up to that moment, and waits for more that never comes. So it
//! needs no recovery target: behind the moment there is nothing to replay.

use super::mount;
use super::start::{Context, LaidOut, Outcome, Wish, lay_out_all, run_server, runs_already};
use super::{Instance, create, hold_all, list};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::timeline::{Position, TimelineId};
use crate::plumbing::datadir::wal::complete;
use crate::plumbing::postgres::recovery;
use crate::plumbing::postgres::server::{self, Mode};

/// How long a server that failed may take to go.
const STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Returns the read-only instances that the user calls `text`, the newest last.
pub fn of_revision(repo: &Repo, text: &str) -> Result<Vec<Instance>, super::Error> {
    let all = list(repo)?.into_iter();
    Ok(all.filter(|instance| instance.is_read_only() && instance.config.branch == text).collect())
}

/// Returns the read-only instance that shows `position` under the name `text`; makes one if there is none.
fn find_or_create(repo: &Repo, text: &str, position: Position, port: Option<u16>) -> Result<Instance, CommandError> {
    let _held = hold_all(repo)?;
    let at = position.to_string();
    let known = of_revision(repo, text)?.into_iter().find(|instance| instance.config.at.as_ref() == Some(&at));
    known.map_or_else(|| create(repo, text, port, Some(at)), Ok)
}

/// Starts a server that shows `position`, which the user calls `text`, unless it runs. Costs the replay of the
/// WAL since the newest snapshot before it.
pub fn start(
    cx: &Context,
    text: &str,
    position: Position,
    port: Option<u16>,
    wish: Wish,
) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    let mut instance = find_or_create(repo, text, position, port)?;
    let _held = Instance::hold(repo, &instance.name)?;
    let from = position;
    if runs_already(cx, &instance)? {
        instance.claim(repo, wish)?;
        let (snapshot, replayed, resumed, refused) = (None, 0, false, None);
        return Ok(Outcome { instance, already: true, from, snapshot, replayed, resumed, refused });
    }
    discard_files(repo, &mut instance)?;
    let started = prepare_and_run(cx, &mut instance, position, wish);
    if started.is_err() {
        if instance.timeline().is_some() {
            let _ = server::stop(&instance.alive(repo), Mode::Immediate, STOP_WAIT, &instance.log(repo), cx.progress);
        }
        // The error says more than what could go wrong here.
        let _ = discard_files(repo, &mut instance);
        let _ = instance.remove(repo);
    }
    Ok(Outcome::fresh(instance, from, started?))
}

fn prepare_and_run(
    cx: &Context,
    instance: &mut Instance,
    position: Position,
    wish: Wish,
) -> Result<LaidOut, CommandError> {
    let Context { repo, account, progress, .. } = cx;
    let id = TimelineId::random();
    // Noted first: what a crash leaves from here on, the next start or stop finds and removes.
    instance.config.timeline = Some(id.to_string());
    instance.write(repo)?;
    let held = instance.alive(repo).take()?;
    let dir = repo.datadir(id);
    let (data, wal_dir) = (dir.join("data"), dir.join("wal"));
    let mut laid_out = lay_out_all(cx, instance, position, (&dir, &wal_dir), wish)?;
    recovery::write_backup_label(&data, &laid_out.snapshot)?;
    recovery::write_standby_signal(&data)?;
    if mount::is_mounted(&data) {
        laid_out.fetch(repo, data);
    }
    account.own(repo.dir())?;
    complete(repo, &laid_out.snapshot, position.timeline, &wal_dir)?;
    run_server(cx, instance, id, &held, wish)?;
    // It lets readers in as soon as its files are consistent, before it is there.
    server::wait_for_replay(&instance.endpoint(repo)?, position.lsn, &instance.log(repo), *progress)?;
    instance.write(repo)?;
    Ok(laid_out)
}

/// Removes the files of a read-only instance whose server does not run: they hold nothing of their own.
fn discard_files(repo: &Repo, instance: &mut Instance) -> Result<(), CommandError> {
    let Some(id) = instance.timeline() else { return Ok(()) };
    let dir = repo.datadir(id);
    let _held = instance.alive(repo).take_from_the_dead()?;
    mount::remove(&dir)?;
    instance.config.timeline = None;
    instance.write(repo)
}

/// Forgets a read-only instance whose server does not run.
pub fn discard(repo: &Repo, mut instance: Instance) -> Result<(), CommandError> {
    discard_files(repo, &mut instance)?;
    Ok(instance.remove(repo)?)
}
