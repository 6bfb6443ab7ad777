//! `zenith migrate`: brings a repository of format 2 to format 3.
//!
//! In format 2 `timelines/<id>/history` had a line for each ancestor, the oldest first: its id, and the LSN at which the next one forks;
//! and `timelines/<id>/log` had the lines of snapshots among those of WAL. All else is as it is now.
//!
//! 1. What will be changed is copied to `format-2/`: the config, and of each timeline its history and log.
//! 2. Each timeline gets `origin`, `snapshots`, and the new log as `log.new`: nobody who knows format 2 looks at them.
//! 3. The config becomes one of format 3 that says that a migration is under way: from here on it only goes forward.
//! 4. Each log is replaced, and each history removed.
//! 5. The config says that nothing is under way.
//!
//! It can be killed anywhere: the next call goes on. No objects are touched.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use toml_edit::{DocumentMut, value};

use super::instance::mount;
use super::postgres::process::raise_file_limit;
use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::file_error::cannot;
use crate::objects::format::{FORMAT_VERSION, MIGRATING, Shared};
use crate::objects::pg::{Lsn, segment};
use crate::objects::timeline::{CloneId, Origin, Position, TimelineId, Timelines};
use crate::objects::{bounded, clone, copy, durable, folder, regular, repo};

/// Bring a repository of an older format to the one of this program
///
/// Refuses while a server, a mount, the page server or another command works in the repository. What is changed is kept in the folder
/// format-2 of the repository, which nobody needs once all is well. It can be killed at any time: the next call goes on. Objects
/// are not touched, so it costs a look at each timeline.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith migrate\n")]
pub struct Args {}

/// The format that this program can bring to its own.
const OLD: i64 = 2;
/// Where what is changed is kept.
const KEPT: &str = "format-2";
/// What a new log is called until the old one may go.
const NEW_LOG: &str = "log.new";
/// How the folder is called in which new files are made.
const TMP: &[u8] = b".migrate-";
/// The most bytes of a history of format 2: a million ancestors.
const MOST_HISTORY: u64 = 64 << 20;

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Timelines that have the new format now.
    pub timelines: usize,
    /// Those that could not be read, and stay as they are.
    pub damaged: Vec<String>,
}

/// Brings the repository in `dir` to this format. Returns `None` if it has it already.
pub fn migrate(dir: &Path) -> Result<Option<Outcome>, CommandError> {
    let timelines = Timelines::open(&dir.join("timelines"));
    let has_all = |document: &DocumentMut| {
        Ok::<_, CommandError>(is_new(document) && extensions(document).is_empty() && !has_old(&timelines)?)
    };
    if has_all(&read_config(dir)?)? {
        return Ok(None);
    }
    // Nobody else works here from the look that counts on.
    let _locks = take_locks(dir, &timelines)?;
    let config = dir.join("config");
    let mut document = read_config(dir)?;
    if has_all(&document)? {
        return Ok(None);
    }
    let version = document.get("format_version").and_then(|version| version.as_integer());
    let extensions = extensions(&document);
    let is_new = is_new(&document);
    let is_under_way = is_new && extensions == [MIGRATING];
    let is_known = extensions.is_empty() || is_under_way;
    if !is_known || !is_new && version != Some(OLD) {
        let version = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
        let with = extensions.first().map(|extension| format!(" with the extension {extension}")).unwrap_or_default();
        return Err(CommandError::refused(format!("the repository has format version {version}{with}, not {OLD}")));
    }
    // Not in tmp/, which others clear of what has no lock.
    for left in
        subfolders(dir)?.iter().filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(TMP)))
    {
        fs::remove_dir_all(left)?;
    }
    let tmp = tempfile::Builder::new().prefix(OsStr::from_bytes(TMP)).tempdir_in(dir)?;
    let mut begin = || {
        document["format_version"] = value(i64::from(FORMAT_VERSION));
        document["extensions"] = value(toml_edit::Array::from_iter([MIGRATING]));
        durable::replace(tmp.path(), &config, document.to_string().as_bytes())
    };
    // What is left of damaged ones later is beside that of all others, which nobody may use amid this: a log that waits to be put in
    // its place would be older than the one that is there.
    if is_new {
        begin()?;
    } else {
        keep(dir, tmp.path(), &timelines)?;
    }
    let writer = clone::establish(dir, tmp.path())?;
    add_new(&timelines, tmp.path(), writer, is_new)?;
    if !is_new {
        begin()?;
    }
    let (timelines_now, contradicted) = replace_old(&timelines)?;
    document.remove("extensions");
    durable::replace(tmp.path(), &config, document.to_string().as_bytes())?;
    let (left, mut damaged) = read_old(&timelines, true)?;
    damaged.extend(contradicted);
    damaged.extend(left.iter().filter_map(|(id, old)| Some(format!("timeline {id}: {}", old.fault(&left)?))));
    Ok(Some(Outcome { timelines: timelines_now, damaged }))
}

fn is_new(document: &DocumentMut) -> bool {
    document.get("format_version").and_then(|version| version.as_integer()) == Some(i64::from(FORMAT_VERSION))
}

fn read_config(dir: &Path) -> Result<DocumentMut, CommandError> {
    let config = dir.join("config");
    let text = bounded::read_to_string(&config, bounded::CONFIG).map_err(cannot::<repo::Error>("read", &config))?;
    text.parse().map_err(|error| CommandError::new(Class::Refused, error))
}

fn extensions(document: &DocumentMut) -> Vec<String> {
    let listed = document.get("extensions").and_then(|extensions| extensions.as_array());
    listed.into_iter().flatten().map(|extension| extension.as_str().unwrap_or("?").to_owned()).collect()
}

/// Returns whether a timeline is left as it was, since it was damaged: somebody may have mended it.
fn has_old(timelines: &Timelines) -> Result<bool, CommandError> {
    for id in timelines.list()? {
        if timelines.dir(id).join("history").try_exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes all locks of the repository; refuses if somebody has one, or something is mounted in it.
fn take_locks(dir: &Path, timelines: &Timelines) -> Result<Vec<File>, CommandError> {
    let in_use = |path: &Path| {
        CommandError::refused(format!("the repository is in use: somebody has '{}'", path.display()))
            .hint("with the program that made it: zenith pageserver stop; zenith stop --all")
    };
    let datadirs = subfolders(&dir.join("datadirs"))?;
    for data in datadirs.iter().map(|folder| folder.join("data")) {
        if mount::is_mounted(&data)? {
            return Err(in_use(&data));
        }
    }
    // First those that who begins anything needs.
    let general = ["config.lock", "refs.lock", "timelines/lock", "instances/lock"].map(|name| dir.join(name));
    let mut paths: Vec<PathBuf> = general.into_iter().filter(|path| path.parent().is_some_and(Path::is_dir)).collect();
    let mut folders = vec![dir.join("tmp"), dir.join("pageserver"), dir.join("objects/pack")];
    folders.extend(datadirs);
    folders.extend(subfolders(&dir.join("instances"))?);
    folders.extend(timelines.list()?.into_iter().map(|id| timelines.dir(id)));
    for folder in folders {
        let is_lock = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            path.is_file() && (name == "lock" || name == "alive" || name == "log" || name.ends_with(".lock"))
        };
        // A server's log has no lock.
        paths.extend(entries(&folder)?.into_iter().filter(is_lock));
    }
    raise_file_limit();
    let mut locks = Vec::new();
    for path in paths {
        let file = regular::open_with(File::options().create(true).truncate(false).read(true).write(true), &path);
        let file = file.map_err(cannot::<repo::Error>("open", &path))?;
        file.try_lock().map_err(|_| in_use(&path))?;
        // Who has that of a timeline's log for longer has another one, too.
        if !path.ends_with("log") {
            locks.push(file);
        }
    }
    Ok(locks)
}

/// Copies what will be changed, in place of what a call kept that was stopped before it changed anything.
fn keep(dir: &Path, tmp: &Path, timelines: &Timelines) -> CmdResult {
    let kept = dir.join(KEPT);
    durable::discard_dir(tmp, &kept)?;
    let copy = tmp.join("kept");
    fs::create_dir_all(copy.join("timelines"))?;
    copy::file(&dir.join("config"), &copy.join("config"))?;
    for id in timelines.list()? {
        let folder = copy.join("timelines").join(id.to_string());
        fs::create_dir(&folder)?;
        for name in ["history", "log"] {
            let path = timelines.dir(id).join(name);
            if path.try_exists()? {
                copy::file(&path, &folder.join(name))?;
            }
        }
    }
    durable::sync_tree(&copy)?;
    Ok(durable::publish_dir(&copy, &kept)?)
}

/// A timeline of format 2.
struct Old {
    /// The oldest first, each with the LSN at which the next one forks.
    ancestors: Vec<Position>,
    /// The lines of its log.
    wal: String,
    snapshots: String,
    made_us: i64,
}

fn malformed(path: &Path, line: &str) -> CommandError {
    CommandError::new(Class::Corrupt, format!("'{}' is corrupt: {line:?}", path.display()))
}

/// Reads the history at `path`: the ancestors of a timeline, the oldest first.
fn read_history(path: &Path) -> Result<Vec<Position>, CommandError> {
    let history = bounded::read_to_string(path, MOST_HISTORY).map_err(cannot::<repo::Error>("read", path))?;
    let ancestor = |line: &str| line.replacen(' ', "@", 1).parse().map_err(|_| malformed(path, line));
    history.lines().map(ancestor).collect()
}

impl Old {
    fn read(folder: &Path) -> Result<Old, CommandError> {
        let path = folder.join("history");
        let ancestors = read_history(&path)?;
        let made = fs::metadata(&path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_us = i64::try_from(made.as_micros()).unwrap_or(i64::MAX);
        let path = folder.join("log");
        let log = regular::read_to_string(&path).map_err(cannot::<repo::Error>("read", &path))?;
        let (mut wal, mut snapshots) = (String::new(), String::new());
        for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match line.split(' ').next() {
                Some("wal") => wal.push_str(line),
                Some("snapshot") => snapshots.push_str(line),
                _ => return Err(malformed(&path, line)),
            }
        }
        Ok(Old { ancestors, wal, snapshots, made_us })
    }
}

impl Old {
    /// Returns what is wrong with it, as format 2 had it; the others are by their ids.
    fn fault(&self, others: &HashMap<TimelineId, Old>) -> Option<&'static str> {
        let first = self.wal.lines().next().and_then(|line| line.split(' ').nth(1)?.parse::<Lsn>().ok());
        let Some((last, above)) = self.ancestors.split_last() else {
            let begins_amid = first.is_some_and(|first| first.segment_start(segment::SMALLEST) != first);
            if first.is_none() || self.snapshots.is_empty() {
                return Some("no ancestor, although it has no WAL or no snapshot of its own");
            }
            return begins_amid.then_some("no ancestor, although the WAL begins amid a segment");
        };
        let Some(parent) = others.get(&last.timeline) else { return Some("its parent is gone or damaged") };
        if self.ancestors.windows(2).any(|pair| pair[0].lsn > pair[1].lsn) {
            return Some("it forks before its own start");
        }
        if parent.ancestors != above {
            return Some("it has another history than its parent");
        }
        let begins_elsewhere = first.is_some_and(|first| first != last.lsn);
        begins_elsewhere.then_some("its WAL does not begin where it forks")
    }
}

/// Reads the timelines that have the old form, or all that do not have the new one where the config `is_new`. Returns what
/// is wrong with the others, too.
fn read_old(timelines: &Timelines, is_new: bool) -> Result<(HashMap<TimelineId, Old>, Vec<String>), CommandError> {
    let (mut known, mut damaged) = (HashMap::new(), Vec::new());
    for id in timelines.list()? {
        let folder = timelines.dir(id);
        if is_new && folder.join("origin").try_exists()? {
            continue;
        }
        match Old::read(&folder) {
            Ok(old) => drop(known.insert(id, old)),
            Err(error) => damaged.push(format!("timeline {id}: {}", error.text())),
        }
    }
    Ok((known, damaged))
}

/// Gives each timeline its new files beside the old ones, ancestors first; those that are damaged get none.
fn add_new(timelines: &Timelines, tmp: &Path, writer: CloneId, is_new: bool) -> CmdResult {
    let (known, _) = read_old(timelines, is_new)?;
    let mut order: Vec<TimelineId> = known.keys().copied().collect();
    order.sort_by_key(|id| known[id].ancestors.len());
    let mut done = HashSet::new();
    for id in order {
        let (old, folder) = (&known[&id], timelines.dir(id));
        let parent = old.ancestors.last();
        // One that was mended later has parents of the new form.
        let has_parent = parent
            .is_none_or(|parent| done.contains(&parent.timeline) || is_new && !known.contains_key(&parent.timeline));
        let is_sound = has_parent && (is_new && parent.is_some() || old.fault(&known).is_none());
        let origin = match parent {
            None => Ok(Origin::root(writer, old.made_us)),
            Some(parent) => timelines.fork(*parent, writer, old.made_us),
        };
        if let (true, Ok(origin)) = (is_sound, origin) {
            durable::replace(tmp, &folder.join("snapshots"), old.snapshots.as_bytes())?;
            durable::replace(tmp, &folder.join(NEW_LOG), old.wal.as_bytes())?;
            // Last: where it is the others are.
            durable::replace(tmp, &folder.join("origin"), origin.format().as_bytes())?;
            done.insert(id);
        }
    }
    if is_new {
        return Ok(());
    }
    // What a call that was stopped left beside those that are damaged by now.
    for id in timelines.list()?.into_iter().filter(|id| !done.contains(id)) {
        ["origin", "snapshots", NEW_LOG].iter().try_for_each(|name| durable::remove(&timelines.dir(id).join(name)))?;
    }
    Ok(())
}

/// Puts the new logs in the place of the old ones. Returns how many timelines have the new format, and of which the history stays,
/// since it says something else: somebody put it back.
fn replace_old(timelines: &Timelines) -> Result<(usize, Vec<String>), CommandError> {
    let (mut count, mut contradicted) = (0, Vec::new());
    for id in timelines.list()? {
        let folder = timelines.dir(id);
        if !folder.join("origin").try_exists()? {
            continue;
        }
        count += 1;
        let new = folder.join(NEW_LOG);
        if new.try_exists()? {
            // Before what it was made of goes.
            durable::replace_by(&new, &folder.join("log"))?;
        }
        let history = folder.join("history");
        if history.try_exists()? {
            if read_history(&history)?.last().copied() == timelines.origin(id)?.parent() {
                durable::remove(&history)?;
            } else {
                contradicted.push(format!("timeline {id}: '{}' is not where it comes from", history.display()));
            }
        }
    }
    Ok((count, contradicted))
}

fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(folder::entries(dir)?.into_iter().map(|entry| entry.path()).collect())
}

pub fn run(cx: &mut Cx, _args: Args) -> CmdResult {
    let dir = cx.locate()?;
    let document = read_config(&dir)?;
    let shared = document.get("core").and_then(|core| core.get("shared")).and_then(|shared| shared.as_str());
    cx.share(if shared == Some("group") { Shared::Group } else { Shared::No });
    let Some(Outcome { timelines, damaged }) = migrate(&dir)? else {
        cx.ui.status(format!("the repository has format {FORMAT_VERSION} already"));
        return Ok(());
    };
    cx.say(format_args!("the repository has format {FORMAT_VERSION} now; timelines: {timelines}"))?;
    for fault in &damaged {
        writeln!(cx.out, "{fault}")?;
    }
    match damaged.len() {
        0 => Ok(()),
        count => Err(CommandError::new(
            Class::Corrupt,
            format!("timelines that were damaged before, and stay as they are: {count}"),
        )
        .hint(format!("they are as they were in '{}'; see what is damaged: zenith fsck", dir.join(KEPT).display()))),
    }
}
