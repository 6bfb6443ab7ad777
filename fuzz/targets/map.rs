//! Maps: what is read is canonical, and what is looked up in it lies in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::frame::blocks_in;
use zenith::objects::map::{Map, MapBuilder};

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = Map::decode(bytes) else { return };
    assert_eq!(map.encode(), bytes, "one form for one content");
    assert!(map.base.is_some() || map.is_whole());
    let blocks = blocks_in(map.length) as u32;
    for block in [0, blocks / 2, blocks.saturating_sub(1), u32::MAX] {
        for (_, extent) in map.lookup(block, 33) {
            assert!(extent.block >= block && extent.end() <= blocks);
        }
    }
    // Over a whole map of half the length it stays what it is.
    let mut below = MapBuilder::default();
    let end = (blocks / 2).min(100);
    (0..end).for_each(|block| below.push(block, 1, zenith::objects::ObjectId([9; 32]), 0));
    let merged = below.finish(u64::from(end) * 8192, None).overlay(&map);
    assert_eq!(merged.length, map.length);
    assert!(merged.extents.last().is_none_or(|last| last.end() <= blocks));
});
