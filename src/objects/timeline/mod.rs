//! Timelines.
pub mod id;
pub use id::TimelineId;
