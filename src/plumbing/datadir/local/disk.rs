//! The few things that the local layer does to the disk. All of them in one place, so that the
//! test of power cuts can record them and play every state that a cut may leave.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::{Arc, Mutex};

use crate::objects::{durable, regular};

/// What was done, in the order in which it was done.
#[cfg(test)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Create(String),
    Remove(String),
    Write { name: String, offset: u64, bytes: Vec<u8> },
    Resize { name: String, length: u64 },
    Sync(String),
    SyncDir,
}

/// The folder of a local layer.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    #[cfg(test)]
    pub events: Arc<Mutex<Vec<Event>>>,
}

/// A file in it.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    #[cfg(test)]
    name: String,
    #[cfg(test)]
    events: Arc<Mutex<Vec<Event>>>,
}

impl Disk {
    /// Opens the folder `dir`, which exists.
    pub fn open(dir: &Path) -> Disk {
        Disk {
            dir: dir.to_owned(),
            #[cfg(test)]
            events: Arc::default(),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self, name: &str, file: File) -> DiskFile {
        let _ = name;
        DiskFile {
            file,
            #[cfg(test)]
            name: name.to_owned(),
            #[cfg(test)]
            events: self.events.clone(),
        }
    }

    /// Creates a file, which must not exist.
    pub fn create(&self, name: &str) -> io::Result<DiskFile> {
        let file = regular::open_with(File::options().read(true).write(true).create_new(true), &self.dir.join(name))?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::Create(name.to_owned()));
        Ok(self.file(name, file))
    }

    /// Opens a file, which exists.
    pub fn reopen(&self, name: &str) -> io::Result<DiskFile> {
        let file = regular::open_with(File::options().read(true).write(true), &self.dir.join(name))?;
        Ok(self.file(name, file))
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::Remove(name.to_owned()));
        Ok(())
    }

    /// Makes the names of created files durable.
    pub fn sync_dir(&self) -> io::Result<()> {
        durable::sync_dir(&self.dir)?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::SyncDir);
        Ok(())
    }
}

impl DiskFile {
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Returns the file for what does not change it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` from `offset` on; zeros stand for what lies behind the end.
    pub fn read(&self, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.read_at(bytes, offset) {
                Ok(0) => {
                    bytes.fill(0);
                    break;
                }
                Ok(read) => {
                    offset += read as u64;
                    bytes = &mut bytes[read..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::Write { name: self.name.clone(), offset, bytes: bytes.to_vec() });
        Ok(())
    }

    pub fn resize(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::Resize { name: self.name.clone(), length });
        Ok(())
    }

    /// Makes content and length durable.
    pub fn sync(&self) -> io::Result<()> {
        durable::sync_open(&self.file)?;
        #[cfg(test)]
        self.events.lock().unwrap().push(Event::Sync(self.name.clone()));
        Ok(())
    }
}
