//! What can be found.
//!
//! What always holds: each kind says what it means and what a repair would do; only what no other copy has the bytes
//! of `gives_up_bytes`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::index::{Slot, SlotSet};

/// What is wrong with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A backing's marker is damaged, or another's as well.
    Marker,
    /// One of kvfs's own files in a backing's root can't be read.
    Own,
    /// A file or directory that can't be read.
    Unreadable,
    /// A file and a directory have the same path.
    Hidden,
    /// An older copy of a path.
    Shadow,
    /// An older copy of a path, with other bytes than the newest one.
    Differs,
    /// A directory that has different owners or modes on its backings.
    Permissions,
    /// What a move, a probe or a mount that was cut off has left.
    Leftover,
    /// A name of kvfs's own that kvfs doesn't know.
    Reserved,
    /// A file that was being written when its mount ended.
    Unclosed,
    /// A file that nobody can find any more: the process that knew it is gone.
    Orphan,
}

impl Kind {
    /// As it's written: `differs`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Marker => "marker",
            Kind::Own => "own",
            Kind::Unreadable => "unreadable",
            Kind::Hidden => "hidden",
            Kind::Shadow => "shadow",
            Kind::Differs => "differs",
            Kind::Permissions => "permissions",
            Kind::Leftover => "leftover",
            Kind::Reserved => "reserved",
            Kind::Unclosed => "unclosed",
            Kind::Orphan => "orphan",
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Marker => "a backing is told by its marker: a mount with it is refused",
            Kind::Own => "kvfs keeps something there, and can't read it: the next mount goes on without",
            Kind::Unreadable => "clients get an error for it",
            Kind::Hidden => "a directory of this name on another backing hides it from clients",
            Kind::Shadow => {
                "an older copy of a file that another backing has: takes room, and isn't shown to clients"
            }
            Kind::Differs => {
                "an older copy with other bytes than the file that clients see: it isn't shown to them"
            }
            Kind::Permissions => {
                "a directory has another owner or mode here than on its first backing, whose are shown to clients"
            }
            Kind::Leftover => "what work that was cut off has left: takes room, and isn't shown to clients",
            Kind::Reserved => "such names are kvfs's own: clients see none of it",
            Kind::Unclosed => {
                "was being written when its mount ended: the next one removes it, unless it's known to be whole"
            }
            Kind::Orphan => "only the process that wrote it could find it, and that has ended",
        }
    }

    /// What a repair does; `None` where nothing is to be repaired here.
    pub fn remedy(self) -> Option<&'static str> {
        match self {
            Kind::Shadow | Kind::Differs => Some("remove the older copy"),
            Kind::Permissions => Some("give it the owner and mode of the first backing"),
            Kind::Leftover => Some("remove it"),
            Kind::Orphan => Some("remove the file"),
            Kind::Marker | Kind::Own | Kind::Unreadable | Kind::Hidden | Kind::Reserved | Kind::Unclosed => {
                None
            }
        }
    }

    /// Whether a repair may give up bytes that nothing else has.
    pub fn gives_up_bytes(self) -> bool {
        matches!(self, Kind::Differs | Kind::Orphan)
    }

    /// Whether it's told, but nothing is wrong.
    pub fn is_note(self) -> bool {
        matches!(self, Kind::Unclosed | Kind::Orphan)
    }
}

/// What a repair changes. Paths are below the backings' roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// There's nothing to be done.
    None,
    /// The copy on `slot` goes; `file` has the one that stays.
    Copy {
        /// Which path.
        path: Vec<u8>,
        /// The backing of the older copy.
        slot: Slot,
        /// The backing of the newest one.
        file: Slot,
    },
    /// The file with this inode number goes.
    Remove {
        /// Which path.
        path: Vec<u8>,
        /// On which backing.
        slot: Slot,
        /// Its inode number.
        ino: u64,
    },
    /// The directory gets what it has on the first of these backings.
    Directory {
        /// Which path.
        path: Vec<u8>,
        /// The backings that have it.
        slots: SlotSet,
    },
}

/// Something found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// On which backing.
    pub backing: PathBuf,
    /// The path below the backing's root, for people; empty for the root.
    pub path: String,
    /// More of it.
    pub detail: String,
    /// What a repair changes.
    #[serde(skip)]
    pub fix: Fix,
}
