//! `zenith init`: creates a repository.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::command::{Cx, os_user};
use crate::error::{CmdResult, CommandError};
use crate::objects::format::{Branch, Config, Core, FORMAT_VERSION, Gc, Postgres, Shared};
use crate::objects::pg::version::VERSIONS;
use crate::objects::refs::{Expect, RefName, Value};
use crate::objects::repo::{self, FOLDER};
use crate::objects::timeline::Position;
use crate::objects::{Repo, durable};
use crate::plumbing::instance::start::Context;
use crate::plumbing::instance::superuser;
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::alive::keeps_locks;
use crate::plumbing::postgres::find::may_be_configured;
use crate::plumbing::postgres::initdb::{SUPERUSER, initdb};
use crate::plumbing::update_ref::update_ref;
use crate::plumbing::write_snapshot::{Cluster, Options, Outcome, Source, commit, inspect, store_files};

/// Create a repository
///
/// Makes a new PostgreSQL cluster, or takes an existing one with --from, and stores it in .zenith as the
/// first version on the branch main.
///
/// What is taken with --from is only read. Its postgresql.conf is copied too where it lies elsewhere, as on Debian. Since
/// the original goes on elsewhere, the new branch is a copy: its subscriptions and schedulers rest; see zenith start --live
/// and zenith-settings(5).
///
/// Git does not see .zenith, since that holds a .gitignore of its own; git clean -fd leaves it alone.
/// But git clean -fdx removes what is ignored, and so the repository and all that is in it: say
/// git clean -fdx -e .zenith instead.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith init\n  zenith init --from /var/lib/postgresql/15/main shop\n  \
    pg_basebackup -D - -F tar -X fetch | zenith init --from -\n  \
    pg_basebackup -D backup && zenith init --from backup\n")]
pub struct Args {
    /// Begin with this data directory of a cleanly stopped server, with this base backup (pg_basebackup -D), or with a
    /// base backup as tar on standard input: -
    #[arg(long, value_name = "DATADIR|BASEBACKUP|-")]
    from: Option<PathBuf>,
    /// The folder of the cluster's postgresql.conf, where that is not in the data directory and cannot be found
    #[arg(long, value_name = "DIR", requires = "from")]
    config: Option<PathBuf>,
    /// Name of the first branch
    #[arg(short = 'b', long, value_name = "NAME", default_value = "main")]
    initial_branch: String,
    /// Let the group of the folder use the repository, too; otherwise nobody but its owner can read it. Who may write to it can have
    /// its servers load what he likes: only people whom its users trust with their accounts belong in the group
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
    Repo::check_path(&target)?;
    if target.exists() {
        return Err(repo::Error::Exists(target).into());
    }
    let config = args.config.as_ref().map(|dir| conf_folder(&cx.folder.join(dir))).transpose()?;
    cx.as_the_user(|| durable::create_dir_all(&parent))?;
    let shared = if args.shared { Shared::Group } else { Shared::No };
    cx.share(shared);
    // All is made in a folder of its own and renamed at the end: there is a whole repository or none.
    let place = tempfile::Builder::new().prefix(".zenith-init-").tempdir_in(&parent)?;
    let workshop = place.path();
    if !keeps_locks(workshop)? {
        let refused = format!(
            "the file system of '{}' does not keep locks (flock), which prove that a server lives",
            parent.display()
        );
        return Err(CommandError::refused(refused).hint("use a local file system such as ext4, XFS, btrfs or APFS"));
    }
    let options = Options { config, ..Options::default() };
    // What is taken from elsewhere is a copy.
    let settings = Branch { live: args.from.is_none(), ..Branch::default() };
    let first = First { branch: &branch, settings, shared };
    let cluster = match &args.from {
        Some(from) if from == Path::new("-") => None,
        Some(from) => Some(cx.folder.join(from)),
        None => Some(new_cluster(cx, workshop)?),
    };
    let (repo, outcome) = match &cluster {
        Some(dir) => from_dir(cx, workshop, dir, &first, &options)?,
        None => from_stream(cx, workshop, &first, &options)?,
    };
    let signature = cx.sign("init");
    update_ref(&repo, &branch, &Expect::Absent, Some(&Value::Branch(outcome.timeline)), &signature)?;
    repo.refs().set_head(repo.tmp()?, &branch, &signature)?;
    drop(repo);
    durable::publish_dir(&workshop.join(FOLDER), &target)?;
    drop(place);
    if args.from.is_some() {
        find_superuser(cx, &target, &outcome)?;
    }
    if let Some(folder) = &outcome.configuration {
        cx.ui.status(format!("the configuration was copied from '{}'", folder.display()));
    }
    cx.say(format_args!("created {} branch", branch.short()))?;
    let shown = if args.dir.is_some() { target.display().to_string() } else { FOLDER.to_owned() };
    cx.say(format_args!("new zenith repository was created in {shown}"))
}

/// Notes as whom to connect to a cluster that comes from elsewhere, if that is not the usual one.
fn find_superuser(cx: &Cx, dir: &Path, outcome: &Outcome) -> CmdResult {
    let find = || {
        Account::detect()?.enter(dir, true)?;
        // As whoever this is now.
        let account = Account::detect()?;
        let repo = Repo::open(dir)?;
        let binaries = cx.binaries(Some(&repo))?;
        let signature = cx.sign("init");
        let context =
            Context { repo: &repo, binaries: &binaries, account: &account, progress: &cx.ui, signature: &signature };
        let names = superuser::find(&context, Position { timeline: outcome.timeline, lsn: outcome.lsn })?;
        if names.iter().any(|name| name == SUPERUSER) {
            return Ok(());
        }
        let mut config = repo.config().clone();
        config.postgres.superuser = names.into_iter().next();
        Ok::<_, CommandError>(Repo::reopen_with(dir, &config).map(drop)?)
    };
    if let Err(error) = find() {
        cx.ui.warning(format!("cannot find out who is superuser, so 'postgres' is assumed: {}", error.text()));
    }
    Ok(())
}

/// Returns the folder of a configuration, which may be given as the file itself.
fn conf_folder(path: &Path) -> Result<PathBuf, CommandError> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    if folder.join("postgresql.conf").is_file() {
        return Ok(folder.to_owned());
    }
    Err(CommandError::refused(format!("there is no postgresql.conf in '{}'", folder.display())))
}

fn new_cluster(cx: &Cx, workshop: &Path) -> Result<PathBuf, CommandError> {
    let cluster = workshop.join("cluster");
    fs::create_dir(&cluster)?;
    let account = Account::detect()?;
    // Nothing else here: root goes on in it.
    account.own(&cluster)?;
    // What is made in it belongs to the group that its folder has others' files belong to.
    let of_group = fs::metadata(workshop)?.permissions().mode() & 0o2000;
    fs::set_permissions(workshop, PermissionsExt::from_mode(of_group | 0o711))?;
    initdb(&cx.binaries(None)?, &account, &cluster, &os_user())?;
    Ok(cluster)
}

/// What a new repository begins with.
struct First<'a> {
    branch: &'a RefName,
    settings: Branch,
    shared: Shared,
}

/// Returns the config of a repository for a cluster.
fn config_for(cx: &Cx, cluster: &Cluster, first: &First) -> Config {
    Config {
        format_version: FORMAT_VERSION,
        postgres_major: cluster.major,
        wal_segment_size: cluster.control.wal_segment_size,
        system_identifier: cluster.control.system_identifier.to_string(),
        extensions: Vec::new(),
        core: Core { shared: first.shared, ..Core::default() },
        gc: Gc::default(),
        postgres: Postgres { bin: cx.pg_bin.clone().filter(|dir| may_be_configured(dir)), superuser: None },
        snapshot: Default::default(),
        proxy: Default::default(),
        branch: BTreeMap::from([(first.branch.short().to_owned(), first.settings.clone())]),
    }
}

/// Makes the repository `workshop/.zenith` of the cluster in a folder.
fn from_dir(
    cx: &Cx,
    workshop: &Path,
    dir: &Path,
    first: &First,
    options: &Options,
) -> Result<(Repo, Outcome), CommandError> {
    let repo = Repo::create(workshop, &config_for(cx, &inspect(dir)?, first))?;
    let stored = store_files(&repo, Source::Dir(dir), options, &cx.ui)?;
    let outcome = commit(&repo, stored, options, cx.now.timestamp().as_microsecond())?;
    Ok((repo, outcome))
}

/// Makes it of a base backup on standard input. Of what cluster that is shows at its end, so the repository is made with
/// a config that nobody sees.
fn from_stream(cx: &Cx, workshop: &Path, first: &First, options: &Options) -> Result<(Repo, Outcome), CommandError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(CommandError::usage("standard input is a terminal; a base backup is expected there")
            .hint("pg_basebackup -D - -F tar -X fetch | zenith init --from -"));
    }
    let unknown = Config {
        format_version: FORMAT_VERSION,
        postgres_major: VERSIONS[0].major,
        wal_segment_size: 16 << 20,
        system_identifier: "0".to_owned(),
        extensions: Vec::new(),
        gc: Gc::default(),
        core: Core { shared: first.shared, ..Core::default() },
        postgres: Postgres::default(),
        snapshot: Default::default(),
        proxy: Default::default(),
        branch: BTreeMap::new(),
    };
    let unnamed = Repo::create(workshop, &unknown)?;
    let stored = store_files(&unnamed, Source::Tar(&mut stdin.lock()), options, &cx.ui)?;
    let repo = Repo::reopen_with(unnamed.dir(), &config_for(cx, &stored.cluster, first))?;
    let outcome = commit(&repo, stored, options, cx.now.timestamp().as_microsecond())?;
    Ok((repo, outcome))
}
