//! LOCATE: where a file really is, for who may know it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kvfs::direct::abi::{Locate, feature};
use libc::*;

use super::raw::{locate, query};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, Mount, R, pattern, ranked, sys};

fn path(answer: &Locate) -> PathBuf {
    let bytes = &answer.path[..answer.path_len as usize];
    assert!(answer.path[bytes.len()..].iter().all(|b| *b == 0));
    PathBuf::from(String::from_utf8(bytes.to_vec()).unwrap())
}

fn open(mount: &Mount, name: &str) -> OwnedFd {
    sys::open(mount.path(name), O_RDONLY, 0).unwrap()
}

fn errno(answer: R<Locate>) -> Option<Errno> {
    answer.err()
}

#[test]
fn only_where_it_is_allowed() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    std::fs::write(mount.path("f"), "x").unwrap();
    let fd = open(&mount, "f");
    assert_eq!(errno(locate(&fd)), Some(Errno::EPERM));
    assert_eq!(query(&fd).unwrap().features & feature::LOCATE, 0);
}

#[test]
fn the_very_file() {
    let lab = Lab::new();
    let volumes =
        [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Ext4, 256), lab.volume(FsKind::Tmpfs, 64)];
    let backings = volumes.map(|v| v.join("kv"));
    let mount = lab.mount(&backings).arg("--allow-locate").start();
    for (rank, backing) in backings.iter().enumerate() {
        let name = ranked(rank, rank);
        std::fs::write(mount.path(&name), pattern(rank as u64, 5000)).unwrap();
        let fd = open(&mount, &name);
        assert_ne!(query(&fd).unwrap().features & feature::LOCATE, 0);
        let found = locate(&fd).unwrap();
        assert_eq!(path(&found), backing.join(&name));
        let real = sys::open(path(&found), O_RDONLY, 0).unwrap();
        let st = sys::fstat(&real).unwrap();
        assert_eq!((found.dev_major, found.dev_minor), (major(st.st_dev), minor(st.st_dev)));
        assert_eq!((found.ino, found.size, found.backing_id), (st.st_ino, 5000, rank as u32));
        assert_eq!(i64::from(found.fs_magic), sys::fs_magic(path(&found)).unwrap());
        assert_eq!(found.dio_off_align, query(&fd).unwrap().dio_off_align);
        assert_eq!(sys::pread(&real, 9000, 0).unwrap(), pattern(rank as u64, 5000));
        // The name that it has now.
        sys::rename(mount.path(&name), mount.path("moved")).unwrap();
        assert_eq!(path(&locate(&fd).unwrap()), backing.join("moved"));
        sys::unlink(mount.path("moved")).unwrap();
        assert_eq!(errno(locate(&fd)), Some(Errno::ENOENT), "a file without a name");
    }
    let dir = sys::open(mount.point(), O_RDONLY | O_DIRECTORY, 0).unwrap();
    assert_eq!(errno(locate(&dir)), Some(Errno::EISDIR));
}

/// Who couldn't open the file there isn't told where that is.
#[test]
fn who_may_open_it() {
    let lab = Lab::new();
    let above = lab.dir("above");
    let backing = above.join("kv");
    let mount = lab.mount(&[backing]).arg("--allow-locate").start();
    std::fs::write(mount.path("f"), "x").unwrap();
    let fd = open(&mount, "f");
    let as_nobody = || as_user(NOBODY, NOBODY, || errno(locate(&fd)));
    assert_eq!(as_nobody(), None, "the way is open");
    sys::chmod(&above, 0o700).unwrap();
    assert_eq!(as_nobody(), Some(Errno::EACCES), "a directory above");
    assert_eq!(errno(locate(&fd)), None, "root may");
    sys::chmod(&above, 0o711).unwrap();
    assert_eq!(as_nobody(), None);
    sys::chmod(mount.path("f"), 0o600).unwrap();
    assert_eq!(as_nobody(), Some(Errno::EACCES), "the file itself");
    sys::chmod(mount.path("f"), 0o640).unwrap();
    sys::chown(mount.path("f"), 0, NOBODY).unwrap();
    assert_eq!(as_nobody(), None, "by its group");
    assert_eq!(mount.op("panics"), 0);
}
