//! A disk in memory whose power can be cut: it notes every change of what lies on it, and gives the state of any
//! moment back, with what was synced by then and with any part of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::Random;

const ROOT: u64 = 1;
/// How long the kernel may keep names and attributes.
const TTL: Duration = Duration::from_secs(3600);

type Names = BTreeMap<Vec<u8>, u64>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder(Names),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Socket,
}

#[derive(Debug, Clone)]
struct Node {
    content: Content,
    mode: u32,
    owner: (u32, u32),
    /// What a power cut leaves; nothing of it was ever synced where that is `None`.
    durable: Option<Content>,
}

/// One change, or one sync.
#[derive(Debug, Clone)]
enum Op {
    Make { parent: u64, name: Vec<u8>, ino: u64, node: Node },
    Link { parent: u64, name: Vec<u8>, ino: u64 },
    Remove { parent: u64, name: Vec<u8> },
    Rename { from: (u64, Vec<u8>), to: (u64, Vec<u8>) },
    Write { ino: u64, offset: usize, bytes: Vec<u8> },
    Resize { ino: u64, length: usize },
    Sync { ino: u64 },
}

/// What lies on a disk.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<u64, Node>,
}

impl Default for Disk {
    fn default() -> Disk {
        let content = Content::Folder(Names::new());
        let root = Node { durable: Some(content.clone()), content, mode: 0o755, owner: (0, 0) };
        Disk { nodes: BTreeMap::from([(ROOT, root)]) }
    }
}

impl Disk {
    fn names(&mut self, ino: u64) -> &mut Names {
        match &mut self.nodes.get_mut(&ino).expect("a folder").content {
            Content::Folder(names) => names,
            _ => panic!("not a folder"),
        }
    }

    fn bytes(&mut self, ino: u64) -> &mut Vec<u8> {
        match &mut self.nodes.get_mut(&ino).expect("a file").content {
            Content::File(bytes) => bytes,
            _ => panic!("not a file"),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::Make { parent, name, ino, node } => {
                self.nodes.insert(ino, node);
                self.names(parent).insert(name, ino);
            }
            Op::Link { parent, name, ino } => drop(self.names(parent).insert(name, ino)),
            Op::Remove { parent, name } => drop(self.names(parent).remove(&name)),
            Op::Rename { from, to } => {
                let ino = self.names(from.0).remove(&from.1).expect("looked up");
                self.names(to.0).insert(to.1, ino);
            }
            Op::Write { ino, offset, bytes } => {
                let content = self.bytes(ino);
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            Op::Resize { ino, length } => self.bytes(ino).resize(length, 0),
            Op::Sync { ino } => {
                let node = self.nodes.get_mut(&ino).expect("it is open");
                node.durable = Some(node.content.clone());
            }
        }
    }

    /// Returns what a power cut leaves: all that was synced; of each name and each file's content that was not, the
    /// new one where `keeps` says so.
    fn cut(&self, keeps: &mut dyn FnMut() -> bool) -> Disk {
        let mut left = BTreeMap::new();
        let mut todo = BTreeSet::from([ROOT]);
        while let Some(ino) = todo.pop_first() {
            let node = &self.nodes[&ino];
            let content = match (&node.content, &node.durable) {
                (Content::Folder(new), old) => {
                    let empty = Names::new();
                    let old = if let Some(Content::Folder(old)) = old { old } else { &empty };
                    let all: BTreeSet<&Vec<u8>> = new.keys().chain(old.keys()).collect();
                    let pick = |name: &Vec<u8>| {
                        let (new, old) = (new.get(name), old.get(name));
                        let picked = if new == old || keeps() { new } else { old };
                        picked.map(|ino| (name.clone(), *ino))
                    };
                    let names: Names = all.into_iter().filter_map(pick).collect();
                    todo.extend(names.values().filter(|ino| !left.contains_key(*ino)));
                    Content::Folder(names)
                }
                (Content::File(new), Some(Content::File(old))) => {
                    Content::File(if new == old || keeps() { new.clone() } else { old.clone() })
                }
                (Content::File(new), _) => Content::File(if keeps() { new.clone() } else { Vec::new() }),
                (other, _) => other.clone(),
            };
            left.insert(ino, Node { durable: Some(content.clone()), content, ..node.clone() });
        }
        self.unlink_twins(&mut left);
        Disk { nodes: left }
    }

    /// Takes the old name from each folder of `left` that has a new one as well: unlike a file it never has two, since a
    /// rename is one transaction of a file system's journal.
    fn unlink_twins(&self, left: &mut BTreeMap<u64, Node>) {
        let mut places = BTreeMap::<u64, usize>::new();
        let names = |node: &Node| if let Content::Folder(names) = &node.content { names.clone() } else { Names::new() };
        left.values().flat_map(|node| names(node).into_values()).for_each(|ino| *places.entry(ino).or_default() += 1);
        places.retain(|ino, count| *count > 1 && matches!(self.nodes[ino].content, Content::Folder(_)));
        for (folder, node) in left {
            let now = names(&self.nodes[folder]);
            if let Content::Folder(names) = &mut node.content {
                names.retain(|name, ino| !places.contains_key(ino) || now.get(name) == Some(ino));
            }
            node.durable = Some(node.content.clone());
        }
    }
}

/// What happened to a disk while a command ran.
pub struct Recorded {
    before: Disk,
    ops: Vec<Op>,
}

/// How a disk stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// All processes end, and what they wrote stays.
    Kill,
    /// Nothing stays that was not synced.
    Cut,
    /// Of what was not synced, any part stays.
    Partly,
}

impl Recorded {
    /// Returns how many changes and syncs there were.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Returns the disk as it was before the change `number`, stopped in this way.
    pub fn at(&self, number: usize, stop: Stop, random: &mut Random) -> Disk {
        let mut disk = self.before.clone();
        self.ops[..number].iter().for_each(|op| disk.apply(op));
        match stop {
            Stop::Kill => disk.cut(&mut || true),
            Stop::Cut => disk.cut(&mut || false),
            Stop::Partly => disk.cut(&mut || random.below(2) == 0),
        }
    }
}

struct Inner {
    disk: Disk,
    /// The state before, and all changes since, while a command is being watched.
    watched: Option<Recorded>,
    /// The next inode, and the next handle of an open folder.
    next: u64,
    /// Open folders list what they held when they were opened.
    listings: BTreeMap<u64, Names>,
}

impl Inner {
    fn apply(&mut self, op: Op) {
        self.disk.apply(&op);
        if let Some(watched) = &mut self.watched {
            watched.ops.push(op);
        }
    }

    fn make(&mut self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32), content: Content) -> u64 {
        let (ino, name) = (self.next, name.as_encoded_bytes().to_vec());
        self.next += 1;
        // What a socket or a link is comes with its name.
        let durable = matches!(content, Content::Socket | Content::Symlink(_)).then(|| content.clone());
        let node = Node { content, mode: mode & 0o7777, owner, durable };
        self.apply(Op::Make { parent, name, ino, node });
        ino
    }

    fn lookup(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.disk.names(parent).get(name.as_encoded_bytes()).copied().ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let node = &self.disk.nodes[&ino];
        let (kind, size) = match &node.content {
            Content::Folder(_) => (FileType::Directory, 4096),
            Content::File(bytes) => (FileType::RegularFile, bytes.len() as u64),
            Content::Symlink(target) => (FileType::Symlink, target.len() as u64),
            Content::Socket => (FileType::Socket, 0),
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: node.mode as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: node.owner.0,
            gid: node.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// A disk that is mounted. Dropping it unmounts it.
pub struct Mounted {
    inner: Arc<Mutex<Inner>>,
    dir: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl Mounted {
    /// Mounts `disk` at `dir`; fails where there is no FUSE.
    pub fn new(disk: Disk, dir: &Path) -> std::io::Result<Mounted> {
        let next = disk.nodes.keys().last().map_or(ROOT, |last| *last) + 1;
        let inner = Arc::new(Mutex::new(Inner { disk, watched: None, next, listings: BTreeMap::new() }));
        let mut config = Config::default();
        config.n_threads = Some(4);
        config.clone_fd = true;
        let session = fuser::Session::new(Fs { inner: inner.clone() }, dir, &config)?.spawn()?;
        Ok(Mounted { inner, dir: dir.to_owned(), session: Some(session) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns what lies on it now.
    pub fn disk(&self) -> Disk {
        self.inner().disk.clone()
    }

    /// Runs `command`, and returns what happened to the disk meanwhile.
    pub fn watch(&self, command: impl FnOnce()) -> Recorded {
        {
            let mut inner = self.inner();
            let before = inner.disk.clone();
            inner.watched = Some(Recorded { before, ops: Vec::new() });
        }
        command();
        self.inner().watched.take().expect("set above")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Somebody may still stand in it.
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
        drop(session);
    }
}

struct Fs {
    inner: Arc<Mutex<Inner>>,
}

impl Fs {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn made(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, content: Content) -> FileAttr {
        let mut inner = self.inner();
        let ino = inner.make(parent.0, name, mode, (request.uid(), request.gid()), content);
        inner.attr(ino)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, folder: bool, reply: ReplyEmpty) {
        let mut inner = self.inner();
        let ino = match inner.lookup(parent.0, name) {
            Ok(ino) => ino,
            Err(error) => return reply.error(error),
        };
        match &inner.disk.nodes[&ino].content {
            Content::Folder(_) if !folder => return reply.error(Errno::EISDIR),
            Content::Folder(names) if !names.is_empty() => return reply.error(Errno::ENOTEMPTY),
            Content::Folder(_) => {}
            _ if folder => return reply.error(Errno::ENOTDIR),
            _ => {}
        }
        inner.apply(Op::Remove { parent: parent.0, name: name.as_encoded_bytes().to_vec() });
        reply.ok();
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        self.inner().apply(Op::Sync { ino: ino.0 });
        reply.ok();
    }
}

impl Filesystem for Fs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut inner = self.inner();
        match inner.lookup(parent.0, name) {
            Ok(ino) => reply.entry(&TTL, &inner.attr(ino), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.inner().attr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut inner = self.inner();
        if let Some(size) = size {
            inner.apply(Op::Resize { ino: ino.0, length: size as usize });
        }
        // Modes and owners are taken for durable at once.
        if let Some(node) = inner.disk.nodes.get_mut(&ino.0) {
            node.mode = mode.map_or(node.mode, |mode| mode & 0o7777);
            node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
        }
        reply.attr(&TTL, &inner.attr(ino.0));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match &self.inner().disk.nodes[&ino.0].content {
            Content::Symlink(target) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let content = if mode & 0o170_000 == 0o140_000 { Content::Socket } else { Content::File(Vec::new()) };
        reply.entry(&TTL, &self.made(request, parent, name, mode, content), Generation(0));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.made(request, parent, name, mode, Content::Folder(Names::new()));
        reply.entry(&TTL, &made, Generation(0));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let content = Content::Symlink(target.as_os_str().as_encoded_bytes().to_vec());
        reply.entry(&TTL, &self.made(request, parent, name, 0o777, content), Generation(0));
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.made(request, parent, name, mode, Content::File(Vec::new()));
        reply.created(&TTL, &made, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, false, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, true, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut inner = self.inner();
        let taken = inner.lookup(newparent.0, newname);
        if taken.is_ok() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
            return reply.error(Errno::EEXIST);
        }
        if let Ok(ino) = taken
            && matches!(&inner.disk.nodes[&ino].content, Content::Folder(names) if !names.is_empty())
        {
            return reply.error(Errno::ENOTEMPTY);
        }
        let bytes = |name: &OsStr| name.as_encoded_bytes().to_vec();
        inner.apply(Op::Rename { from: (parent.0, bytes(name)), to: (newparent.0, bytes(newname)) });
        reply.ok();
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let mut inner = self.inner();
        let name = newname.as_encoded_bytes().to_vec();
        inner.apply(Op::Link { parent: newparent.0, name, ino: ino.0 });
        reply.entry(&TTL, &inner.attr(ino.0), Generation(0));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut inner = self.inner();
        let bytes = inner.disk.bytes(ino.0);
        let start = (offset as usize).min(bytes.len());
        reply.data(&bytes[start..(start + size as usize).min(bytes.len())]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.inner().apply(Op::Write { ino: ino.0, offset: offset as usize, bytes: data.to_vec() });
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut inner = self.inner();
        let (names, handle) = (inner.disk.names(ino.0).clone(), inner.next);
        inner.next += 1;
        inner.listings.insert(handle, names);
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.inner().listings.remove(&fh.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let inner = self.inner();
        let names = inner.listings.get(&fh.0).cloned().unwrap_or_default();
        let dots = [(b".".to_vec(), ino.0), (b"..".to_vec(), ROOT)];
        for (number, (name, ino)) in dots.into_iter().chain(names).enumerate().skip(offset as usize) {
            let kind = inner.attr(ino).kind;
            if reply.add(INodeNo(ino), number as u64 + 1, kind, OsStr::from_bytes(&name)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 22, 1 << 21, 1 << 21, 1 << 20, 1 << 19, 4096, 255, 4096);
    }
}
