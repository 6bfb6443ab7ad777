//! Status, metrics, and the page in a real browser.

use std::process::Command;

use super::Daemon;
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
fn the_page_draws_itself_in_a_browser() {
    if Command::new("chromium").arg("--version").output().is_err() {
        println!("SKIPPED: chromium is not here: see scripts/install-deps");
        return;
    }
    let daemon = Daemon::new(&["try", "a-rather-long-name/with-a-slash"]);
    daemon.env.run(["tag", "v1", "try"]).ok();
    let _client = daemon.connect("try").unwrap();
    let profile = daemon.env.path().join("profile");
    for width in ["1200", "400"] {
        let mut browser = Command::new("timeout");
        browser.args([
            "60",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ]);
        browser.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        browser.arg(format!("--user-data-dir={}", profile.display())).arg(format!("--window-size={width},900"));
        browser.args(["--virtual-time-budget=4000", "--dump-dom", &format!("http://{}/", daemon.http)]);
        let page = checked(&mut browser);
        for text in ["try, at 0/", "runs, 1 clients", "tag v1, at 0/", "a-rather-long-name/with-a-slash", "main ← HEAD"]
        {
            assert!(page.contains(text), "{text:?} is not in:\n{page}");
        }
        assert!(page.contains("role=\"status\"></span>"), "it says that something is wrong:\n{page}");
    }
}
