//! The daemon is killed before and after each change that an operation makes on disk: the client gets the
//! one right answer, and finds what it asked for, once.

use std::path::Path;

use super::{daemon, next};
use crate::common::{Builder, Errno, Lab, Mount, Passthrough, R, sys};

fn start(lab: &Lab, mode: Passthrough) -> Mount {
    // Hashed, so that names are on both backings.
    let builder: Builder = lab.mount(&lab.dirs(2)).passthrough(mode).supervised();
    builder.arg("--placement").arg("hash").start()
}

/// Runs `act`, which has the daemon killed once.
#[track_caller]
pub(super) fn dying<T>(mount: &Mount, what: &str, act: impl FnOnce() -> T) -> T {
    let (before, _) = daemon(mount);
    let result = act();
    next(mount, before);
    assert_eq!(daemon(mount).0, before + 1, "{what}: one daemon was killed");
    result
}

/// The names in a directory: in the mount, and on all backings together, where each is once.
#[track_caller]
fn listed(mount: &Mount, dir: &str) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with(".kvfs"))
            .collect()
    };
    let mut shown = names(&mount.path(dir));
    shown.sort();
    let mut there: Vec<String> = mount.backings().iter().flat_map(|b| names(&b.join(dir))).collect();
    there.sort();
    let dirs = |name: &String| mount.path(dir).join(name).is_dir();
    assert_eq!(
        there.iter().filter(|n| !dirs(n)).collect::<Vec<_>>(),
        shown.iter().filter(|n| !dirs(n)).collect::<Vec<_>>(),
        "files are on one backing each"
    );
    shown
}

#[test]
fn making() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = start(&lab, mode);
        type Make = fn(&Path) -> R<()>;
        let made: [(&str, Make); 5] = [
            ("create", |p| {
                let fd = sys::open(p, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o640)?;
                assert_eq!(sys::write(&fd, b"written"), Ok(7));
                assert_eq!(sys::pread(&fd, 100, 0), Ok(b"written".to_vec()));
                Ok(())
            }),
            ("mkdir", |p| sys::mkdir(p, 0o750)),
            ("symlink", |p| sys::symlink("target", p)),
            ("fifo", |p| sys::mknod(p, libc::S_IFIFO | 0o600, 0)),
            ("mknod", |p| sys::mknod(p, libc::S_IFREG | 0o600, 0)),
        ];
        for point in ["make before", "make after"] {
            for (what, make) in made {
                let name = format!("{what}@{point}@");
                let path = mount.path(&name);
                assert_eq!(dying(&mount, &name, || make(&path)), Ok(()), "{mode:?} {name}");
                assert_eq!(make(&path), Err(Errno::EEXIST), "{name} again");
                assert_eq!(listed(&mount, ""), std::slice::from_ref(&name), "{mode:?}");
                if what == "mkdir" {
                    sys::rmdir(&path).unwrap();
                } else {
                    sys::unlink(&path).unwrap();
                }
                assert!(listed(&mount, "").is_empty());
            }
        }
        // Handles were counted once.
        assert_eq!(mount.status()["open_files"], 0);
    }
}

#[test]
fn removing() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    for point in ["unlink before", "unlink between", "unlink after"] {
        let path = mount.path(format!("f@{point}@"));
        std::fs::write(&path, "x").unwrap();
        assert_eq!(dying(&mount, point, || sys::unlink(&path)), Ok(()), "{point}");
        assert_eq!(sys::unlink(&path), Err(Errno::ENOENT));
        assert!(listed(&mount, "").is_empty(), "{point}");
    }
    for point in ["rmdir before", "rmdir after"] {
        let path = mount.path(format!("d@{point}@"));
        // On both backings.
        sys::mkdir(&path, 0o755).unwrap();
        for i in 0..8 {
            std::fs::write(path.join(i.to_string()), "").unwrap();
        }
        (0..8).for_each(|i| sys::unlink(path.join(i.to_string())).unwrap());
        assert_eq!(dying(&mount, point, || sys::rmdir(&path)), Ok(()), "{point}");
        assert_eq!(sys::rmdir(&path), Err(Errno::ENOENT));
        assert!(listed(&mount, "").is_empty(), "{point}");
        assert!(mount.backings().iter().all(|b| !b.join(path.file_name().unwrap()).exists()), "{point}");
    }
}

#[test]
fn linking() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    std::fs::write(mount.path("file"), "x").unwrap();
    for point in ["link before", "link after"] {
        let path = mount.path(format!("l@{point}@"));
        assert_eq!(dying(&mount, point, || sys::link(mount.path("file"), &path)), Ok(()), "{point}");
        assert_eq!(sys::link(mount.path("file"), &path), Err(Errno::EEXIST));
        assert_eq!(sys::stat(&path).unwrap().st_ino, sys::stat(mount.path("file")).unwrap().st_ino);
        assert_eq!(sys::stat(&path).unwrap().st_nlink, 2);
        sys::unlink(&path).unwrap();
    }
}

#[test]
fn renaming_files() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    for point in ["rename before", "rename after"] {
        // Onto nothing, onto a file of the same and of the other backing.
        for onto in [None, Some(0), Some(1)] {
            let from = mount.path(format!("from@{point}@"));
            std::fs::write(&from, "source").unwrap();
            let on = mount.holder(from.file_name().unwrap());
            let to = (0..).map(|i| mount.path(format!("to{i}"))).find(|to| match onto {
                None => true,
                Some(other) => {
                    std::fs::write(to, "target").unwrap();
                    let fits = mount.holder(to.file_name().unwrap()) == (on + other) % 2;
                    fits || sys::unlink(to).is_err()
                }
            });
            let to = to.unwrap();
            let open = sys::open(&from, libc::O_RDONLY, 0).unwrap();
            assert_eq!(dying(&mount, point, || sys::rename(&from, &to)), Ok(()), "{point} {onto:?}");
            assert_eq!(sys::rename(&from, &to), Err(Errno::ENOENT));
            assert_eq!(std::fs::read(&to).unwrap(), b"source", "{point} {onto:?}");
            assert_eq!(sys::fstat(&open).unwrap().st_ino, sys::stat(&to).unwrap().st_ino);
            assert_eq!(listed(&mount, ""), [to.file_name().unwrap().to_str().unwrap()], "{point} {onto:?}");
            drop(open);
            sys::unlink(&to).unwrap();
        }
    }
}

#[test]
fn renaming_directories() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    sys::mkdir(mount.path("above"), 0o755).unwrap();
    for point in ["rename before", "rename after"] {
        for onto in [false, true] {
            let (from, to) = (mount.path(format!("from@{point}@")), mount.path("above/to"));
            sys::mkdir(&from, 0o755).unwrap();
            // On both backings, with something below that somebody is in.
            (0..16).for_each(|i| std::fs::write(from.join(i.to_string()), i.to_string()).unwrap());
            sys::mkdir(from.join("in"), 0o755).unwrap();
            let inside = sys::open(from.join("in"), libc::O_DIRECTORY, 0).unwrap();
            let ino = sys::stat(&from).unwrap().st_ino;
            if onto {
                sys::mkdir(&to, 0o755).unwrap();
            }
            assert_eq!(dying(&mount, point, || sys::rename(&from, &to)), Ok(()), "{point}");
            assert_eq!(sys::stat(&from).map(drop), Err(Errno::ENOENT));
            assert_eq!(sys::stat(&to).unwrap().st_ino, ino, "{point}: the directory is the same one");
            assert_eq!(sys::fstat(&inside).unwrap().st_ino, sys::stat(to.join("in")).unwrap().st_ino);
            assert_eq!(listed(&mount, "above/to").len(), 17);
            assert!(mount.backings().iter().all(|b| !b.join(from.file_name().unwrap()).exists()), "{point}");
            for i in 0..16 {
                assert_eq!(std::fs::read(to.join(i.to_string())).unwrap(), i.to_string().as_bytes());
            }
            std::fs::remove_dir_all(&to).unwrap();
        }
    }
}

#[test]
fn exchanging() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    for point in ["exchange before", "exchange after"] {
        for other in [0, 1] {
            let one = mount.path(format!("one@{point}@"));
            std::fs::write(&one, "one").unwrap();
            let on = mount.holder(one.file_name().unwrap());
            let two = (0..).map(|i| mount.path(format!("two{i}"))).find(|two| {
                std::fs::write(two, "two").unwrap();
                mount.holder(two.file_name().unwrap()) == (on + other) % 2 || sys::unlink(two).is_err()
            });
            let two = two.unwrap();
            let exchange = || sys::renameat2(&one, &two, libc::RENAME_EXCHANGE);
            assert_eq!(dying(&mount, point, exchange), Ok(()), "{point} {other}");
            assert_eq!(std::fs::read(&one).unwrap(), b"two", "{point} {other}");
            assert_eq!(std::fs::read(&two).unwrap(), b"one", "{point} {other}");
            assert_eq!(listed(&mount, "").len(), 2);
            sys::unlink(&one).unwrap();
            sys::unlink(&two).unwrap();
        }
    }
}

#[test]
fn attributes_that_must_not_be_there() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    std::fs::write(mount.path("f"), "x").unwrap();
    let name = "user.a@setxattr before@";
    let set = || sys::setxattr(mount.path("f"), name, b"1", libc::XATTR_CREATE);
    assert_eq!(dying(&mount, name, set), Ok(()));
    // Now it's there before anything is begun: nobody dies.
    assert_eq!(sys::setxattr(mount.path("f"), name, b"2", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(sys::getxattr(mount.path("f"), name), Ok(b"1".to_vec()));
}

#[test]
fn a_request_that_kills_every_daemon_is_given_up() {
    let lab = Lab::new();
    let mount = start(&lab, Passthrough::Auto);
    let (before, _) = daemon(&mount);
    std::fs::write(mount.path("other"), "goes on").unwrap();
    assert_eq!(sys::create(mount.path("x@deadly@")).map(drop), Err(Errno::EIO));
    assert_eq!(daemon(&mount).0, before + 3, "three daemons died over it");
    assert_eq!(std::fs::read(mount.path("other")).unwrap(), b"goes on");
    assert_eq!(sys::stat(mount.path("x@deadly@")).map(drop), Err(Errno::ENOENT));
}
