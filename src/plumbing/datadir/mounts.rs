//! What is mounted where, from the kernel's own table: proc(5), `/proc/PID/mountinfo`. Nothing that is mounted is asked, so
//! nothing waits for a file system that does not answer.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::objects::regular;

/// A device, as it stands in `/sys/class/bdi` and `/sys/fs/fuse/connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// Returns the device that is mounted at `path`, the topmost if there are several. `None` where nothing is, and on systems
/// without that table, where zenith mounts nothing.
pub fn device_at(path: &Path) -> io::Result<Option<Device>> {
    let table = match regular::read(Path::new("/proc/self/mountinfo")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        table => table?,
    };
    Ok(find(&table, real_path(path)?.as_os_str().as_bytes()))
}

fn find(table: &[u8], path: &[u8]) -> Option<Device> {
    table.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        if unescape(fields.nth(1)?) != path {
            return None;
        }
        let (major, minor) = device.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    })
}

/// Returns the path without symbolic links. Its last part is not looked at: that may be a mount.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(path.to_owned()) };
    match fs::canonicalize(parent) {
        // Nothing is mounted in a folder that is not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        parent => Ok(parent?.join(name)),
    }
}

/// Blanks and their like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_is_found_under_an_escaped_name() {
        let table = b"22 1 0:21 / /proc rw - proc proc rw\n\
            30 22 0:40 / /a\\040b/data rw,nosuid - fuse.zenith zenith rw\n\
            31 30 0:41 / /a\\040b/data rw,nosuid - fuse.zenith zenith rw\n";
        assert_eq!(find(table, b"/a b/data"), Some(Device { major: 0, minor: 41 }));
        assert_eq!(find(table, b"/a b"), None);
        assert_eq!(find(b"", b"/proc"), None);
    }

    #[test]
    fn proc_is_mounted_and_a_folder_is_not() {
        if cfg!(target_os = "linux") {
            assert!(device_at(Path::new("/proc")).unwrap().is_some());
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(device_at(dir.path()).unwrap(), None);
        assert_eq!(device_at(&dir.path().join("none/data")).unwrap(), None);
    }
}
