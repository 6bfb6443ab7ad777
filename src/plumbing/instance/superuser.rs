//! Finds out as whom to connect to a cluster that comes from elsewhere: it may have no role `postgres`. Nobody but the
//! cluster knows, and a server tells only who is connected already; PostgreSQL's single-user mode asks for no name.

use super::start::{Context, Wish, lay_out_all};
use super::{create, mount};
use crate::error::CommandError;
use crate::objects::timeline::{Position, TimelineId};
use crate::plumbing::datadir::wal::complete;
use crate::plumbing::postgres::initdb::superusers;
use crate::plumbing::postgres::recovery;

/// Returns the names of the superusers who may connect, the best one first: `postgres`, if it is one of them, else the
/// oldest. Costs what a start at `position` costs, and leaves nothing behind. For a repository that nobody else uses yet.
pub fn find(cx: &Context, position: Position) -> Result<Vec<String>, CommandError> {
    let Context { repo, binaries, account, .. } = cx;
    let id = TimelineId::random();
    // It listens nowhere.
    let (held, mut instance) = create(repo, "superuser", Some(position.to_string()))?.hold(repo, cx.progress)?;
    // Noted first: what a crash leaves from here on, others find.
    instance.config.timeline = Some(id.to_string());
    instance.write(repo)?;
    let dir = repo.datadir(id);
    let look = || {
        // The file system's process stays as long as somebody has the lock.
        let _held = instance.alive(repo).take()?;
        let (data, wal_dir) = (dir.join("data"), dir.join("wal"));
        let laid_out = lay_out_all(cx, &instance, position, (&dir, &wal_dir), Wish::default())?;
        let snapshot = &laid_out.snapshot;
        if !recovery::is_exact(snapshot) || snapshot.consistent != position.lsn {
            recovery::write_backup_label(&data, snapshot)?;
        }
        complete(repo, snapshot, position.timeline, &wal_dir)?;
        account.check()?;
        Ok::<_, CommandError>(superusers(binaries, account, &data)?)
    };
    let found = look();
    mount::remove(repo.tmp()?, &dir)?;
    instance.remove(repo, held)?;
    found
}
