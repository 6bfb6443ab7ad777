//! The four kinds of object.

use super::frame::FRAME_SIZE;
use super::wal::MAX_INTERVAL;

/// What an object is. The numbers stand in packs and loose objects and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Up to 32 blocks of one file, or a whole small file.
    Frame = 1,
    /// Which block of a file is which part of which frame.
    Map = 2,
    /// A cluster's files as of an LSN.
    Snapshot = 3,
    /// An interval of a timeline's WAL.
    Wal = 4,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 4] = [Kind::Frame, Kind::Map, Kind::Snapshot, Kind::Wal];

    /// Returns the kind's name, as `cat-object -t` prints it and as ids are made from it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Frame => "frame",
            Kind::Map => "map",
            Kind::Snapshot => "snapshot",
            Kind::Wal => "wal",
        }
    }

    /// Returns the most bytes that the content of such an object may have: whoever reads one allocates no more on
    /// the word of its header, and nobody writes a longer one.
    pub fn longest(self) -> usize {
        match self {
            Kind::Frame => FRAME_SIZE,
            // A file of 900 GiB, or of 100 GiB whose blocks lie scattered; PostgreSQL's have 1 GiB.
            Kind::Map => 128 << 20,
            // As many entries as there may be, with 64 bytes each.
            Kind::Snapshot => 512 << 20,
            Kind::Wal => MAX_INTERVAL + 8,
        }
    }

    /// Returns the kind with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}
