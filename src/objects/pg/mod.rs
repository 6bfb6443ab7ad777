//! PostgreSQL's own formats as pure functions. Nothing here touches the repository.

pub mod control;
pub mod crc;
pub mod lsn;
pub mod record;
pub mod segment;
pub mod version;
pub mod wal;

pub use lsn::Lsn;
