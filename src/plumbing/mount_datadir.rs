//! `zenith mount-datadir`: the process behind a lazy data directory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::{ObjectId, Repo, durable};
use crate::plumbing::datadir::fuse::{Fuse, Mounted};
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::vfs::Vfs;
use crate::plumbing::datadir::vfs::ahead::follow_up;
use crate::plumbing::datadir::vfs::base::Base;
use crate::plumbing::datadir::wal::complete_below;
use crate::plumbing::instance::mount;
use crate::plumbing::instance::prefetch;
use crate::plumbing::postgres::server::{self, Status};
use crate::progress::Progress;

/// Show a snapshot as a data directory
///
/// Mounts SNAPSHOT at DIR/data, and serves it until it is unmounted. Blocks come out of the store
/// when they are first read; what is written goes to DIR/local, over the snapshot, and the next
/// mount of the same snapshot there finds it again. Prints "ready" when it is mounted. start runs this
/// for each data directory.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith mount-datadir 4f2a11c0 /mnt/old\n")]
pub struct Args {
    /// Unmount half a minute after the server there has ended
    #[arg(long)]
    with_server: bool,
    /// Fetch all blocks in the background
    #[arg(long)]
    hydrate: bool,
    /// The id of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The folder that holds, or gets, data and local
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// How long it stays mounted without a server.
const GRACE: Duration = Duration::from_secs(30);
/// What is read in that time after mounting is what a start needs.
const START: Duration = Duration::from_secs(5);
/// Between two looks at whether it is over, at the server, and at what can be tidied up.
const TICK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(5);

/// How often it is tried to make the WAL durable: files of PostgreSQL's come and go beside it. Without that, the next
/// start after a crash begins afresh.
const ATTEMPTS: u32 = 10;

/// Requests under way at once: enough for a dozen backends that wait for blocks, and few enough
/// that their buffers of 1 MiB are a small part of the memory.
const THREADS: usize = 8;

/// What is done beside serving.
struct Watch<'a> {
    repo: &'a Repo,
    vfs: &'a Vfs,
    /// What was mounted.
    snapshot: &'a ObjectId,
    dir: &'a Path,
    data: &'a Path,
    with_server: bool,
    cx: &'a Cx,
}

impl Watch<'_> {
    /// Returns when it is unmounted, by others or because nobody needs it any more.
    fn wait(&self, mounted: &Mounted) -> CmdResult {
        let begun = Instant::now();
        let (mut looked, mut tidied, mut used) = (begun, begun, begun);
        let (mut noted, mut told) = (false, 0);
        let mut attempts = if !self.with_server || mount::is_prepared(self.dir) { 0 } else { ATTEMPTS };
        while !mounted.has_ended() {
            sleep(TICK);
            if attempts > 0 && server::status(self.data) != Status::Stopped {
                attempts = match self.prepare() {
                    Ok(()) => 0,
                    Err(error) if attempts == 1 => {
                        self.cx.ui.warning(error.text());
                        0
                    }
                    Err(_) => attempts - 1,
                };
            }
            if self.cx.ui.check().is_err() {
                mount::detach(self.data)?;
            }
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            let runs = self.vfs.is_in_use() || server::status(self.data) != Status::Stopped;
            if runs || !self.with_server {
                used = looked;
            } else if used.elapsed() > GRACE {
                mount::detach(self.data)?;
            }
            let damages = self.vfs.base().damages();
            damages[told..].iter().for_each(|damage| self.cx.ui.warning(damage));
            told = damages.len();
            if tidied.elapsed() > TIDY {
                tidied = looked;
                // What fails now is tried again.
                let _ = self.vfs.tidy();
            }
            if !noted && begun.elapsed() > START {
                noted = true;
                self.note_touched();
            }
        }
        if !noted {
            self.note_touched();
        }
        Ok(())
    }

    /// Completes the WAL that the server was started with, and makes it durable: from then on PostgreSQL can go on
    /// from this directory by itself after a crash. The server does not wait for that.
    fn prepare(&self) -> CmdResult {
        let timeline = self.dir.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(timeline) = timeline.filter(|timeline| self.repo.timelines().exists(*timeline)) else { return Ok(()) };
        complete_below(self.repo, &self.repo.store().snapshot(self.snapshot)?, timeline)?;
        durable::sync_tree(&self.repo.timelines().wal_dir(timeline))?;
        Ok(mount::set_prepared(self.dir)?)
    }

    /// Leaves a list for the next start, which is only faster for it.
    fn note_touched(&self) {
        if let Err(error) = prefetch::note(self.repo, &self.vfs.snapshot(), &self.vfs.touched()) {
            self.cx.ui.warning(error.text());
        }
    }
}

/// Mounts and serves, until it is unmounted; then everything is durable.
fn serve(cx: &mut Cx, repo: Repo, args: &Args, id: &ObjectId, dir: &Path) -> CmdResult {
    let data = dir.join("data");
    std::fs::create_dir_all(&data)?;
    let _lock = mount::lock(dir)?;
    let repo = Arc::new(repo);
    let base = Base::new(repo.clone(), Some(Instant::now() + START));
    let vfs = Arc::new(Vfs::open(&repo, id, &local::dir(dir), base)?);
    let hydrating = args.hydrate.then(|| vfs.remote_bytes());
    let mounted = Fuse::new(vfs.clone(), hydrating).mount(&data, THREADS).map_err(mount::Error::refused(&data))?;
    writeln!(cx.out, "ready")?;
    cx.out.flush()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reads = vfs.base().ahead();
        let (vfs_, data_, over_) = (&vfs, &data, &over);
        scope.spawn(move || follow_up(vfs_, data_, &reads, over_));
        if args.hydrate {
            scope.spawn(|| hydrate(&vfs, &over));
        }
        let watch = Watch { repo: &repo, vfs: &vfs, snapshot: id, dir, data: &data, with_server: args.with_server, cx };
        let watched = watch.wait(&mounted);
        over.store(true, Ordering::Relaxed);
        watched
    })?;
    mounted.wait()?;
    vfs.flush().map_err(|error| CommandError::new(Class::Refused, error))
}

/// Makes everything local, when nobody else wants the processor.
fn hydrate(vfs: &Vfs, over: &AtomicBool) {
    let _ = rustix::process::nice(19); // of this thread; without it, it is only less polite
    // What cannot be fetched is told when it is read.
    let _ = vfs.hydrate(&|| over.load(Ordering::Relaxed));
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let id = repo.store().resolve_prefix(&args.snapshot)?;
    let dir = cx.folder.join(&args.dir);
    serve(cx, repo, &args, &id, &dir)
}
