//! Timeline ids.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The id of a timeline: a random UUID (version 4), printed as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(Uuid);

impl TimelineId {
    /// Returns an id that nobody has.
    pub fn random() -> TimelineId {
        TimelineId(Uuid::new_v4())
    }

    /// Returns the id of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> TimelineId {
        TimelineId(Uuid::from_bytes(bytes))
    }

    /// Returns the 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Returns the first 8 digits: enough for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_simple(), f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for TimelineId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is not a whole timeline id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a timeline id: expected 32 hexadecimal digits")]
pub struct ParseTimelineIdError(String);

impl FromStr for TimelineId {
    type Err = ParseTimelineIdError;

    fn from_str(text: &str) -> Result<TimelineId, ParseTimelineIdError> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let uuid = if digits { Uuid::try_parse(text).ok() } else { None };
        uuid.map(TimelineId).ok_or_else(|| ParseTimelineIdError(text.to_owned()))
    }
}
