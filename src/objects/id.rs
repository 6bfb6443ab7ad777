//! Names of objects: SHA-256 over kind, length and content, as git names its objects.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::kind::Kind;

/// The id of an object: SHA-256 of `"<kind> <length>\0<content>"`, where the length is that of
/// the uncompressed content in bytes, in decimal. Printed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Returns the id of `content` as an object of `kind`.
    pub fn of(kind: Kind, content: &[u8]) -> ObjectId {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} {}\0", kind.name(), content.len()));
        hasher.update(content);
        ObjectId(hasher.finalize().into())
    }

    /// Returns the first 12 digits: enough for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a whole object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an object id: expected 64 hexadecimal digits")]
pub struct ParseIdError(String);

impl FromStr for ObjectId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<ObjectId, ParseIdError> {
        let refuse = || ParseIdError(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        let mut id = [0; 32];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| refuse())?;
        }
        Ok(ObjectId(id))
    }
}

impl serde::Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_kind_length_and_content() {
        // printf 'frame 5\0hello' | sha256sum
        let expected = "98667ba72f84eb30d512d649da4a64a22d358bc99a1a2ae3e2cc1e2b786f5a82";
        let id = ObjectId::of(Kind::Frame, b"hello");
        assert_eq!(id.to_string(), expected);
        assert_ne!(id, ObjectId::of(Kind::Map, b"hello"));
        assert_ne!(id, ObjectId::of(Kind::Frame, b"hello\0"));
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
