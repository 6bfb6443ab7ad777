//! Status, metrics, and the page in a real browser.

use std::path::PathBuf;
use std::process::Command;

use super::Daemon;
use super::clients::{fetched, source};
use crate::support::checked;

#[test]
fn pages_are_for_this_machine() {
    let daemon = Daemon::new(&["try"]);
    daemon.ask("try", "select 1").unwrap();
    let status = daemon.get("/status", "127.0.0.1");
    let status: serde_json::Value = serde_json::from_str(status.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(status["head"], "main");
    assert_eq!(status["branches"].as_array().unwrap().len(), 2);
    assert!(status["instances"].as_array().unwrap().iter().any(|one| one["running"] == true && one["branch"] == "try"));
    assert!(daemon.get("/", "localhost:1").contains("<title>zenith</title>"));
    assert!(daemon.get("/status", "evil.example").starts_with("HTTP/1.1 403"));
    let by_another_site = daemon.get("/status", "localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors");
    assert!(by_another_site.starts_with("HTTP/1.1 403"), "{by_another_site}");
    assert!(daemon.get("/nothing", "localhost").starts_with("HTTP/1.1 404"));
    assert!(daemon.metric("zenith_wal_sealed_bytes{branch=\"try\"}") > 1e6);
    assert!(daemon.metric("zenith_frame_cache_misses{branch=\"try\"}") > 0.0);
    let text = daemon.get("/metrics", "localhost");
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    let mut families: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), count, "a name stands for two metrics");
}

#[test]
fn no_snapshot_is_read_for_each_scrape() {
    let daemon = Daemon::new(&[]);
    let taken = || daemon.metric("zenith_snapshot_time_seconds{branch=\"main\"}");
    let before = taken();
    assert!(before > 1.7e9, "{before}");
    let (objects, away) = (daemon.env.repo().join("objects"), daemon.env.repo().join("away"));
    std::fs::rename(&objects, &away).unwrap();
    let after = taken();
    std::fs::rename(&away, &objects).unwrap();
    assert_eq!(after, before);
}

/// Opens the page in a browser; returns what a reader sees of it, for each width.
fn seen(daemon: &Daemon) -> Option<Vec<(u64, serde_json::Value)>> {
    let dir = fetched()?;
    if Command::new("chromium").arg("--version").output().is_err() {
        println!("SKIPPED: chromium is not here: see scripts/install-deps");
        return None;
    }
    // To be looked at, where somebody wants to.
    let pictures = std::env::var_os("ZENITH_TEST_PICTURES").map_or_else(|| daemon.env.path().to_owned(), PathBuf::from);
    let mut node = Command::new("node");
    node.arg(source("page.mjs"))
        .arg(dir.join("node/node_modules"))
        .arg(format!("http://{}/", daemon.http))
        .arg(pictures);
    let seen: serde_json::Value = serde_json::from_str(&checked(&mut node)).unwrap();
    Some([420, 1280].map(|width| (width, seen[width.to_string()].clone())).into())
}

fn words(value: &serde_json::Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_page_shows_every_branch_on_narrow_and_wide_screens() {
    let long = "a-rather-long-name/with-a-slash";
    let daemon = Daemon::new(&["zeta", long]);
    let env = &daemon.env;
    // alpha comes first by name, and from the very tip of zeta, which is not HEAD.
    env.run(["branch", "alpha", "zeta"]).ok();
    for tag in ["v1", "v1.0.0", "before-the-great-migration", "checked"] {
        env.run(["tag", tag, "zeta"]).ok();
    }
    let at = env.run(["rev-parse", "main"]).ok();
    env.run(["tag", "made", at.trim()]).ok();
    let _client = daemon.connect("zeta").unwrap();
    let _moment = daemon.connect("v1").unwrap();
    let Some(all) = seen(&daemon) else { return };
    for (width, seen) in all {
        assert_eq!(seen["problem"], "", "{width}");
        let mut names = words(&seen["names"]);
        names.sort_unstable();
        assert_eq!(names, [long, "alpha", "main", "zeta"], "{width}");
        assert_eq!(seen["rings"].as_array().unwrap().len(), 4, "{width}: {seen}");
        let mut heights = seen["ringsAt"].as_array().unwrap().clone();
        heights.dedup();
        assert_eq!(heights.len(), 4, "{width}: two branches lie upon each other: {seen}");
        assert!(
            words(&seen["rings"])
                .iter()
                .any(|ring| ring.starts_with("zeta, at 0/") && ring.ends_with("runs, 1 client"))
        );
        assert_eq!(seen["tags"].as_array().unwrap().len(), 5, "{width}");
        for nothing in ["clipped", "upon", "hidden", "cut"] {
            assert_eq!(seen[nothing].as_array().unwrap().len(), 0, "{width}: {nothing}: {}", seen[nothing]);
        }
        assert_eq!((&seen["wide"], &seen["broken"]), (&false.into(), &0.into()), "{width}");
        let text = seen["text"].as_str().unwrap();
        for word in [
            "Running servers",
            "Read-only moments",
            "Local changes",
            "from zeta at 0/",
            "from main at 0/",
            "just now",
            "HEAD",
        ] {
            assert!(text.contains(word), "{width}: {word:?} is not in:\n{text}");
        }
        // Dates beside the ages, without a pointer that hovers.
        let year = jiff::Zoned::now().year().to_string();
        assert!(text.matches(&year).count() >= 9, "{width}: {text}");
        // Of stopped branches too.
        assert!(text.matches("MiB").count() >= 4, "{width}: {text}");
        // A click copies what any client takes.
        let url = seen["copied"].as_str().unwrap();
        assert_eq!(seen["button"], "Copied");
        assert_eq!(Some(&seen["copied"]), seen["urls"].as_array().unwrap().last());
        let asked = checked(crate::support::pg_program("psql").args([
            url,
            "-XqAtc",
            "select current_setting('zenith.branch')",
        ]));
        assert_eq!(asked.trim(), "zeta");
    }
}
