//! One backing: a directory on a drive, with its identity, its room, its state and its health.
//!
//! What always holds: a backing is used through the directory that was open when the mount started (`root`),
//! never through its path again, so a renamed or over-mounted path changes nothing; and every access below
//! it resolves beneath it, without symbolic links and without crossing into another mount.

mod claim;
mod device;
mod error;
mod health;
mod job;
mod marker;
mod members;
mod missing;
pub mod mountinfo;
mod overlap;
mod probe;
mod record;
mod reopen;
mod set;
mod setup;
mod space;
mod spec;
mod state;
pub mod unclosed;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use uuid::Uuid;

use crate::index::Slot;
use crate::supervise::{Keeper, Tag};
pub use claim::{Claimed, claim, distinct, open_root};
pub use device::{block_device, block_device_of};
pub use error::SetupError;
pub use health::{Alarm, Condition, Health, HealthCell, is_fault};
pub use job::SavedJob;
pub use marker::{MARKER, Marker, MarkerError, RESERVED_PREFIX, is_reserved};
pub use members::remember_members;
pub use missing::Missing;
pub use record::{Drain, SetRecord, restore};
pub use set::{Backings, List};
pub use setup::{Defaults, Made, check, prepare, prepare_one, prepare_with};
pub use space::{Limit, MinFree, Promise, Room, Space, parse_bytes};
pub use spec::Spec;
pub use state::State;
use state::StateCell;
use unclosed::Unclosed;

/// Whether the kernel passes a backing's data through, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Reads and writes go from the kernel to the backing file.
    On,
    /// They go through the daemon, for this reason.
    Off(String),
}

/// One backing directory.
#[derive(Debug)]
pub struct Backing {
    /// Its place in the `--backing` list.
    pub slot: Slot,
    /// Its path as the operator gave it, made absolute.
    pub path: PathBuf,
    /// Its own number (`st_dev`): backings with the same one share a file system.
    pub device: u64,
    /// The file system's type as mountinfo tells it: `xfs`.
    pub fs_type: String,
    /// The alignment that direct I/O needs here, in bytes (`STATX_DIOALIGN`; 0 where direct I/O is refused
    /// or the kernel can't tell).
    pub dio_align: u32,
    /// Its room.
    pub space: Arc<Space>,
    /// Its size in bytes when it was opened: its weight in placement.
    pub weight: u64,
    /// Other nodes change it too: nothing that is known of it lasts.
    pub shared: bool,
    /// Whether kvfs may evict from it.
    pub evictable: bool,
    /// How its drive is.
    pub health: Arc<HealthCell>,
    /// The mount that it's in, in `/proc/self/mountinfo`; `None` where that shows no such mount.
    pub mount_id: Option<u64>,
    /// Whether nothing of its drive is open: this stands in for it.
    pub is_stand_in: bool,
    /// What the operator said of it, the mount's defaults included.
    spec: Spec,
    state: StateCell,
    marker: Marker,
    root: OwnedFd,
    passthrough: OnceLock<Passthrough>,
    unclosed: OnceLock<Unclosed>,
}

impl Backing {
    /// The identity from its marker.
    pub fn id(&self) -> Uuid {
        self.marker.id
    }

    /// Whether its marker is locked: a shared backing's file system may have no locks.
    pub fn is_locked(&self) -> bool {
        self.marker.locked
    }

    /// Has its lock held for a daemon after this one.
    pub fn keep_lock(&self, keeper: &Keeper) {
        if self.is_locked() {
            keeper.keep(Tag::Lock(self.slot.0), self.probe_file());
        }
    }

    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A regular file of this backing that is always there.
    pub fn probe_file(&self) -> BorrowedFd<'_> {
        self.marker.file().as_fd()
    }

    /// Whether the kernel passes data through; decided once, when the session has started.
    pub fn passthrough(&self) -> &Passthrough {
        static UNDECIDED: Passthrough = Passthrough::Off(String::new());
        self.passthrough.get().unwrap_or(&UNDECIDED)
    }

    /// Decides it. The first word counts.
    pub fn set_passthrough(&self, state: Passthrough) {
        let _ = self.passthrough.set(state);
    }

    /// Its list of files that aren't closed, where that's kept.
    pub fn unclosed(&self) -> Option<&Unclosed> {
        self.unclosed.get()
    }

    /// Keeps that list from now on. The first one counts.
    pub fn keep_unclosed(&self, list: Unclosed) {
        let _ = self.unclosed.set(list);
    }

    /// What it takes, as the operator has set it.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Sets it.
    pub fn set_state(&self, state: State) {
        self.state.set(state);
    }

    /// Whether new files may be put here, if there's room.
    pub fn is_open_to_files(&self) -> bool {
        self.state().takes_new_files() && self.health.takes_changes()
    }

    /// Whether new files may be put here.
    pub fn takes_new_files(&self) -> bool {
        self.is_open_to_files() && self.has_room()
    }

    /// What it has now.
    pub fn room(&self) -> io::Result<Room> {
        if self.health.is_out() { Err(Errno::IO.into()) } else { self.space.room(self.root()) }
    }

    /// What new files may still use, in bytes; 0 where the drive is out.
    pub fn spare(&self) -> u64 {
        if self.health.is_out() { 0 } else { self.space.spare(self.root()) }
    }

    /// Whether there's room for a file like those before it.
    pub fn has_room(&self) -> bool {
        !self.health.is_out() && self.space.has_room(self.root())
    }

    /// Opens the directory `path` (relative, below the root; empty for the root itself).
    pub fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open_dir_below(self.root(), if path.is_empty() { b"." } else { path })
    }
}

/// Opens a directory beneath `dir`, with `O_PATH`, through no symbolic link and into no other mount.
pub fn open_dir_below(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(dir, path, flags, Mode::empty(), resolve)?)
}

/// The alignment that direct I/O on `file` needs (0: unknown or refused).
fn dio_align(file: BorrowedFd<'_>) -> u32 {
    // STATX_DIOALIGN, Linux 6.1 (include/uapi/linux/stat.h); older kernels leave the bit out of the mask.
    let wanted = StatxFlags::from_bits_retain(0x2000);
    match statx(file, c"", AtFlags::EMPTY_PATH, wanted) {
        Ok(stat) if stat.stx_mask & wanted.bits() != 0 => {
            stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)
        }
        _ => 0,
    }
}
