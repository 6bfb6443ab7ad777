//! Writes the seeds of the fuzz targets: real objects and files of a repository, cut to a length at which a fuzzer is quick.
//!
//! Usage: cargo run --example seeds -- REPOSITORY (the folder .zenith itself)

use std::fs;
use std::path::{Path, PathBuf};

use zenith::objects::pg::wal::{Expected, segment_header};
use zenith::objects::snapshot::{Content, Node, Snapshot};
use zenith::objects::store::encode::Encoded;
use zenith::objects::{Kind, ObjectId, Repo, wal};
use zenith::plumbing::datadir::local::journal::{Record, header};

fn main() {
    let repo = PathBuf::from(std::env::args().nth(1).expect("usage: seeds REPOSITORY"));
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(seeds.join(target)).expect("a folder for seeds");
        fs::write(seeds.join(target).join(name), bytes).expect("seeds can be written");
    };
    let text = |path: &Path| fs::read(path).expect("a file of the repository");

    let dir = repo;
    let repo = Repo::open(&dir).expect("a repository");
    write("config", "config", &text(&dir.join("config")));
    for timeline in repo.timelines().list().expect("timelines") {
        let folder = dir.join("timelines").join(timeline.to_string());
        write("log", &timeline.short(), &text(&folder.join("log")));
        write("origin", &timeline.short(), &text(&folder.join("origin")));
        write("snapshots", &timeline.short(), &text(&folder.join("snapshots")));
    }
    write("refs", "branch", &text(&dir.join("refs/branches/main")));
    write("refs", "reflog", text(&dir.join("logs/HEAD")).split(|byte| *byte == b'\n').next().expect("a line"));
    for (name, revision) in
        [("lsn", "main@0/15ECF68"), ("time", "v1@{2026-11-20 12:00+01}"), ("ago", "HEAD~2@{5 minutes ago}")]
    {
        write("refs", name, revision.as_bytes());
    }
    for tag in repo.refs().list(zenith::objects::refs::RefKind::Tag).expect("tags") {
        write("refs", "tag", tag.1.format().as_bytes());
    }

    let stored = |name: &str, id: &ObjectId, content: &[u8], kind| {
        let mut bytes = Vec::new();
        Encoded::compress(*id, kind, content, 3).write(&mut bytes);
        if bytes.len() < 4096 {
            write("stored", name, &bytes);
        }
    };
    let (mut maps, mut frames) = (0, 0);
    for id in repo.store().ids().expect("objects") {
        let object = repo.store().read(&id).expect("a sound object");
        match object.kind {
            Kind::Map if object.content.len() < 4096 && maps < 10 => {
                maps += 1;
                write("map", &id.short(), &object.content);
                stored(&id.short(), &id, &object.content, Kind::Map);
            }
            Kind::Frame if object.content.len() < 4096 && frames < 10 => {
                frames += 1;
                stored(&id.short(), &id, &object.content, Kind::Frame);
            }
            Kind::Snapshot => {
                let whole = Snapshot::decode(&object.content).expect("a sound snapshot");
                let few = |entry: &&zenith::objects::snapshot::Entry| {
                    let is_map = matches!(entry.node, Node::File { content: Content::Map(_), .. });
                    is_map || entry.node == Node::Dir || !entry.path.starts_with(b"base/")
                };
                let entries = whole.entries.iter().filter(few).take(50).cloned().collect();
                write("snapshot", &id.short(), &Snapshot { entries, ..whole }.encode());
            }
            Kind::Wal => {
                let (_, bytes) = wal::decode(&object.content).expect("a sound interval");
                write("wal_object", &id.short(), &object.content[..object.content.len().min(100)]);
                let at = (bytes.len() / 2).next_multiple_of(8192).min(bytes.len());
                write("wal", &id.short(), &[&[1, 0], &bytes[..bytes.len().min(4000)]].concat());
                write(
                    "wal",
                    &format!("{}-middle", id.short()),
                    &[&[1, 0], &bytes[at..bytes.len().min(at + 4000)]].concat(),
                );
            }
            _ => {}
        }
        if object.kind == Kind::Frame
            && object.content.len() == 8192
            && object.content[228..232] == (16u32 << 20).to_le_bytes()
        {
            write("control", &id.short(), &object.content[..512]);
        }
    }
    for version in &zenith::objects::pg::version::VERSIONS {
        let expected = Expected { version, segment_size: 1 << 20, system_identifier: 7 };
        write("wal", &format!("header-{}", version.major), &segment_header(&expected, repo_start(), 1));
    }

    let mut journal = header(&ObjectId([7; 32]));
    let name = b"16384.1".to_vec();
    for (number, record) in [
        Record::File { parent: 1, name: name.clone(), ino: 70, mode: 0o600 },
        Record::Folder { parent: 1, name: name.clone(), ino: 71, mode: 0o700 },
        Record::Symlink { parent: 1, name: name.clone(), ino: 72, mode: 0o777, target: b"/x".to_vec() },
        Record::Link { parent: 71, name: name.clone(), ino: 70 },
        Record::Remove { parent: 71, name: name.clone() },
        Record::Rename { parent: 1, name: name.clone(), new_parent: 71, new_name: name },
        Record::Mode { ino: 70, mode: 0o640 },
        Record::Cut { ino: 70, length: 1 << 40 },
        Record::Local { ino: 70, runs: vec![(0, 1), (5, 32), (100_000, 1)] },
    ]
    .iter()
    .enumerate()
    {
        let mut alone = Vec::new();
        record.encode(number as u64, 0, &mut alone);
        // As the target takes it: a length, and the payload.
        write("journal", &format!("record-{number}"), &[&[(alone.len() - 16) as u8], &alone[16..]].concat());
        record.encode(number as u64, journal.len() as u64, &mut journal);
    }
    write("journal", "whole", &journal);
    write("index", "three", &(0..105).collect::<Vec<u8>>());
    write("multi_index", "three", &[&[2][..], &(0..144).collect::<Vec<u8>>()].concat());

    let mut backup = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        backup.append_data(&mut header, path, content).expect("memory");
    };
    add(tar::EntryType::Directory, "base/", b"");
    add(tar::EntryType::Regular, "./PG_VERSION", b"15\n");
    add(tar::EntryType::Regular, &"long/".repeat(30), b"x");
    add(tar::EntryType::Regular, "pg_wal/000000010000000000000001", b"wal");
    write("tar", "backup", &backup.into_inner().expect("memory"));
}

/// The start that the target gives to what it reads.
fn repo_start() -> zenith::objects::pg::Lsn {
    zenith::objects::pg::Lsn(1 << 20)
}
