//! A directory stream with positions: what readdir, telldir and seekdir give a client.

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;

use super::sys::R;

/// One entry as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) kind: u8,
    pub(crate) ino: u64,
}

pub(crate) struct Dir(NonNull<libc::DIR>);

impl Dir {
    pub(crate) fn open(path: impl AsRef<Path>) -> R<Dir> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes()).expect("a path without NUL");
        // SAFETY: the string outlives the call.
        NonNull::new(unsafe { libc::opendir(path.as_ptr()) }).map(Dir).ok_or_else(Errno::last)
    }

    /// The next entry, `.` and `..` included; none at the end.
    pub(crate) fn next(&mut self) -> R<Option<Entry>> {
        Errno::clear();
        // SAFETY: the stream is open and used by this thread alone.
        let entry = unsafe { libc::readdir64(self.0.as_ptr()) };
        if entry.is_null() {
            let e = Errno::last();
            return if e == Errno::UnknownErrno { Ok(None) } else { Err(e) };
        }
        // SAFETY: readdir returned a record that stays valid until the next call on this stream.
        let (name, kind, ino) = unsafe {
            (CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes().to_vec(), (*entry).d_type, (*entry).d_ino)
        };
        Ok(Some(Entry { name: OsString::from_vec(name), kind, ino }))
    }

    /// All that is left of the stream.
    pub(crate) fn rest(&mut self) -> R<Vec<Entry>> {
        let mut all = Vec::new();
        while let Some(e) = self.next()? {
            all.push(e);
        }
        Ok(all)
    }

    pub(crate) fn tell(&mut self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0.as_ptr()) }
    }

    pub(crate) fn seek(&mut self, at: i64) {
        // SAFETY: the stream is open and `at` came from `tell` on it.
        unsafe { libc::seekdir(self.0.as_ptr(), at) }
    }

    pub(crate) fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0.as_ptr()) }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and not used after this.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

/// Names and types in a directory without `.` and `..`, sorted.
pub(crate) fn list(path: impl AsRef<Path>) -> R<Vec<(OsString, u8)>> {
    let mut all: Vec<_> = Dir::open(path)?
        .rest()?
        .into_iter()
        .filter(|e| e.name != "." && e.name != "..")
        .map(|e| (e.name, e.kind))
        .collect();
    all.sort();
    Ok(all)
}
