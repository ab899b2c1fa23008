//! Names that were evicted and that a living process will remove some day: that succeeds once.
//!
//! LMCache's `local_disk` dies when a file that it removes isn't there (issue #1981: `os.remove` in
//! `LocalDiskBackend.remove`, on the way of a store). The kernel doesn't ask for a removal before it has found
//! the name, and doesn't say what it looks a name up for. So the name of an evicted file is found, as a *ghost*
//! whose attributes are never valid: a removal succeeds. Whoever wants anything else finds the name absent:
//! where /proc tells which system call the thread is in, at once; else it has to ask for the attributes, gets
//! ESTALE, and with it the kernel looks the name up once more, for the same thread (`retry_estale` in
//! fs/namei.c): then it's absent.
//!
//! What always holds: only names that a client keeps in its memory become ghosts, only while the process that
//! made the file lives, and until it removes or makes the name again; there are at most [`MOST`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::{Attr, NodeId};
use crate::index::{CreatorCode, DirId, Kind};

/// How many evicted names are remembered; the oldest are forgotten.
const MOST: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();

/// No backing has this slot: see `index/node.rs`.
pub(super) const NODES: u64 = 0xfffe << 48;

/// After ESTALE the kernel looks a name up twice: to see whether what it has still holds, and anew.
const LOOKS: u8 = 2;
/// Threads that may be to find one name absent.
const ABSENCES: usize = 256;
/// And it does so at once.
const SOON: Duration = Duration::from_millis(500);

type Key = (DirId, Arc<[u8]>);

/// A file that was evicted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evicted {
    /// Who made it.
    pub(super) creator: CreatorCode,
    /// Whose it was: in a directory with the sticky bit that decides who may remove it.
    pub(super) owner: (u32, u32),
}

#[derive(Debug)]
struct Ghost {
    file: Evicted,
    number: u64,
    absent_for: Vec<Absence>,
}

/// A thread that is to find the name absent, how often, and until when.
#[derive(Debug)]
struct Absence {
    tid: u32,
    looks: u8,
    until: Instant,
}

#[derive(Debug)]
struct Inner {
    by_name: LruCache<Key, Ghost>,
    by_number: std::collections::HashMap<u64, Key>,
    next: u64,
}

/// All ghosts.
#[derive(Debug)]
pub(super) struct Ghosts {
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

impl Ghosts {
    pub(super) fn new() -> Ghosts {
        let inner = Inner { by_name: LruCache::new(MOST), by_number: Default::default(), next: 1 };
        Ghosts { count: AtomicUsize::new(0), inner: Mutex::new(inner) }
    }

    /// The usual case costs one load.
    fn some(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// The name was evicted.
    pub(super) fn add(&self, dir: DirId, name: &[u8], file: Evicted) {
        let mut inner = self.inner.lock();
        let number = inner.next;
        inner.next += 1;
        let key: Key = (dir, name.into());
        inner.by_number.insert(number, key.clone());
        let ghost = Ghost { file, number, absent_for: Vec::new() };
        if let Some((_, old)) = inner.by_name.push(key, ghost) {
            inner.by_number.remove(&old.number);
        }
        self.count.store(inner.by_name.len(), Relaxed);
    }

    /// A thread looks the name up, which isn't there.
    pub(super) fn look_up(&self, dir: DirId, name: &[u8], tid: u32) -> Option<Attr> {
        if !self.some() {
            return None;
        }
        let mut inner = self.inner.lock();
        let ghost = inner.by_name.peek_mut(&(dir, name.into()))?;
        if !ghost.absent_for.is_empty() {
            let now = Instant::now();
            ghost.absent_for.retain(|absence| absence.looks > 0 && now < absence.until);
            if let Some(absence) = ghost.absent_for.iter_mut().find(|absence| absence.tid == tid) {
                absence.looks -= 1;
                return None;
            }
        }
        if does_something_else(tid) {
            return None;
        }
        let mut attr = Attr::unknown(NodeId(NODES | ghost.number), Kind::File);
        (attr.perm, attr.nlink) = (0o600, 1);
        (attr.uid, attr.gid) = ghost.file.owner;
        Some(attr)
    }

    /// Whether the name is one, for whichever thread.
    pub(super) fn has(&self, dir: DirId, name: &[u8]) -> bool {
        self.some() && self.inner.lock().by_name.contains(&(dir, name.into()))
    }

    /// A thread wants more of a node than to remove it: if it's a ghost, the thread won't find it next time.
    pub(super) fn is_absent(&self, node: NodeId, tid: u32) -> bool {
        if node.0 & NODES != NODES || node.0 >> 48 != NODES >> 48 {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(key) = inner.by_number.get(&(node.0 & !NODES)).cloned() else { return true };
        if let Some(ghost) = inner.by_name.peek_mut(&key) {
            ghost.absent_for.retain(|absence| absence.tid != tid);
            if ghost.absent_for.len() >= ABSENCES {
                ghost.absent_for.remove(0);
            }
            ghost.absent_for.push(Absence { tid, looks: LOOKS, until: Instant::now() + SOON });
        }
        true
    }

    /// The name is removed, or made again: whether it was a ghost's.
    pub(super) fn take(&self, dir: DirId, name: &[u8]) -> bool {
        if !self.some() {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(ghost) = inner.by_name.pop(&(dir, name.into())) else { return false };
        inner.by_number.remove(&ghost.number);
        self.count.store(inner.by_name.len(), Relaxed);
        true
    }

    /// The process that made the files is gone: nobody removes their names any more.
    pub(super) fn forget(&self, creator: CreatorCode) {
        if !self.some() {
            return;
        }
        let mut inner = self.inner.lock();
        let gone: Vec<Key> = inner
            .by_name
            .iter()
            .filter(|(_, g)| g.file.creator == creator)
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some(ghost) = inner.by_name.pop(&key) {
                inner.by_number.remove(&ghost.number);
            }
        }
        self.count.store(inner.by_name.len(), Relaxed);
    }
}

/// Whether the thread, which waits for us, is in a system call with a path that removes no file. A thread that
/// can't be seen, or one of io_uring, may be removing one.
fn does_something_else(tid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/syscall")) else { return false };
    let number = text.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: i64| CALLS.contains(&number))
}

/// System calls with a path, but for those that remove files.
const CALLS: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_truncate,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_chdir,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
];

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: DirId = DirId::ROOT;
    /// Threads that there can't be: /proc says nothing of them.
    const THREADS: [u32; 3] = [u32::MAX, u32::MAX - 1, u32::MAX - 2];

    fn made_by(creator: u8) -> Evicted {
        Evicted { creator: CreatorCode(creator), owner: (1000, 100) }
    }

    #[test]
    fn a_removal_succeeds_once() {
        let ghosts = Ghosts::new();
        assert!(!ghosts.take(DIR, b"a"));
        ghosts.add(DIR, b"a", made_by(3));
        let attr = ghosts.look_up(DIR, b"a", THREADS[0]).unwrap();
        assert_eq!((attr.uid, attr.gid), (1000, 100));
        assert!(ghosts.look_up(DIR, b"b", THREADS[0]).is_none());
        assert!(ghosts.take(DIR, b"a"));
        assert!(!ghosts.take(DIR, b"a"));
        assert!(ghosts.look_up(DIR, b"a", THREADS[0]).is_none());
    }

    #[test]
    fn who_wants_more_finds_it_absent() {
        let [one, other, third] = THREADS;
        let ghosts = Ghosts::new();
        ghosts.add(DIR, b"a", made_by(3));
        let node = ghosts.look_up(DIR, b"a", one).unwrap().node;
        assert_eq!(node.node(), None, "no file of a backing");
        assert!(ghosts.is_absent(node, one));
        assert!(ghosts.look_up(DIR, b"a", other).is_some(), "another thread may be removing it");
        assert!(ghosts.is_absent(node, other));
        assert!(ghosts.look_up(DIR, b"a", third).is_some());
        for thread in [one, other] {
            assert!(ghosts.look_up(DIR, b"a", thread).is_none(), "what the kernel has doesn't hold");
            assert!(ghosts.look_up(DIR, b"a", thread).is_none(), "nor is it there");
            assert!(ghosts.look_up(DIR, b"a", thread).is_some(), "the next call may be a removal");
        }
        assert!(!ghosts.is_absent(NodeId::ROOT, one) && !ghosts.is_absent(NodeId(1 << 48 | 9), one));
        assert!(!ghosts.is_absent(NodeId(0xffff << 48 | 1), one), "the socket is no ghost");
    }

    #[test]
    fn ghosts_go_with_the_process_that_remembers_them() {
        let ghosts = Ghosts::new();
        ghosts.add(DIR, b"a", made_by(3));
        ghosts.add(DIR, b"b", made_by(4));
        ghosts.add(DIR, b"b", made_by(4));
        ghosts.forget(CreatorCode(3));
        assert!(!ghosts.take(DIR, b"a") && ghosts.take(DIR, b"b") && !ghosts.take(DIR, b"b"));
        assert!(ghosts.inner.lock().by_number.is_empty());
    }

    #[test]
    fn the_system_call_tells_what_a_name_is_wanted_for() {
        // A reader of a FIFO waits in openat(2), as a client does that waits for us.
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let path = fifo.clone();
        let waiting = std::thread::spawn(move || {
            tx.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            std::fs::File::open(path).unwrap()
        });
        let tid = rx.recv().unwrap();
        while !does_something_else(tid) {
            std::thread::yield_now();
        }
        drop(std::fs::File::options().write(true).open(&fifo).unwrap());
        waiting.join().unwrap();
        assert!(THREADS.iter().all(|tid| !does_something_else(*tid)), "unseen");
    }
}
