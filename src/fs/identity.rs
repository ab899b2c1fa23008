//! Which file an inode number stands for on a shared backing.
//!
//! Others remove files while the kernel knows their numbers, and a number may soon be a new file's: within a tick of
//! the clock, so the time of birth doesn't tell the two apart. What always holds: what the kernel asks of a
//! shared file by its number is answered for the file that it was told of, or with ESTALE, on which it looks the
//! name up again.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use hashbrown::HashMap;
use parking_lot::Mutex;
use rustix::fs::Statx;
use rustix::io::Errno;

use super::{Attr, Fs, Node, NodeId, Result};

/// The identity of each shared file that the kernel was told of.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<NodeId, u64>>);

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
        self.told.0.lock().insert(attr.node, generation);
        Attr { generation, ..attr }
    }

    /// ESTALE unless this is the file that the kernel was told of by this number.
    pub(super) fn is_as_told(&self, node: NodeId, stat: &Statx, dir: impl AsFd, name: &[u8]) -> Result<()> {
        let Some(Node::File(slot, _)) = node.node() else { return Ok(()) };
        if !self.is_shared(slot) {
            return Ok(());
        }
        let Some(told) = self.told.0.lock().get(&node).copied() else { return Ok(()) };
        let now = handle_of(dir, name).unwrap_or_else(|| Attr::new(node, stat).generation);
        if now == told { Ok(()) } else { Err(Errno::STALE.into()) }
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
