//! open(2): every flag, on names that exist, don't, are directories or links.

use std::io::Write;
use std::process::{Command, Stdio};

use libc::*;

use super::{Side, parity};
use crate::common::{Errno, sys};

parity!(
    existing,
    missing,
    exclusive,
    truncating,
    appending,
    direct,
    directory,
    no_follow,
    path_only,
    sync_flags,
    no_atime,
    tmpfile,
    modes_and_umask,
    bad_flags,
    through_links,
    running_program
);

fn existing(s: &mut Side) {
    let f = s.file("f", b"hello");
    for (name, flags) in [("rdonly", O_RDONLY), ("wronly", O_WRONLY), ("rdwr", O_RDWR)] {
        let Some(fd) = s.fd(name, sys::open(&f, flags, 0)) else { continue };
        s.note(format!("{name} read"), sys::read(&fd, 10));
        s.note(format!("{name} write"), sys::write(&fd, b"HE"));
        s.note(format!("{name} flags"), sys::fcntl(&fd, F_GETFL, 0).map(|f| f & O_ACCMODE));
    }
    s.look("after", "f");
}

fn missing(s: &mut Side) {
    s.fd("rdonly", sys::open(s.p("no"), O_RDONLY, 0));
    s.fd("rdwr", sys::open(s.p("no"), O_RDWR, 0));
    s.fd("trunc", sys::open(s.p("no"), O_RDWR | O_TRUNC, 0));
    s.fd("below nothing", sys::open(s.p("no/f"), O_RDWR | O_CREAT, 0o644));
    s.file("f", b"");
    s.fd("below a file", sys::open(s.p("f/g"), O_RDWR | O_CREAT, 0o644));
    s.fd("trailing slash", sys::open(s.p("new/"), O_RDWR | O_CREAT, 0o644));
    s.fd("file with slash", sys::open(s.p("f/"), O_RDONLY, 0));
}

fn exclusive(s: &mut Side) {
    s.fd("new", sys::open(s.p("f"), O_RDWR | O_CREAT | O_EXCL, 0o640));
    s.fd("again", sys::open(s.p("f"), O_RDWR | O_CREAT | O_EXCL, 0o640));
    s.fd("vllm", sys::open(s.p("g"), O_WRONLY | O_CREAT | O_EXCL | O_TRUNC, 0o644));
    sys::symlink("nowhere", s.p("l")).unwrap();
    s.fd("dangling link", sys::open(s.p("l"), O_RDWR | O_CREAT | O_EXCL, 0o640));
    s.dir("d");
    s.fd("directory", sys::open(s.p("d"), O_RDWR | O_CREAT | O_EXCL, 0o640));
}

/// A program that runs can't be written or cut off, and goes on.
fn running_program(s: &mut Side) {
    let program = s.file("cat", &std::fs::read("/bin/cat").unwrap());
    sys::chmod(&program, 0o755).unwrap();
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_TRUNC] {
        s.fd(format!("{flags:#o}"), sys::open(&program, flags, 0));
    }
    s.note("truncate", sys::truncate(&program, 0));
    child.stdin.take().unwrap().write_all(b"still here").unwrap();
    let said = child.wait_with_output().unwrap();
    s.note("goes on", (said.status.code(), String::from_utf8(said.stdout)));
    s.look("after", "cat");
}

fn truncating(s: &mut Side) {
    let f = s.file("f", &[7; 10_000]);
    let other = s.fd("other", sys::open(&f, O_RDWR, 0)).unwrap();
    s.fd("trunc", sys::open(&f, O_WRONLY | O_TRUNC, 0));
    s.look("after", "f");
    s.note("other sees", sys::fstat(&other).map(|st| st.st_size));
    s.note("other reads", sys::pread(&other, 10, 0));
    s.note("other writes", sys::pwrite(&other, b"abc", 5));
    s.fd("creat on it", sys::open(&f, O_WRONLY | O_CREAT | O_TRUNC, 0o600));
    s.look("creat keeps the mode", "f");
    s.dir("d");
    s.fd("directory", sys::open(s.p("d"), O_RDONLY | O_TRUNC, 0));
}

fn appending(s: &mut Side) {
    let f = s.file("f", b"abc");
    let a = s.fd("append", sys::open(&f, O_RDWR | O_APPEND, 0)).unwrap();
    let b = s.fd("append too", sys::open(&f, O_WRONLY | O_APPEND, 0)).unwrap();
    s.note("a", sys::write(&a, b"1"));
    s.note("b", sys::write(&b, b"2"));
    s.note("a again", sys::write(&a, b"3"));
    s.note("position", sys::lseek(&a, 0, SEEK_CUR));
    s.note("pwrite appends on Linux", sys::pwrite(&a, b"4", 0));
    s.note("read", sys::pread(&a, 100, 0));
    s.note("off", sys::fcntl(&a, F_SETFL, 0));
    s.note("pwrite then", sys::pwrite(&a, b"X", 0));
    let why = "in passthrough the kernel opened the backing file with O_APPEND, and fcntl doesn't reach that";
    s.note_or("it overwrites", std::fs::read(&f).ok(), Some(b"abc1234X"), why);
    s.note("whole again", sys::truncate(&f, 7).and_then(|()| sys::pwrite(&b, b"8", 0)));
    s.note("on", sys::fcntl(&a, F_SETFL, O_APPEND));
    s.note("write then", sys::pwrite(&a, b"5", 0));
    s.note("size", sys::lstat(&f).map(|st| st.st_size));
    std::fs::write(&f, b"done").unwrap();
}

fn direct(s: &mut Side) {
    let data = crate::common::pattern(1, 65536);
    let f = s.file("f", &data);
    let why = "data that goes through the daemon is bounced, so any alignment works there";
    let Some(fd) = s.fd("open", sys::open(&f, O_RDWR | O_DIRECT, 0)) else { return };
    let digest = |r: sys::R<Vec<u8>>| r.map(|v| crate::common::tree::digest(&v));
    s.note("aligned read", digest(sys::pread_at_skew(&fd, 8192, 4096, 0)));
    s.note("read to the end", digest(sys::pread_at_skew(&fd, 131_072, 0, 0)));
    s.note("read at the end", digest(sys::pread_at_skew(&fd, 4096, 65536, 0)));
    s.note("aligned write", sys::pwrite_at_skew(&fd, &[9; 8192], 8192, 0));
    s.note("extending write", sys::pwrite_at_skew(&fd, &[8; 4096], 65536, 0));
    s.note("size", sys::fstat(&fd).map(|st| st.st_size));
    s.note_or("odd length", sys::pwrite_at_skew(&fd, &[7; 1000], 0, 0), Ok::<_, Errno>(1000), why);
    s.note_or("odd offset", sys::pwrite_at_skew(&fd, &[6; 4096], 100, 0), Ok::<_, Errno>(4096), why);
    s.note_or("odd address", sys::pwrite_at_skew(&fd, &[5; 4096], 4096, 1), Ok::<_, Errno>(4096), why);
    // Bring the content back to one that doesn't depend on what the odd writes did.
    s.note("whole", sys::pwrite_at_skew(&fd, &data, 0, 0));
    s.note_or(
        "odd read",
        digest(sys::pread_at_skew(&fd, 1000, 0, 0)),
        digest(Ok(data[..1000].to_vec())),
        why,
    );
    s.note("buffered sees it", sys::open(&f, O_RDONLY, 0).and_then(|b| digest(sys::pread(&b, 70_000, 0))));
    s.fd("create", sys::open(s.p("g"), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0o644));
    let mixed = s.fd("buffered beside direct", sys::open(&f, O_RDWR, 0)).unwrap();
    s.note("buffered write", sys::pwrite(&mixed, b"mixed", 0));
    s.note("direct read of it", sys::pread_at_skew(&fd, 4096, 0, 0).map(|v| v[..5].to_vec()));
}

fn directory(s: &mut Side) {
    let (f, d) = (s.file("f", b"x"), s.dir("d"));
    s.fd("directory", sys::open(&d, O_RDONLY | O_DIRECTORY, 0));
    s.fd("of a file", sys::open(&f, O_RDONLY | O_DIRECTORY, 0));
    s.fd("without the flag", sys::open(&d, O_RDONLY, 0));
    s.fd("for writing", sys::open(&d, O_WRONLY, 0));
    s.fd("for both", sys::open(&d, O_RDWR, 0));
    s.fd("creat on it", sys::open(&d, O_RDONLY | O_CREAT, 0o644));
    s.fd("creat a directory", sys::open(s.p("e"), O_RDONLY | O_CREAT | O_DIRECTORY, 0o755));
    let fd = sys::open(&d, O_RDONLY, 0).unwrap();
    s.note("read of a directory", sys::read(&fd, 10));
    s.note("ftruncate of a directory", sys::ftruncate(&fd, 0));
}

fn no_follow(s: &mut Side) {
    s.file("f", b"x");
    s.dir("d");
    sys::symlink("f", s.p("l")).unwrap();
    sys::symlink("d", s.p("dl")).unwrap();
    s.fd("file", sys::open(s.p("f"), O_RDONLY | O_NOFOLLOW, 0));
    s.fd("link", sys::open(s.p("l"), O_RDONLY | O_NOFOLLOW, 0));
    s.fd("link to a directory", sys::open(s.p("dl"), O_RDONLY | O_NOFOLLOW | O_DIRECTORY, 0));
    let fd = s.fd("link by path", sys::open(s.p("l"), O_PATH | O_NOFOLLOW, 0)).unwrap();
    s.note("it is the link", sys::fstat(&fd).map(|st| st.st_mode & S_IFMT));
}

fn path_only(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = s.fd("path", sys::open(&f, O_PATH, 0)).unwrap();
    s.note("fstat", sys::fstat(&fd).map(|st| st.st_size));
    s.note("read", sys::read(&fd, 1));
    s.note("fchmod", sys::fchmod(&fd, 0o600));
    let again = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let re = s.fd("reopened through /proc", sys::open(again, O_RDWR, 0)).unwrap();
    s.note("write there", sys::write(&re, b"yes"));
    s.look("after", "f");
}

fn sync_flags(s: &mut Side) {
    for (name, flags) in [("sync", O_SYNC), ("dsync", O_DSYNC), ("direct sync", O_DIRECT | O_SYNC)] {
        let Some(fd) = s.fd(name, sys::open(s.p(name), O_RDWR | O_CREAT | O_TRUNC | flags, 0o644)) else {
            continue;
        };
        s.note(format!("{name} write"), sys::pwrite_at_skew(&fd, &[1; 4096], 0, 0));
        s.note(format!("{name} flags"), sys::fcntl(&fd, F_GETFL, 0).map(|f| f & (O_SYNC | O_DSYNC)));
    }
}

fn no_atime(s: &mut Side) {
    let f = s.file("f", b"hello");
    sys::utimens(&f, (1000, 0), (2000, 0), 0).unwrap();
    let fd = s.fd("open", sys::open(&f, O_RDONLY | O_NOATIME, 0)).unwrap();
    s.note("read", sys::read(&fd, 5));
    s.note("atime stays", sys::fstat(&fd).map(|st| st.st_atime));
    sys::chmod(&f, 0o644).unwrap();
    let theirs = crate::common::user::as_user(65534, 65534, || sys::open(&f, O_RDONLY | O_NOATIME, 0));
    s.fd("not the owner", theirs);
}

fn tmpfile(s: &mut Side) {
    let r = sys::open(&s.root, O_TMPFILE | O_RDWR, 0o600).map(|_| "open");
    s.note_or("tmpfile", r, Err::<&str, _>(Errno::EOPNOTSUPP), "the FUSE library has no TMPFILE");
}

fn modes_and_umask(s: &mut Side) {
    for (mask, mode) in [(0o022, 0o666), (0, 0o777), (0o077, 0o666), (0o777, 0o777), (0o022, 0o7777), (0, 0)]
    {
        let old = sys::umask(mask);
        let name = format!("f-{mask:o}-{mode:o}");
        let fd = sys::open(s.p(&name), O_RDWR | O_CREAT, mode);
        // Setuid bits don't outlive a write on kvfs, also not root's: see setid.rs.
        let writes = usize::from(mode & 0o6000 == 0);
        let dir = sys::mkdir(s.p(format!("d-{mask:o}-{mode:o}")), mode);
        let node = sys::mknod(s.p(format!("n-{mask:o}-{mode:o}")), S_IFREG | mode, 0);
        sys::umask(old);
        s.note(format!("{name} made"), (fd.as_ref().map(drop), dir, node));
        s.note(format!("{name} written"), fd.and_then(|fd| sys::write(&fd, &b"x"[..writes])));
    }
}

fn bad_flags(s: &mut Side) {
    let f = s.file("f", b"x");
    s.fd("both access modes", sys::open(&f, O_ACCMODE, 0));
    s.fd("tmpfile of a file", sys::open(&f, O_TMPFILE | O_RDWR, 0o600).or(Err(Errno::ENOTDIR)));
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("bad fcntl", sys::fcntl(&fd, 9999, 0));
}

fn through_links(s: &mut Side) {
    s.file("f", b"target");
    sys::symlink("f", s.p("l1")).unwrap();
    sys::symlink("l1", s.p("l2")).unwrap();
    sys::symlink("loop", s.p("loop")).unwrap();
    sys::symlink("made", s.p("dangling")).unwrap();
    let fd = s.fd("two links", sys::open(s.p("l2"), O_RDONLY, 0)).unwrap();
    s.note("content", sys::read(&fd, 100));
    s.fd("loop", sys::open(s.p("loop"), O_RDONLY, 0));
    s.fd("create through a link", sys::open(s.p("dangling"), O_RDWR | O_CREAT, 0o600));
    s.look("made", "made");
}
