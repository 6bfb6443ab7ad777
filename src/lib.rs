//! zenith: git for PostgreSQL.
//!
//! ```text
//! cli                  clap definitions: the one source of help, man pages, completions
//!   porcelain/         commands for people: words, tables, progress, hints
//!     plumbing/        commands for scripts (files), over the engines (folders)
//!       objects/       the store, refs, timelines, PostgreSQL's formats
//! ```
//!
//! Imports point downwards only; `tests/it/layers.rs` checks it. A file is a command, a
//! folder is an engine.
//!
//! # Glossary
//! * **LSN**: a position in the WAL, in bytes, printed `X/Y` as PostgreSQL does.
//! * **timeline**: a line of WAL with a UUID; append-only; forks from an ancestor at an LSN.
//! * **branch**, **tag**: names in `refs/`; a branch moves, a tag does not.
//! * **epoch**: one run of a writable instance; each forks a timeline of its own.
//! * **frame**, **map**, **snapshot**, **wal**: the four kinds of object, see [`objects`].
//! * **revision**: what a user types to name timeline@LSN.

// Tests have files of their own.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod cli;
pub mod command;
pub mod error;
pub mod objects;
pub mod plumbing;
pub mod porcelain;
pub mod progress;
pub mod ui;
