//! Verbs: one-shot commands for scripts (files) over engines (folders).
//!
//! Each file has `Args`, a function that does the work and returns a value, and `run`, which prints it.

pub mod datadir;
pub mod instance;
pub mod pageserver;
pub mod postgres;

pub mod cat_object;
pub mod cat_timeline;
pub mod cat_wal;
pub mod fork_timeline;
pub mod fsck;
pub mod guard_datadir;
pub mod hash_wal;
pub mod health;
pub mod ls_snapshot;
pub mod merge_base;
pub mod migrate;
pub mod mount_datadir;
pub mod read_ahead;
pub mod read_snapshot;
pub mod repack;
pub mod rev_list;
pub mod rev_parse;
pub mod seal_wal;
pub mod show_ref;
pub mod show_wal;
pub mod symbolic_ref;
pub mod trash;
pub mod update_ref;
pub mod write_snapshot;
