//! Where timelines come from, and positions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::timeline::{Origin, Position};

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    let Ok(origin) = Origin::parse(text) else { return };
    assert_eq!(Origin::parse(&origin.format()), Ok(origin));
    assert_eq!(origin.depth == 0, origin.parent().is_none());
    let _ = origin.start();
});
