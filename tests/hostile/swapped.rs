//! Somebody who can change a backing directly, because a directory there is theirs, puts symbolic links where the
//! mount has directories and files, again and again, while others use the mount. Wherever a link leads,
//! the daemon doesn't go.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::canary::{Canary, INSIDE, OUTSIDE};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Lab, Mount, Passthrough, R, ns, sys};

const NAMES: [&str; 6] = ["f0", "f1", "f2", "f3", "f4", "f5"];
const SWAPS: usize = 1500;
const ENOUGH: usize = 300;

/// A user's directory `u` on all backings; in it `d`, with files; beside it `u/link`, which leads outside.
fn theirs(backings: &[PathBuf], canary: &Path) {
    for backing in backings {
        let user = backing.join("u");
        let mine = |path: &Path| std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        std::fs::create_dir_all(user.join("d/d")).unwrap();
        sys::symlink(canary, user.join("link")).unwrap();
        [user.clone(), user.join("d"), user.join("d/d"), user.join("link")].iter().for_each(|p| mine(p));
        for (n, name) in NAMES.iter().enumerate() {
            let to = canary.join(name);
            sys::symlink(&to, user.join(format!("d/to-{name}"))).unwrap();
            if n % backings.len() == backings.iter().position(|b| b == backing).unwrap() {
                std::fs::write(user.join("d").join(name), INSIDE).unwrap();
                mine(&user.join("d").join(name));
            }
        }
    }
}

/// Swaps the directory with the link, and files with links, back and forth, on one backing: often, and until
/// others have done enough meanwhile.
fn swap(user: &Path, done: &AtomicUsize, well: &AtomicUsize) {
    let exchange = |a: &Path, b: &Path| sys::renameat2(a, b, libc::RENAME_EXCHANGE);
    let deadline = std::time::Instant::now() + ns::HANG;
    for n in 0.. {
        if n >= SWAPS && (well.load(Relaxed) >= ENOUGH || std::time::Instant::now() > deadline) {
            return;
        }
        let name = NAMES[n % NAMES.len()];
        let (file, link) = (user.join("d").join(name), user.join(format!("d/to-{name}")));
        let _ = exchange(&file, &link);
        let _ = exchange(&user.join("d"), &user.join("link"));
        std::thread::yield_now();
        let _ = exchange(&user.join("d"), &user.join("link"));
        let _ = exchange(&file, &link);
        done.fetch_add(1, Relaxed);
    }
}

/// Everything that can be asked of a path in the mount. What is read is checked.
fn use_it(dir: &Path, n: usize, well: &AtomicUsize) {
    let name = NAMES[n % NAMES.len()];
    let (file, new) = (dir.join(name), dir.join(format!("new{}", n % 40)));
    let count = |result: R<()>| well.fetch_add(usize::from(result.is_ok()), Relaxed);
    // O_NOFOLLOW: what the client's own kernel follows isn't the daemon's doing.
    let flags = if n.is_multiple_of(3) { libc::O_RDONLY } else { libc::O_RDWR } | libc::O_NOFOLLOW;
    if let Ok(fd) = sys::open(&file, flags, 0) {
        let read = sys::pread(&fd, 64, 0).unwrap_or_default();
        assert!(!read.starts_with(&OUTSIDE[..4]), "read {:?}", String::from_utf8_lossy(&read));
        let _ = sys::pwrite(&fd, INSIDE, 0);
        let _ = sys::fchmod(&fd, 0o600 | (n as u32 & 0o77));
        let _ = sys::ftruncate(&fd, 6 + (n as i64 % 3));
        count(sys::fsync(&fd));
    }
    let stat = sys::lstat(&file);
    if let Ok(stat) = stat {
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        assert!(!is_file || stat.st_size < OUTSIDE.len() as i64, "the size of what is outside");
    }
    count(sys::open(&new, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NOFOLLOW, 0o666).map(drop));
    assert_ne!(sys::getxattr(&file, "user.canary"), Ok(b"sings".to_vec()));
    count(sys::setxattr(&file, "user.touched", b"by the daemon", 0));
    count(sys::utimens(&file, (5, 5), (6, 6), libc::AT_SYMLINK_NOFOLLOW));
    count(sys::link(&file, dir.join(format!("hard{}", n % 40))));
    count(sys::rename(&new, dir.join(format!("moved{}", n % 40))));
    count(sys::rename(dir.join(format!("moved{}", n % 40)), dir.join("d").join("moved")));
    count(sys::mkdir(dir.join(format!("dir{}", n % 7)), 0o777));
    count(sys::mkdir(dir.join("d/deeper"), 0o777));
    count(sys::rmdir(dir.join(format!("dir{}", n % 7))));
    count(sys::rmdir(dir.join("d/deeper")));
    count(sys::unlink(dir.join(format!("hard{}", n % 40))));
    if n.is_multiple_of(5) {
        count(sys::unlink(dir.join("d").join(name)));
        count(sys::rename(dir.join("d"), dir.join("e")));
        count(sys::rename(dir.join("e"), dir.join("d")));
    }
    if let Ok(list) = std::fs::read_dir(dir) {
        count(if list.flatten().next().is_some() { Ok(()) } else { Err(crate::common::Errno::ENOENT) });
    }
}

fn swapped(mode: Passthrough, flags: &str) {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let canary = Canary::new(lab.path("canary"), &NAMES);
    theirs(&backings, &canary.root);
    let specs: Vec<PathBuf> = backings.iter().map(|b| format!("{}{flags}", b.display()).into()).collect();
    // What the kernel keeps, the daemon isn't asked.
    let mount: Mount = lab.mount(&specs).passthrough(mode).arg("--shared-ttl").arg("0").start();
    let (swaps, well, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let ops = mount.ops();
    std::thread::scope(|scope| {
        let swappers: Vec<_> = backings
            .iter()
            .map(|backing| {
                let (user, swaps, well) = (backing.join("u"), &swaps, &well);
                scope.spawn(move || as_user(NOBODY, NOBODY, || swap(&user, swaps, well)))
            })
            .collect();
        for worker in 0..3 {
            let (dir, well, over) = (mount.path("u/d"), &well, &over);
            scope.spawn(move || {
                // Another namespace's mounts are copies, with the same rules.
                sys::unshare(libc::CLONE_NEWNS).unwrap();
                as_user(NOBODY, NOBODY, || {
                    let mut n = worker;
                    while !over.load(Relaxed) {
                        use_it(&dir, n, well);
                        n += 3;
                    }
                });
            });
        }
        let ended: Vec<_> = swappers.into_iter().map(|swapper| swapper.join()).collect();
        over.store(true, Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    canary.is_untouched();
    assert!(swaps.load(Relaxed) >= 2 * SWAPS);
    assert!(well.load(Relaxed) >= ENOUGH, "next to nothing was done: {}", well.load(Relaxed));
    assert!(mount.ops() > ops + ENOUGH as u64, "the daemon was hardly asked");
    // And it still serves.
    std::fs::write(mount.path("after"), INSIDE).unwrap();
    assert_eq!(std::fs::read(mount.path("after")).unwrap(), INSIDE);
    drop(mount);
    canary.is_untouched();
}

#[test]
fn directories_swapped_for_links_below_a_mount() {
    swapped(Passthrough::Auto, "");
}

#[test]
fn directories_swapped_for_links_without_passthrough() {
    swapped(Passthrough::Off, "");
}

#[test]
fn directories_swapped_for_links_on_shared_backings() {
    swapped(Passthrough::Auto, ":shared");
}

#[test]
fn links_in_place_of_directories_before_the_daemon_looks() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let canary = Canary::new(lab.path("canary"), &NAMES);
    theirs(&backings, &canary.root);
    // The scan finds `d` as a link on one backing, and as a directory on the other.
    sys::renameat2(backings[0].join("u/d"), backings[0].join("u/link"), libc::RENAME_EXCHANGE).unwrap();
    let mount = lab.mount(&backings).start();
    for n in 0..200 {
        as_user(NOBODY, NOBODY, || use_it(&mount.path("u/d"), n, &AtomicUsize::new(0)));
    }
    // And now on the other, which the index knows as a directory and nobody has open.
    sys::renameat2(backings[1].join("u/d"), backings[1].join("u/link"), libc::RENAME_EXCHANGE).unwrap();
    for n in 0..200 {
        as_user(NOBODY, NOBODY, || use_it(&mount.path("u/d"), n, &AtomicUsize::new(0)));
    }
    drop(mount);
    canary.is_untouched();
}
