//! The repository's `config`: what it was made for, and the user's settings.
//!
//! A TOML file. `format_version` and `extensions` decide whether this program may touch the
//! repository at all; settings that it does not know are left alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the repository format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 2;

/// The content of `config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub format_version: u32,
    pub postgres_major: u32,
    /// Bytes.
    pub wal_segment_size: u32,
    /// As text, since TOML's numbers have a sign.
    pub system_identifier: String,
    /// Changes of the format that a program must know to touch the repository. None so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<String>,
    #[serde(default)]
    pub core: Core,
    #[serde(default)]
    pub postgres: Postgres,
    #[serde(default)]
    pub snapshot: Snapshot,
}

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// A running branch gets a snapshot when so much WAL has gone by, bytes; 0 for never.
    pub wal_threshold: u64,
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot { wal_threshold: 64 << 20 }
    }
}

/// `[core]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Core {
    /// zstd level of what is stored whole, 1 to 22.
    pub compression_level: i32,
}

impl Default for Core {
    fn default() -> Core {
        Core { compression_level: 3 }
    }
}

/// `[postgres]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Postgres {
    /// The folder of PostgreSQL's programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin: Option<PathBuf>,
}

/// The config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the repository's config is not valid")]
    Syntax(#[from] toml_edit::de::Error),
    #[error("the repository has format version {0}; this zenith knows version {FORMAT_VERSION}")]
    Version(u32),
    #[error("the repository uses an extension that this zenith does not know: {0}")]
    Extension(String),
    #[error("the repository's config has an impossible {0}")]
    Value(&'static str),
}

impl Config {
    /// Reads the text, and refuses what this program must not touch.
    pub fn parse(text: &str) -> Result<Config, Error> {
        /// Whatever else another version says, it says this.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = toml_edit::de::from_str(text)?;
        if format_version != FORMAT_VERSION {
            return Err(Error::Version(format_version));
        }
        let config: Config = toml_edit::de::from_str(text)?;
        if let Some(extension) = config.extensions.first() {
            return Err(Error::Extension(extension.clone()));
        }
        if !super::pg::segment::is_valid_size(config.wal_segment_size) {
            return Err(Error::Value("wal_segment_size"));
        }
        if config.system_identifier.parse::<u64>().is_err() {
            return Err(Error::Value("system_identifier"));
        }
        if !(1..=22).contains(&config.core.compression_level) {
            return Err(Error::Value("core.compression_level"));
        }
        Ok(config)
    }

    /// Returns the text.
    pub fn format(&self) -> String {
        toml_edit::ser::to_string_pretty(self).expect("invariant: the config has only simple fields")
    }

    /// Returns the system identifier as a number.
    pub fn system(&self) -> u64 {
        self.system_identifier.parse().expect("invariant: checked by parse")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            format_version: FORMAT_VERSION,
            postgres_major: 15,
            wal_segment_size: 16 << 20,
            system_identifier: u64::MAX.to_string(),
            extensions: Vec::new(),
            core: Core::default(),
            postgres: Postgres::default(),
            snapshot: Snapshot::default(),
        }
    }

    #[test]
    fn comes_back_and_keeps_off_unknown_formats() {
        assert_eq!(Config::parse(&sample().format()).unwrap(), sample());
        assert!(matches!(Config::parse("format_version = 3"), Err(Error::Version(3))));
        let extended = Config { extensions: vec!["cold".into()], ..sample() };
        assert!(matches!(Config::parse(&extended.format()), Err(Error::Extension(_))));
        assert!(matches!(Config::parse("hello"), Err(Error::Syntax(_))));
    }
}
