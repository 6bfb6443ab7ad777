//! Nouns: data at rest. The object model, the store, refs, timelines, PostgreSQL's formats.
//!
//! ```text
//! refs/branches/main ──► timeline 76cf99…                 (a name moves)
//!                          origin: parent, fork LSN, jump (any ancestor in a few reads)
//!                          log: wal <start> <end> <id> ─► wal objects
//!                          snapshots: snapshot <lsn> <id> ► snapshot object
//!                                                           path, mode, length ─► map ─► frames
//!                                                           small file ────────────────► frame
//! ```
//!
//! No printing, no clap, no child processes here.

pub mod bounded;
pub mod clone;
pub mod codec;
pub mod copy;
pub mod durable;
pub mod file_error;
pub mod folder;
pub mod format;
pub mod frame;
pub mod id;
pub mod kind;
pub mod lock;
pub mod map;
pub mod mode;
pub mod pg;
pub mod refs;
pub mod regular;
pub mod repo;
pub mod setting;
pub mod snapshot;
pub mod store;
pub mod timeline;
pub mod trash;
pub mod wal;

pub use id::ObjectId;
pub use kind::Kind;
pub use repo::Repo;
