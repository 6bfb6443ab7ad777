//! What the targets feed: the modules of the program that read bytes which somebody else wrote.

#[path = "../src/objects/mod.rs"]
pub mod objects;
#[path = "../src/progress.rs"]
pub mod progress;

#[path = "../src/plumbing"]
pub mod plumbing {
    pub mod datadir {
        mod error;
        pub mod exclude;
        pub mod tar;
        pub mod write;
        pub mod local {
            pub mod journal;
        }
        pub use error::{Doubt, Error, WalFilesError};
    }
    pub mod pageserver {
        pub mod startup;
    }
}
