//! mknod: fifos, sockets, devices and plain files.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use libc::*;

use super::{Side, parity};
use crate::common::sys;
use crate::common::user::{NOBODY, as_user};

parity!(make, fifo_works, socket_works, refused, links_and_renames);

fn make(s: &mut Side) {
    for (name, kind) in
        [("fifo", S_IFIFO), ("sock", S_IFSOCK), ("file", S_IFREG), ("char", S_IFCHR), ("block", S_IFBLK)]
    {
        s.note(format!("mknod {name}"), sys::mknod(s.p(name), kind | 0o640, makedev(7, 99)));
        s.look(name, name);
    }
    s.note("kind 0 is a file", sys::mknod(s.p("zero"), 0o600, 0));
    s.look("zero", "zero");
}

fn fifo_works(s: &mut Side) {
    sys::mknod(s.p("fifo"), S_IFIFO | 0o600, 0).unwrap();
    s.note("no reader", sys::open(s.p("fifo"), O_WRONLY | O_NONBLOCK, 0).map(drop));
    let r = sys::open(s.p("fifo"), O_RDONLY | O_NONBLOCK, 0).unwrap();
    let w = sys::open(s.p("fifo"), O_WRONLY | O_NONBLOCK, 0).unwrap();
    s.note("write", sys::write(&w, b"through"));
    s.note("read", sys::read(&r, 100));
    s.note("empty", sys::read(&r, 100));
}

fn socket_works(s: &mut Side) {
    // A socket's path is short; a link of our own in /proc keeps it within the limit.
    let dir = sys::open(&s.root, O_RDONLY | O_DIRECTORY, 0).unwrap();
    let at = format!("/proc/self/fd/{}/sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let listener = UnixListener::bind(&at);
    s.note("bind", listener.as_ref().map(drop).map_err(|e| e.raw_os_error()));
    let Ok(listener) = listener else { return };
    let mut client = UnixStream::connect(&at).unwrap();
    let mut server = listener.accept().unwrap().0;
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut got = String::new();
    server.read_to_string(&mut got).unwrap();
    s.note("talks", got);
    s.look("sock", "sock");
}

fn refused(s: &mut Side) {
    s.file("f", b"x");
    s.note("existing", sys::mknod(s.p("f"), S_IFIFO | 0o600, 0));
    s.note("directory", sys::mknod(s.p("d"), S_IFDIR | 0o700, 0));
    s.note("below nothing", sys::mknod(s.p("no/x"), S_IFIFO | 0o600, 0));
    sys::chmod(&s.root, 0o777).unwrap();
    s.note(
        "device by a user",
        as_user(NOBODY, NOBODY, || sys::mknod(s.p("dev"), S_IFCHR | 0o600, makedev(1, 3))),
    );
    s.note("fifo by a user", as_user(NOBODY, NOBODY, || sys::mknod(s.p("fifo"), S_IFIFO | 0o600, 0)));
    s.look("its owner", "fifo");
}

fn links_and_renames(s: &mut Side) {
    let (a, b) = s.two();
    sys::mknod(&a, S_IFIFO | 0o600, 0).unwrap();
    s.note("link", sys::link(&a, s.p("other")));
    std::fs::write(&b, b"a file").unwrap();
    s.note("over a file", sys::rename(&a, &b));
    s.note("it is the fifo", sys::lstat(&b).map(|st| (st.st_mode & S_IFMT, st.st_nlink)));
    s.note("unlink", sys::unlink(s.p("other")));
}
