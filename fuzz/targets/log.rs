//! Logs of timelines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::Lsn;
use zenith::objects::timeline::log::{Line, Log};
use zenith::objects::wal::MAX_INTERVAL;

fuzz_target!(|bytes: &[u8]| {
    let Ok((log, length)) = Log::parse(bytes) else { return };
    assert!(length <= bytes.len());
    let wal = log.wal.iter().map(|interval| Line::Wal(*interval));
    let lines = wal.chain(log.snapshots.iter().map(|snapshot| Line::Snapshot(*snapshot)));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    assert_eq!(Log::parse(text.as_bytes()), Ok((log.clone(), text.len())));
    assert!(log.wal.iter().all(|interval| interval.end.since(interval.start) <= MAX_INTERVAL as u64));
    assert!(log.wal.windows(2).all(|pair| pair[0].end == pair[1].start));
    let _ = (log.sealed(), log.tip(), log.snapshot_before(Lsn::MAX));
});
