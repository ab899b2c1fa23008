//! Listings that the kernel keeps (`FOPEN_CACHE_DIR`), so that it needn't ask for them again.
//!
//! The kernel adds what it's told by any handle that may keep it, in the order of positions, and takes the listing
//! for whole when one of them reads to the end (fs/fuse/readdir.c). It compares a directory's own changes only, of
//! which it knows: not that a file is shown, or evicted. So what always holds: a directory has a *version*, which
//! is another one after each change of what anybody is shown. All handles that may keep its listing were opened
//! in one version. The kernel is told that a listing is whole only in that version, and only if nothing in it is
//! hidden from anybody; any other listing ends in a way that it doesn't keep. And what a handle of an earlier
//! version has left there is dropped before it's read, or added to.
//!
//! The kernel only ever adds at the position where it has come to, and to pages that are there; it doesn't begin anew
//! before it has had a listing that was whole. So nothing is dropped while it's added to, and all listings that may be
//! kept have their end at the same position: there one that can't go on is taken for whole, and found to be useless.
//! (One that was left half read before something changed stays as it is; the directory is listed without it.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;

use super::{Fs, NodeId};
use crate::index::{DirId, Node};

/// Directories that are remembered. Of one that isn't the kernel drops what it has.
const REMEMBERED: usize = 4096;
/// Entries of a directory whose listing is kept. More are listed as fast without: filling the kernel's pages takes
/// as long as asking for them again, and a million names would be 100 MiB.
const MOST: u64 = 16384;
/// So many lookups while a listing that's kept is read: who reads asks for each entry, and READDIRPLUS is quicker.
const LOOKUPS: u32 = 64;

/// What a listing shows: how often the directory has changed, and how often anything has, whose directories aren't
/// known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(u64, u64);

/// How a directory is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenDir {
    /// Nothing of its listing is kept.
    Uncached,
    /// The same, but what the kernel has of it isn't dropped, for others are at it.
    Beside,
    /// What the kernel has of it is right, and is kept.
    Kept,
    /// What the kernel has of it isn't; what it's told from now on is kept.
    Dropped,
}

impl OpenDir {
    /// For the handle, which the kernel sends back.
    pub fn code(self) -> u64 {
        self as u64
    }

    /// Whether a handle with this code may keep what it's told.
    pub(super) fn may_keep(code: u64) -> bool {
        code >= OpenDir::Kept.code()
    }
}

#[derive(Debug)]
struct Listing {
    /// The handles'. And if it's `clean`, of what the kernel has.
    version: Version,
    /// Those that may keep it.
    handles: usize,
    /// What the kernel had from other versions has been dropped.
    clean: bool,
    /// Something was hidden from somebody.
    hides: bool,
    /// Lookups since an entry was listed.
    lookups: u32,
}

/// The listings that the kernel may keep.
#[derive(Debug)]
pub(super) struct Listings {
    on: bool,
    dirs: Mutex<HashMap<DirId, Listing>>,
    /// Handles that may keep a listing, of all directories.
    handles: AtomicUsize,
    changes: AtomicU64,
}

impl Listings {
    pub(super) fn new(on: bool) -> Listings {
        Listings { on, dirs: Mutex::default(), handles: AtomicUsize::new(0), changes: AtomicU64::new(0) }
    }

    fn open(&self, dir: DirId, version: Version) -> OpenDir {
        let mut dirs = self.dirs.lock();
        if dirs.len() >= REMEMBERED && !dirs.contains_key(&dir) {
            dirs.retain(|_, listing| listing.handles > 0);
            if dirs.len() >= REMEMBERED {
                return OpenDir::Beside;
            }
        }
        let new = Listing { version, handles: 0, clean: false, hides: false, lookups: 0 };
        let listing = dirs.entry(dir).or_insert(new);
        // One that is to drop what the kernel has, and hasn't read yet, may not have done so.
        if listing.handles > 0 && (listing.version != version || !listing.clean) {
            return OpenDir::Beside;
        }
        if listing.version != version {
            *listing = Listing { version, handles: 0, clean: false, hides: false, lookups: 0 };
        }
        listing.handles += 1;
        listing.lookups = 0;
        self.handles.fetch_add(1, SeqCst);
        if listing.clean { OpenDir::Kept } else { OpenDir::Dropped }
    }

    fn release(&self, dir: DirId) {
        if let Some(listing) = self.dirs.lock().get_mut(&dir).filter(|listing| listing.handles > 0) {
            listing.handles -= 1;
            self.handles.fetch_sub(1, SeqCst);
        }
    }

    /// A handle that may keep it has listed some of the directory, up to this version. Whether the kernel may take
    /// the listing for whole, should this be its end.
    fn listed(&self, dir: DirId, code: u64, version: Version, hides: bool) -> bool {
        let mut dirs = self.dirs.lock();
        // A daemon before has opened it.
        let Some(listing) = dirs.get_mut(&dir).filter(|listing| listing.handles > 0) else { return false };
        // It's read, so it was opened: that's when the kernel has dropped what it had.
        listing.clean |= code == OpenDir::Dropped.code();
        listing.hides |= hides;
        listing.lookups = 0;
        listing.version == version && !listing.hides
    }

    /// A name of the directory is looked up. Whether its listing is rather to be dropped.
    fn looked_up(&self, dir: DirId) -> bool {
        if self.handles.load(SeqCst) == 0 {
            return false;
        }
        let mut dirs = self.dirs.lock();
        let Some(listing) = dirs.get_mut(&dir).filter(|listing| listing.handles > 0) else { return false };
        listing.lookups = listing.lookups.saturating_add(1);
        listing.lookups == LOOKUPS
    }

    /// Directories that are open by handles that may keep their listings.
    fn open_dirs(&self) -> Vec<DirId> {
        let dirs = self.dirs.lock();
        dirs.iter().filter(|(_, listing)| listing.handles > 0).map(|(dir, _)| *dir).collect()
    }
}

impl Fs {
    /// The version of a directory's listing. `None` when it was removed.
    fn version(&self, dir: DirId) -> Option<Version> {
        let everywhere = self.listings.changes.load(SeqCst);
        self.index.read().changes(dir).map(|changes| Version(changes, everywhere))
    }

    /// Opens a directory's listing.
    pub(super) fn open_listing(&self, node: NodeId) -> OpenDir {
        let dir = self.dir_of(node).ok().filter(|_| self.listings.on && !self.others_change());
        match dir.and_then(|dir| Some((dir, self.version(dir)?))) {
            Some((dir, _)) if self.index.read().entries(dir) > MOST => OpenDir::Beside,
            Some((dir, version)) => self.listings.open(dir, version),
            None => OpenDir::Uncached,
        }
    }

    /// Closes what was opened with this code.
    pub fn releasedir(&self, node: NodeId, code: u64) {
        if let (Ok(dir), true) = (self.dir_of(node), OpenDir::may_keep(code)) {
            self.listings.release(dir);
        }
    }

    /// Some of a directory was listed; `hides`: not all to everybody. Whether the kernel may take what it was told
    /// for the whole listing, should this be the end.
    pub(super) fn may_be_whole(&self, node: NodeId, code: u64, hides: bool) -> bool {
        if !OpenDir::may_keep(code) {
            return true;
        }
        let Ok(dir) = self.dir_of(node) else { return false };
        self.version(dir).is_some_and(|version| self.listings.listed(dir, code, version, hides))
    }

    /// A name of a directory is looked up.
    pub(super) fn looked_up_in(&self, node: NodeId) {
        if let Some(Node::Dir(dir)) = node.node()
            && self.listings.looked_up(dir)
        {
            self.tell_listing(dir);
        }
    }

    /// A file is shown from now on, or has gone: listings have changed.
    pub(super) fn changed_for_others(&self, node: NodeId) {
        if let (true, Some(Node::File(slot, ino))) = (self.listings.on, node.node()) {
            self.index.read().changed_for_others(slot, ino);
        }
    }

    /// A file that could be seen is hidden: listings have changed wherever it has names.
    pub(super) fn changed_anywhere(&self) {
        self.listings.changes.fetch_add(1, SeqCst);
        self.listings.open_dirs().into_iter().for_each(|dir| self.tell_listing(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: DirId = DirId::ROOT;
    const OLD: Version = Version(1, 0);
    const NEW: Version = Version(2, 0);

    fn listed(listings: &Listings, how: OpenDir, version: Version) -> bool {
        listings.listed(DIR, how.code(), version, false)
    }

    #[test]
    fn a_listing_is_kept_once_the_kernel_has_dropped_what_it_had() {
        let listings = Listings::new(true);
        assert_eq!(listings.open(DIR, OLD), OpenDir::Dropped);
        assert_eq!(listings.open(DIR, OLD), OpenDir::Beside, "the first may not be open yet");
        assert!(listed(&listings, OpenDir::Dropped, OLD));
        assert_eq!(listings.open(DIR, OLD), OpenDir::Kept);
        (0..2).for_each(|_| listings.release(DIR));
        assert_eq!(listings.open(DIR, OLD), OpenDir::Kept);
        listings.release(DIR);
        assert_eq!(listings.open(DIR, NEW), OpenDir::Dropped);
    }

    #[test]
    fn nothing_is_kept_beside_a_handle_of_an_earlier_version() {
        let listings = Listings::new(true);
        let slow = listings.open(DIR, OLD);
        assert!(listed(&listings, slow, OLD));
        assert!(!listed(&listings, slow, NEW), "what it has told is no whole listing any more");
        assert_eq!(listings.open(DIR, NEW), OpenDir::Beside);
        listings.release(DIR);
        assert_eq!(listings.open(DIR, NEW), OpenDir::Dropped);
    }

    #[test]
    fn what_hides_something_is_never_whole() {
        let listings = Listings::new(true);
        let one = listings.open(DIR, OLD);
        assert!(!listings.listed(DIR, one.code(), OLD, true));
        let other = listings.open(DIR, OLD);
        assert_eq!(other, OpenDir::Kept);
        assert!(!listed(&listings, other, OLD));
    }

    #[test]
    fn a_former_daemons_handle_keeps_nothing() {
        let listings = Listings::new(true);
        assert!(!listed(&listings, OpenDir::Kept, OLD));
        listings.release(DIR);
        assert_eq!(listings.open(DIR, OLD), OpenDir::Dropped);
    }
}
