//! Looking at each file: can it be read, are its copies alike, does anybody know it.
//!
//! What always holds: as many threads as there are backings, at least two, look at files while others are being
//! listed; of what is listed only so much waits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;

use parking_lot::Mutex;
use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use super::compare::{open_quietly, read_all, same};
use super::own::{self, Unclosed};
use super::{Finding, Fix, Kind, Root, open_beneath, root};
use crate::index::{self, Slot, SlotSet};
use crate::placement::process::Processes;
use crate::printable::printable;
use crate::retention::{CREATOR_XATTR, Creators, Record, is_known_by_memory};

/// How much is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Read every byte.
    pub deep: bool,
    /// Compare the bytes of copies.
    pub compare: bool,
    /// A mount has the backings: files come and go, and what it does itself is left to it.
    pub mounted: bool,
}

/// Something that is looked at. Paths are below the roots.
#[derive(Clone, Debug)]
pub enum Item {
    /// A name that isn't a directory.
    File {
        /// Which.
        path: Vec<u8>,
        /// The backing that has it.
        slot: Slot,
        /// Its type.
        kind: index::Kind,
        /// Its inode number; 0 if that isn't known.
        ino: u64,
        /// Backings with older copies.
        others: SlotSet,
    },
    /// A directory.
    Directory {
        /// Which.
        path: Vec<u8>,
        /// The backings that have it.
        slots: SlotSet,
    },
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was found.
    pub found: Vec<Finding>,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

struct Looker<'a> {
    roots: &'a [Root],
    options: Options,
    unclosed: Unclosed,
    creators: Creators,
    found: Mutex<Vec<Finding>>,
    files: AtomicU64,
    bytes: AtomicU64,
}

/// Looks at all that `list` gives; it calls what it's given for each, until that says (by false) to stop.
pub fn look<E>(
    roots: &[Root],
    options: Options,
    list: impl FnOnce(&mut dyn FnMut(Item) -> bool) -> Result<(), E>,
) -> Result<Looked, E> {
    let mut found = Vec::new();
    let unclosed = if options.mounted { Unclosed::new() } else { own::unclosed(roots, &mut found) };
    let looker = Looker {
        roots,
        options,
        unclosed,
        creators: Creators::new("/proc", Arc::new(Processes::new("/proc"))),
        found: Mutex::new(found),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    in_threads(roots.len(), list, |item, buffer| looker.look(item, buffer))?;
    let mut found = looker.found.into_inner();
    found.sort_by(|a, b| (a.kind, &a.path, &a.backing).cmp(&(b.kind, &b.path, &b.backing)));
    Ok(Looked { found, files: looker.files.into_inner(), bytes: looker.bytes.into_inner() })
}

/// Does something with all that `list` gives, in threads; each has a buffer of its own.
pub(super) fn in_threads<E>(
    threads: usize,
    list: impl FnOnce(&mut dyn FnMut(Item) -> bool) -> Result<(), E>,
    act: impl Fn(Item, &mut Vec<u8>) + Sync,
) -> Result<(), E> {
    let (send, receive) = sync_channel::<Item>(4096);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        let (act, receive, send) = (&act, &receive, send);
        for _ in 0..threads.clamp(2, 16) {
            scope.spawn(move || {
                let mut buffer = Vec::new();
                loop {
                    let next = receive.lock().recv();
                    let Ok(item) = next else { break };
                    act(item, &mut buffer);
                }
            });
        }
        list(&mut |item| send.send(item).is_ok())
    })
}

impl Looker<'_> {
    fn tell(&self, kind: Kind, slot: Slot, path: &[u8], detail: impl Into<String>, fix: Fix) {
        let Ok(root) = root(self.roots, slot) else { return };
        let (backing, path) = (root.path.clone(), printable(path));
        self.found.lock().push(Finding { kind, backing, path, detail: detail.into(), fix });
    }

    fn look(&self, item: Item, buffer: &mut Vec<u8>) {
        match item {
            Item::Directory { path, slots } => self.directory(&path, slots),
            Item::File { path, slot, kind, ino, others } => {
                self.files.fetch_add(1, Relaxed);
                if self.unclosed.contains(&(slot, ino)) {
                    self.tell(Kind::Unclosed, slot, &path, "was not closed", Fix::None);
                }
                if kind != index::Kind::File {
                    return;
                }
                let file = self.file(&path, slot, buffer);
                for other in others.iter() {
                    self.copy(&path, slot, other, file.as_ref());
                }
            }
        }
    }

    fn file(&self, path: &[u8], slot: Slot, buffer: &mut Vec<u8>) -> Option<OwnedFd> {
        let opened = root(self.roots, slot).and_then(|root| open_quietly(root.dir.as_fd(), path));
        let file = match opened {
            Ok(file) => file,
            // A mount that's in use is faster than we are.
            Err(Errno::NOENT) if self.options.mounted => return None,
            Err(e) => {
                self.tell(Kind::Unreadable, slot, path, format!("can't be opened: {e}"), Fix::None);
                return None;
            }
        };
        if self.options.deep {
            match read_all(&file, buffer) {
                Ok(bytes) => drop(self.bytes.fetch_add(bytes, Relaxed)),
                Err((at, e)) => {
                    self.tell(
                        Kind::Unreadable,
                        slot,
                        path,
                        format!("can't be read at byte {at}: {e}"),
                        Fix::None,
                    );
                }
            }
        }
        // A mount knows its orphans by itself.
        if !self.options.mounted && is_known_by_memory(path) && self.is_orphan(&file) {
            let stat = fstat(&file).ok();
            let (ino, size) = stat.map_or((0, 0), |stat| (stat.st_ino, stat.st_size));
            let fix = Fix::Remove { path: path.to_owned(), slot, ino };
            self.tell(Kind::Orphan, slot, path, format!("{size} bytes"), fix);
        }
        Some(file)
    }

    fn is_orphan(&self, file: &OwnedFd) -> bool {
        let mut value = Vec::with_capacity(256);
        let got = rustix::fs::fgetxattr(file, CREATOR_XATTR, rustix::buffer::spare_capacity(&mut value));
        got.is_ok() && Record::decode(&value).is_some_and(|record| self.creators.has_ended(&record))
    }

    /// An older copy.
    fn copy(&self, path: &[u8], file: Slot, other: Slot, opened: Option<&OwnedFd>) {
        let older = match root(self.roots, other).and_then(|root| open_quietly(root.dir.as_fd(), path)) {
            Ok(older) => older,
            Err(Errno::NOENT) => return,
            Err(e) => {
                return self.tell(
                    Kind::Unreadable,
                    other,
                    path,
                    format!("an older copy; can't be opened: {e}"),
                    Fix::None,
                );
            }
        };
        let whose = root(self.roots, file).map(|root| root.path.display().to_string()).unwrap_or_default();
        let fix = Fix::Copy { path: path.to_owned(), slot: other, file };
        // Nothing is offered of which the newest copy can't be read.
        let Some(newest) = opened else {
            let detail = format!("the newest copy, on {whose}, can't be read: keep this one");
            return self.tell(Kind::Differs, other, path, detail, Fix::None);
        };
        let sizes = (fstat(newest).map(|s| s.st_size), fstat(&older).map(|s| s.st_size));
        let (kind, detail) = match sizes {
            (Ok(new), Ok(old)) if new != old => {
                (Kind::Differs, format!("{old} bytes, the newest copy on {whose} has {new}"))
            }
            _ if self.options.compare => match same(newest, &older) {
                Ok(true) => (Kind::Shadow, format!("the same bytes as on {whose}")),
                Ok(false) => (Kind::Differs, format!("other bytes than on {whose}")),
                Err(e) => (Kind::Differs, format!("can't be compared with {whose}: {e}")),
            },
            _ => (Kind::Shadow, format!("as large as on {whose}; --deep compares them")),
        };
        self.tell(kind, other, path, detail, fix);
    }

    /// A directory has one owner and one mode.
    fn directory(&self, path: &[u8], slots: SlotSet) {
        let stat = |slot| {
            let dir = open_beneath(root(self.roots, slot)?.dir.as_fd(), path, OFlags::PATH)?;
            fstat(&dir).map(|stat| (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid))
        };
        let mut first = None;
        for slot in slots.iter() {
            match (stat(slot), first) {
                (Ok(this), None) => first = Some(this),
                (Ok(this), Some(first)) if this != first => {
                    let say =
                        |(mode, uid, gid): (u32, u32, u32)| format!("mode {mode:04o}, owner {uid}:{gid}");
                    let detail = format!("{}; the first backing has {}", say(this), say(first));
                    self.tell(
                        Kind::Permissions,
                        slot,
                        path,
                        detail,
                        Fix::Directory { path: path.to_owned(), slots },
                    );
                }
                _ => {}
            }
        }
    }
}
