//! Lists of the snapshots of timelines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::Lsn;
use zenith::objects::timeline::snapshots::{Line, Snapshots};

fuzz_target!(|bytes: &[u8]| {
    let Ok(snapshots) = Snapshots::parse(bytes) else { return };
    let listed = snapshots.listed.iter().map(|listed| Line::Snapshot(*listed));
    let lines = listed.chain(snapshots.dropped.iter().map(|&(start, end)| Line::Dropped { start, end }));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    assert_eq!(Snapshots::parse(text.as_bytes()).as_ref(), Ok(&snapshots));
    let _ = (snapshots.before(Lsn::MAX), snapshots.first_dropped(Lsn(0), Lsn::MAX));
});
