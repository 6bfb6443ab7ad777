//! Data directories: from files to snapshots and back.
//!
//! ```text
//! a folder ─► scan ─┐
//!                   ├─► items ─► write: compare, hash, compress ─► pack, snapshot entries
//! a tar ────► tar ──┘
//! snapshot ─► restore ─► files
//! ```

pub mod blocks;
pub mod control;
mod error;
pub mod exclude;
pub mod fuse;
pub mod local;
pub mod mounts;
pub mod reflink;
pub mod restore;
pub mod rights;
pub mod scan;
pub mod tar;
pub mod vfs;
pub mod wal;
pub mod wal_end;
pub mod write;

pub use error::{Doubt, Error, WalFilesError};
