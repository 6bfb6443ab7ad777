//! `zenith config`: reads and changes the repository's settings.

use std::io::Write;

use toml_edit::{DocumentMut, Item, Table, Value};

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::format::Config;
use crate::objects::refs::RefName;
use crate::objects::setting::{self, SETTINGS};
use crate::objects::{Repo, bounded};
use crate::plumbing::postgres::policy::{self, Rule};

/// Get and set settings of the repository
///
/// core.compression_level, core.shared (no, or group to let the group use the repository),
/// snapshot.wal_threshold (64MB), gc.trash (14 days, never), gc.trash_limit (1GB), postgres.bin,
/// postgres.superuser (as whom zenith connects),
/// proxy.default (head, or none: connections that name
/// no branch are refused), proxy.listen and proxy.http (127.0.0.1:5432, localhost:5432 or 5432),
/// proxy.idle_timeout (5min, 1h, never), proxy.max_instances (0 for any number), proxy.others (refuse,
/// or scram to let in other users who know a role's password; they get no more than
/// proxy.others_sessions and proxy.others_instances), proxy.tls_certificate, proxy.tls_key; of one
/// branch branch.NAME.idle_timeout, branch.NAME.live (true where its subscriptions and schedulers
/// are to work; see zenith-settings(5)), branch.NAME.replication (true where standbys, pg_receivewal
/// and pg_basebackup are to be let in) and PostgreSQL's own settings, as in
/// branch.NAME.postgres.shared_buffers, which count from its next start.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith config proxy.idle_timeout 1h\n  zenith config proxy.default none\n  \
    zenith config branch.heikki.postgres.shared_buffers 1GB\n  zenith config --unset branch.heikki.idle_timeout\n  \
    zenith config --list\n")]
pub struct Args {
    /// Print all that is set
    #[arg(short, long, conflicts_with_all = ["key", "unset"])]
    list: bool,
    /// Forget a setting
    #[arg(long)]
    unset: bool,
    /// The setting
    #[arg(value_name = "KEY", required_unless_present = "list")]
    key: Option<String>,
    /// Its new value
    #[arg(value_name = "VALUE", conflicts_with = "unset", allow_hyphen_values = true)]
    value: Option<String>,
}

/// Splits a key into the tables and the name; a branch's name may have dots.
fn path(key: &str) -> Option<Vec<&str>> {
    if let Some(rest) = key.strip_prefix("branch.") {
        let own = ["idle_timeout", "live", "replication"].into_iter().find_map(|setting| {
            let name = rest.strip_suffix(setting)?.strip_suffix('.')?;
            Some(vec!["branch", name, setting])
        });
        if own.is_some() {
            return own;
        }
        let (name, setting) = rest.split_once(".postgres.")?;
        return Some(vec!["branch", name, "postgres", setting]).filter(|_| !name.is_empty() && !setting.is_empty());
    }
    SETTINGS.iter().any(|setting| setting.key == key).then(|| key.split('.').collect())
}

fn unknown(key: &str) -> CommandError {
    let likeness = |known: &&str| strsim::jaro_winkler(known, key);
    let nearest = SETTINGS.iter().map(|setting| setting.key).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let error = CommandError::refused(format!("there is no setting '{key}'"));
    match nearest.filter(|known| likeness(known) > 0.8) {
        Some(known) => error.hint(format!("the most similar one is '{known}'")),
        None => error.hint("see what there is: zenith help config"),
    }
}

fn text(item: &Item) -> Option<String> {
    item.as_value().map(|value| value.as_str().map_or_else(|| value.to_string().trim().to_owned(), str::to_owned))
}

/// Prints all values below a table.
fn list(out: &mut dyn Write, prefix: &str, table: &Table) -> CmdResult {
    for (name, item) in table {
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        match (item.as_table(), text(item)) {
            (Some(table), _) => list(out, &key, table)?,
            (None, Some(text)) => writeln!(out, "{key}={text}")?,
            _ => {}
        }
    }
    Ok(())
}

/// A number, a switch, or else text.
fn value(text: &str) -> Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(on)) => on.into(),
        _ => text.into(),
    }
}

/// Sets or forgets a setting.
pub fn set(repo: &Repo, key: &str, new: Option<&str>) -> CmdResult {
    let path = path(key).ok_or_else(|| unknown(key))?;
    if let (["branch", _, "postgres", name], true) = (path.as_slice(), new.is_some())
        && let Some(Rule { class: policy::Class::Forced(_), why, .. }) = policy::rule_for(name)
    {
        return Err(CommandError::refused(format!("zenith sets '{name}' itself: {why}")));
    }
    setting::check_unit(key, new.unwrap_or_default()).map_err(|error| CommandError::new(Class::Refused, error))?;
    change(repo, key, &path, new.map(value))
}

/// Changes a setting, if the config is a valid one with it.
fn change(repo: &Repo, key: &str, path: &[&str], new: Option<Value>) -> CmdResult {
    repo.change_config(|text| {
        let mut document: DocumentMut = text.parse().map_err(invalid)?;
        let (name, tables) = path.split_last().expect("invariant: a key has a name");
        let mut table = document.as_table_mut();
        for step in tables {
            let next = table.entry(step).or_insert_with(|| {
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
            table = next.as_table_mut().ok_or_else(|| CommandError::refused(format!("'{step}' is not a table")))?;
        }
        match new {
            Some(value) => {
                table.insert(name, Item::Value(value));
            }
            None => {
                table.remove(name).ok_or_else(|| CommandError::refused(format!("'{key}' is not set")))?;
            }
        }
        let text = document.to_string();
        Config::parse(&text).map_err(|error| CommandError::new(Class::Refused, error))?;
        Ok(text)
    })
}

/// Has the branch `name` have the settings of `other`, in place of any that it has, or none.
pub(super) fn take_settings(repo: &Repo, name: &str, other: Option<&str>) -> CmdResult {
    // As it is now, not as it was when the command began.
    let config = Repo::read_config(repo.dir())?;
    let has_any = |name: &str| config.branch.contains_key(name);
    if !has_any(name) && !other.is_some_and(has_any) {
        return Ok(());
    }
    repo.change_config(|text| {
        let mut document: DocumentMut = text.parse().map_err(invalid)?;
        let branches = document.get_mut("branch").and_then(Item::as_table_mut);
        let Some(branches) = branches else { return Ok(text.to_owned()) };
        branches.remove(name);
        if let Some(settings) = other.and_then(|other| branches.get(other)).cloned() {
            branches.insert(name, settings);
        }
        Ok(document.to_string())
    })
}

fn invalid(error: toml_edit::TomlError) -> CommandError {
    CommandError::new(Class::Corrupt, error)
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let document = || -> Result<DocumentMut, CommandError> {
        bounded::read_to_string(&repo.dir().join("config"), bounded::CONFIG)?.parse().map_err(invalid)
    };
    let Some(key) = args.key else { return list(&mut cx.out, "", document()?.as_table()) };
    let path = path(&key).ok_or_else(|| unknown(&key))?;
    if let (Some(_), ["branch", branch, ..]) = (&args.value, path.as_slice())
        && repo.refs().read(&RefName::branch(branch)?)?.is_none()
    {
        let error = CommandError::refused(format!("there is no branch '{branch}'"));
        return Err(error.hint(format!("make it first: zenith branch {branch}, or see what there is: zenith branch")));
    }
    if args.unset || args.value.is_some() {
        return set(&repo, &key, args.value.as_deref());
    }
    let document = document()?;
    let found = path.iter().try_fold(document.as_item(), |item, step| item.get(step));
    match found.and_then(text) {
        Some(text) => Ok(writeln!(cx.out, "{text}")?),
        None => Err(CommandError::refused(format!("'{key}' is not set"))),
    }
}
