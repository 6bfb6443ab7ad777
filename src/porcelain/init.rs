//! `zenith init`: creates a repository.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::{Cx, os_user};
use crate::error::{CmdResult, CommandError};
use crate::objects::format::{Config, Core, FORMAT_VERSION, Postgres, Shared};
use crate::objects::refs::{Expect, RefName};
use crate::objects::repo::{self, FOLDER};
use crate::objects::{Repo, durable};
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::alive::keeps_locks;
use crate::plumbing::postgres::initdb::initdb;
use crate::plumbing::update_ref::update_branch;
use crate::plumbing::write_snapshot::{Options, Source, inspect, write_snapshot};

/// Create a repository
///
/// Makes a new PostgreSQL cluster, or takes an existing one with --from, and stores it in .zenith as the
/// first version on the branch main.
///
/// Git does not see .zenith, since that holds a .gitignore of its own; git clean -fd leaves it alone.
/// But git clean -fdx removes what is ignored, and so the repository and all that is in it: say
/// git clean -fdx -e .zenith instead.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith init\n  zenith init --from /var/lib/postgresql/15/main shop\n")]
pub struct Args {
    /// Begin with this data directory of a cleanly stopped server; it is only read
    #[arg(long, value_name = "DATADIR")]
    from: Option<PathBuf>,
    /// Name of the first branch
    #[arg(short = 'b', long, value_name = "NAME", default_value = "main")]
    initial_branch: String,
    /// Let the group of the folder use the repository, too; otherwise nobody but its owner can read it
    #[arg(long)]
    shared: bool,
    /// The folder in which .zenith is made; otherwise the current one
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let branch = RefName::branch(&args.initial_branch)?;
    let parent = args.dir.as_ref().map_or_else(|| cx.folder.clone(), |dir| cx.folder.join(dir));
    let target = parent.join(FOLDER);
    if target.exists() {
        return Err(repo::Error::Exists(target).into());
    }
    cx.as_the_user(|| fs::create_dir_all(&parent))?;
    let shared = if args.shared { Shared::Group } else { Shared::No };
    cx.share(shared);
    // All is made in a folder of its own and renamed at the end: there is a whole repository or none.
    let workshop = tempfile::Builder::new().prefix(".zenith-init-").tempdir_in(&parent)?;
    if !keeps_locks(workshop.path())? {
        let refused = format!(
            "the file system of '{}' does not keep locks (flock), which prove that a server lives",
            parent.display()
        );
        return Err(CommandError::refused(refused).hint("use a local file system such as ext4, XFS, btrfs or APFS"));
    }
    let cluster = match &args.from {
        Some(dir) => cx.folder.join(dir),
        None => new_cluster(cx, workshop.path())?,
    };
    fill(cx, workshop.path(), &cluster, &branch, shared)?;
    durable::publish_dir(&workshop.path().join(FOLDER), &target)?;
    writeln!(cx.out, "created {} branch", branch.short())?;
    let shown = if args.dir.is_some() { target.display().to_string() } else { FOLDER.to_owned() };
    Ok(writeln!(cx.out, "new zenith repository was created in {shown}")?)
}

fn new_cluster(cx: &Cx, workshop: &Path) -> Result<PathBuf, CommandError> {
    let cluster = workshop.join("cluster");
    fs::create_dir(&cluster)?;
    let account = Account::detect()?;
    // Also the way there.
    account.own(workshop)?;
    initdb(&cx.binaries(None)?, &account, &cluster, &os_user())?;
    Ok(cluster)
}

/// Makes the repository `parent/.zenith` of a cluster.
fn fill(cx: &Cx, parent: &Path, cluster: &Path, branch: &RefName, shared: Shared) -> CmdResult {
    let known = inspect(cluster)?;
    let config = Config {
        format_version: FORMAT_VERSION,
        postgres_major: known.major,
        wal_segment_size: known.control.wal_segment_size,
        system_identifier: known.control.system_identifier.to_string(),
        extensions: Vec::new(),
        core: Core { shared, ..Core::default() },
        postgres: Postgres { bin: cx.pg_bin.clone() },
        snapshot: Default::default(),
        proxy: Default::default(),
        branch: Default::default(),
    };
    let repo = Repo::create(parent, &config)?;
    let now_us = cx.now.timestamp().as_microsecond();
    let outcome = write_snapshot(&repo, Source::Dir(cluster), &Options::default(), now_us, &cx.ui)?;
    let signature = cx.sign("init");
    update_branch(&repo, branch, outcome.timeline, &Expect::Absent, &signature)?;
    Ok(repo.refs().set_head(repo.tmp()?, branch, &signature)?)
}
