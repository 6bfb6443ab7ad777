//! Names, refs, reflogs, revisions, names of segments.
#![no_main]

use std::sync::LazyLock;

use jiff::Zoned;
use libfuzzer_sys::fuzz_target;
use zenith::objects::pg::{Lsn, segment};
use zenith::objects::refs::reflog::Entry;
use zenith::objects::refs::revision::Revision;
use zenith::objects::refs::{RefKind, RefName, Value};

static NOW: LazyLock<Zoned> = LazyLock::new(|| "2026-11-20T12:00:00+01:00[+01:00]".parse().expect("a time"));

fuzz_target!(|text: &str| {
    for kind in [RefKind::Branch, RefKind::Tag, RefKind::Remote] {
        if let Some(value) = Value::parse(kind, text) {
            assert_eq!(Value::parse(kind, &value.format()), Some(value));
        }
        if let Ok(name) = RefName::new(kind, text) {
            assert_eq!((name.short(), name.kind()), (text, kind));
            assert_eq!(RefName::full(name.as_str()), Ok(name.clone()));
            let parts = name.as_str().split('/');
            assert!(
                parts.clone().count() > 2 && parts.into_iter().all(|part| !part.is_empty() && !part.starts_with('.'))
            );
        }
    }
    if let Some(entry) = Entry::parse(text) {
        let again = Entry::parse(&entry.format());
        assert_eq!(
            again.map(|again| (again.old, again.new, again.time_us)),
            Some((entry.old, entry.new, entry.time_us))
        );
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    for size in [1 << 20, 16 << 20, 1 << 30] {
        if let Some((timeline, lsn)) = segment::parse_file_name(text, size) {
            assert_eq!(segment::file_name(timeline, lsn, size), text.to_ascii_uppercase());
        }
    }
    let _ = Revision::parse(text, &NOW);
});
