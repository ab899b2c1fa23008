//! Bytes: what one writes the other reads, whatever it has read before.

use std::os::fd::OwnedFd;

use crate::common::{pattern, sys};
use crate::{read, soon, two_in_each_mode, write};

#[test]
fn overwritten_longer_and_shorter() {
    two_in_each_mode(|_, _, one, two| {
        for (round, len) in [100_000, 100_000, 300_000, 5, 0, 70_000].into_iter().enumerate() {
            let (writer, reader) = if round % 2 == 0 { (one, two) } else { (two, one) };
            let data = pattern(round as u64, len);
            write(&writer.path("f"), &data);
            // An open asks the backing, so its bytes are right at once; its length may be an old one for a moment.
            soon(Ok(data), &format!("round {round}"), || read(&reader.path("f")));
            soon(len as i64, "size", || sys::lstat(reader.path("f")).unwrap().st_size);
        }
    });
}

#[test]
fn a_file_that_stays_open_shows_what_the_other_writes() {
    two_in_each_mode(|_, _, one, two| {
        let old = pattern(1, 256 << 10);
        write(&one.path("f"), &old);
        let reader = sys::open(two.path("f"), libc::O_RDWR, 0).unwrap();
        let writer = sys::open(one.path("f"), libc::O_RDWR, 0).unwrap();
        assert_eq!(sys::pread(&reader, 1 << 20, 0), Ok(old));
        for round in 2..50 {
            // In place, and the same length: within one tick of the clock there's no telling by attributes.
            let new = pattern(round, 4096);
            let at = (round as i64 * 8192) % (256 << 10);
            assert_eq!(sys::pwrite(&writer, &new, at), Ok(4096));
            assert_eq!(sys::pread(&reader, 4096, at).as_ref(), Ok(&new), "round {round}");
            let back = pattern(100 + round, 4096);
            assert_eq!(sys::pwrite(&reader, &back, at), Ok(4096));
            assert_eq!(sys::pread(&writer, 4096, at).as_ref(), Ok(&back), "round {round}, back");
        }
        // Longer: what is behind the old end.
        assert_eq!(sys::pwrite(&writer, b"behind the end", 300 << 10), Ok(14));
        assert_eq!(sys::pread(&reader, 100, 300 << 10), Ok(b"behind the end".to_vec()));
        // Shorter.
        sys::ftruncate(&writer, 1000).unwrap();
        assert_eq!(sys::pread(&reader, 4096, 0).map(|data| data.len()), Ok(1000));
        soon(1000, "size", || sys::fstat(&reader).unwrap().st_size);
    });
}

#[test]
fn a_new_mapping_shows_what_the_other_has_written() {
    two_in_each_mode(|_, _, one, two| {
        for round in 0..5 {
            let data = pattern(round, 8192);
            write(&one.path("f"), &data);
            let fd = sys::open(two.path("f"), libc::O_RDWR, 0).unwrap();
            soon(8192, "size", || sys::fstat(&fd).unwrap().st_size);
            for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
                let map = sys::Map::new(&fd, 8192, libc::PROT_READ, flags).unwrap();
                assert!(map.get(0, 8192) == data, "round {round}, flags {flags}");
            }
        }
        let fd = sys::open(two.path("f"), libc::O_RDWR, 0).unwrap();
        let mut map = sys::Map::new(&fd, 8192, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).unwrap();
        map.put(100, b"through a mapping");
        map.sync().unwrap();
        assert_eq!(&read(&one.path("f")).unwrap()[100..117], b"through a mapping");
    });
}

#[test]
fn both_append_in_turn() {
    two_in_each_mode(|_, _, one, two| {
        let append = |mount: &crate::common::Mount| {
            let flags = libc::O_RDWR | libc::O_APPEND | libc::O_CREAT;
            sys::open(mount.path("log"), flags, 0o644).unwrap()
        };
        let (a, b) = (append(one), append(two));
        let mut want = Vec::new();
        for i in 0..50 {
            for (who, fd) in [("one", &a), ("two", &b)] as [(&str, &OwnedFd); 2] {
                let line = format!("line {i} of {who}\n");
                assert_eq!(sys::write(fd, line.as_bytes()), Ok(line.len()));
                want.extend(line.into_bytes());
            }
        }
        soon(Ok(want.clone()), "all lines", || read(&one.path("log")));
        soon(Ok(want.clone()), "all lines", || read(&two.path("log")));
        // What is changed by a mapping of such a file stays where it is.
        let mut map = sys::Map::new(&b, 4, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).unwrap();
        map.put(0, b"LINE");
        map.sync().unwrap();
        drop(map);
        want[..4].copy_from_slice(b"LINE");
        soon(Ok(want.clone()), "in place", || read(&one.path("log")));
    });
}

#[test]
fn direct_io() {
    two_in_each_mode(|_, _, one, two| {
        let fd = sys::open(one.path("f"), libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT, 0o644).unwrap();
        let other = sys::open(two.path("f"), libc::O_RDWR, 0).unwrap();
        for round in 0..5 {
            let data = pattern(round, 64 << 10);
            assert_eq!(sys::pwrite_at_skew(&fd, &data, 0, 0), Ok(64 << 10));
            assert!(sys::pread(&other, 64 << 10, 0).unwrap() == data, "round {round}");
            let data = pattern(50 + round, 64 << 10);
            assert_eq!(sys::pwrite(&other, &data, 0), Ok(64 << 10));
            assert!(sys::pread_at_skew(&fd, 64 << 10, 0, 0).unwrap() == data, "round {round}, back");
        }
    });
}
