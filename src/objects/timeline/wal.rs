//! The WAL of a timeline as one stream, from wherever its bytes lie: the sealed intervals of its
//! chain, and beyond them the active segments.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::log::WalInterval;
use super::{Error, Timeline, TimelineId, Timelines};
use crate::objects::pg::Lsn;
use crate::objects::pg::segment;
use crate::objects::pg::wal::WalSource;
use crate::objects::store::{self, Store};
use crate::objects::{Kind, regular, wal};

/// The folder, in that of the active WAL, of copies of segments that PostgreSQL completed and may recycle, and that are not sealed: nothing in
/// them counts yet.
pub const KEPT: &str = "kept";

/// Active segments: a folder in PostgreSQL's own format.
#[derive(Debug)]
pub struct Segments {
    dir: PathBuf,
    /// PostgreSQL's own timeline id, part of the names.
    timeline: u32,
    segment_size: u32,
    open: Option<Opened>,
}

/// The segment that is read.
#[derive(Debug)]
struct Opened {
    number: u64,
    file: File,
    path: PathBuf,
}

impl Opened {
    /// Returns whether the file still has its name: under another one PostgreSQL makes another segment of it.
    fn is_still_there(&self) -> io::Result<bool> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let own = identity(self.file.metadata()?);
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            there => Ok(identity(there?) == own),
        }
    }
}

impl Segments {
    /// Opens the segments in `dir`; those that are not there count as the end.
    pub fn new(dir: PathBuf, timeline: u32, segment_size: u32) -> Segments {
        Segments { dir, timeline, segment_size, open: None }
    }

    /// Returns another reader of the same segments.
    pub fn clone_of(other: &Segments) -> Segments {
        Segments::new(other.dir.clone(), other.timeline, other.segment_size)
    }

    /// Opens the segment of an LSN: the one that PostgreSQL has, or the copy of it that was kept before another one was made of that.
    fn file(&mut self, lsn: Lsn) -> io::Result<Option<&Opened>> {
        let number = lsn.segment_number(self.segment_size);
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            let name = segment::file_name(self.timeline, lsn, self.segment_size);
            self.open = None;
            for path in [self.dir.join(&name), self.dir.join(KEPT).join(&name)] {
                match regular::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    file => {
                        self.open = Some(Opened { number, file: file?, path });
                        break;
                    }
                }
            }
        }
        Ok(self.open.as_ref())
    }
}

impl WalSource for Segments {
    fn read(&mut self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = lsn.plus(done as u64);
            let offset = at.segment_offset(self.segment_size);
            let room = ((self.segment_size - offset) as usize).min(buffer.len() - done);
            let Some(open) = self.file(at)? else { break };
            let read = open.file.read_at(&mut buffer[done..done + room], u64::from(offset))?;
            // What was read before that look was this segment's.
            if !open.is_still_there()? {
                self.open = None;
                continue;
            }
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }
}

/// The WAL of a timeline and its ancestors. Memory: one interval.
pub struct TimelineWal<'a> {
    store: &'a Store,
    sealed: Vec<(TimelineId, WalInterval)>,
    /// Where the sealed WAL ends.
    end: Lsn,
    active: Option<Segments>,
    /// Number of the interval at hand, and its bytes.
    loaded: Option<(usize, Vec<u8>)>,
}

impl<'a> TimelineWal<'a> {
    /// Opens the sealed WAL of `timeline` from `from` on, and beyond it the active segments, if given.
    pub fn open(
        store: &'a Store,
        timelines: &Timelines,
        timeline: &Timeline,
        from: Lsn,
        active: Option<Segments>,
    ) -> Result<TimelineWal<'a>, Error> {
        let end = timeline.sealed();
        let sealed = timelines.wal(timeline, from, end)?;
        Ok(TimelineWal { store, sealed, end, active, loaded: None })
    }

    /// Returns the first LSN that there is WAL for.
    pub fn start(&self) -> Option<Lsn> {
        self.sealed.first().map(|(_, interval)| interval.start)
    }

    fn interval(&mut self, number: usize) -> Result<&[u8], store::Error> {
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            let id = self.sealed[number].1.object;
            let content = store::expect_kind(&id, self.store.read(&id)?, Kind::Wal)?;
            self.loaded = Some((number, content));
        }
        let (_, content) = self.loaded.as_ref().expect("loaded above");
        let interval = &self.sealed[number].1;
        match wal::decode(content) {
            Ok((start, bytes)) if start == interval.start && bytes.len() as u64 >= interval.end.since(start) => {
                Ok(bytes)
            }
            _ => Err(store::Error::Corrupt {
                id: interval.object,
                path: self.store.dir().to_owned(),
                what: "it is not the interval that the timeline's log says".to_owned(),
            }),
        }
    }
}

impl WalSource for TimelineWal<'_> {
    fn read(&mut self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = lsn.plus(done as u64);
            if at >= self.end {
                let Some(active) = &mut self.active else { break };
                return Ok(done + active.read(at, &mut buffer[done..])?);
            }
            let number = self.sealed.partition_point(|(_, interval)| interval.end <= at);
            let Some((_, interval)) = self.sealed.get(number).copied().filter(|(_, interval)| interval.start <= at)
            else {
                break;
            };
            let skipped = at.since(interval.start) as usize; // an interval has at most 1 GiB
            let count = (interval.end.since(at) as usize).min(buffer.len() - done);
            let bytes = self.interval(number).map_err(io::Error::other)?;
            buffer[done..done + count].copy_from_slice(&bytes[skipped..skipped + count]);
            done += count;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_is_recycled_while_it_is_read_is_read_from_the_copy_that_was_kept() {
        const SIZE: u32 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = |number: u64| dir.path().join(segment::file_name(1, Lsn(number * u64::from(SIZE)), SIZE));
        fs::write(path(1), vec![1; SIZE as usize]).unwrap();
        let mut segments = Segments::new(dir.path().to_owned(), 1, SIZE);
        let mut read = |at: u64| {
            let mut buffer = [0; 8];
            let length = segments.read(Lsn(at), &mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        let start = u64::from(SIZE);
        assert_eq!(read(start), [1; 8]);
        let kept = dir.path().join(KEPT);
        fs::create_dir(&kept).unwrap();
        fs::copy(path(1), kept.join(path(1).file_name().unwrap())).unwrap();
        fs::File::options().write(true).open(path(1)).unwrap().write_all_at(&[2; 100], 0).unwrap();
        crate::objects::durable::replace_by(&path(1), &path(3)).unwrap();
        assert_eq!(read(start), [1; 8]);
        assert_eq!(read(3 * start), [2; 8]);
        // Nothing was kept of it.
        crate::objects::durable::replace_by(&path(3), &path(5)).unwrap();
        assert!(read(3 * start).is_empty());
    }
}
