//! The settings that people may change, and what each takes: so that a mistake is told in the words of the setting,
//! wherever it was made.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml_edit::{Item, Table, Value};

/// A setting of the repository's `config`, such as `proxy.listen`.
pub struct Setting {
    pub key: &'static str,
    pub takes: Takes,
}

/// What a setting takes.
pub enum Takes {
    Number(RangeInclusive<i64>),
    Address,
    /// With a number of bytes for what has no unit.
    Size,
    Time,
    /// A time that has its unit: a plain number might mean days as well as seconds.
    Age,
    Path,
    Name,
    OneOf(&'static [&'static str]),
}

/// All settings but those of single branches.
pub static SETTINGS: [Setting; 17] = [
    Setting { key: "core.compression_level", takes: Takes::Number(1..=22) },
    Setting { key: "core.shared", takes: Takes::OneOf(&["no", "group"]) },
    Setting { key: "snapshot.wal_threshold", takes: Takes::Size },
    Setting { key: "gc.trash", takes: Takes::Age },
    Setting { key: "gc.trash_limit", takes: Takes::Size },
    Setting { key: "postgres.bin", takes: Takes::Path },
    Setting { key: "postgres.superuser", takes: Takes::Name },
    Setting { key: "proxy.default", takes: Takes::OneOf(&["head", "none"]) },
    Setting { key: "proxy.listen", takes: Takes::Address },
    Setting { key: "proxy.http", takes: Takes::Address },
    Setting { key: "proxy.idle_timeout", takes: Takes::Time },
    Setting { key: "proxy.max_instances", takes: Takes::Number(0..=i64::MAX) },
    Setting { key: "proxy.others", takes: Takes::OneOf(&["refuse", "scram"]) },
    Setting { key: "proxy.others_sessions", takes: Takes::Number(0..=i64::MAX) },
    Setting { key: "proxy.others_instances", takes: Takes::Number(0..=i64::MAX) },
    Setting { key: "proxy.tls_certificate", takes: Takes::Path },
    Setting { key: "proxy.tls_key", takes: Takes::Path },
];

/// A value that its setting does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is no value for {key}, which takes {takes}")]
pub struct BadValue {
    pub key: String,
    pub value: String,
    /// In words.
    pub takes: String,
}

impl Takes {
    fn accepts(&self, value: &Value) -> bool {
        match self {
            Takes::Number(range) => value.as_integer().is_some_and(|number| range.contains(&number)),
            Takes::Address => parse_address(&text(value)).is_some(),
            Takes::Size => parse_size(&text(value)).is_some(),
            // A config of an earlier version may have an age without a unit, in seconds.
            Takes::Time | Takes::Age => parse_time(&text(value)).is_some(),
            Takes::Path | Takes::Name => value.as_str().is_some_and(|path| !path.is_empty()),
            Takes::OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Takes::Number(range) if *range.end() == i64::MAX => format!("a number from {} on", range.start()),
            Takes::Number(range) => format!("a number from {} to {}", range.start(), range.end()),
            Takes::Address => ADDRESS.to_owned(),
            Takes::Size => SIZE.to_owned(),
            Takes::Time => "a time such as 30s, 5min or 1h, or never".to_owned(),
            Takes::Age => "a time with its unit, such as 12h or 14 days, or never".to_owned(),
            Takes::Path => "a path".to_owned(),
            Takes::Name => "a name".to_owned(),
            Takes::OneOf(words) => words.join(" or "),
        }
    }
}

/// What an address looks like, in words.
pub const ADDRESS: &str = "an address such as 127.0.0.1:5432 or localhost:5432, or a port";

/// Reads an address: `127.0.0.1:5433`, `[::1]:5433`, `localhost:5433`, or a port of the loopback address, `5433`.
pub fn parse_address(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let port = match text.rsplit_once(':') {
        Some(("localhost" | "", port)) => port,
        None => text,
        Some(_) => return text.parse().ok(),
    };
    Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into())
}

/// Refuses a number without a unit as the new value of a setting where that might mean days as well as seconds.
pub fn check_unit(key: &str, text: &str) -> Result<(), BadValue> {
    let setting = SETTINGS.iter().find(|setting| setting.key == key && matches!(setting.takes, Takes::Age));
    match setting.filter(|_| text.parse::<f64>().is_ok()) {
        Some(setting) => Err(BadValue { key: key.to_owned(), value: text.to_owned(), takes: setting.takes.in_words() }),
        None => Ok(()),
    }
}

/// What a size looks like, in words.
pub const SIZE: &str = "a size such as 64MB or 1GB, or a number of bytes";

/// Reads a size in bytes: `64MB`, `1 GiB`, `512k`, `67108864`. As in PostgreSQL a unit is 1024 of the next smaller one.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len()));
    let power = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1024_u64.pow(power))
}

/// Reads a time to wait for: `5min`, `1h 30m`, a number of seconds; 0 and `never` are `None`, for ever.
pub fn parse_time(text: &str) -> Option<Option<Duration>> {
    let text = text.trim();
    if text == "never" {
        return Some(None);
    }
    let duration = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A unit alone is no time.
        Err(_) if !text.contains(|char: char| char.is_ascii_digit()) => return None,
        Err(_) => {
            let span = text.parse::<jiff::Span>().ok()?;
            Duration::try_from(span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?).ok()?
        }
    };
    Some(Some(duration).filter(|duration| !duration.is_zero()))
}

/// Returns a value without its quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string().trim().to_owned(), str::to_owned)
}

fn check_one(key: &str, takes: &Takes, item: &Item) -> Result<(), BadValue> {
    match item.as_value() {
        Some(value) if takes.accepts(value) => Ok(()),
        value => {
            let value = value.map_or_else(|| "a table".to_owned(), text);
            Err(BadValue { key: key.to_owned(), value, takes: takes.in_words() })
        }
    }
}

/// Checks all settings of a config, those of single branches too. What is no setting is left alone.
pub fn check(config: &Table) -> Result<(), BadValue> {
    for Setting { key, takes } in &SETTINGS {
        let Some((table, name)) = key.split_once('.') else { continue };
        let Some(table) = config.get(table) else { continue };
        if !table.is_table_like() {
            let takes = "settings in a table".to_owned();
            let (key, _) = key.split_once('.').unwrap_or_default();
            return Err(BadValue { key: key.to_owned(), value: table.to_string().trim().to_owned(), takes });
        }
        table.get(name).map_or(Ok(()), |item| check_one(key, takes, item))?;
    }
    for (branch, item) in config.get("branch").and_then(Item::as_table_like).into_iter().flat_map(|table| table.iter())
    {
        if let Some(item) = item.get("idle_timeout") {
            check_one(&format!("branch.{branch}.idle_timeout"), &Takes::Time, item)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_people_type() {
        let own = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        for text in ["5433", ":5433", "localhost:5433", "127.0.0.1:5433", " 5433 "] {
            assert_eq!(parse_address(text), own(5433), "{text}");
        }
        assert_eq!(parse_address("[::1]:1"), "[::1]:1".parse().ok());
        assert_eq!(parse_address("0.0.0.0:0"), "0.0.0.0:0".parse().ok());
        for text in ["", "localhost", "127.0.0.1", "65536", "example.org:5432", "::1", "-1", "localhost:"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_what_people_type() {
        let seconds = |seconds| Some(Some(Duration::from_secs(seconds)));
        assert_eq!(parse_time("5min"), seconds(300));
        assert_eq!(parse_time("1h 30m"), seconds(5400));
        assert_eq!(parse_time("90"), seconds(90));
        assert_eq!(parse_time("10ms"), Some(Some(Duration::from_millis(10))));
        assert_eq!((parse_time("0"), parse_time("never")), (Some(None), Some(None)));
        for text in ["", "min", "h", "soon", "-5min", "5 parsecs", "never ever"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_what_people_type() {
        for text in ["67108864", "64MB", "64 MiB", "64m", "65536kB"] {
            assert_eq!(parse_size(text), Some(64 << 20), "{text}");
        }
        assert_eq!((parse_size("0"), parse_size("1GB"), parse_size("2T")), (Some(0), Some(1 << 30), Some(2 << 40)));
        for text in ["", "MB", "-1", "1.5GB", "64X", "64 M B", "99999999999TB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_the_setting() {
        let said = |text: &str| {
            check(text.parse::<toml_edit::DocumentMut>().unwrap().as_table()).map_err(|error| error.to_string())
        };
        assert_eq!(said("[proxy]\nmax_instances = 3\nlisten = 5433\nidle_timeout = 'never'\nunknown = 1"), Ok(()));
        let cases = [
            (
                "[proxy]\nmax_instances = 'many'",
                "'many' is no value for proxy.max_instances, which takes a number from 0 on",
            ),
            (
                "[core]\ncompression_level = 23",
                "'23' is no value for core.compression_level, which takes a number from 1 to 22",
            ),
            (
                "[proxy]\nidle_timeout = 'min'",
                "'min' is no value for proxy.idle_timeout, which takes a time such as 30s, 5min or 1h, or never",
            ),
            (
                "[proxy]\nidle_timeout = -1",
                "'-1' is no value for proxy.idle_timeout, which takes a time such as 30s, 5min or 1h, or never",
            ),
            (
                "[branch.'a.b']\nidle_timeout = 'h'",
                "'h' is no value for branch.a.b.idle_timeout, which takes a time such as 30s, 5min or 1h, or never",
            ),
            (
                "[snapshot]\nwal_threshold = '64X'",
                "'64X' is no value for snapshot.wal_threshold, which takes a size such as 64MB or 1GB, or a number of bytes",
            ),
            ("[proxy]\ndefault = 'main'", "'main' is no value for proxy.default, which takes head or none"),
            ("proxy = 3", "'3' is no value for proxy, which takes settings in a table"),
        ];
        for (text, expected) in cases {
            assert_eq!(said(text), Err(expected.to_owned()));
        }
    }
}
