//! Feeds the parser of startup packets with whatever libFuzzer thinks of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::plumbing::pageserver::startup::{self, First, LONGEST, parse};

fuzz_target!(|bytes: &[u8]| {
    // The length is right, so that what follows is looked at.
    let mut packet = bytes.to_vec();
    if let Some(length) = packet.first_chunk_mut::<4>() {
        *length = (bytes.len() as u32).to_be_bytes();
    }
    for packet in [bytes, &packet] {
        match parse(packet) {
            Ok(First::Session(mut session)) => {
                assert_eq!(session.packet(), packet, "what is not changed goes through as it came");
                session.take_branch(Some("branch.localhost"));
                let forwarded = session.packet();
                assert!(forwarded.len() <= LONGEST);
                assert_eq!(parse(&forwarded), Ok(First::Session(session)));
            }
            Ok(First::Cancel(key)) => assert_eq!(startup::cancel_packet(&key), packet),
            Ok(_) | Err(_) => {}
        }
    }
});
