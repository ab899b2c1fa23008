//! Which file an inode number stands for on a shared backing.
//!
//! Others remove files while the kernel knows their numbers, and a number may soon be a new file's: within a tick of
//! the clock, so the time of birth doesn't tell the two apart. What always holds: what the kernel asks of a
//! shared file by its number is answered for the file that it was told of, or with ESTALE, on which it looks the
//! name up again.
//!
//! When a number has become another file's the kernel learns it with the answer to a lookup or a create. Until it has
//! read that, other threads of clients may still ask by the number for the file that had it before; so for a while
//! only those may open it, or cut it off, that have been told themselves.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use rustix::fs::Statx;
use rustix::io::Errno;

use super::{Attr, Fs, Node, NodeId, Result};
use crate::supervise::asking_thread;

/// How long a request may be under way that was sent before the kernel had read an answer.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// Threads that are kept in mind of those that were told; one that isn't looks the name up once more.
const KEPT_IN_MIND: usize = 64;

/// The identity of each shared file that the kernel was told of.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<NodeId, Identity>>);

struct Identity {
    identity: u64,
    /// Since when the number is this file's and no other's that the kernel knew, and which threads were told of it.
    changed: Option<Box<(Instant, Vec<u32>)>>,
}

impl Told {
    /// The kernel is about to be told, as an answer to this thread of a client.
    fn tell(&self, node: NodeId, identity: u64, thread: u32) {
        let new = Identity { identity, changed: None };
        let mut told = self.0.lock();
        let known = told.entry(node).or_insert(new);
        if known.identity != identity {
            *known = Identity { identity, changed: Some(Box::new((Instant::now(), Vec::new()))) };
        }
        if let Some(changed) = &mut known.changed {
            let (since, threads) = &mut **changed;
            if since.elapsed() > UNDER_WAY {
                known.changed = None;
            } else if !threads.contains(&thread) {
                if threads.len() == KEPT_IN_MIND {
                    threads.remove(0);
                }
                threads.push(thread);
            }
        }
    }

    /// Whether the thread may mean the file that had the number before.
    fn may_mean_another(&self, node: NodeId, thread: u32) -> bool {
        let told = self.0.lock();
        let Some(changed) = told.get(&node).and_then(|known| known.changed.as_deref()) else { return false };
        changed.0.elapsed() <= UNDER_WAY && !changed.1.contains(&thread)
    }
}

/// `struct file_handle` with room for the largest (MAX_HANDLE_SZ, include/linux/exportfs.h).
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; 128],
}

/// A number made of the file's handle, which no other file of its file system ever had (name_to_handle_at(2)). With
/// an empty name, the open file's. `None` where the file system has no handles.
fn handle_of(dir: impl AsFd, name: &[u8]) -> Option<u64> {
    let name_c = CString::new(name).ok()?;
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount: libc::c_int = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: the name ends with a zero; the handle has the room that it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            name_c.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            flags,
        )
    };
    let data = handle.data.get(..handle.bytes as usize)?;
    (result == 0).then(|| xxhash_rust::xxh3::xxh3_64_with_seed(data, handle.kind as u64))
}

impl Fs {
    /// The attributes of a file that the kernel is about to be told of: on a shared backing with its identity as the
    /// generation. With an empty name `dir` is the file.
    pub(super) fn identified(&self, attr: Attr, dir: impl AsFd, name: &[u8]) -> Attr {
        let Some(Node::File(slot, _)) = attr.node.node() else { return attr };
        if !self.is_shared(slot) {
            return attr;
        }
        let generation = handle_of(dir, name).unwrap_or(attr.generation);
        self.told.tell(attr.node, generation, asking_thread());
        Attr { generation, ..attr }
    }

    /// ESTALE unless this is the file that the kernel was told of by this number.
    pub(super) fn is_as_told(&self, node: NodeId, stat: &Statx, dir: impl AsFd, name: &[u8]) -> Result<()> {
        let Some(Node::File(slot, _)) = node.node() else { return Ok(()) };
        if !self.is_shared(slot) {
            return Ok(());
        }
        let Some(told) = self.told.0.lock().get(&node).map(|known| known.identity) else { return Ok(()) };
        let now = handle_of(dir, name).unwrap_or_else(|| Attr::new(node, stat).generation);
        if now == told { Ok(()) } else { Err(Errno::STALE.into()) }
    }

    /// ESTALE where the thread that asks may mean a file that had the number before: to be asked before something
    /// is opened or cut off by its number.
    pub(super) fn is_meant(&self, node: NodeId) -> Result<()> {
        if self.others_change() && self.told.may_mean_another(node, asking_thread()) {
            return Err(Errno::STALE.into());
        }
        Ok(())
    }

    /// The kernel has forgotten the node.
    pub(super) fn untell(&self, node: NodeId) {
        if self.others_change() {
            self.told.0.lock().remove(&node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use crate::index::Slot;

    #[test]
    fn a_number_that_is_another_files_now_is_opened_by_those_that_were_told() {
        let told = Told::default();
        let ino = crate::index::PackedIno::plain(7).unwrap();
        let node = NodeId::file(Slot(0), ino);
        told.tell(node, 1, 10);
        assert!(!told.may_mean_another(node, 11), "the kernel knows one file by this number");
        told.tell(node, 2, 10);
        assert!(!told.may_mean_another(node, 10));
        assert!(told.may_mean_another(node, 11), "it may have been on its way to the former one");
        told.tell(node, 2, 11);
        assert!(!told.may_mean_another(node, 11));
        told.0.lock().get_mut(&node).unwrap().changed.as_mut().unwrap().0 -= UNDER_WAY * 2;
        assert!(!told.may_mean_another(node, 12), "by now the kernel has read it");
        told.tell(node, 2, 12);
        assert!(told.0.lock()[&node].changed.is_none());
    }

    #[test]
    fn a_file_keeps_its_identity_and_no_other_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        let mut seen = Vec::new();
        for _ in 0..100 {
            // The same inode number again, mostly.
            let file = File::create(dir.path().join("f")).unwrap();
            let identity = handle_of(&open, b"f").expect("the temporary directory's file system has handles");
            assert_eq!(handle_of(&file, b""), Some(identity));
            std::fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
            assert_eq!(handle_of(&open, b"g"), Some(identity));
            assert!(!seen.contains(&identity));
            seen.push(identity);
            drop(file);
            std::fs::remove_file(dir.path().join("g")).unwrap();
        }
    }
}
