//! Acting for a caller: new files are theirs from their first moment on.
//!
//! What always holds: the daemon's threads run without CAP_FSETID, so the backing drops setuid and setgid
//! bits on every write, truncation and change of owner, in passthrough too (the kernel writes with the
//! credentials of the thread that registered the file). Capabilities do not change with the file system uid
//! (`SECBIT_NO_SETUID_FIXUP`): the kernel has checked the caller's permissions at the mount already.

use std::sync::LazyLock;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// The *thread*, in the daemon's pid namespace; 0 when it isn't visible from there.
    pub tid: u32,
}

impl Caller {
    /// Whether this is who may say how much others get: root, or the daemon's own user.
    pub(super) fn is_operator(&self) -> bool {
        self.uid == 0 || self.uid == ME.0
    }
}

/// Prepares the process. To be called before any thread is started: they inherit it.
pub fn prepare_process() {
    rustix::process::umask(rustix::fs::Mode::empty());
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // SAFETY: prctl with integer arguments alone. It fails without CAP_SETPCAP: then acting for a caller
    // needs the caller's own permissions on the backings.
    unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) };
    set_effective(CapabilitySet::FSETID, false);
}

/// The daemon's own user and group, which never change.
static ME: LazyLock<(u32, u32)> =
    LazyLock::new(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));

/// include/uapi/linux/securebits.h
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

fn set_effective(capability: CapabilitySet, on: bool) -> bool {
    let Ok(CapabilitySets { mut effective, permitted, inheritable }) = capabilities(None) else {
        return false;
    };
    if !permitted.intersects(capability) {
        return false;
    }
    effective.set(capability & permitted, on);
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable }).is_ok()
}

/// Until it's dropped, what this thread makes belongs to the caller.
pub(super) struct Acting {
    changed: bool,
}

impl Acting {
    /// Acts for the caller; does nothing where the daemon is the caller, or isn't root.
    pub(super) fn as_caller(caller: &Caller) -> Acting {
        let changed = ME.0 == 0 && (caller.uid, caller.gid) != *ME;
        if changed {
            setfsgid(Gid::from_raw(caller.gid));
            setfsuid(Uid::from_raw(caller.uid));
        }
        Acting { changed }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.changed {
            setfsuid(Uid::from_raw(ME.0));
            setfsgid(Gid::from_raw(ME.1));
        }
    }
}

/// Does something with CAP_FSETID, so that a setgid bit that the kernel has allowed at the mount stays set
/// on the backing.
pub(super) fn keeping_setgid<T>(mode: u32, act: impl FnOnce() -> T) -> T {
    if mode & libc::S_ISGID == 0 {
        return act();
    }
    let raised = set_effective(CapabilitySet::FSETID, true);
    let result = act();
    if raised {
        set_effective(CapabilitySet::FSETID, false);
    }
    result
}

/// Whether the caller could open the file by this path, itself and without the daemon's capabilities. Its
/// supplementary groups don't count.
pub(crate) fn may_open(caller: &Caller, path: &[u8]) -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags, open};
    let _acting = Acting::as_caller(caller);
    let lowered = caller.uid != 0 && set_effective(OVERRIDES, false);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = open(path, flags, Mode::empty());
    if lowered {
        set_effective(OVERRIDES, true);
    }
    opened.map(drop)
}

/// What lets root pass by permission bits.
const OVERRIDES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);
