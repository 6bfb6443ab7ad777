//! Between the kernel's FUSE and the [`Vfs`]: translates requests and errors, and decides nothing.
//!
//! Writes go through to the local layer at once, while the kernel keeps what it read or wrote in its
//! page cache, also from one open to the next: nobody else changes the files. So names and attributes
//! are the kernel's to keep too.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL, TimeOrNow,
    WriteFlags,
};
use nix::sys::statvfs::statvfs;
use nix::unistd::{getegid, geteuid};

use super::control::{self, NAMES, Name};
use super::mounts::{Device, device_at};
use super::vfs::{Attributes, Kind, Make, ROOT, Vfs};
use crate::objects::regular;

/// How long the kernel may keep what it was told: only it changes anything.
const FOREVER: Duration = Duration::from_secs(1 << 30);
const NOT_AT_ALL: Duration = Duration::ZERO;
/// The largest request, bytes: what the kernel allows by default.
const LARGEST: u32 = 1 << 20;
/// Requests that the kernel may have under way in the background, such as read-ahead.
const BACKGROUND: u16 = 64;
/// What the kernel reads ahead in a file that is read in order, KiB.
const READ_AHEAD_KIB: u32 = 2048;
/// The inodes of the names that no listing shows begin here.
const CONTROLS: u64 = u64::MAX - 16;

thread_local! {
    /// What a read returns: memory that is new costs more than reading does.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A folder's entries.
type Listing = Vec<(Vec<u8>, Attributes)>;

/// What is open under a handle.
enum Open {
    Folder(Arc<Listing>),
    Control(Arc<Vec<u8>>),
}

/// The file system.
pub struct Fuse {
    vfs: Arc<Vfs>,
    /// Bytes that are being made local in the background.
    hydrating_bytes: Option<u64>,
    handles: Mutex<HashMap<u64, Open>>,
    next_handle: AtomicU64,
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_i32(error as i32)
}

fn control_of(ino: u64) -> Option<Name> {
    NAMES.get(usize::try_from(ino.checked_sub(CONTROLS)?).ok()?).map(|(name, _)| *name)
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Folder { .. } => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
    }
}

fn attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino),
        size: attributes.length,
        blocks: attributes.length.div_ceil(512),
        atime: attributes.modified,
        mtime: attributes.modified,
        ctime: attributes.modified,
        crtime: attributes.modified,
        kind: file_type(&attributes.kind),
        perm: attributes.mode as u16, // at most 07777
        nlink: attributes.links,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        rdev: 0,
        blksize: 8192,
        flags: 0,
    }
}

fn control_attr(ino: u64) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: FileType::RegularFile,
        perm: 0o600,
        nlink: 1,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        rdev: 0,
        blksize: 8192,
        flags: 0,
    }
}

/// A file system that is mounted.
pub struct Mounted {
    serving: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Mounted {
    /// Returns whether it has been unmounted.
    pub fn has_ended(&self) -> bool {
        self.serving.is_finished()
    }

    /// Waits until it is unmounted.
    pub fn wait(self) -> std::io::Result<()> {
        self.serving.join().map_err(|_| std::io::Error::other("the file system's thread panicked"))?
    }
}

impl Fuse {
    /// A file system that shows `vfs`.
    pub fn new(vfs: Arc<Vfs>, hydrating_bytes: Option<u64>) -> Fuse {
        Fuse { vfs, hydrating_bytes, handles: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// Mounts at `root`, an empty folder. Requests are worked on by `threads` at once, until somebody
    /// unmounts it.
    pub fn mount(self, root: &Path, threads: usize) -> std::io::Result<Mounted> {
        // The library's own error for this is hard to read.
        #[expect(clippy::disallowed_methods, reason = "a device")]
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        device.map_err(|error| std::io::Error::other(format!("/dev/fuse: {error}")))?;
        let mut config = Config::default();
        config.mount_options = vec![
            // A name of ours alone: what the user chose might hold commas, which the kernel takes for options.
            MountOption::FSName("zenith".to_owned()),
            MountOption::Subtype("zenith".to_owned()),
            MountOption::NoAtime,
            MountOption::NoDev,
            MountOption::NoSuid,
        ];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let session = fuser::Session::new(self, root, &config)?;
        let serving = std::thread::Builder::new().name("fuse".to_owned()).spawn(move || session.run())?;
        read_ahead(root);
        Ok(Mounted { serving })
    }

    fn keep(&self, open: Open) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(handle, open);
        FileHandle(handle)
    }

    fn forget(&self, handle: FileHandle) {
        self.handles.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&handle.0);
    }

    fn folder(&self, handle: FileHandle) -> Option<Arc<Listing>> {
        match self.handles.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&handle.0)? {
            Open::Folder(entries) => Some(entries.clone()),
            Open::Control(_) => None,
        }
    }

    fn control(&self, handle: FileHandle) -> Option<Arc<Vec<u8>>> {
        match self.handles.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&handle.0)? {
            Open::Control(content) => Some(content.clone()),
            Open::Folder(_) => None,
        }
    }
}

/// Raises how far the kernel reads ahead: only root can, and only after mounting.
fn read_ahead(root: &Path) {
    if let Ok(Some(Device { major, minor })) = device_at(root) {
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let _ = regular::write(Path::new(&path), READ_AHEAD_KIB.to_string()); // without it, reading in order is slower
    }
}

fn done(result: Result<(), nix::errno::Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn entry(result: Result<Attributes, nix::errno::Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&FOREVER, &attr(&attributes), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each of them makes things faster where the kernel has it, and none is needed.
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // The kernel must not drop what it has because a file's time changed: nobody else writes.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(LARGEST);
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_max_readahead(LARGEST).or_else(|most| config.set_max_readahead(most));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent.0 == ROOT
            && let Some(at) = NAMES.iter().position(|(_, known)| *known == name)
        {
            return reply.entry_with_ttls(&NOT_AT_ALL, &FOREVER, &control_attr(CONTROLS + at as u64), Generation(0));
        }
        entry(self.vfs.lookup(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if control_of(ino.0).is_some() {
            return reply.attr(&NOT_AT_ALL, &control_attr(ino.0));
        }
        match self.vfs.attributes(ino.0) {
            Ok(attributes) => reply.attr(&FOREVER, &attr(&attributes)),
            Err(error) => reply.error(errno(error)),
        }
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
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if control_of(ino.0).is_some() {
            return reply.attr(&NOT_AT_ALL, &control_attr(ino.0));
        }
        let stranger = |wanted: Option<u32>, own: u32| wanted.is_some_and(|wanted| wanted != own);
        let change = || {
            if stranger(uid, geteuid().as_raw()) || stranger(gid, getegid().as_raw()) {
                return Err(nix::errno::Errno::EPERM);
            }
            if let Some(mode) = mode {
                self.vfs.set_mode(ino.0, mode)?;
            }
            if let Some(size) = size {
                self.vfs.resize(ino.0, size)?;
            }
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => self.vfs.set_modified(ino.0, time)?,
                Some(TimeOrNow::Now) => self.vfs.set_modified(ino.0, SystemTime::now())?,
                None => {}
            }
            self.vfs.attributes(ino.0)
        };
        match change() {
            Ok(attributes) => reply.attr(&FOREVER, &attr(&attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.vfs.target(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        // A data directory holds no devices, pipes and sockets.
        if mode & 0o170_000 != 0o100_000 {
            return reply.error(Errno::EPERM);
        }
        entry(self.vfs.make(parent.0, name, mode, &Make::File), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(self.vfs.make(parent.0, name, mode, &Make::Folder), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.vfs.remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.vfs.remove(parent.0, name, true), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_encoded_bytes();
        entry(self.vfs.make(parent.0, name, 0o777, &Make::Symlink(target)), reply);
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
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if flags.difference(RenameFlags::RENAME_NOREPLACE) != RenameFlags::empty() {
            return reply.error(Errno::EINVAL);
        }
        done(self.vfs.rename((parent.0, name), (newparent.0, newname), replace), reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(self.vfs.link(ino.0, newparent.0, newname), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if let Some(name) = control_of(ino.0) {
            let content = control::content(&self.vfs, name, self.hydrating_bytes);
            return reply.opened(self.keep(Open::Control(Arc::new(content))), FopenFlags::FOPEN_DIRECT_IO);
        }
        match self.vfs.open_inode(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.vfs.make(parent.0, name, mode, &Make::File);
        match made.and_then(|attributes| self.vfs.open_inode(attributes.ino).map(|()| attributes)) {
            Ok(attributes) => reply.created(
                &FOREVER,
                &attr(&attributes),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if control_of(ino.0).is_some() {
            let content = self.control(fh).unwrap_or_default();
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            let end = start.saturating_add(size as usize).min(content.len());
            return reply.data(&content[start..end]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            match self.vfs.read(ino.0, offset, size as usize, buffer) {
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(errno(error)),
            }
        });
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
        let written = match control_of(ino.0) {
            Some(name) => control::command(&self.vfs, name, data),
            None => self.vfs.write(ino.0, offset, data),
        };
        match written {
            Ok(()) => reply.written(data.len() as u32), // at most LARGEST
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Nothing is held back until a close.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        match control_of(ino.0) {
            Some(_) => self.forget(fh),
            None => self.vfs.close_inode(ino.0),
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.vfs.sync(ino.0), reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Listed once, so that removing entries meanwhile moves none.
        match self.vfs.list(ino.0).and_then(|entries| self.vfs.open_inode(ino.0).map(|()| entries)) {
            Ok(entries) => reply.opened(self.keep(Open::Folder(Arc::new(entries))), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(entries) = self.folder(fh) else { return reply.error(Errno::EBADF) };
        let dots = [(ino, "."), (INodeNo(ROOT), "..")];
        let dots = dots.map(|(ino, name)| (ino, FileType::Directory, OsStr::new(name)));
        let named = entries.iter().map(|(name, attributes)| {
            use std::os::unix::ffi::OsStrExt;
            (INodeNo(attributes.ino), file_type(&attributes.kind), OsStr::from_bytes(name))
        });
        for (at, (ino, kind, name)) in dots.into_iter().chain(named).enumerate().skip(offset as usize) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        use std::os::unix::ffi::OsStrExt;
        let Some(entries) = self.folder(fh) else { return reply.error(Errno::EBADF) };
        let Ok(own) = self.vfs.attributes(ino.0) else { return reply.error(Errno::ENOENT) };
        let dots = [(&b"."[..], &own), (b"..", &own)];
        let named = entries.iter().map(|(name, attributes)| (name.as_slice(), attributes));
        for (at, (name, attributes)) in dots.into_iter().chain(named).enumerate().skip(offset as usize) {
            // What was removed or written meanwhile: the kernel asks for it itself.
            let is_dot = at < 2;
            let fresh = if is_dot { None } else { self.vfs.lookup(ino.0, OsStr::from_bytes(name)).ok() };
            let ttl = if fresh.is_some() { FOREVER } else { NOT_AT_ALL };
            let attributes = fresh.as_ref().unwrap_or(attributes);
            if !is_dot && ttl == NOT_AT_ALL {
                continue;
            }
            let name = OsStr::from_bytes(name);
            if reply.add(INodeNo(attributes.ino), at as u64 + 1, name, &ttl, &attr(attributes), Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.forget(fh);
        self.vfs.close_inode(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.vfs.sync_names(), reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match statvfs(self.vfs.layer_dir()) {
            Ok(stat) => reply.statfs(
                stat.blocks(),
                stat.blocks_free(),
                stat.blocks_available(),
                stat.files(),
                stat.files_free(),
                stat.block_size() as u32, // far below 2^32
                255,
                stat.fragment_size() as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 1;
        if mode & !KEEP_SIZE != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        done(self.vfs.allocate(ino.0, offset, length, mode == KEEP_SIZE), reply);
    }
}
