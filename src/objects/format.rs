//! The repository's `config`: what it was made for, and the user's settings.
//!
//! A TOML file. `format_version` and `extensions` decide whether this program may touch the
//! repository at all; settings that it does not know are left alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use toml_edit::DocumentMut;

use super::setting::{self, BadValue};

/// The version of the repository format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 3;

/// The extension that a repository has while it is brought to this format.
pub const MIGRATING: &str = "migration-from-2";

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
    #[serde(default)]
    pub gc: Gc,
    #[serde(default)]
    pub proxy: Proxy,
    /// Settings of single branches, by their short names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub branch: BTreeMap<String, Branch>,
}

/// `[proxy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxy {
    /// Where a connection goes that names no branch.
    pub default: DefaultBranch,
    /// Where PostgreSQL's clients connect.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Where status and metrics are.
    #[serde(deserialize_with = "address")]
    pub http: SocketAddr,
    /// A server that nobody has used for so long is stopped.
    pub idle_timeout: Timeout,
    /// So many servers run at a time; 0 for any number.
    pub max_instances: usize,
    /// What becomes of users of the machine other than the owner, and of other machines.
    pub others: Others,
    /// So many sessions may they have at a time, and so many servers may run for them beside the owner's.
    pub others_sessions: usize,
    pub others_instances: usize,
    /// The user's own certificate and its key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy {
            default: DefaultBranch::Head,
            listen: SocketAddr::from(([127, 0, 0, 1], 5432)),
            http: SocketAddr::from(([127, 0, 0, 1], 64000)),
            idle_timeout: Timeout(Some(Duration::from_secs(5 * 60))),
            max_instances: 0,
            others: Others::Refuse,
            others_sessions: 32,
            others_instances: 4,
            tls_certificate: None,
            tls_key: None,
        }
    }
}

/// Where a connection goes that names no branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultBranch {
    /// To the branch of HEAD.
    Head,
    /// Nowhere: it is refused.
    None,
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = Setting::deserialize(deserializer)?.to_string();
    setting::parse_address(&text).ok_or_else(|| D::Error::custom(format!("'{text}' is not {}", setting::ADDRESS)))
}

/// Reads a size as people write it.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = Setting::deserialize(deserializer)?.to_string();
    setting::parse_size(&text).ok_or_else(|| D::Error::custom(format!("'{text}' is not {}", setting::SIZE)))
}

/// What becomes of clients that are not the owner's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Others {
    /// They are sent away.
    #[default]
    Refuse,
    /// PostgreSQL asks them for the password of a role.
    Scram,
}

/// `[branch.<name>]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Branch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Timeout>,
    /// It acts on the world outside as the original does: its subscriptions and schedulers work.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// Standbys and archives of WAL may follow it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replication: bool,
    /// PostgreSQL's settings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub postgres: BTreeMap<String, Setting>,
}

/// A value of one of PostgreSQL's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Text(String),
    Integer(i64),
    Float(f64),
    Switch(bool),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Setting::Text(text) => write!(f, "{text}"),
            Setting::Integer(number) => write!(f, "{number}"),
            Setting::Float(number) => write!(f, "{number}"),
            Setting::Switch(on) => write!(f, "{on}"),
        }
    }
}

/// A time to wait for: "5min", "1h 30m", "14 days", a number of seconds; "never" or 0 for ever, which is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Setting", into = "String")]
pub struct Timeout(pub Option<Duration>);

impl TryFrom<Setting> for Timeout {
    type Error = String;

    fn try_from(value: Setting) -> Result<Timeout, String> {
        let text = value.to_string();
        setting::parse_time(&text).map(Timeout).ok_or_else(|| format!("'{text}' is not a time such as 5min"))
    }
}

impl From<Timeout> for String {
    fn from(timeout: Timeout) -> String {
        let duration = jiff::SignedDuration::try_from(timeout.0.unwrap_or_default()).unwrap_or_default();
        if duration.is_zero() { "never".to_owned() } else { format!("{duration:#}") }
    }
}

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// A running branch gets a snapshot when so much WAL has gone by, bytes; 0 for never.
    #[serde(deserialize_with = "size")]
    pub wal_threshold: u64,
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot { wal_threshold: 64 << 20 }
    }
}

/// `[gc]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gc {
    /// What is in the trash for so long goes for good.
    pub trash: Timeout,
    /// Where the trash is larger, what holds no commit goes earlier, bytes.
    #[serde(deserialize_with = "size")]
    pub trash_limit: u64,
}

impl Default for Gc {
    fn default() -> Gc {
        Gc { trash: Timeout(Some(Duration::from_secs(14 * 24 * 3600))), trash_limit: 1 << 30 }
    }
}

/// `[core]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Core {
    /// zstd level of what is stored whole, 1 to 22.
    pub compression_level: i32,
    /// Who may use the repository, beside its owner.
    pub shared: Shared,
}

/// Who may read and write a repository's files: see [`mode`](super::mode).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// Nobody else.
    #[default]
    No,
    /// Its group.
    Group,
}

impl Default for Core {
    fn default() -> Core {
        Core { compression_level: 3, shared: Shared::No }
    }
}

/// `[postgres]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Postgres {
    /// The folder of PostgreSQL's programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin: Option<PathBuf>,
    /// As whom zenith connects; otherwise `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superuser: Option<String>,
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
    #[error("the repository was being brought to format version {FORMAT_VERSION}, and that did not come to its end")]
    Migrating,
    #[error("the repository's config has an impossible {0}")]
    Value(&'static str),
    #[error(transparent)]
    Setting(#[from] BadValue),
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
        let document: DocumentMut = text.parse().map_err(toml_edit::de::Error::from)?;
        setting::check(document.as_table())?;
        let config: Config = toml_edit::de::from_str(text)?;
        if let Some(extension) = config.extensions.first() {
            let is_under_way = extension == MIGRATING;
            return Err(if is_under_way { Error::Migrating } else { Error::Extension(extension.clone()) });
        }
        if !super::pg::segment::is_valid_size(config.wal_segment_size) {
            return Err(Error::Value("wal_segment_size"));
        }
        if super::pg::version::Version::of_major(config.postgres_major).is_none() {
            return Err(Error::Value("postgres_major"));
        }
        if config.system_identifier.parse::<u64>().is_err() {
            return Err(Error::Value("system_identifier"));
        }
        Ok(config)
    }

    /// Returns the text.
    pub fn format(&self) -> String {
        toml_edit::ser::to_string_pretty(self).expect("invariant: the config has only simple fields")
    }

    /// Returns after what time without clients the server of a branch is stopped; `None` for never.
    pub fn idle_timeout(&self, branch: &str) -> Option<Duration> {
        let own = self.branch.get(branch).and_then(|branch| branch.idle_timeout);
        own.unwrap_or(self.proxy.idle_timeout).0
    }

    /// Returns PostgreSQL's settings for a branch: names and values.
    pub fn settings_of(&self, branch: &str) -> Vec<(String, String)> {
        let settings = self.branch.get(branch).into_iter().flat_map(|branch| &branch.postgres);
        settings.map(|(name, value)| (name.clone(), value.to_string())).collect()
    }

    /// Returns whether a branch acts on the world outside as the original does, rather than as a copy of it.
    pub fn is_live(&self, branch: &str) -> bool {
        self.branch.get(branch).is_some_and(|branch| branch.live)
    }

    /// Returns whether servers of a branch let physical replication in: a standby, `pg_receivewal`, `pg_basebackup`.
    pub fn is_replicated(&self, branch: &str) -> bool {
        self.branch.get(branch).is_some_and(|branch| branch.replication)
    }

    /// Returns the superuser as whom zenith connects.
    pub fn superuser(&self) -> &str {
        self.postgres.superuser.as_deref().unwrap_or("postgres")
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
            gc: Gc::default(),
            proxy: Proxy::default(),
            branch: BTreeMap::new(),
        }
    }

    #[test]
    fn comes_back_and_keeps_off_unknown_formats() {
        assert_eq!(Config::parse(&sample().format()).unwrap(), sample());
        assert!(matches!(Config::parse("format_version = 4"), Err(Error::Version(4))));
        let extended = Config { extensions: vec!["cold".into()], ..sample() };
        assert!(matches!(Config::parse(&extended.format()), Err(Error::Extension(_))));
        assert!(matches!(Config::parse("hello"), Err(Error::Syntax(_))));
        let unknown = Config { postgres_major: 13, ..sample() };
        assert!(matches!(Config::parse(&unknown.format()), Err(Error::Value("postgres_major"))));
    }
}
