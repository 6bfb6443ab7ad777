//! The page server's log: structured lines, filtered by `RUST_LOG`, put away when a file grows large.

use std::path::Path;
use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing_subscriber::EnvFilter;

/// A file of the log has at most so many bytes, and so many older ones are kept.
const LARGEST: usize = 10 << 20;
const KEPT: usize = 3;

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Has everything logged to the file `path`.
pub fn to_file(path: &Path) {
    let rotated =
        FileRotate::new(path, AppendCount::new(KEPT), ContentLimit::BytesSurpassed(LARGEST), Compression::None, None);
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter());
    let _ = subscriber.with_writer(Mutex::new(rotated)).try_init(); // another one stays in place
}

/// Has everything logged to standard error, for people.
pub fn to_terminal() {
    let subscriber = tracing_subscriber::fmt().with_target(false).with_env_filter(filter());
    let _ = subscriber.with_writer(std::io::stderr).with_ansi(false).try_init();
}
