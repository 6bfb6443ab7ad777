//! Read-only instances: a server that shows a moment of the past, beside all others.
//!
//! A moment is a database at rest. Its files are recovered to the end of the WAL that is laid out for it, as after
//! a crash at that moment: what had not committed is over, and its locks are gone. Then they are shut down cleanly, and
//! shown by a standby that has nothing to replay and refuses to write, whatever a client says. What the recovery wrote
//! lies in the moment's own folder and goes with it.

use std::path::Path;

use super::hold::{Held, hold_all};
use super::mount;
use super::start::{Context, LaidOut, Outcome, Wish, lay_out_all, run_server, runs_already, settings_of};
use super::{Instance, create, list};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::objects::pg::control::{Sizes, State};
use crate::objects::timeline::{Position, TimelineId};
use crate::plumbing::datadir::wal::complete;
use crate::plumbing::postgres::server::{self, Mode};
use crate::plumbing::postgres::settings::{Role, Settings};
use crate::plumbing::postgres::{alive, recovery};
use crate::plumbing::write_snapshot::inspect;

/// How long a server that failed may take to go.
const STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Returns the read-only instances that the user calls `text`, the newest last.
pub fn of_revision(repo: &Repo, text: &str) -> Result<Vec<Instance>, super::Error> {
    let all = list(repo)?.into_iter();
    Ok(all.filter(|instance| instance.is_read_only() && instance.config.branch == text).collect())
}

/// Returns the read-only instance that shows `position` under the name `text`; makes one if there is none.
fn find_or_create(cx: &Context, text: &str, position: Position) -> Result<Instance, CommandError> {
    let repo = cx.repo;
    let _held = hold_all(repo, cx.progress)?;
    let at = position.to_string();
    let known = of_revision(repo, text)?.into_iter().find(|instance| instance.config.at.as_ref() == Some(&at));
    known.map_or_else(|| create(repo, text, Some(at)), Ok)
}

/// Holds it.
fn hold_or_create(cx: &Context, text: &str, position: Position) -> Result<(Held, Instance), CommandError> {
    loop {
        match find_or_create(cx, text, position)?.hold(cx.repo, cx.progress) {
            // Somebody stopped it meanwhile.
            Err(super::Error::Unknown(_)) => {}
            held => return Ok(held?),
        }
    }
}

/// Starts a server that shows `position`, which the user calls `text`, unless it runs. Costs the replay of the
/// WAL since the newest snapshot before it.
pub fn start(cx: &Context, text: &str, position: Position, wish: Wish) -> Result<Outcome, CommandError> {
    let Context { repo, .. } = cx;
    let (held, mut instance) = hold_or_create(cx, text, position)?;
    let from = position;
    if runs_already(cx, &instance)? {
        instance.claim(repo, wish)?;
        let (snapshot, replayed, resumed, refused) = (None, 0, false, None);
        return Ok(Outcome { instance, already: true, from, snapshot, replayed, resumed, refused });
    }
    discard_files(repo, &mut instance)?;
    instance.choose_port(repo, wish, cx.progress)?;
    let refused = match prepare_and_run(cx, &mut instance, position, wish) {
        Ok(laid_out) => return Ok(Outcome::fresh(instance, from, laid_out)),
        Err(error) => error,
    };
    if instance.timeline().is_some() {
        let (alive, log) = (instance.alive(repo), instance.log(repo));
        let _ = server::stop(&alive, Mode::Immediate, STOP_WAIT, || false, &log, cx.progress);
    }
    // The error says more than what could go wrong here; what could not be removed, the next start or stop finds.
    let _ = discard(repo, instance, held);
    Err(refused)
}

fn prepare_and_run(
    cx: &Context,
    instance: &mut Instance,
    position: Position,
    wish: Wish,
) -> Result<LaidOut, CommandError> {
    let Context { repo, account, .. } = cx;
    account.check()?;
    let id = TimelineId::random();
    // Noted first: what a crash leaves from here on, the next start or stop finds and removes.
    instance.config.timeline = Some(id.to_string());
    instance.write(repo)?;
    let held = instance.alive(repo).take()?;
    let dir = repo.datadir(id);
    let (data, wal_dir) = (dir.join("data"), dir.join("wal"));
    let mut laid_out = lay_out_all(cx, instance, position, (&dir, &wal_dir), wish)?;
    if mount::is_mounted(&data)? {
        laid_out.fetch(repo, data.clone());
    }
    complete(repo, &laid_out.snapshot, position.timeline, &wal_dir)?;
    if !recovery::is_exact(&laid_out.snapshot) || laid_out.snapshot.consistent != position.lsn {
        recovery::write_backup_label(&data, &laid_out.snapshot)?;
        recover(cx, instance, &data, &held, laid_out.sizes)?;
    }
    recovery::make_standby(&data, inspect(&data)?.version)?;
    run_server(cx, instance, id, &held, wish, Sizes::default())?;
    Ok(laid_out)
}

/// Brings the files in `data` to rest at the end of their WAL, which was written with the sizes `replayed`.
fn recover(
    cx: &Context,
    instance: &Instance,
    data: &Path,
    held: &alive::Held,
    replayed: Sizes,
) -> Result<(), CommandError> {
    let Context { repo, binaries, account, progress, .. } = cx;
    let settings = Settings { replayed, ..settings_of(repo, instance, Role::Recovery)? };
    let log = instance.log(repo);
    let log_start = server::recover(binaries, account, data, &log, &settings, held, *progress)?;
    if inspect(data)?.control.state == State::ShutDown {
        return Ok(());
    }
    Err(server::did_not_start(&log, log_start).into())
}

/// Removes the files of a read-only instance whose server does not run: they hold nothing of their own.
fn discard_files(repo: &Repo, instance: &mut Instance) -> Result<(), CommandError> {
    let Some(id) = instance.timeline() else { return Ok(()) };
    let dir = repo.datadir(id);
    let _held = instance.alive(repo).take_from_the_dead()?;
    mount::remove(repo.tmp()?, &dir)?;
    instance.config.timeline = None;
    instance.write(repo)
}

/// Forgets a read-only instance whose server does not run.
pub fn discard(repo: &Repo, mut instance: Instance, held: Held) -> Result<(), CommandError> {
    discard_files(repo, &mut instance)?;
    instance.remove(repo, held)
}
