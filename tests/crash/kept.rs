//! What clients hold while the daemon is killed.

use std::io::Read;

use super::{daemon, kill};
use crate::common::process::Process;
use crate::common::{Errno, Lab, Mount, Passthrough, pattern, ranked, sys};

fn modes(test: impl Fn(&Lab, Mount)) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(3)).passthrough(mode).supervised().start();
        test(&lab, mount);
    }
}

#[test]
fn open_files_go_on() {
    modes(|_, mount| {
        let path = mount.path(ranked(1, 1));
        std::fs::write(&path, pattern(1, 300_000)).unwrap();
        let read = sys::open(&path, libc::O_RDONLY, 0).unwrap();
        let both = sys::open(&path, libc::O_RDWR, 0).unwrap();
        let append = sys::open(&path, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
        let direct = sys::open(&path, libc::O_RDONLY | libc::O_DIRECT, 0).unwrap();
        for round in 0..3u64 {
            kill(&mount);
            let data = pattern(10 + round, 4096);
            assert_eq!(sys::pwrite(&both, &data, 8192), Ok(4096));
            assert_eq!(sys::pread(&read, 4096, 8192), Ok(data));
            let size = sys::fstat(&read).unwrap().st_size;
            assert_eq!(sys::write(&append, b"more"), Ok(4));
            assert_eq!(sys::fstat(&read).unwrap().st_size, size + 4);
            assert_eq!(sys::pread_at_skew(&direct, 4096, 0, 0), Ok(pattern(1, 4096)));
            assert_eq!(sys::fsync(&both), Ok(()));
            assert_eq!(sys::fdatasync(&append), Ok(()));
            assert_eq!(sys::lseek(&read, 0, libc::SEEK_END), Ok(size + 4));
            // Opened beside them: in the same mode, by the same id.
            assert_eq!(std::fs::read(&path).unwrap().len() as i64, size + 4);
        }
        assert_eq!(sys::ftruncate(&both, 100), Ok(()));
        assert_eq!(sys::fstat(&read).unwrap().st_size, 100);
        assert_eq!(mount.status()["open_files"], 4);
        drop((read, both, append, direct));
        kill(&mount);
        assert_eq!(mount.status()["supervised"]["files"], 0, "what is closed isn't taken over");
    });
}

#[test]
fn files_that_have_lost_their_names_go_on() {
    modes(|_, mount| {
        let path = mount.path(ranked(1, 1));
        std::fs::write(&path, pattern(1, 100_000)).unwrap();
        let fd = sys::open(&path, libc::O_RDWR, 0).unwrap();
        sys::unlink(&path).unwrap();
        // Another takes its name, and might take its inode's number.
        std::fs::write(&path, "another").unwrap();
        for _ in 0..2 {
            kill(&mount);
            assert_eq!(sys::pread(&fd, 200_000, 0), Ok(pattern(1, 100_000)));
            assert_eq!(sys::pwrite(&fd, &pattern(1, 10), 0), Ok(10));
            assert_eq!(sys::fsync(&fd), Ok(()));
            let stat = sys::fstat(&fd).unwrap();
            assert_eq!((stat.st_size, stat.st_nlink), (100_000, 0));
            assert_eq!(std::fs::read(&path).unwrap(), b"another");
        }
        assert_eq!(sys::ftruncate(&fd, 5), Ok(()));
        assert_eq!(sys::fstat(&fd).unwrap().st_size, 5);
        drop(fd);
        kill(&mount);
        assert_eq!(mount.status()["open_files"], 0);
    });
}

#[test]
fn mappings_go_on() {
    modes(|_, mount| {
        let path = mount.path(ranked(1, 1));
        std::fs::write(&path, pattern(1, 1 << 20)).unwrap();
        let fd = sys::open(&path, libc::O_RDWR, 0).unwrap();
        let mut map =
            sys::Map::new(&fd, 1 << 20, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).unwrap();
        drop(fd);
        assert_eq!(map.get(0, 10), pattern(1, 10));
        kill(&mount);
        map.put(500_000, b"through the mapping");
        map.sync().unwrap();
        // A page that nobody had touched.
        assert_eq!(map.get(900_000, 4096), pattern(1, 1 << 20)[900_000..904_096]);
        let mut there = vec![0; 19];
        sys::pread(&sys::open(&path, libc::O_RDONLY, 0).unwrap(), 19, 500_000)
            .unwrap()
            .as_slice()
            .read_exact(&mut there)
            .unwrap();
        assert_eq!(there, b"through the mapping");
    });
}

#[test]
fn directories_are_the_same_ones() {
    modes(|_, mount| {
        std::fs::create_dir_all(mount.path("a/b/c")).unwrap();
        sys::rename(mount.path("a/b"), mount.path("b")).unwrap();
        let c = sys::open(mount.path("b/c"), libc::O_DIRECTORY, 0).unwrap();
        let inos = || ["", "a", "b", "b/c"].map(|dir| sys::stat(mount.path(dir)).unwrap().st_ino);
        let before = inos();
        // One that works in there, as its current directory.
        let point = mount.path("b/c");
        let (hears, tells) = sys::pipe().unwrap();
        let mut inside = Process::start(move |say| {
            std::env::set_current_dir(&point).unwrap();
            say("there");
            sys::read(&hears, 1).unwrap();
            std::fs::write("made inside", "x").unwrap();
            say(&format!(
                "{:?}",
                std::fs::read_dir(".").unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
            ));
        });
        assert_eq!(inside.hear(), "there");
        kill(&mount);
        assert_eq!(inos(), before);
        assert_eq!(sys::fstat(&c).unwrap().st_ino, before[3]);
        sys::write(&tells, b"x").unwrap();
        assert_eq!(inside.hear(), "[\"made inside\"]");
        inside.finish();
        assert!(mount.path("b/c/made inside").exists());
        // New ones are called what none was.
        sys::mkdir(mount.path("new"), 0o755).unwrap();
        assert!(!before.contains(&sys::stat(mount.path("new")).unwrap().st_ino));
    });
}

#[test]
fn locks_are_still_held() {
    modes(|_, mount| {
        let path = mount.path("lock");
        let fd = sys::create(&path).unwrap();
        sys::flock(&fd, libc::LOCK_EX | libc::LOCK_NB).unwrap();
        kill(&mount);
        let other = sys::open(&path, libc::O_RDWR, 0).unwrap();
        assert_eq!(sys::flock(&other, libc::LOCK_EX | libc::LOCK_NB), Err(Errno::EWOULDBLOCK));
        drop(fd);
        assert_eq!(sys::flock(&other, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    });
}

#[test]
fn the_parent_passes_on_what_the_operator_wants() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).supervised().start();
    kill(&mount);
    let fd = sys::create(mount.path("f")).unwrap();
    // In use: it goes on.
    mount.signal(libc::SIGTERM);
    assert_eq!(daemon(&mount).0, 2);
    drop(fd);
    // Dropping the mount ends the parent with SIGTERM, and looks that nothing is left.
}
