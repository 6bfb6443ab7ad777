//! Verbs: one-shot commands for scripts (files) over engines (folders).

pub mod postgres;
