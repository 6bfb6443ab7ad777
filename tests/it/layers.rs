//! Who may import whom, and where the dangerous words may stand.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            found.push((path, code));
        }
    }
    found
}

/// Returns the name below `src` and the code of each file, without its unit tests.
pub fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let name = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    sources(&root).into_iter().map(|(path, text)| (name(path), text)).collect()
}

/// Returns the lines of code of `text` that have `word`.
pub fn lines<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| !line.trim_start().starts_with("//") && line.contains(word))
}

#[test]
fn imports_point_downwards_only() {
    let forbidden: [(&str, &[&str]); 9] = [
        (
            "objects/",
            &[
                "crate::plumbing",
                "crate::porcelain",
                "crate::cli",
                "crate::command",
                "crate::ui",
                "crate::error",
                "clap",
            ],
        ),
        (
            "plumbing/postgres/",
            &[
                "crate::porcelain",
                "crate::cli",
                "crate::command",
                "crate::ui",
                "crate::error",
                "plumbing::datadir",
                "plumbing::instance",
            ],
        ),
        (
            "plumbing/datadir/",
            &[
                "crate::porcelain",
                "crate::cli",
                "crate::command",
                "crate::ui",
                "crate::error",
                "plumbing::postgres",
                "plumbing::instance",
                "plumbing::pageserver",
            ],
        ),
        ("plumbing/instance/", &["plumbing::pageserver"]),
        ("plumbing/", &["crate::porcelain", "crate::ui"]),
        // PostgreSQL's formats, and what all formats share, know of no repository.
        ("objects/pg/", &["objects::store", "objects::refs", "objects::timeline", "objects::repo", "objects::trash"]),
        ("objects/codec.rs", &["crate::"]),
        ("objects/store/", &["objects::refs", "objects::timeline", "objects::repo", "objects::trash"]),
        ("objects/timeline/", &["objects::refs", "objects::repo", "objects::trash"]),
    ];
    for (name, text) in all() {
        for (folder, words) in forbidden.iter().filter(|(folder, _)| name.starts_with(folder)) {
            for word in *words {
                let found = lines(&text, word).next();
                assert!(found.is_none(), "{name}, in {folder}, must not use {word}: {}", found.unwrap_or_default());
            }
        }
    }
}

#[test]
fn porcelain_changes_the_repository_only_through_plumbing_and_refs() {
    for (name, text) in all().into_iter().filter(|(name, _)| name.starts_with("porcelain/")) {
        for word in [".write_loose(", ".pack(", ".append(Line", "timelines().create(", "timelines().lock("] {
            assert!(lines(&text, word).next().is_none(), "{name} uses {word}");
        }
    }
}

#[test]
fn dangerous_words_stand_in_one_place() {
    let confined: [(&[&str], &[&str]); 6] = [
        (&["sync_all(", "sync_data(", ".persist"], &["objects/durable.rs"]),
        // A log that is put away is nothing that anybody relies on.
        (&["fs::rename("], &["objects/durable.rs", "plumbing/instance/logs.rs"]),
        (&["process::Command", "Command::new(\""], &["plumbing/postgres/", "plumbing/instance/mount.rs"]),
        (&["println!", "eprintln!"], &["ui.rs"]),
        (&["unsafe "], &["objects/store/table.rs", "plumbing/datadir/vfs/idle.rs"]),
        (&["tokio::", "async fn"], &["plumbing/pageserver/"]),
    ];
    for (name, text) in all() {
        for (words, places) in &confined {
            for word in *words {
                let allowed = places.iter().any(|place| name.starts_with(place));
                let found = lines(&text, word).next();
                assert!(allowed || found.is_none(), "{name} uses {word}: {}", found.unwrap_or_default());
            }
        }
    }
}

#[test]
fn no_stubs_are_left() {
    for (name, text) in all() {
        for word in ["todo!(", "unimplemented!(", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}
