//! `zenith pageserver logs`: the log, which is stored as JSON, as lines for people.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::{Repo, regular};
use crate::plumbing::pageserver::log_file;
use crate::progress::Progress;

/// Between two looks at a log that is followed.
const PAUSE: Duration = Duration::from_millis(200);

/// Prints the last `lines` lines of the page server's log, and with `follow` what comes.
pub fn print(cx: &mut Cx, repo: &Repo, follow: bool, lines: usize, json: bool) -> CmdResult {
    let zone = cx.now.time_zone().clone();
    let shown = |line: &str| if json { line.to_owned() } else { for_people(line, &zone) };
    let path = log_file(repo);
    let text = regular::read(&path).unwrap_or_default();
    let mut end = text.len() as u64;
    let text = String::from_utf8_lossy(&text);
    // The last one may not be whole yet.
    let (whole, mut rest) =
        text.rsplit_once('\n').map_or(("", text.to_string()), |(whole, rest)| (whole, rest.to_owned()));
    let all: Vec<&str> = whole.lines().collect();
    for line in &all[all.len().saturating_sub(lines)..] {
        writeln!(cx.out, "{}", shown(line))?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        cx.out.flush()?;
        std::thread::sleep(PAUSE);
        cx.ui.check()?;
        let Ok(mut file) = regular::open(&path) else { continue };
        // It was put away, and a new one begun.
        if file.metadata()?.len() < end {
            end = 0;
            rest.clear();
        }
        file.seek(SeekFrom::Start(end))?;
        let mut new = Vec::new();
        end += file.read_to_end(&mut new)? as u64;
        rest.push_str(&String::from_utf8_lossy(&new));
        while let Some((line, after)) = rest.split_once('\n') {
            writeln!(cx.out, "{}", shown(line))?;
            rest = after.to_owned();
        }
    }
}

/// Returns a line of the log as people read it: time, level, message, and what else it says. What is no JSON, such as the
/// last words of a process that died, stays as it is.
fn for_people(line: &str, zone: &jiff::tz::TimeZone) -> String {
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(line) else { return printable(line) };
    let mut take = |name: &str| fields.remove(name).map(|value| text(&value)).unwrap_or_default();
    let (time, level, message) = (take("timestamp"), take("level"), take("message"));
    take("target");
    let time = match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => time,
    };
    let more: String = fields.iter().map(|(name, value)| format!(" {name}={}", text(value))).collect();
    printable(&format!("{time} {level:5} {message}{more}"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns a text of which a terminal obeys nothing: names in it come from whoever connects.
fn printable(text: &str) -> String {
    let escape = |char: char| if char.is_control() { char.escape_default().collect() } else { String::from(char) };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_people_and_terminals_obey_nothing() {
        let zone = jiff::tz::TimeZone::UTC;
        let line = r#"{"timestamp":"2026-11-21T17:00:00.123456Z","level":"INFO","message":"started","branch":"a\u001b[2J","milliseconds":12,"target":"zenith"}"#;
        let shown = "2026-11-21 17:00:00.123 INFO  started branch=a\\u{1b}[2J milliseconds=12";
        assert_eq!(for_people(line, &zone), shown);
        assert_eq!(for_people("error: no\x07", &zone), "error: no\\u{7}");
    }
}
