//! One lock per name that is being changed.
//!
//! What always holds: whoever changes what a name stands for (on disk and then in the index) holds that
//! name's lock meanwhile, and no other: a drive that hangs keeps only the names waiting that are on it. Two
//! names are locked in a fixed order; while a name is held, only those of directories above it may be waited
//! for (`make`, `lookup`), whose holders never wait for a name below.
//!
//! The kernel's own directory locks keep two clients apart already; these keep the daemon's own work
//! (probing, making directories on another backing) apart from clients'.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use parking_lot::{Condvar, Mutex};

use crate::index::DirId;

const SHARDS: usize = 64;

#[derive(Default)]
struct Shard {
    held: Mutex<HashSet<u64>>,
    freed: Condvar,
}

/// The locks of all names.
pub(super) struct NameLocks {
    shards: Vec<Shard>,
    hasher: RandomState,
}

/// One or two names, locked.
pub(super) struct Locked<'a> {
    locks: &'a NameLocks,
    keys: [Option<u64>; 2],
}

impl NameLocks {
    pub(super) fn new() -> NameLocks {
        NameLocks { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: RandomState::new() }
    }

    /// Waits until nobody changes this name, and locks it. Two names with the same hash share a lock.
    pub(super) fn lock(&self, dir: DirId, name: &[u8]) -> Locked<'_> {
        let key = self.key(dir, name);
        self.acquire(key);
        Locked { locks: self, keys: [Some(key), None] }
    }

    /// The same, unless somebody still changes the name after so long.
    pub(super) fn lock_for(&self, dir: DirId, name: &[u8], patience: Duration) -> Option<Locked<'_>> {
        let key = self.key(dir, name);
        let shard = &self.shards[key as usize % SHARDS];
        let deadline = Instant::now() + patience;
        let mut held = shard.held.lock();
        while !held.insert(key) {
            if shard.freed.wait_until(&mut held, deadline).timed_out() {
                return None;
            }
        }
        Some(Locked { locks: self, keys: [Some(key), None] })
    }

    /// Locks two names.
    pub(super) fn lock_two(&self, one: (DirId, &[u8]), other: (DirId, &[u8])) -> Locked<'_> {
        let (a, b) = (self.key(one.0, one.1), self.key(other.0, other.1));
        self.acquire(a.min(b));
        if a == b {
            return Locked { locks: self, keys: [Some(a), None] };
        }
        self.acquire(a.max(b));
        Locked { locks: self, keys: [Some(a), Some(b)] }
    }

    fn key(&self, dir: DirId, name: &[u8]) -> u64 {
        self.hasher.hash_one((dir, name))
    }

    fn acquire(&self, key: u64) {
        let shard = &self.shards[key as usize % SHARDS];
        let mut held = shard.held.lock();
        while !held.insert(key) {
            super::at::nowhere();
            shard.freed.wait(&mut held);
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for key in self.keys.into_iter().flatten() {
            let shard = &self.locks.shards[key as usize % SHARDS];
            shard.held.lock().remove(&key);
            shard.freed.notify_all();
        }
    }
}
