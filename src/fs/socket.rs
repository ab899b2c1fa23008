//! A Unix socket in the root of the mount that is on no backing: through it, clients in containers send
//! descriptors to the daemon.
//!
//! connect(2) finds a socket by the inode of its path (unix_find_bsd in net/unix/af_unix.c), so it must be
//! bound through the mount, which asks for it with MKNOD. What always holds: only the process that was told
//! to bind it can make it; it's in no listing; nothing else can be made, removed or renamed under its name.

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Attr, Caller, Fs, NodeId, Result, Time};
use crate::index::Kind;

/// Its name: `KVFS_FD_SOCKET_NAME` of packaging/kvfs_ioctl.h.
pub(crate) const SOCKET_NAME: &[u8] = b".kvfs-socket";

/// No backing has this slot, and no directory this number.
const NODE: NodeId = NodeId(0xffff << 48 | 1);

/// Whether the socket is there.
#[derive(Default)]
pub(super) struct Socket(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    None,
    /// This process is about to bind it.
    Expected(u32),
    Bound(Time),
}

impl Fs {
    /// The next process to bind the socket may be this one.
    pub(crate) fn expect_socket(&self, pid: u32) {
        *self.socket.0.lock() = State::Expected(pid);
    }

    /// The socket's attributes, if the node or name is its, and it's there.
    pub(super) fn socket_attr(&self, node: NodeId) -> Option<Attr> {
        if node != NODE {
            return None;
        }
        match *self.socket.0.lock() {
            State::Bound(time) => Some(attr(time)),
            _ => None,
        }
    }

    /// What its name stands for in this directory.
    pub(super) fn find_socket(&self, parent: NodeId, name: &[u8]) -> Option<Attr> {
        if parent == NodeId::ROOT && name == SOCKET_NAME { self.socket_attr(NODE) } else { None }
    }

    /// Makes it for the process that was told to bind it; `None` if it isn't that.
    pub(super) fn make_socket(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Option<Result<Attr>> {
        if parent != NodeId::ROOT || name != SOCKET_NAME || Kind::from_mode(mode) != Kind::Socket {
            return None;
        }
        let mut state = self.socket.0.lock();
        match *state {
            State::Expected(pid) if pid == caller.tid => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let now = now.unwrap_or_default();
                let time = Time { secs: now.as_secs() as i64, nanos: now.subsec_nanos() };
                *state = State::Bound(time);
                Some(Ok(attr(time)))
            }
            State::Bound(_) => Some(Err(Errno::EXIST.into())),
            _ => None,
        }
    }
}

/// Everybody who gets into the mount may connect.
fn attr(time: Time) -> Attr {
    Attr {
        node: NODE,
        generation: 0,
        kind: Kind::Socket,
        perm: 0o666,
        size: 0,
        blocks: 0,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        atime: time,
        mtime: time,
        ctime: time,
    }
}
