//! The local layer of a lazy data directory: what its server changed, over a snapshot.
//!
//! ```text
//! journal    names, and which blocks are local: see `journal`
//! <inode>    the file's own blocks at their offsets, holes for those of the snapshot; in hexadecimal
//! ```
//!
//! # Order
//! A block counts as local only once that is durable after its data is: a sync of a file writes its
//! data, then notes in the journal which blocks became local, then syncs that. A block whose note was
//! lost reads as the snapshot's version, which is what an unflushed write may do. A cut of a file is
//! noted before it is done; one that was noted but after which nothing was synced is done again, and one
//! whose note was lost left a shorter file, or the one before.
//! The data of a removed file goes only when its removal is durable. After each sync the journal's header says how much
//! of it is durable: a layer whose journal is shorter than that is refused.

pub mod disk;
pub mod journal;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::Error;
use crate::objects::file_error::cannot;
use crate::objects::{ObjectId, durable, regular};
use disk::{Disk, DiskFile};
use journal::Record;

const JOURNAL: &str = "journal";

/// An open local layer. Memory does not grow with it; what its journal says is the caller's.
#[derive(Debug)]
pub struct Layer {
    disk: Disk,
    journal: DiskFile,
    state: Mutex<State>,
    /// Whether files were made whose names are not durable.
    new_names: Mutex<bool>,
    /// Held by whoever syncs the journal.
    syncing: Mutex<()>,
    /// A sync failed: what the kernel had in memory may be gone, and a later sync would not say so.
    failed: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Records so far, and the bytes that they take.
    records: u64,
    end: u64,
    /// Bytes of the journal that are durable.
    synced: u64,
    /// Whether the journal's header says so.
    has_durable: bool,
    /// Files to remove when the journal is durable up to here.
    doomed: Vec<(u64, u64)>,
}

/// A layer that was read.
pub struct Opened {
    pub layer: Layer,
    pub snapshot: ObjectId,
    pub records: Vec<Record>,
}

fn name_of(ino: u64) -> String {
    format!("{ino:x}")
}

impl Layer {
    /// Makes an empty layer in `dir`, which must not exist, over a snapshot.
    pub fn create(dir: &Path, snapshot: &ObjectId) -> Result<Layer, Error> {
        let create = || {
            durable::create_dir_all(dir)?;
            let disk = Disk::open(dir);
            let journal = disk.create(JOURNAL)?;
            journal.write(0, &journal::header(snapshot))?;
            journal.sync()?;
            disk.sync_dir()?;
            Ok(Layer::new(disk, journal, (0, journal::HEADER as u64), true))
        };
        create().map_err(cannot::<Error>("create", dir))
    }

    /// Opens the layer in `dir`. All of it is durable after that (INVARIANT 5): what a crash of this
    /// process, not of the machine, left in the kernel's memory would be taken for safe otherwise.
    pub fn open(dir: &Path) -> Result<Opened, Error> {
        let path = dir.join(JOURNAL);
        let bytes = regular::read(&path).map_err(cannot::<Error>("read", &path))?;
        let read = journal::read(&bytes).map_err(|source| Error::Journal { path: path.clone(), source })?;
        let open = || {
            let disk = Disk::open(dir);
            let journal = disk.reopen(JOURNAL)?;
            journal.resize(read.end as u64)?;
            durable::sync_tree(dir)?;
            let layer = Layer::new(disk, journal, (read.records.len() as u64, read.end as u64), read.has_durable);
            layer.note_durable(&layer.state())?;
            Ok(layer)
        };
        let layer = open().map_err(cannot::<Error>("open", dir))?;
        Ok(Opened { layer, snapshot: read.snapshot, records: read.records })
    }

    fn new(disk: Disk, journal: DiskFile, (records, end): (u64, u64), has_durable: bool) -> Layer {
        let state = State { records, end, synced: end, has_durable, doomed: Vec::new() };
        Layer {
            disk,
            journal,
            state: Mutex::new(state),
            new_names: Mutex::new(false),
            syncing: Mutex::new(()),
            failed: AtomicBool::new(false),
        }
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        self.disk.dir()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Appends a record. It is durable after the next [`sync`](Layer::sync), if not before.
    pub fn note(&self, record: &Record) -> io::Result<()> {
        let mut state = self.state();
        let mut bytes = Vec::new();
        record.encode(state.records, state.synced, &mut bytes);
        // What a failed write leaves lies behind the end, and the next one covers it.
        self.journal.write(state.end, &bytes)?;
        state.end += bytes.len() as u64;
        state.records += 1;
        Ok(())
    }

    /// Makes all that was noted durable, and then removes what was [doomed](Layer::doom). A failure is final.
    pub fn sync(&self) -> io::Result<()> {
        self.check()?;
        let (end, synced) = {
            let state = self.state();
            (state.end, state.synced)
        };
        if end > synced {
            // One at a time: the system tells of a failure once, and whoever syncs beside that would hear of none.
            let _alone = self.syncing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.check()?;
            self.journal.sync().map_err(|error| self.fail(error))?;
        }
        let gone = {
            let mut state = self.state();
            if end > state.synced {
                state.synced = end;
                self.note_durable(&state).map_err(|error| self.fail(error))?;
            }
            let durable = state.synced;
            state.doomed.extract_if(.., |(_, noted)| *noted <= durable).collect::<Vec<_>>()
        };
        gone.iter().for_each(|(ino, _)| self.remove_file(*ino));
        Ok(())
    }

    /// Writes into the journal's header how much of it is durable.
    fn note_durable(&self, state: &State) -> io::Result<()> {
        if state.has_durable {
            self.journal.write(journal::BEGIN as u64, &journal::durable(state.synced))
        } else {
            Ok(())
        }
    }

    /// Syncs a file's data, and its name if that is new: what comes next is a note that relies on both.
    /// A failure is final.
    pub fn sync_content(&self, file: &DiskFile) -> io::Result<()> {
        self.check()?;
        file.sync().map_err(|error| self.fail(error))?;
        // Held meanwhile: whoever finds nothing to do relies on it as well.
        let mut new_names = self.new_names();
        if *new_names {
            self.disk.sync_dir().map_err(|error| self.fail(error))?;
            *new_names = false;
        }
        Ok(())
    }

    fn new_names(&self) -> MutexGuard<'_, bool> {
        self.new_names.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Relaxed) { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn fail(&self, error: io::Error) -> io::Error {
        self.failed.store(true, Ordering::Relaxed);
        error
    }

    /// Makes the file of an inode that has none.
    pub fn create_file(&self, ino: u64) -> io::Result<DiskFile> {
        let mut new_names = self.new_names();
        let file = self.disk.create(&name_of(ino))?;
        *new_names = true;
        Ok(file)
    }

    /// Opens the file of an inode; `None` where it has none.
    pub fn open_file(&self, ino: u64) -> io::Result<Option<DiskFile>> {
        match self.disk.reopen(&name_of(ino)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file of an inode once its removal, noted before, is durable.
    pub fn doom(&self, ino: u64) {
        let mut state = self.state();
        let end = state.end;
        state.doomed.push((ino, end));
    }

    /// Removes the file of an inode that the journal never heard of.
    pub fn remove_file(&self, ino: u64) {
        // One that was never written has none; one that stays is found unused later.
        let _ = self.disk.remove(&name_of(ino));
    }

    /// Returns whether files wait for their removal to be durable.
    pub fn has_doomed(&self) -> bool {
        !self.state().doomed.is_empty()
    }

    /// Removes the files of all inodes but `kept`, which no name leads to any more.
    pub fn remove_others(&self, kept: &HashSet<u64>) -> io::Result<()> {
        for entry in fs::read_dir(self.dir())? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| *name != JOURNAL) else { continue };
            if u64::from_str_radix(name, 16).is_ok_and(|ino| !kept.contains(&ino)) {
                self.disk.remove(name)?;
            }
        }
        Ok(())
    }

    /// Returns what was done to the disk so far.
    #[cfg(test)]
    pub fn events(&self) -> Vec<disk::Event> {
        self.disk.events.lock().unwrap().clone()
    }
}

/// Returns the snapshot that the layer in `dir` lies over; `None` where there is no layer.
pub fn snapshot_below(dir: &Path) -> Result<Option<ObjectId>, Error> {
    let path = dir.join(JOURNAL);
    let mut begin = [0; journal::BEGIN];
    match regular::open(&path).and_then(|mut file| io::Read::read_exact(&mut file, &mut begin)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot::<Error>("read", &path)(error)),
    }
    let (_, snapshot) = journal::read_begin(&begin).map_err(|source| Error::Journal { path, source })?;
    Ok(Some(snapshot))
}

/// Returns where the layer in `dir` has the content of an inode, if it has any.
pub fn content_path(dir: &Path, ino: u64) -> PathBuf {
    dir.join(name_of(ino))
}

/// Returns the folder of the layer of a data directory in `dir`.
pub fn dir(dir: &Path) -> PathBuf {
    dir.join("local")
}
