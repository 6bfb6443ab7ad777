//! PostgreSQL's own formats as pure functions. Nothing here touches the repository.

pub mod lsn;
pub mod segment;

pub use lsn::Lsn;
