//! How far a long operation is, and whether the user wants it stopped.
//!
//! Engines report through [`Progress`] and know nothing of terminals; `ui` draws.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set once by a signal handler, looked at between units of work, never inside a flush.
pub type StopFlag = AtomicBool;

/// The user pressed Ctrl-C (or the process got SIGTERM) and the work was given up at a safe point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Receives the progress of one operation. Calls may come from many threads.
pub trait Progress: Sync {
    /// A new phase begins: what is being done (`restoring`), and its total in bytes.
    fn start(&self, what: &str, total_bytes: u64);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// The phase is over; whatever was drawn is removed.
    fn finish(&self);
    /// Tells of something that went otherwise than it should, and did not keep the work from being done.
    fn warn(&self, _what: &str) {}
    /// Returns an error once the user asked to stop.
    fn check(&self) -> Result<(), Interrupted>;
}

/// Draws nothing and stops never: for tests and for work that is over at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hidden;

impl Progress for Hidden {
    fn start(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn check(&self) -> Result<(), Interrupted> {
        Ok(())
    }
}

/// Draws nothing of what goes on side by side, but heeds that the user wants it stopped.
#[derive(Clone, Copy)]
pub struct Quietly<'a>(pub &'a dyn Progress);

impl Progress for Quietly<'_> {
    fn start(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn warn(&self, what: &str) {
        self.0.warn(what);
    }
    fn check(&self) -> Result<(), Interrupted> {
        self.0.check()
    }
}

/// Draws nothing but honours a stop flag.
#[derive(Debug, Clone, Copy)]
pub struct Stoppable<'a>(pub &'a StopFlag);

impl Progress for Stoppable<'_> {
    fn start(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}
