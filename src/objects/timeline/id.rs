//! Timeline ids.
use uuid::Uuid;
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(pub Uuid);
impl TimelineId {
    pub fn random() -> TimelineId {
        TimelineId(Uuid::new_v4())
    }
    pub fn from_bytes(bytes: [u8; 16]) -> TimelineId {
        TimelineId(Uuid::from_bytes(bytes))
    }
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}
