//! How names are hashed.
//!
//! What always holds: a name is hashed once, before it's known which directory it's in; that is mixed in
//! afterwards. Nobody outside knows the seed, for users choose the names; a daemon that takes over has its
//! predecessor's, so that both have the same hash of a name in a directory.

use std::hash::{BuildHasher, RandomState};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::DirId;

/// Tables of names. Several, so that one that grows moves a small part of all names at a time.
pub(super) const SHARDS: usize = 64;

/// Hashes names.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameHash {
    seed: u64,
}

impl Default for NameHash {
    /// With a seed of its own.
    fn default() -> Self {
        NameHash { seed: RandomState::new().hash_one(0u64) }
    }
}

impl NameHash {
    pub(super) fn seeded(seed: u64) -> NameHash {
        NameHash { seed }
    }

    pub(super) fn seed(self) -> u64 {
        self.seed
    }

    /// A name's hash, whatever its directory.
    pub(super) fn of_name(self, name: &[u8]) -> u64 {
        xxh3_64_with_seed(name, self.seed)
    }

    /// The hash of a name in a directory.
    pub(super) fn of(self, dir: DirId, name: &[u8]) -> u32 {
        in_dir(dir, self.of_name(name))
    }
}

/// The hash of a name in a directory, by the name's.
pub(super) fn in_dir(dir: DirId, name: u64) -> u32 {
    let mixed = name ^ u64::from(dir.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// For a table, which looks at the lowest and at the highest bits of 64.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The table that a hash belongs to.
pub(super) fn shard(hash: u32) -> usize {
    hash as usize >> 26
}
