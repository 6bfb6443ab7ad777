//! Logs of timelines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::timeline::log::Log;
use zenith::objects::wal::MAX_INTERVAL;

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = Log::parse(bytes) else { return };
    let text: String = log.wal.iter().map(|interval| format!("{interval}\n")).collect();
    assert_eq!(Log::parse(text.as_bytes()).as_ref(), Ok(&log));
    assert!(log.wal.iter().all(|interval| interval.end.since(interval.start) <= MAX_INTERVAL as u64));
    assert!(log.wal.windows(2).all(|pair| pair[0].end == pair[1].start));
    let _ = (log.sealed(), log.tip());
});
