//! Node ids: what the kernel calls a file or a directory, and how the index packs one into 64 bits.
//!
//! What always holds: an id is *derived*, never handed out by arrival. A file is
//! `(slot + 1) << 48 | inode number`, so that a restarted daemon, or a second mount of the same
//! backings in the same order, gives every file the id it had. A merged directory is a number counted
//! upwards and never used twice within a mount. 1 is the root (`FUSE_ROOT_ID`).

use std::fmt;

/// A backing's place in the `--backing` list, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u8);

/// How many backings one mount may have: directories keep their backings as bits of a `u64`.
pub const MAX_BACKINGS: usize = 64;

impl Slot {
    /// The slot's index into the list of backings.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of backings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SlotSet(u64);

impl SlotSet {
    /// No backing.
    pub const EMPTY: SlotSet = SlotSet(0);

    /// The first `n` backings.
    pub fn first(n: usize) -> SlotSet {
        debug_assert!(n <= MAX_BACKINGS);
        if n >= 64 { SlotSet(u64::MAX) } else { SlotSet((1 << n) - 1) }
    }

    /// The set as bits, slot 0's the lowest.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The set of these bits.
    pub fn from_bits(bits: u64) -> SlotSet {
        SlotSet(bits)
    }

    /// Just `slot`.
    pub fn one(slot: Slot) -> SlotSet {
        SlotSet(1 << slot.0)
    }

    /// Whether `slot` is in the set.
    pub fn has(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }

    /// The set with `slot` in it.
    #[must_use]
    pub fn with(self, slot: Slot) -> SlotSet {
        SlotSet(self.0 | 1 << slot.0)
    }

    /// The set with `slot` not in it.
    #[must_use]
    pub fn without(self, slot: Slot) -> SlotSet {
        SlotSet(self.0 & !(1 << slot.0))
    }

    /// What is in either set.
    #[must_use]
    pub fn union(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub fn both(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 & other.0)
    }

    /// Whether there is no backing in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many backings are in the set.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The backings, lowest slot first.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let slot = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            Some(Slot(slot))
        })
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().fold(SlotSet::EMPTY, SlotSet::with)
    }
}

/// A merged directory. 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirId(pub u32);

impl DirId {
    /// The mount's root directory.
    pub const ROOT: DirId = DirId(0);
    /// No directory.
    pub(super) const NONE: DirId = DirId(u32::MAX);
}

/// An inode of one backing, in 48 bits: the inode number where it fits in 47, else a number from the
/// index's table of wide inodes with bit 47 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackedIno(u64);

const INO_BITS: u32 = 48;
const INO_MASK: u64 = (1 << INO_BITS) - 1;
const WIDE: u64 = 1 << (INO_BITS - 1);

impl PackedIno {
    /// The inode number itself, if it fits.
    pub fn plain(ino: u64) -> Option<PackedIno> {
        (ino < WIDE).then_some(PackedIno(ino))
    }

    /// The `n`th wide inode number of the index's table.
    pub(super) fn wide(n: u32) -> PackedIno {
        PackedIno(WIDE | u64::from(n))
    }

    /// Which wide inode number this is, if it is one.
    pub(super) fn as_wide(self) -> Option<u32> {
        (self.0 & WIDE != 0).then_some(self.0 as u32)
    }

    /// The 48 bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn from_bits(bits: u64) -> PackedIno {
        PackedIno(bits & INO_MASK)
    }
}

/// What the kernel calls a node (`fuse_in_header.nodeid`, `fuse_entry_out.nodeid`), and what clients see
/// as `st_ino`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A node id taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A merged directory.
    Dir(DirId),
    /// Anything else: an inode on one backing.
    File(Slot, PackedIno),
}

impl NodeId {
    /// The mount's root (`FUSE_ROOT_ID`, include/uapi/linux/fuse.h).
    pub const ROOT: NodeId = NodeId(1);

    /// The id of a merged directory.
    pub fn dir(dir: DirId) -> NodeId {
        NodeId(u64::from(dir.0) + 1)
    }

    /// The id of an inode on a backing.
    pub fn file(slot: Slot, ino: PackedIno) -> NodeId {
        NodeId((u64::from(slot.0) + 1) << INO_BITS | ino.bits())
    }

    /// Takes the id apart. `None` for a number that is no id of ours: 0, or out of range.
    pub fn node(self) -> Option<Node> {
        match self.0 >> INO_BITS {
            0 => u32::try_from(self.0.checked_sub(1)?).ok().map(|n| Node::Dir(DirId(n))),
            n if n <= MAX_BACKINGS as u64 => {
                Some(Node::File(Slot((n - 1) as u8), PackedIno::from_bits(self.0)))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node() {
            Some(Node::Dir(dir)) => write!(f, "dir {}", dir.0),
            Some(Node::File(slot, ino)) => write!(f, "inode {} on backing {}", ino.bits(), slot.0),
            None => write!(f, "no node {:#x}", self.0),
        }
    }
}

/// A file type, as `d_type` and `st_mode` tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 0,
    /// A directory.
    Dir = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A Unix socket.
    Socket = 4,
    /// A character device.
    Char = 5,
    /// A block device.
    Block = 6,
}

impl Kind {
    /// From `d_type` of getdents64. `None` for `DT_UNKNOWN`: the file system wants a stat.
    pub fn from_d_type(d_type: u8) -> Option<Kind> {
        Some(match d_type {
            libc::DT_REG => Kind::File,
            libc::DT_DIR => Kind::Dir,
            libc::DT_LNK => Kind::Symlink,
            libc::DT_FIFO => Kind::Fifo,
            libc::DT_SOCK => Kind::Socket,
            libc::DT_CHR => Kind::Char,
            libc::DT_BLK => Kind::Block,
            _ => return None,
        })
    }

    /// From the type bits of `st_mode`; anything unknown counts as a regular file.
    pub fn from_mode(mode: u32) -> Kind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFBLK => Kind::Block,
            _ => Kind::File,
        }
    }

    pub(super) fn from_code(code: u8) -> Kind {
        match code {
            1 => Kind::Dir,
            2 => Kind::Symlink,
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::Char,
            6 => Kind::Block,
            _ => Kind::File,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_never_meet() {
        assert_eq!(NodeId::dir(DirId::ROOT), NodeId::ROOT);
        for dir in [DirId(0), DirId(7), DirId(u32::MAX)] {
            assert_eq!(NodeId::dir(dir).node(), Some(Node::Dir(dir)));
        }
        for slot in [Slot(0), Slot(63)] {
            for ino in [PackedIno::plain(2).unwrap(), PackedIno::plain(WIDE - 1).unwrap(), PackedIno::wide(9)]
            {
                assert_eq!(NodeId::file(slot, ino).node(), Some(Node::File(slot, ino)));
            }
        }
        assert_eq!(NodeId(0).node(), None);
        assert_eq!(NodeId(u64::MAX).node(), None);
        assert_eq!(NodeId(1 << 40).node(), None, "beyond the directory ids");
        assert_eq!(PackedIno::plain(WIDE), None, "an inode number of 48 bits is a wide one");
    }

    #[test]
    fn slot_sets() {
        let set = SlotSet::one(Slot(3)).with(Slot(63)).with(Slot(0));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Slot(0), Slot(3), Slot(63)]);
        assert!(!set.without(Slot(3)).has(Slot(3)));
        assert_eq!(SlotSet::first(64).len(), 64);
        assert_eq!(SlotSet::first(2).iter().collect::<SlotSet>(), SlotSet::first(2));
    }
}
