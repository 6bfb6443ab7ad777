//! Verbs: one-shot commands for scripts (files) over engines (folders).

pub mod datadir;
pub mod postgres;
