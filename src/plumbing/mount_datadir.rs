//! `zenith mount-datadir`: the process behind a lazy data directory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::{ObjectId, Repo, durable};
use crate::plumbing::datadir::fuse::{Fuse, Mounted};
use crate::plumbing::datadir::local;
use crate::plumbing::datadir::vfs::Vfs;
use crate::plumbing::datadir::vfs::ahead::{Wanted, follow_up};
use crate::plumbing::datadir::vfs::base::Base;
use crate::plumbing::datadir::vfs::idle::Idle;
use crate::plumbing::datadir::wal::complete_below;
use crate::plumbing::instance::mount;
use crate::plumbing::instance::prefetch;
use crate::plumbing::postgres::alive::Alive;
use crate::plumbing::postgres::process::raise_file_limit;
use crate::plumbing::postgres::server::{self, Mode, Status};
use crate::plumbing::read_ahead;
use crate::progress::{Hidden, Progress};

/// Show a snapshot as a data directory
///
/// Mounts SNAPSHOT at DIR/data, and serves it until it is unmounted. Blocks come out of the store
/// when they are first read; what is written goes to DIR/local, over the snapshot, and the next
/// mount of the same snapshot there finds it again. Prints "ready" when it is mounted. start runs this
/// for each data directory.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith mount-datadir 4f2a11c0 /mnt/old\n")]
pub struct Args {
    /// Unmount half a minute after nobody holds the lock of a server on FILE any more; end the server if this process
    /// ends first, or is told to
    #[arg(long, value_name = "FILE")]
    with_server: Option<PathBuf>,
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

/// How long a server may take to shut down, if this process is told to end.
const STOP_WAIT: Duration = Duration::from_secs(15);
/// How often the guardian is told that this process moves.
const BEAT: Duration = Duration::from_secs(1);
/// Who reads ahead is let go after that time without work.
const READER_WAIT: Duration = Duration::from_secs(10);

/// How often it is tried in haste to make the WAL durable: files of PostgreSQL's come and go beside it. Then that is told, and tried
/// with each look. Without it, the next start after a crash begins afresh.
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
    /// The lock of the server that needs the mount.
    server: Option<Alive>,
    cx: &'a Cx,
}

impl Watch<'_> {
    /// Returns when it is unmounted, by others or because nobody needs it any more.
    fn wait(&self, mounted: &Mounted) -> CmdResult {
        let begun = Instant::now();
        let (mut looked, mut tidied, mut used) = (begun, begun, begun);
        let (mut noted, mut told) = (false, 0);
        let mut idle = Idle::default();
        let (mut prepared, mut attempts) = (self.server.is_none() || mount::is_prepared(self.dir)?, 0);
        while !mounted.has_ended() {
            sleep(TICK);
            if !prepared && (attempts < ATTEMPTS || looked.elapsed() >= LOOK) && self.server_runs() {
                match self.prepare() {
                    Ok(()) => prepared = true,
                    Err(error) => {
                        attempts = attempts.saturating_add(1);
                        if attempts == ATTEMPTS {
                            self.cx.ui.warning(error.text());
                        }
                    }
                }
            }
            if self.cx.ui.check().is_err() {
                self.stop_server();
                mount::detach(self.data)?;
            }
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            if self.is_needed() || self.vfs.is_in_use() {
                used = looked;
            } else if used.elapsed() > GRACE {
                mount::detach(self.data)?;
            }
            let damages = self.vfs.base().damages();
            damages[told..].iter().for_each(|damage| self.cx.ui.warning(damage));
            told = damages.len();
            idle.look(self.vfs);
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

    /// Returns whether somebody needs the mount: a server, or who is about to start one or looks after what it left.
    fn is_needed(&self) -> bool {
        // Where that cannot be found out, somebody might.
        self.server.as_ref().is_none_or(|server| server.is_held().unwrap_or(true))
    }

    fn server_runs(&self) -> bool {
        self.server.as_ref().is_some_and(|server| matches!(server.status(), Ok(Status::Running(_))))
    }

    /// Ends the server, which could not live without its files: in order, while they are served, if it takes no longer than
    /// it should.
    fn stop_server(&self) {
        let Some(server) = &self.server else { return };
        let stop = |mode| server::stop(server, mode, STOP_WAIT, || false, self.dir, &Hidden);
        if let Err(error) = stop(Mode::Fast).or_else(|_| stop(Mode::Immediate)) {
            self.cx.ui.warning(format!("cannot stop the server: {error}"));
        }
    }

    /// Completes the WAL that the server was started with, and makes it durable: from then on PostgreSQL can go on
    /// from this directory by itself after a crash. The server does not wait for that.
    fn prepare(&self) -> CmdResult {
        let timeline = self.dir.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(timeline) = timeline.filter(|timeline| !self.repo.timelines().is_gone(*timeline)) else {
            return Ok(());
        };
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

/// Sets the flag when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
    if let Some(alive) = &args.with_server {
        have_guarded(repo.dir(), dir, alive)?;
    }
    writeln!(cx.out, "ready")?;
    cx.out.flush()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reads = vfs.base().ahead();
        let mut reader = Reader { data: data.clone(), child: None, used: Instant::now() };
        let (vfs_, over_) = (&vfs, &over);
        scope.spawn(move || follow_up(vfs_, &reads, over_, &mut |wanted| reader.ask(wanted)));
        if args.hydrate {
            scope.spawn(|| hydrate(&vfs, &over));
        }
        let server = args.with_server.clone().map(|path| Alive::of(path, data.clone()));
        // Whatever ends the wait, the threads beside it end too.
        let _over = Over(&over);
        Watch { repo: &repo, vfs: &vfs, snapshot: id, dir, data: &data, server, cx }.wait(&mounted)
    })?;
    mounted.wait()?;
    vfs.flush().map_err(|error| CommandError::new(Class::Refused, error))
}

/// Gives this process a guardian, and a new one should that end: it ends the server if this process cannot serve any more.
/// The thread that tells it that this process moves does nothing else.
fn have_guarded(repo: &Path, dir: &Path, alive: &Path) -> CmdResult {
    let mut guard = mount::guard(repo, dir, alive)?;
    // Not the repository itself: the thread never ends, and with it this process's temporary folder would stay.
    let (repo, dir, alive) = (repo.to_owned(), dir.to_owned(), alive.to_owned());
    let beat = move || {
        loop {
            let told = guard.stdin.as_mut().map_or(Ok(()), |pipe| pipe.write_all(b"."));
            if told.is_err() {
                let _ = guard.wait();
                // What fails now is tried again.
                if let Ok(next) = mount::guard(&repo, &dir, &alive) {
                    guard = next;
                }
            }
            sleep(BEAT);
        }
    };
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat)?;
    Ok(())
}

/// The process that reads ahead in this mount, which this one must not do itself. Started when it is needed.
struct Reader {
    data: PathBuf,
    child: Option<Child>,
    used: Instant,
}

impl Reader {
    /// Has a part of a file read. What fails is not read, and only slower for it.
    fn ask(&mut self, wanted: Wanted) {
        let Some((path, offset)) = wanted else {
            if self.used.elapsed() > READER_WAIT {
                self.end();
            }
            return;
        };
        self.used = Instant::now();
        if self.child.is_none() {
            self.child = mount::reader(&self.data).ok();
        }
        let pipe = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        match pipe.map(|pipe| read_ahead::ask(pipe, path, offset)) {
            None | Some(Ok(())) => {}
            // It has more to do than it can, or is suspended: nothing waits for it.
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(_)) => self.end(),
        }
    }

    /// It has nothing to lose.
    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes everything local, when nobody else wants the processor.
fn hydrate(vfs: &Vfs, over: &AtomicBool) {
    let _ = rustix::process::nice(19); // of this thread; without it, it is only less polite
    // What cannot be fetched is told when it is read.
    let _ = vfs.hydrate(&|| over.load(Ordering::Relaxed));
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    // One for each file that was written.
    raise_file_limit();
    let repo = cx.take_repo()?;
    let id = repo.store().resolve_prefix(&args.snapshot)?;
    let dir = cx.folder.join(&args.dir);
    serve(cx, repo, &args, &id, &dir)
}
