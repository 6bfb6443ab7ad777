//! Streams by purpose: standard output is data, standard error is conversation.

mod tame;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::CommandError;
use crate::progress::{Interrupted, Progress, StopFlag};
use tame::{Tame, tamed};

/// A bar appears when its work has taken this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is said to the user, and how.
pub struct Ui {
    quiet: bool,
    stop: Arc<StopFlag>,
    /// Bytes done of the work at hand.
    done: AtomicU64,
    bar: Mutex<Bar>,
}

#[derive(Default)]
struct Bar {
    started: Option<Instant>,
    what: String,
    total: u64,
    shown: Option<ProgressBar>,
}

/// Highlights what matters in a line, such as the current branch.
pub const STRONG: Style = AnsiColor::Green.on_default().bold();
/// Names of objects and positions.
pub const ID: Style = AnsiColor::Yellow.on_default();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default();

/// Returns `text` in a style; the stream drops it where colours are not wanted.
pub fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Writes a line to standard error. What cannot be told, as on a disk that is full, ends nothing that goes on without it.
fn say(line: std::fmt::Arguments) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

impl Ui {
    /// Returns the user interface of this process. The first SIGINT or SIGTERM sets the stop flag, a
    /// second one ends the process at once.
    pub fn new(quiet: bool) -> io::Result<Ui> {
        let stop = Arc::new(StopFlag::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
            signal_hook::flag::register(signal, stop.clone())?;
        }
        Ok(Ui { quiet, stop, done: AtomicU64::new(0), bar: Mutex::default() })
    }

    /// Goes on although SIGINT or SIGTERM came.
    pub fn forget_signals(&self) {
        self.stop.store(false, Ordering::Relaxed);
    }

    /// Returns the stop flag.
    pub fn stop_flag(&self) -> Arc<StopFlag> {
        self.stop.clone()
    }

    /// Returns whether only what was asked for is to be said.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Tells what happens; not with `--quiet`.
    pub fn status(&self, text: impl Display) {
        if !self.quiet {
            say(format_args!("{}", tamed(&text.to_string())));
        }
    }

    /// Tells what may surprise.
    pub fn warning(&self, text: impl Display) {
        say(format_args!("{HINT}warning:{HINT:#} {}", tamed(&text.to_string())));
    }
}

/// Tells what a command, or a part of it, failed with, and what to do about it.
pub fn failure(failed: &CommandError) {
    error(failed.text());
    failed.hints.iter().for_each(hint);
}

/// Tells what went wrong.
pub fn error(text: impl Display) {
    say(format_args!("{ERROR}error:{ERROR:#} {}", tamed(&text.to_string())));
}

/// Tells what to do about it.
pub fn hint(text: impl Display) {
    say(format_args!("{HINT}hint:{HINT:#} {}", tamed(&text.to_string())));
}

/// Returns standard output for text, buffered; colours go through only where they are wanted, and nothing else that
/// steers a terminal does.
pub fn stdout() -> Box<dyn Write> {
    Box::new(io::BufWriter::new(Tame::new(anstream::AutoStream::auto(io::stdout()))))
}

/// Returns standard output, buffered, for bytes that are no text: nothing in them is a colour.
pub fn binary_stdout() -> Box<dyn Write> {
    Box::new(io::BufWriter::new(io::stdout()))
}

impl Progress for Ui {
    fn start(&self, what: &str, total_bytes: u64) {
        let mut bar = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.done.store(0, Ordering::Relaxed);
        *bar = Bar { started: Some(Instant::now()), what: what.to_owned(), total: total_bytes, ..Bar::default() };
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Work does not wait for drawing.
        let Ok(mut bar) = self.bar.try_lock() else { return };
        let Some(started) = bar.started.filter(|started| started.elapsed() > PATIENCE) else { return };
        if bar.shown.is_none() && !self.quiet && io::stderr().is_terminal() {
            let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            let shown = ProgressBar::with_draw_target(Some(bar.total), ProgressDrawTarget::stderr_with_hz(15));
            bar.shown = Some(
                shown
                    .with_style(style.progress_chars("=> "))
                    .with_message(bar.what.clone())
                    .with_elapsed(started.elapsed()),
            );
        }
        if let Some(shown) = &bar.shown {
            shown.set_position(done);
        }
    }

    fn finish(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(shown) = bar.shown.take() {
            shown.finish_and_clear();
        }
        *bar = Bar::default();
    }

    fn warn(&self, what: &str) {
        self.warning(what);
    }

    fn check(&self) -> Result<(), Interrupted> {
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}
