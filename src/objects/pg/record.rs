//! WAL records: header, block references, and the few kinds that zenith looks into
//! (`src/include/access/xlogrecord.h`, `xact.h`, `src/include/catalog/pg_control.h`).

use super::Lsn;
use super::control::Sizes;
use super::crc::crc32c;
use super::version::Version;
use crate::objects::codec::{Malformed, Reader};

/// Length of the header, `SizeOfXLogRecord`, bytes.
pub const HEADER: usize = 24;
/// Where the checksum lies in it.
const CRC: usize = 20;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_TABLESPACE: u8 = 5;
const RM_STANDBY: u8 = 8;

/// PostgreSQL counts microseconds from 2000-01-01; everybody else from 1970-01-01.
const EPOCH_US: i64 = 946_684_800_000_000;

/// One record of the WAL.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where the next one may begin: PostgreSQL's `EndRecPtr`.
    pub end: Lsn,
    /// All of its bytes, put together, header first.
    pub bytes: &'a [u8],
    pub version: &'static Version,
}

/// A block that a record touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRef {
    pub tablespace: u32,
    pub database: u32,
    pub relation: u32,
    /// 0 main, 1 free space map, 2 visibility map, 3 init.
    pub fork: u8,
    pub block: u32,
    /// The record carries an image of the page, and replay puts it in place.
    pub has_image: bool,
    pub image_applies: bool,
    /// Replay makes the page anew.
    pub will_init: bool,
}

/// A commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Microseconds since 1970.
    pub time_us: i64,
    /// Whether it was prepared before.
    pub prepared: bool,
}

impl<'a> Record<'a> {
    fn u32_at(&self, at: usize) -> u32 {
        let mut number = [0; 4];
        number.copy_from_slice(&self.bytes[at..at + 4]); // the reader gives whole headers
        u32::from_le_bytes(number)
    }

    /// Returns the length of the record, `xl_tot_len`, bytes.
    pub fn length(&self) -> u32 {
        self.u32_at(0)
    }

    /// Returns the transaction, 0 where there is none.
    pub fn xid(&self) -> u32 {
        self.u32_at(4)
    }

    /// Returns where the record before begins.
    pub fn prev(&self) -> Lsn {
        Lsn(u64::from(self.u32_at(8)) | u64::from(self.u32_at(12)) << 32)
    }

    /// Returns the resource manager's own flags.
    pub fn info(&self) -> u8 {
        self.bytes[16]
    }

    /// Returns the number of the resource manager.
    pub fn resource_manager(&self) -> u8 {
        self.bytes[17]
    }

    /// Returns the resource manager's name, as `pg_waldump` prints it.
    pub fn resource_manager_name(&self) -> String {
        const NAMES: [&str; 22] = [
            "XLOG",
            "Transaction",
            "Storage",
            "CLOG",
            "Database",
            "Tablespace",
            "MultiXact",
            "RelMap",
            "Standby",
            "Heap2",
            "Heap",
            "Btree",
            "Hash",
            "Gin",
            "Gist",
            "Sequence",
            "SPGist",
            "BRIN",
            "CommitTs",
            "ReplicationOrigin",
            "Generic",
            "LogicalMessage",
        ];
        let number = self.resource_manager();
        NAMES.get(usize::from(number)).map_or_else(|| format!("custom{number:03}"), |name| (*name).to_owned())
    }

    /// Returns whether the rest of the segment after this record is unused.
    pub fn is_switch(&self) -> bool {
        self.resource_manager() == RM_XLOG && self.info() & 0xF0 == 0x40
    }

    /// Returns the blocks that the record touches, and its main data.
    pub fn body(&self) -> Result<(Vec<BlockRef>, &'a [u8]), Malformed> {
        let mut reader = Reader::new(self.bytes);
        reader.take(HEADER)?;
        let mut blocks: Vec<BlockRef> = Vec::new();
        let (mut data, mut main) = (0usize, 0usize);
        let mut last_block = None;
        while reader.left() > data {
            match reader.u8()? {
                // The main data is announced last and lies last.
                255 => main = usize::from(reader.u8()?),
                254 => main = reader.u32()? as usize,
                253 => drop(reader.take(2)?),
                252 => drop(reader.take(4)?),
                id if id <= 32 => {
                    if last_block.is_some_and(|last| id <= last) {
                        return Err(reader.malformed("block references out of order"));
                    }
                    last_block = Some(id);
                    let (block, length) = self.block_ref(&mut reader, blocks.last())?;
                    blocks.push(block);
                    data += length;
                    continue;
                }
                _ => return Err(reader.malformed("an unknown kind of block reference")),
            }
            if main > 0 {
                data = data.saturating_add(main);
                break;
            }
        }
        if reader.left() != data {
            return Err(reader.malformed("a record whose parts do not add up to its length"));
        }
        Ok((blocks, &self.bytes[self.bytes.len() - main..]))
    }

    /// Reads one block reference. Returns it, and the bytes of image and data that it has further on.
    fn block_ref(&self, reader: &mut Reader, last: Option<&BlockRef>) -> Result<(BlockRef, usize), Malformed> {
        let flags = reader.u8()?;
        let mut length = usize::from(u16::from_le_bytes(reader.array()?));
        if (flags & 0x20 != 0) != (length > 0) {
            return Err(reader.malformed("a block reference that contradicts itself"));
        }
        let mut applies = false;
        if flags & 0x10 != 0 {
            length += usize::from(u16::from_le_bytes(reader.array()?));
            reader.take(2)?;
            let image = reader.u8()?;
            applies = image & self.version.image_apply != 0;
            if image & self.version.image_compressed != 0 && image & 0x01 != 0 {
                reader.take(2)?;
            }
        }
        let (tablespace, database, relation) = match last {
            _ if flags & 0x80 == 0 => (reader.u32()?, reader.u32()?, reader.u32()?),
            Some(last) => (last.tablespace, last.database, last.relation),
            None => return Err(reader.malformed("a block reference to the relation before, but there is none")),
        };
        let block = BlockRef {
            tablespace,
            database,
            relation,
            fork: flags & 0x0F,
            block: reader.u32()?,
            has_image: flags & 0x10 != 0,
            image_applies: applies,
            will_init: flags & 0x40 != 0,
        };
        Ok((block, length))
    }

    /// Returns what the record commits, if it does.
    pub fn commit(&self) -> Option<Commit> {
        if self.resource_manager() != RM_XACT {
            return None;
        }
        let prepared = match self.info() & 0x70 {
            0x00 => false,
            0x30 => true,
            _ => return None,
        };
        let (_, main) = self.body().ok()?;
        let time = i64::from_le_bytes(main.get(..8)?.try_into().ok()?);
        Some(Commit { time_us: time.saturating_add(EPOCH_US), prepared })
    }

    /// Returns whether the record is one of those that every server writes by itself, and that change nothing that a
    /// cluster holds (`pg_control.h`, `standbydefs.h`; the same in 14 to 18). A closed list: whatever is not on it
    /// counts as a change, also what PostgreSQL may write one day.
    pub fn changes_nothing(&self) -> bool {
        match (self.resource_manager(), self.info() & 0xF0) {
            // CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE, NOOP, SWITCH, PARAMETER_CHANGE (with what settings it was
            // started), FPW_CHANGE, END_OF_RECOVERY, CHECKPOINT_REDO. Not NEXTOID, BACKUP_END, RESTORE_POINT,
            // FPI_FOR_HINT, FPI, OVERWRITE_CONTRECORD.
            (RM_XLOG, 0x00 | 0x10 | 0x20 | 0x40 | 0x60 | 0x80 | 0x90 | 0xE0) => true,
            // RUNNING_XACTS. Not LOCK, INVALIDATIONS.
            (RM_STANDBY, 0x10) => true,
            _ => false,
        }
    }

    /// Returns the settings that the server has from this record on, if it tells of them (`xl_parameter_change`).
    pub fn sizes(&self) -> Option<Sizes> {
        let tells = self.resource_manager() == RM_XLOG && self.info() & 0xF0 == 0x60;
        let (_, main) = tells.then(|| self.body().ok()).flatten()?;
        Some(Sizes::parse(main.first_chunk()?))
    }

    /// Returns the start of the backup that this record ends, if it does.
    pub fn backup_end(&self) -> Option<Lsn> {
        let is_end = self.resource_manager() == RM_XLOG && self.info() & 0xF0 == 0x50;
        let (_, main) = is_end.then(|| self.body().ok()).flatten()?;
        Some(Lsn(u64::from_le_bytes(main.get(..8)?.try_into().ok()?)))
    }

    /// For a record that makes a tablespace in a folder of its own, returns what has to change in it so that it makes
    /// that as a folder of the data directory instead: offsets in the record, and bytes. PostgreSQL takes an empty
    /// path that way (`src/backend/commands/tablespace.c`).
    pub fn tablespace_in_place(&self) -> Option<[(usize, Vec<u8>); 2]> {
        let creates = self.resource_manager() == RM_TABLESPACE && self.info() & 0xF0 == 0;
        let (_, main) = creates.then(|| self.body().ok()).flatten()?;
        // Its number comes first.
        let path = 4;
        main.get(path).filter(|byte| **byte != 0)?;
        let at = self.bytes.len() - main.len() + path;
        let mut bytes = self.bytes.to_vec();
        bytes[at] = 0;
        let crc = crc32c(&[&bytes[HEADER..], &bytes[..CRC]]);
        Some([(CRC, crc.to_le_bytes().to_vec()), (at, vec![0])])
    }
}
