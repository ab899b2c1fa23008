//! The block device that a file system is on.
//!
//! What always holds: no path of the machine is walked but those below `/dev`, `/proc` and `/sys`, so that a hung
//! mount hangs nobody who asks.

use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mountinfo;

/// The number of the block device that holds the file system with the number `st_dev`, of which this process
/// has a file open; `None` when there is none, or none that it names.
///
/// Mostly the two numbers are the same. A file system that may have several devices, or none, has a number of
/// its own instead, with major 0 (`get_anon_bdev`, fs/super.c): btrfs, which has another one for each subvolume.
pub fn block_device(st_dev: u64) -> Option<u64> {
    if libc::major(st_dev) != 0 {
        return Some(st_dev);
    }
    // mountinfo shows the number of the whole file system, not the subvolume's: the open file leads there.
    let (mount, _) = mountinfo::inside(&path_of_open_file(st_dev)?).ok()??;
    block_device_at(&mount.source)
}

/// The same of the file system that is mounted there.
pub fn block_device_of(mount: &mountinfo::Mount) -> Option<u64> {
    match mount.device {
        (0, _) => block_device_at(&mount.source),
        (major, minor) => Some(libc::makedev(major, minor)),
    }
}

/// Where a file of that file system is that this process has open.
fn path_of_open_file(st_dev: u64) -> Option<std::path::PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.flatten().map(|entry| entry.path());
    let mut there = open.filter(|fd| {
        // Nobody is asked for what the kernel knows by itself: which device it is.
        let stat = statx(CWD, fd, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
        stat.is_ok_and(|stat| libc::makedev(stat.stx_dev_major, stat.stx_dev_minor) == st_dev)
    });
    std::fs::read_link(there.next()?).ok()
}

/// The number of the block device with this name, below `/dev`.
fn block_device_at(source: &OsStr) -> Option<u64> {
    let source = Path::new(source);
    let node = std::fs::metadata(source.starts_with("/dev").then_some(source)?).ok()?;
    node.file_type().is_block_device().then(|| node.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_number_that_names_a_device_is_its_own_answer() {
        let device = libc::makedev(259, 3);
        assert_eq!(block_device(device), Some(device));
    }

    #[test]
    fn a_file_system_without_a_device_has_none() {
        let file = File::open("/sys/devices/system/cpu/online").unwrap();
        let st_dev = file.metadata().unwrap().dev();
        assert_eq!(libc::major(st_dev), 0);
        assert!(path_of_open_file(st_dev).unwrap().starts_with("/sys"));
        assert_eq!(block_device(st_dev), None);
        drop(file);
        assert_eq!(block_device(libc::makedev(0, 0xf_ffff)), None, "of which nothing is open");
    }

    #[test]
    fn only_block_devices_count() {
        assert_eq!(block_device_at(OsStr::new("/dev/null")), None);
        assert_eq!(block_device_at(OsStr::new("tmpfs")), None);
        let loops = std::fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.file_name());
        let node = loops.map(|name| Path::new("/dev").join(name)).find(|node| node.exists());
        let node = node.expect("this machine has a block device");
        assert_eq!(block_device_at(node.as_os_str()), Some(node.metadata().unwrap().rdev()));
    }
}
