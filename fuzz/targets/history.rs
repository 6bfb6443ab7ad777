//! Histories of timelines, and positions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::Lsn;
use zenith::objects::timeline::{History, Position, TimelineId, merge_base};

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    let Ok(history) = History::parse(text) else { return };
    assert_eq!(History::parse(&history.format()).as_ref(), Ok(&history));
    let own = TimelineId::from_bytes([7; 16]);
    let _ = (history.start(), history.chain(own), history.owner(own, Lsn(5)));
    let at = Position { timeline: own, lsn: Lsn::MAX };
    assert_eq!(merge_base((&history, at), (&history, at)), Some(at));
});
