//! `zenith write-snapshot`: stores the files of a cluster.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::command::Cx;
use crate::error::{Class, CmdResult, CommandError};
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::pg::control::{self, ControlFile, State};
use crate::objects::pg::version::Version;
use crate::objects::pg::wal::{Expected, WalReader, What};
use crate::objects::snapshot::{Entry, Snapshot};
use crate::objects::store::encode::Encoded;
use crate::objects::store::pack::PackWriter;
use crate::objects::timeline::snapshots::{Line, Listed};
use crate::objects::timeline::wal::Segments;
use crate::objects::timeline::{Origin, Timeline, TimelineId};
use crate::objects::{Kind, ObjectId, Repo, bounded};
use crate::plumbing::datadir::control::Control;
use crate::plumbing::datadir::exclude::Unlogged;
use crate::plumbing::datadir::rights::is_readable_for;
use crate::plumbing::datadir::scan::{Known, Scan};
use crate::plumbing::datadir::wal::{Root, Upto, seal};
use crate::plumbing::datadir::write::{Bytes, Item, Statistics, TreeWriter};
use crate::plumbing::datadir::{self, WalFilesError, tar};
use crate::plumbing::postgres::conf_files::{self, Configuration};
use crate::plumbing::postgres::server;
use crate::progress::Progress;

/// The most bytes of what a backup says of itself: its manifest has a line for each file.
const LONGEST_MANIFEST: u64 = 1 << 30;

/// Store the files of a cluster as a snapshot
///
/// Takes the data directory of a cleanly stopped server or of a base backup, or a tar stream on
/// standard input, and prints the id of the snapshot. Against a parent it stores only the blocks
/// whose content changed. Without --timeline the snapshot begins a timeline of its own, with the
/// WAL that is needed to start from it; give that a name with update-ref.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith write-snapshot /var/lib/postgresql/15/main\n  \
    pg_basebackup -D - -F tar -X fetch | zenith write-snapshot --parent 4f2a11c0 -\n")]
pub struct Args {
    /// The data directory, or - for a tar stream on standard input
    #[arg(value_name = "DIR|-")]
    source: PathBuf,
    /// Store against this snapshot
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<String>,
    /// Add the snapshot to this timeline, whose WAL must be that of the files
    #[arg(long, value_name = "TIMELINE")]
    timeline: Option<String>,
    /// Print one line of JSON: snapshot, timeline, lsn, stored_bytes and statistics
    #[arg(long)]
    json: bool,
}

/// What the files are taken from.
pub enum Source<'a> {
    /// A data directory whose server does not run.
    Dir(&'a Path),
    /// One whose server runs and is in backup mode until the function ends that and returns the
    /// backup's label and the LSN at its end, up to which the WAL is sealed.
    Live(&'a Path, &'a mut dyn FnMut() -> Result<(String, Lsn), CommandError>),
    Tar(&'a mut dyn Read),
}

/// How to write.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub parent: Option<ObjectId>,
    /// The timeline whose sealed WAL covers the snapshot; a new one if there is none.
    pub timeline: Option<TimelineId>,
    /// The folder of postgresql.conf, where the data directory has none.
    pub config: Option<PathBuf>,
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    pub snapshot: ObjectId,
    pub timeline: TimelineId,
    /// The LSN from which on the snapshot can be used.
    #[serde(serialize_with = "collect_str")]
    pub lsn: Lsn,
    /// Bytes that this took in the store.
    pub stored_bytes: u64,
    pub statistics: Statistics,
    /// Where the cluster's configuration was found, if that was not the data directory.
    #[serde(skip)]
    pub configuration: Option<PathBuf>,
}

fn collect_str<S: serde::Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

/// The files cannot become a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{0}' is not a data directory: it has no {1}")]
    NotADataDirectory(String, &'static str),
    #[error("'{0}' is of PostgreSQL {1}, the repository is for PostgreSQL {2}")]
    OtherVersion(String, String, u32),
    #[error("'{0}' belongs to another cluster: system identifier {1} instead of {2}")]
    OtherCluster(String, u64, u64),
    #[error("a server runs on '{0}'")]
    Running(String),
    #[error("'{0}' was not cleanly shut down")]
    NotShutDown(String),
    #[error("the end of the backup is not in its WAL")]
    NoBackupEnd,
    #[error("'{0}' holds no WAL at {1}")]
    NoWal(String, Lsn),
    #[error("'{name}' is not of timeline {timeline}: the WAL at {lsn} is another")]
    OtherWal { name: String, timeline: TimelineId, lsn: Lsn },
    #[error("cannot read pg_control of '{0}'")]
    Control(String, #[source] control::Error),
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        let hint = match &error {
            Error::Running(_) => {
                "stop it first, or take a base backup of it: pg_basebackup -D - -F tar -X fetch | zenith init --from -"
            }
            Error::NotShutDown(_) => "start and stop its server once",
            Error::OtherCluster(..) => {
                "a cluster of its own is a repository of its own: zenith init --from, in another folder"
            }
            Error::OtherWal { .. } => {
                "a server changed the files since they left that timeline: store them without --timeline"
            }
            Error::NoBackupEnd => "make the backup with its WAL: pg_basebackup -X fetch",
            _ => return CommandError::new(Class::Refused, error),
        };
        CommandError::new(Class::Refused, error).hint(hint)
    }
}

/// What the files say of themselves.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub name: String,
    pub major: u32,
    pub version: &'static Version,
    pub control: ControlFile,
}

/// Reads what a data directory says of itself.
pub fn inspect(dir: &Path) -> Result<Cluster, CommandError> {
    let read = |name: &'static str| match bounded::read(&dir.join(name), bounded::OF_CLUSTER) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::NotADataDirectory(dir.display().to_string(), name).into())
        }
        Err(error) => Err(CommandError::from(cannot::<datadir::Error>("read", &dir.join(name))(error))),
    };
    let (version, control) = (read("PG_VERSION")?, read(control::PATH)?);
    Ok(cluster(dir.display().to_string(), &version, &control)?)
}

fn cluster(name: String, version: &[u8], control: &[u8]) -> Result<Cluster, Error> {
    let text = String::from_utf8_lossy(version).trim().to_owned();
    let known = text.parse().ok().and_then(Version::of_major);
    let Some(version) = known else { return Err(Error::OtherVersion(name, text, 0)) };
    match ControlFile::parse(control, version) {
        Ok(control) => Ok(Cluster { name, major: version.major, version, control }),
        Err(error) => Err(Error::Control(name, error)),
    }
}

/// A backup's own account of itself, where there is one.
struct Label {
    start: Lsn,
    checkpoint: Lsn,
    /// Whether a record in the WAL ends the backup; without, as behind the files of a server that was shut down,
    /// all of the WAL belongs to it.
    is_streamed: bool,
    /// From the manifest.
    end: Option<Lsn>,
    /// Whether the server still runs: the WAL of its timeline is its own.
    is_live: bool,
}

impl Label {
    /// Returns whether the files are those of a server that was shut down: only a shutdown checkpoint is its own redo point.
    fn is_exact(&self) -> bool {
        self.start == self.checkpoint
    }
}

fn parse_label(label: &[u8], manifest: Option<&[u8]>) -> Option<Label> {
    /// What is wanted of a manifest; the list of all files in it is not even kept.
    #[derive(serde::Deserialize)]
    struct Manifest {
        #[serde(rename = "WAL-Ranges")]
        ranges: Vec<Range>,
    }
    #[derive(serde::Deserialize)]
    struct Range {
        #[serde(rename = "End-LSN")]
        end: String,
    }
    let text = String::from_utf8_lossy(label);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next();
    let lsn = |name: &str| field(name)?.parse().ok();
    let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(bytes).ok());
    let end = manifest.and_then(|manifest| manifest.ranges.last()?.end.parse().ok());
    let is_streamed = field("BACKUP METHOD: ") != Some("snapshot");
    Some(Label {
        start: lsn("START WAL LOCATION: ")?,
        checkpoint: lsn("CHECKPOINT LOCATION: ")?,
        is_streamed,
        end,
        is_live: false,
    })
}

/// The files of a cluster in the store. Nothing refers to them yet.
pub struct Stored {
    pub cluster: Cluster,
    label: Option<Label>,
    wal_dir: PathBuf,
    entries: Vec<Entry>,
    pack: PackWriter,
    statistics: Statistics,
    configuration: Option<PathBuf>,
}

/// Stores the files of a cluster, and its WAL where the snapshot begins a timeline. The snapshot is
/// noted in the timeline's log last, when all that it names is durable.
pub fn write_snapshot(
    repo: &Repo,
    source: Source,
    options: &Options,
    now_us: i64,
    progress: &dyn Progress,
) -> Result<Outcome, CommandError> {
    let stored = store_files(repo, source, options, progress)?;
    commit(repo, stored, options, now_us)
}

/// Stores the files of a cluster, the first half of [`write_snapshot`]. What a stream is of shows at its end only, so that
/// a repository for it can be [made](commit) then.
pub fn store_files(
    repo: &Repo,
    source: Source,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Stored, CommandError> {
    let parent = options.parent.map(|id| repo.store().snapshot(&id)).transpose()?;
    let pack = repo.store().pack(repo.tmp()?)?;
    let mut writer =
        TreeWriter::new(repo.store(), pack, parent.as_ref(), repo.config().core.compression_level, progress);
    let known = |dir: &Path| {
        let known = options.parent.zip(parent.as_ref()).map(|(id, parent)| known(dir, &id, parent)).transpose()?;
        Ok::<_, datadir::Error>(known.flatten())
    };
    let etc = Path::new(conf_files::ETC);
    let mut configuration = Configuration::default();
    // Of a stream, those that it holds.
    let mut folders: HashSet<Vec<u8>> = HashSet::new();
    let (cluster, label, wal_dir) = match source {
        Source::Dir(dir) => {
            let cluster = inspect(dir)?;
            check_cluster(repo, &cluster)?;
            if server::runs_on_foreign(dir).is_some() {
                return Err(Error::Running(cluster.name).into());
            }
            let read = |name| bounded::read(&dir.join(name), LONGEST_MANIFEST).ok();
            let label = read("backup_label").and_then(|label| parse_label(&label, read("backup_manifest").as_deref()));
            check_state(&cluster, label.as_ref())?;
            if options.parent.is_none() {
                let owner = fs::metadata(dir)?.uid();
                let may_read = |path: &Path| is_readable_for(path, owner);
                configuration = conf_files::gather(Some(dir), cluster.major, options.config.as_deref(), etc, &may_read);
            }
            add_files(&mut writer, dir, false, known(dir)?.as_ref(), &configuration, progress)?;
            writer.flush()?;
            // A file system that ended meanwhile leaves an empty folder.
            inspect(dir)?;
            (cluster, label, dir.join("pg_wal"))
        }
        Source::Live(dir, end_backup) => {
            add_files(&mut writer, dir, true, known(dir)?.as_ref(), &configuration, progress)?;
            // What is read after the end of the backup may be newer than that, and than the branches that begin with it.
            writer.flush()?;
            let cluster = inspect(dir)?;
            check_cluster(repo, &cluster)?;
            let (label, end) = end_backup()?;
            let label = parse_label(label.as_bytes(), None).ok_or(Error::NoBackupEnd)?;
            (cluster, Some(Label { end: Some(end), is_live: true, ..label }), dir.join("pg_wal"))
        }
        Source::Tar(stream) => {
            let wal_dir = repo.tmp()?.join("pg_wal");
            fs::create_dir_all(&wal_dir)?;
            let mut has_conf = false;
            let folders = &mut folders;
            let aside = tar::read(stream, &wal_dir, &mut |item| {
                has_conf |= matches!(&item, Item::File { path, .. } if path == b"postgresql.conf");
                if let Item::Dir { path, .. } = &item {
                    folders.insert(path.clone());
                }
                writer.add(item)
            })?;
            let name = "the tar stream".to_owned();
            let file =
                |path: &'static str| aside.files.get(path).ok_or_else(|| Error::NotADataDirectory(name.clone(), path));
            let cluster = cluster(name.clone(), file("PG_VERSION")?, file(control::PATH)?)?;
            let manifest = aside.files.get("backup_manifest").map(Vec::as_slice);
            let label = aside.files.get("backup_label").and_then(|label| parse_label(label, manifest));
            check_state(&cluster, label.as_ref())?;
            if !has_conf {
                configuration = conf_files::gather(None, cluster.major, options.config.as_deref(), etc, &|_| true);
            }
            (cluster, label, wal_dir)
        }
    };
    for path in configuration.folders() {
        if folders.insert(path.clone()) {
            writer.add(Item::Dir { path, mode: 0o700 })?;
        }
    }
    for (path, text) in configuration.files {
        let length = text.len() as u64;
        writer.add(Item::File { path: path.into_os_string().into_vec(), mode: 0o600, length })?;
        if length > 0 {
            writer.add(Item::Part(Bytes::Now(text), None))?;
        }
    }
    let (mut entries, pack, statistics) = writer.finish()?;
    Unlogged::reset(&mut entries);
    Ok(Stored { cluster, label, wal_dir, entries, pack, statistics, configuration: configuration.folder })
}

/// Seals the WAL of files that were stored and refers to them: the second half of [`write_snapshot`].
pub fn commit(repo: &Repo, stored: Stored, options: &Options, now_us: i64) -> Result<Outcome, CommandError> {
    check_cluster(repo, &stored.cluster)?;
    if let Some(timeline) = options.timeline {
        return add_to(repo, timeline, stored, options, now_us);
    }
    let timeline = TimelineId::random();
    repo.timelines().create(repo.tmp()?, timeline, &Origin::root(repo.clone_id()?, now_us))?;
    let added = add_to(repo, timeline, stored, options, now_us);
    if added.is_err() {
        repo.timelines().remove(repo.tmp()?, timeline, || Ok::<_, CommandError>(true))?;
    }
    added
}

/// Adds files to a timeline, with their WAL if that begins with them.
fn add_to(
    repo: &Repo,
    timeline: TimelineId,
    stored: Stored,
    options: &Options,
    now_us: i64,
) -> Result<Outcome, CommandError> {
    let Stored { cluster, label, wal_dir, entries, mut pack, statistics, configuration } = stored;
    let control = &cluster.control;
    let (start, checkpoint) =
        label.as_ref().map_or((control.redo, control.checkpoint), |label| (label.start, label.checkpoint));
    let is_root = options.timeline.is_none();
    let consistent = seal_for(repo, timeline, &cluster, &wal_dir, start, label.as_ref(), is_root)?;
    let snapshot = Snapshot {
        timeline,
        start,
        checkpoint,
        consistent,
        time_us: now_us,
        system_identifier: control.system_identifier,
        postgres_major: cluster.major,
        catalog_version: control.catalog_version,
        postgres_timeline: control.timeline,
        wal_segment_size: control.wal_segment_size,
        parent: options.parent,
        entries,
    };
    let content = snapshot.encode();
    let id = ObjectId::of(Kind::Snapshot, &content);
    pack.append(&Encoded::compress(id, Kind::Snapshot, &content, repo.config().core.compression_level))?;
    let stored_bytes = pack.finish()?.map_or(0, |published| published.bytes);
    repo.store().refresh()?;
    repo.timelines().lock(timeline)?.note(Line::Snapshot(Listed { lsn: consistent, object: id }))?;
    Ok(Outcome { snapshot: id, timeline, lsn: consistent, stored_bytes, statistics, configuration })
}

/// Returns what the data directory, if it is a lazy one, knows of the difference to its snapshot, if that is
/// the parent.
fn known<'a>(dir: &Path, id: &ObjectId, parent: &'a Snapshot) -> Result<Option<Known<'a>>, datadir::Error> {
    let control = Control::of(dir).map_err(cannot::<datadir::Error>("look at", dir))?;
    let Some(control) = control else { return Ok(None) };
    if control.mark()? != *id {
        return Ok(None);
    }
    Ok(Some(Known { snapshot: parent, changes: control.changes()? }))
}

fn add_files(
    writer: &mut TreeWriter,
    dir: &Path,
    live: bool,
    known: Option<&Known>,
    configuration: &Configuration,
    progress: &dyn Progress,
) -> Result<(), datadir::Error> {
    let scan = Scan::new(dir, live)?;
    progress.start("storing", scan.total_bytes());
    let folders = configuration.folders();
    let is_file = |path: &[u8]| configuration.files.iter().any(|(name, _)| name.as_os_str().as_bytes() == path);
    let is_replaced = |path: &[u8]| is_file(path) || folders.iter().any(|folder| folder == path);
    let mut passed_over = false;
    let added = scan.items(known).try_for_each(|item| {
        let item = item?;
        if let Item::File { path, .. } | Item::Unchanged { path, .. } | Item::Dir { path, .. } = &item {
            passed_over = is_replaced(path);
        }
        if passed_over { Ok(()) } else { writer.add(item) }
    });
    progress.finish();
    added
}

fn check_cluster(repo: &Repo, cluster: &Cluster) -> Result<(), Error> {
    let config = repo.config();
    let name = || cluster.name.clone();
    if cluster.major != config.postgres_major {
        return Err(Error::OtherVersion(name(), cluster.major.to_string(), config.postgres_major));
    }
    if cluster.control.system_identifier != config.system() {
        return Err(Error::OtherCluster(name(), cluster.control.system_identifier, config.system()));
    }
    Ok(())
}

/// Refuses files that lack what only their server could add.
fn check_state(cluster: &Cluster, label: Option<&Label>) -> Result<(), Error> {
    let state = cluster.control.state;
    let sound = match label {
        Some(label) if label.is_streamed => true,
        // Replay from there has not begun yet: pages would be newer than the label says.
        Some(label) if label.is_exact() => state == State::ShutDown && cluster.control.checkpoint == label.checkpoint,
        Some(_) => state == State::InProduction,
        None => state == State::ShutDown,
    };
    if sound { Ok(()) } else { Err(Error::NotShutDown(cluster.name.clone())) }
}

/// Makes sure that the WAL from `start` to where the files are consistent is sealed (INVARIANT 1). A timeline of its own
/// gets all the WAL that its server would replay. Returns the LSN from which on the files can be used.
fn seal_for(
    repo: &Repo,
    timeline: TimelineId,
    cluster: &Cluster,
    wal_dir: &Path,
    start: Lsn,
    label: Option<&Label>,
    is_root: bool,
) -> Result<Lsn, CommandError> {
    let control = &cluster.control;
    let size = control.wal_segment_size;
    let segments = || Segments::new(wal_dir.to_owned(), control.timeline, size);
    let expected =
        Expected { version: cluster.version, segment_size: size, system_identifier: control.system_identifier };
    let no_wal = || Error::NoWal(cluster.name.clone(), start);
    let mut reader = WalReader::new(segments(), expected, start);
    let consistent = match label {
        Some(Label { end: Some(end), is_live, .. }) => {
            match reader.read().map(drop) {
                Ok(()) => {}
                // A long while after the start the server may have recycled that segment: it was sealed before.
                Err(_) if *is_live => {
                    let sealed = repo.sealed_wal(&repo.timelines().read(timeline)?, start.segment_start(size))?;
                    WalReader::new(sealed, expected, start).read().map_err(|_| Error::NoBackupEnd)?;
                }
                Err(_) => return Err(Error::NoBackupEnd.into()),
            }
            *end
        }
        Some(label) if label.is_streamed => loop {
            let record = reader.read().map_err(|_| Error::NoBackupEnd)?;
            if record.backup_end() == Some(label.start) {
                break record.end;
            }
        },
        Some(label) if !label.is_exact() => loop {
            match reader.read().map(drop) {
                Ok(()) => {}
                Err(error) if error.may_be_end() && reader.position_lsn() > label.checkpoint => {
                    break reader.position_lsn();
                }
                Err(_) => return Err(no_wal().into()),
            }
        },
        // A shutdown checkpoint is all that its files need.
        _ => reader.read().map_err(|_| no_wal())?.end,
    };
    if is_root {
        let first = start.segment_start(size);
        let before_page = last_end(segments(), expected, first, start.page_start());
        let root = Root { first, record: start, before_page };
        // Behind a shutdown without a label may lie what nobody is to replay.
        let upto = if label.is_some() { Lsn::MAX } else { consistent };
        let sealed = seal(repo, timeline, segments(), Some(root), Upto::Record(upto))?;
        if sealed.tip < consistent {
            return Err(Error::NoWal(cluster.name.clone(), sealed.tip).into());
        }
    } else if !label.is_some_and(|label| label.is_live) {
        let checkpoint = label.map_or(control.checkpoint, |label| label.checkpoint);
        let timeline = repo.timelines().read(timeline)?;
        let mut records = vec![start, checkpoint];
        records.dedup();
        // What lies beyond the sealed WAL is refused when the snapshot is noted.
        for lsn in records.into_iter().filter(|_| consistent <= timeline.sealed()) {
            if !has_record_of(repo, &timeline, WalReader::new(segments(), expected, lsn))? {
                return Err(Error::OtherWal { name: cluster.name.clone(), timeline: timeline.id, lsn }.into());
            }
        }
    }
    Ok(consistent)
}

/// Returns whether the record that `theirs` is about to read is in the sealed WAL of a timeline, byte for byte. All histories of
/// a cluster have the same LSNs, but a checkpoint has its time in it.
fn has_record_of(repo: &Repo, timeline: &Timeline, mut theirs: WalReader<Segments>) -> Result<bool, CommandError> {
    let lsn = theirs.position_lsn();
    let sealed = repo.sealed_wal(timeline, lsn.segment_start(repo.config().wal_segment_size))?;
    let mut ours = WalReader::new(sealed, repo.expected_wal(), lsn);
    match (ours.read(), theirs.read()) {
        (Err(error), _) if matches!(error.what, What::Io(_)) => Err(WalFilesError::of(timeline.id, error).into()),
        (Ok(ours), Ok(theirs)) => Ok(ours.bytes == theirs.bytes),
        _ => Ok(false),
    }
}

/// Returns where the last record at or before `upto` ends, reading from `first` on, where a segment begins.
fn last_end(segments: Segments, expected: Expected, first: Lsn, upto: Lsn) -> Option<Lsn> {
    let mut reader = WalReader::seek(segments, expected, first).ok()?;
    let mut end = None;
    while reader.position_lsn() <= upto {
        end = Some(reader.position_lsn());
        reader.read().ok()?;
    }
    end
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let now = cx.now.clone();
    let repo = cx.take_repo()?;
    let parent = args.parent.as_ref().map(|prefix| repo.store().resolve_prefix(prefix)).transpose()?;
    let timeline = args.timeline.as_ref();
    let timeline = timeline.map(|text| crate::objects::refs::revision::resolve(&repo, text, &now)).transpose()?;
    let options = Options { parent, timeline: timeline.map(|resolved| resolved.position.timeline), config: None };
    let mut stdin = io::stdin().lock();
    let dir = cx.folder.join(&args.source);
    let source = if args.source == Path::new("-") { Source::Tar(&mut stdin) } else { Source::Dir(&dir) };
    let outcome = write_snapshot(&repo, source, &options, now.timestamp().as_microsecond(), &cx.ui)?;
    if args.json { cx.json(&outcome) } else { Ok(writeln!(cx.out, "{}", outcome.snapshot)?) }
}
