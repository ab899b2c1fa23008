//! What a name stands for, and how an entry packs it into 16 bytes.
//!
//! What always holds: packing loses nothing; `tests` round-trips it.

use super::names::NameRef;
use super::node::{DirId, Kind, NodeId, PackedIno, Slot};

/// One name in the tree. Keeps its number while it lives, through renames too; afterwards the number is
/// used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub(super) u32);

impl EntryId {
    /// The number, for a directory reader's cookie.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The entry that had this number; it may be another one's by now.
    pub fn numbered(number: u32) -> EntryId {
        EntryId(number)
    }
}

/// An inode on a backing, as a name stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// The backing that has it.
    pub slot: Slot,
    /// Its inode there.
    pub ino: PackedIno,
    /// Its type; never `Kind::Dir`.
    pub kind: Kind,
    /// Why it's on that backing (`placement::Reason::code`, 4 bits).
    pub reason: u8,
}

impl FileRef {
    /// What the kernel calls it.
    pub fn node(self) -> NodeId {
        NodeId::file(self.slot, self.ino)
    }
}

impl Entry {
    /// A number that no name has.
    pub(super) const FREE: Entry = Entry { name: NameRef::NONE, dir: DirId::NONE, target: Target(0) };
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory that exists on one or more backings.
    Dir(DirId),
    /// An inode on one backing.
    File(FileRef),
}

impl What {
    /// What the kernel calls it.
    pub fn node(self) -> NodeId {
        match self {
            What::Dir(dir) => NodeId::dir(dir),
            What::File(file) => file.node(),
        }
    }

    /// Its type.
    pub fn kind(self) -> Kind {
        match self {
            What::Dir(_) => Kind::Dir,
            What::File(file) => file.kind,
        }
    }
}

/// `What` in 64 bits: inode or directory 48, slot 6, kind 4, reason 4, one bit for "has shadows".
#[derive(Clone, Copy)]
pub(super) struct Target(pub(super) u64);

/// The bit of a target that says that the entry has shadows.
pub(super) const SHADOWED: u64 = 1 << 62;
/// The bits of a target that tell a file's inode and slot.
pub(super) const INODE: u64 = (1 << 54) - 1;

impl Target {
    pub(super) fn new(what: What) -> Target {
        match what {
            What::Dir(dir) => Target(u64::from(dir.0) | (Kind::Dir as u64) << 54),
            What::File(file) => Target(
                file.ino.bits()
                    | u64::from(file.slot.0) << 48
                    | (file.kind as u64) << 54
                    | u64::from(file.reason & 15) << 58,
            ),
        }
    }

    pub(super) fn what(self) -> What {
        let kind = Kind::from_code((self.0 >> 54 & 15) as u8);
        if kind == Kind::Dir {
            return What::Dir(DirId(self.0 as u32));
        }
        What::File(FileRef {
            slot: Slot((self.0 >> 48 & 63) as u8),
            ino: PackedIno::from_bits(self.0),
            kind,
            reason: (self.0 >> 58 & 15) as u8,
        })
    }
}

/// A name in the tree.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) name: NameRef,
    pub(super) dir: DirId,
    pub(super) target: Target,
}
