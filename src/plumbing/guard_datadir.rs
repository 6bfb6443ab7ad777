//! `zenith guard-datadir`: ends a server whose file system has gone.
//!
//! The guardian is a child of the file system's process. It shares one descriptor with that: the reading end of a pipe, through which
//! the file system's process sends a byte each second. The end of the pipe means that the process is dead; silence means
//! that it is suspended. In both cases the server has lost its files, and would answer its clients with I/O errors until
//! somebody stops it. The guardian ends both processes and unmounts.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::plumbing::instance::mount;
use crate::plumbing::postgres::alive::{Alive, GRACE, Status};
use crate::plumbing::postgres::process::Process;
use crate::plumbing::postgres::server;
use crate::progress::Progress;

/// End the server of a data directory when its file system does
///
/// Watches the process that serves DIR/data, which must be the one that started this, through a pipe on standard
/// input, and the server that holds the lock on FILE. Where one of the two dies the rest is ended, so that the next start
/// begins afresh. mount-datadir runs this for each data directory with a server.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  zenith guard-datadir --with-server .zenith/timelines/$id/alive .zenith/datadirs/$id\n"
)]
pub struct Args {
    /// The file whose lock the server holds
    #[arg(long, value_name = "FILE")]
    with_server: PathBuf,
    /// The folder that holds data, the mount point
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// How long one byte is waited for.
const TICK: Duration = Duration::from_secs(1);
/// After so many waits in vain the file system's process is taken for suspended. Waits are counted, not seconds: a machine that
/// sleeps for an hour wakes up with the clock an hour on.
const SILENCE: u32 = 10;
/// How long the file system's process may take to go once it was killed.
const END_WAIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// Why there is no more to watch.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The file system's process has ended.
    Gone,
    /// It is there, but does not move.
    Silent,
}

/// Returns a channel with a word for each byte that comes. It is closed at the pipe's end.
fn beats() -> Receiver<()> {
    let (sender, receiver) = sync_channel(1);
    spawn(move || {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1)) && sender.send(()).is_ok() {}
    });
    receiver
}

/// Returns once the file system's process is gone or has been silent for too long. Until then it ends what outlives its
/// postmaster for more than [`GRACE`].
fn watch(beats: &Receiver<()>, server: &Alive, forget_signals: &dyn Fn()) -> End {
    let (mut silent, mut orphaned) = (0, None);
    loop {
        match beats.recv_timeout(TICK) {
            Ok(()) => silent = 0,
            Err(RecvTimeoutError::Timeout) => silent += 1,
            Err(RecvTimeoutError::Disconnected) => return End::Gone,
        }
        if silent >= SILENCE {
            return End::Silent;
        }
        // Who is told to end is the file system's process, which stops the server first. Only then is there nothing to guard.
        forget_signals();
        if !matches!(server.status(), Ok(Status::Orphaned)) {
            orphaned = None;
        } else if orphaned.get_or_insert_with(Instant::now).elapsed() > GRACE {
            // What fails is tried again with the next tick.
            let _ = server.end_orphans(Instant::now());
        }
    }
}

/// Waits until a process is gone, but no longer than [`END_WAIT`]. Returns whether it is.
fn is_gone(process: &Process) -> bool {
    let patience = Instant::now() + END_WAIT;
    while process.is_alive() && Instant::now() < patience {
        sleep(PAUSE);
    }
    !process.is_alive()
}

/// What is guarded.
struct Guarded {
    dir: PathBuf,
    /// The process that serves the files in it. If that has ended already, this process is somebody else's child by now.
    parent: Option<Process>,
    server: Alive,
}

impl Guarded {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Kills the file system's process, and waits until it is gone, and its locks with it. The kernel gives up the mount once the last
    /// of its descriptors is closed, and everybody who waits for the mount gets an error. Where the process does not go, the
    /// kernel is asked to do that.
    fn end_file_system(&self) -> CmdResult {
        let Some(process) = &self.parent else { return Ok(()) };
        process.signal(Signal::SIGKILL)?;
        if !is_gone(process) && mount::serving(&self.dir).as_ref() == Some(process) {
            mount::abort(&self.data())?;
            is_gone(process);
        }
        Ok(())
    }

    /// Ends the server, and what it left, and unmounts; unless another process serves there by now.
    fn end_server(&self, cx: &Cx) -> CmdResult {
        // Looked for first: a server that is started from here on is another one's.
        let postmaster = self.server.postmaster()?;
        let Some(_abandoned) = mount::abandoned(&self.dir)? else { return Ok(()) };
        if let Some(postmaster) = postmaster {
            let data = self.data();
            cx.ui.warning(format!(
                "the files at '{}' are gone, and server {} is ended",
                data.display(),
                postmaster.pid
            ));
            server::end_at_once(postmaster)?;
        }
        if self.server.status()? == Status::Orphaned {
            self.server.end_orphans(Instant::now() + GRACE)?;
        }
        Ok(mount::detach(&self.data())?)
    }
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let dir = cx.folder.join(&args.dir);
    let server = Alive::of(cx.folder.join(&args.with_server), dir.join("data"));
    let parent = mount::serving(&dir).filter(|process| process.pid == getppid().as_raw());
    let guarded = Guarded { dir, parent, server };
    // Without it one that is suspended stays so.
    let _ = mount::note_guardian(&guarded.dir);
    let end = watch(&beats(), &guarded.server, &|| cx.ui.forget_signals());
    if let Some(parent) = guarded.parent.filter(|_| end == End::Silent) {
        let data = guarded.data();
        cx.ui.warning(format!("process {} does not serve '{}' any more, and is ended", parent.pid, data.display()));
    }
    // What fails, as for a want of memory, is tried again: nobody else would end them.
    let mut told = String::new();
    while let Err(error) = guarded.end_file_system().and_then(|()| guarded.end_server(cx)) {
        cx.ui.check()?;
        if told != error.text() {
            told = error.text();
            cx.ui.warning(&told);
        }
        sleep(TICK);
    }
    Ok(())
}
