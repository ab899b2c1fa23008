//! Names that were evicted and that a living LMCache will remove: once that succeeds; for all else they're absent.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use libc::*;

use super::run::{MIB, absent, evict_bytes, evict_until, living, mount, names, put, read, until};
use crate::common::dir::Dir;
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, lab, ranked, sys, user};

fn name(i: usize) -> String {
    ranked(0, i)
}

/// A mount from which files were evicted that this process, or `creator`, has made.
fn evicted(lab: &Lab, mode: Passthrough, args: &[&str], files: usize) -> Mount {
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    let mount = mount(lab, &[backing], "lru", args).passthrough(mode).start();
    (0..files).for_each(|i| put(&mount.path(name(i)), 1, 4096));
    evict_until(&mount, "an empty listing", || lab::names(mount.point()).is_empty());
    mount
}

/// Every way in which a name can be wanted: what it answers for one that isn't there.
fn wanted(mount: &Mount) {
    let path = |i: usize| mount.path(name(i));
    put(&mount.path("other"), 2, 4096);
    let other = mount.path("other");
    absent("stat", sys::stat(path(0)));
    absent("lstat", sys::lstat(path(0)));
    absent("open", sys::open(path(0), O_RDONLY, 0));
    absent("open to write", sys::open(path(0), O_RDWR | O_TRUNC, 0));
    absent("access", sys::access(path(0), F_OK));
    absent("access", sys::access(path(0), W_OK));
    assert!(!path(0).exists(), "os.path.exists");
    absent("truncate", sys::truncate(path(0), 0));
    absent("chmod", sys::chmod(path(0), 0o600));
    absent("utimens", sys::utimens(path(0), (1, 0), (1, 0), 0));
    absent("getxattr", sys::getxattr(path(0), "user.a"));
    absent("listxattr", sys::listxattr(path(0)));
    absent("setxattr", sys::setxattr(path(0), "user.a", b"", 0));
    absent("rename", sys::rename(path(0), mount.path("x")));
    absent("link", sys::link(path(0), mount.path("x")));
    assert_eq!(sys::unlink(path(0)), Ok(()), "a removal succeeds after all that");
    absent("a second removal", sys::unlink(path(0)));
    absent("stat after it", sys::stat(path(0)));

    put(&path(1), 3, 4096);
    read(&path(1), 3, 4096);
    assert_eq!((sys::unlink(path(1)), sys::unlink(path(1))), (Ok(()), Err(Errno::ENOENT)), "made again");
    sys::rename(&other, path(2)).unwrap();
    read(&path(2), 2, 4096);
    assert_eq!((sys::unlink(path(2)), sys::unlink(path(2))), (Ok(()), Err(Errno::ENOENT)), "renamed onto");
    absent("the name renamed", sys::lstat(&other));
}

#[test]
fn a_removal_succeeds_once_and_all_else_finds_nothing() {
    let modes =
        [(Passthrough::Auto, &[][..]), (Passthrough::Auto, &["--exclusive"]), (Passthrough::Off, &[])];
    for (mode, args) in modes {
        let lab = Lab::new();
        let mount = evicted(&lab, mode, args, 14);
        wanted(&mount);
        // What the kernel answers by itself where it finds a name.
        let path = |i: usize| mount.path(name(i));
        absent("open with O_PATH", sys::open(path(3), O_PATH, 0));
        absent("opendir", Dir::open(path(3)).map(drop));
        absent("below it", sys::lstat(path(3).join("x")));
        absent("chown", sys::chown(path(3), 1, 1));
        absent("rmdir", sys::rmdir(path(3)));
        absent("readlink", sys::readlink(path(3)));
        assert!(sys::open(path(3), O_WRONLY | O_CREAT | O_EXCL, 0o644).is_ok(), "O_EXCL");
        assert_eq!(sys::mkdir(path(4), 0o755), Ok(()));
        assert_eq!(sys::link(path(3), path(5)), Ok(()));
        assert_eq!(sys::symlink("x", path(6)), Ok(()));
        assert_eq!(sys::mknod(path(7), S_IFIFO | 0o600, 0), Ok(()));
        assert_eq!(sys::renameat2(path(3), path(8), RENAME_NOREPLACE), Ok(()));
        assert_eq!(sys::rename(path(4), path(9)), Ok(()), "a directory");
        absent("exchange", sys::renameat2(path(8), path(10), RENAME_EXCHANGE));
        for i in [5, 6, 7, 8] {
            assert_eq!((sys::unlink(path(i)), sys::unlink(path(i))), (Ok(()), Err(Errno::ENOENT)), "{i}");
        }
        sys::rmdir(path(9)).unwrap();
        absent("removed, and no ghost any more", sys::unlink(path(9)));
        assert_eq!(sys::unlink(path(10)), Ok(()), "the others are ghosts still");
    }
}

#[test]
fn a_daemon_that_sees_no_other_process_finds_out_by_what_is_asked() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    std::fs::create_dir(&backing).unwrap();
    sys::chown(&backing, user::NOBODY, user::NOBODY).unwrap();
    let builder = mount(&lab, &[backing], "lru", &[]).user(user::NOBODY);
    sys::chown(&builder.point, user::NOBODY, user::NOBODY).unwrap();
    let mount = builder.start();
    user::as_user(user::NOBODY, user::NOBODY, || {
        (0..4).for_each(|i| put(&mount.path(name(i)), 1, 4096));
    });
    crate::common::cli::kvfs_as(
        user::NOBODY,
        ["evict".as_ref(), mount.point().as_os_str(), "--bytes".as_ref(), "1G".as_ref()],
    )
    .code(0);
    user::as_user(user::NOBODY, user::NOBODY, || {
        assert_eq!(lab::names(mount.point()), Vec::<String>::new());
        wanted(&mount);
        // What the kernel doesn't ask about.
        assert_eq!(sys::mkdir(mount.path(name(3)), 0o755), Err(Errno::EEXIST));
        assert_eq!(sys::unlink(mount.path(name(3))), Ok(()));
        assert_eq!(sys::mkdir(mount.path(name(3)), 0o755), Ok(()));
    });
}

#[test]
fn many_threads_at_once() {
    for args in [&[][..], &["--exclusive"]] {
        let lab = Lab::new();
        let mount = evicted(&lab, Passthrough::Auto, args, 8);
        for i in 0..8 {
            let path = mount.path(name(i));
            let gate = Barrier::new(9);
            let removed: usize = std::thread::scope(|scope| {
                for t in 0..6 {
                    let (gate, path) = (&gate, &path);
                    scope.spawn(move || {
                        gate.wait();
                        for _ in 0..50 {
                            match t % 3 {
                                0 => absent("stat", sys::stat(path)),
                                1 => absent("open", sys::open(path, O_RDONLY, 0)),
                                _ => absent("access", sys::access(path, R_OK)),
                            }
                        }
                    });
                }
                let removers: Vec<_> = (0..3)
                    .map(|_| {
                        let (gate, path) = (&gate, &path);
                        scope.spawn(move || {
                            gate.wait();
                            (0..20).filter(|_| sys::unlink(path).is_ok()).count()
                        })
                    })
                    .collect();
                removers.into_iter().map(|remover| remover.join().unwrap()).sum()
            });
            assert_eq!(removed, 1, "one removal succeeds, whoever is faster");
        }
    }
}

#[test]
fn no_ghosts_of_other_clients_nor_of_the_dead() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    let mount = mount(&lab, &[backing], "lru", &[]).start();
    let found = ["kv.bin", "m@8@3@657aaba709c54b87@bfloat16.data", "x.kvcache.safetensors"];
    found.iter().for_each(|name| put(&mount.path(name), 1, 4096));
    let client = living(|| (0..4).for_each(|i| put(&mount.path(name(i)), 1, 4096)));
    evict_bytes(&mount, 1 << 30);
    // Data of GDS without metadata is left alone for a while.
    assert!(names(mount.point()).len() <= 1);
    found[..2].iter().for_each(|name| absent(name, sys::unlink(mount.path(name))));
    assert_eq!(sys::unlink(mount.path(name(0))), Ok(()));
    client.kill();
    evict_bytes(&mount, 0);
    absent("its creator is gone", sys::unlink(mount.path(name(1))));
    absent("and for all else", sys::stat(mount.path(name(2))));
}

#[test]
fn the_owner_may_remove_it_where_the_sticky_bit_is_set() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    let mount = mount(&lab, &[backing], "lru", &[]).start();
    sys::mkdir(mount.path("shared"), 0o755).unwrap();
    std::fs::set_permissions(mount.path("shared"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let path = |i: usize| mount.path("shared").join(name(i));
    user::as_user(user::NOBODY, user::NOBODY, || (0..2).for_each(|i| put(&path(i), 1, 4096)));
    evict_bytes(&mount, 1 << 30);
    user::as_user(1000, 1000, || assert_eq!(sys::unlink(path(0)), Err(Errno::EPERM)));
    user::as_user(user::NOBODY, user::NOBODY, || assert_eq!(sys::unlink(path(0)), Ok(())));
}

#[test]
fn a_name_that_the_kernel_knows_is_gone_at_once() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let backing = lab.volume(FsKind::Ext4, 64).join("kv");
        let mount = mount(&lab, &[backing], "lru", &["--exclusive"]).passthrough(mode).start();
        for plain in ["plain", "other", "untouched"] {
            put(&mount.path(plain), 1, MIB);
            sys::stat(mount.path(plain)).unwrap();
        }
        evict_until(&mount, "no file", || mount.status()["index"]["files"].as_u64() == Some(0));
        // The kernel may still have the name: what it opens is asked for.
        absent("open", sys::open(mount.path("plain"), O_RDONLY, 0));
        absent("removal", sys::unlink(mount.path("other")));
        absent("stat", sys::stat(mount.path("plain")));
        // And the kernel lets go of it: nothing of it is held for long.
        let deleted =
            || crate::kept::run::descriptors(&mount).iter().filter(|d| d.contains("(deleted)")).count();
        until(&mount, "that nothing is held", |_| deleted() == 0);
    }
}
