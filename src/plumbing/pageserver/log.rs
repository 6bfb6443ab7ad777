//! The page server's log: structured lines, filtered by `RUST_LOG`.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::plumbing::instance::logs::Log;
use crate::progress::{Interrupted, Progress};

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Has everything logged to the file `path`.
pub fn to_file(path: &Path) -> io::Result<()> {
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter());
    let subscriber = subscriber.with_writer(Arc::new(Log::open(path)?));
    // A line that cannot be written would be told to standard error, which is the same file, and a panic where that fails.
    let _ = subscriber.log_internal_errors(false).try_init(); // another one stays in place
    Ok(())
}

/// Has everything logged to standard error, for people.
pub fn to_terminal() {
    let subscriber = tracing_subscriber::fmt().with_target(false).with_env_filter(filter());
    let subscriber = subscriber.with_writer(|| Escaping(io::stderr())).with_ansi(false);
    let _ = subscriber.log_internal_errors(false).try_init(); // as above: nobody may read there any more
}

/// Draws nothing, and has warnings logged: of work for which nobody sits at a terminal.
pub struct Logged;

impl Progress for Logged {
    fn start(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn warn(&self, what: &str) {
        tracing::warn!("{what}");
    }
    fn check(&self) -> Result<(), Interrupted> {
        Ok(())
    }
}

/// Writes lines, each at once, in which control characters are escaped: what a client sends can neither begin a line of
/// its own nor speak to the terminal.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        let mut escaped = String::with_capacity(text.len() + 1);
        for char in text.chars() {
            match char.is_control() {
                true => escaped.extend(char.escape_default()),
                false => escaped.push(char),
            }
        }
        self.0.write_all((escaped + end).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lets through so many lines in each [`PERIOD`], and counts the others: a flood of clients does not become one of
/// lines.
#[derive(Debug)]
pub struct Throttle(Mutex<Period>);

const PERIOD: Duration = Duration::from_secs(1);
const LINES: u32 = 10;

#[derive(Debug)]
struct Period {
    begun: Instant,
    lines: u32,
    held_back: u64,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle(Mutex::new(Period { begun: Instant::now(), lines: 0, held_back: 0 }))
    }
}

impl Throttle {
    /// Returns how many lines were held back since the last one that was let through, or `None` if this one is held
    /// back, too.
    pub fn admit(&self) -> Option<u64> {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if period.begun.elapsed() >= PERIOD {
            (period.begun, period.lines) = (Instant::now(), 0);
        }
        if period.lines == LINES {
            period.held_back += 1;
            return None;
        }
        period.lines += 1;
        Some(std::mem::take(&mut period.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let mut line = Vec::new();
        Escaping(&mut line).write_all("refused: \u{1b}[31mno\n2026 INFO owner é\n".as_bytes()).unwrap();
        assert_eq!(line, "refused: \\u{1b}[31mno\\n2026 INFO owner é\n".as_bytes());
    }

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_number() {
        let throttle = Throttle::default();
        let begun = Instant::now();
        let mut lines: Vec<u64> = (0..1000).filter_map(|_| throttle.admit()).collect();
        assert!(lines.len() as u64 <= u64::from(LINES) * (1 + begun.elapsed().as_secs() + 1), "{} lines", lines.len());
        std::thread::sleep(PERIOD);
        lines.extend(throttle.admit());
        assert_eq!(lines.len() as u64 + lines.iter().sum::<u64>(), 1001);
    }
}
