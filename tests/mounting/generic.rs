//! mount(8)'s own options, told to the kernel.

use std::ffi::OsString;

use crate::common::lab::list;
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, kvfs, ns, sys};

fn options(point: &std::path::Path) -> Vec<String> {
    ns::mounts_at(point)[0].options.split(',').map(str::to_owned).collect()
}

#[test]
fn nothing_is_changed_by_clients_of_a_mount_that_is_ro() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    std::fs::write(backings[0].join("f"), "there").unwrap();
    let mount = lab.mount(&backings).arg("-o").arg("ro,noexec,noatime").start();
    for (option, is_there) in
        [("ro", true), ("noexec", true), ("noatime", true), ("nosuid", true), ("rw", false)]
    {
        assert_eq!(options(mount.point()).iter().any(|there| there == option), is_there, "{option}");
    }
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"there");
    assert_eq!(sys::create(mount.path("g")).map(drop), Err(Errno::EROFS));
    assert_eq!(sys::unlink(mount.path("f")), Err(Errno::EROFS));
    assert_eq!(sys::open(mount.path("f"), libc::O_RDWR, 0).map(drop), Err(Errno::EROFS));
}

#[test]
fn nothing_is_executed_with_noexec() {
    let lab = Lab::new();
    let backings = lab.dirs(1);
    for (option, runs) in [("noexec", false), ("exec", true)] {
        let mount = lab.mount(&backings).arg("-o").arg(option).start();
        std::fs::copy("/bin/true", mount.path("true")).unwrap();
        sys::chmod(mount.path("true"), 0o755).unwrap();
        let ran = std::process::Command::new(mount.path("true")).status();
        assert_eq!(ran.is_ok_and(|status| status.success()), runs, "{option}");
    }
}

#[test]
fn an_ordinary_users_mount_has_them_too() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let (volume, point) = (lab.volume(FsKind::Tmpfs, 16), lab.dir("mnt"));
    for path in [&volume, &point] {
        sys::chown(path, NOBODY, NOBODY).unwrap();
    }
    let mount = lab.mount(&[volume]).user(NOBODY).arg("--options=ro,noatime").start();
    let there = options(mount.point());
    assert!(there.contains(&"ro".into()) && there.contains(&"noatime".into()), "{there:?}");
    let made = as_user(NOBODY, NOBODY, || sys::create(mount.path("g")).map(drop));
    assert_eq!(made, Err(Errno::EROFS));
}

#[test]
fn what_cannot_be_had_is_refused() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(1));
    for (option, status) in
        [("suid", 2), ("dev", 2), ("sync", 2), ("remount", 2), ("bind", 2), ("threads=0", 41)]
    {
        let words = ["mount", point.to_str().unwrap(), "--backing", &list(&backings), "-o", option];
        kvfs(words.map(OsString::from)).fault(status, &["-o, option 1"]);
        assert_eq!(ns::mounts_at(&point).len(), 0);
    }
}
