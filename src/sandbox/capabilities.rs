//! The capabilities that root's daemon keeps.
//!
//! What always holds: what isn't in the list is in no set of any thread afterwards, nor in the bounding set, so
//! no program that the daemon starts gets it back.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

/// What each is needed for:
const KEPT: CapabilitySet = CapabilitySet::empty()
    // Files are their clients', who may give them away where the kernel lets them.
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    // Used for a moment at a time, to set a bit that the kernel has allowed (fs/creds.rs).
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD)
    // Passthrough (fuse_backing_open in fs/fuse/backing.c), trusted attributes, umount(2).
    .union(CapabilitySet::SYS_ADMIN)
    // Descriptors and environments of clients.
    .union(CapabilitySet::SYS_PTRACE)
    // Whether somebody has a file open (fs/lease.rs).
    .union(CapabilitySet::LEASE)
    // Clients' buffers stay pinned, beyond what RLIMIT_MEMLOCK is for ordinary users.
    .union(CapabilitySet::IPC_LOCK);

/// Drops all capabilities but those that are needed. Before any thread is started: they inherit it. An ordinary
/// user's daemon has none.
pub fn drop_capabilities() {
    let Ok(CapabilitySets { effective, permitted, inheritable }) = capabilities(None) else { return };
    // The bounding set first: that takes CAP_SETPCAP, which goes. One that the kernel doesn't know is EINVAL.
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let sets = CapabilitySets {
        effective: effective & KEPT,
        permitted: permitted & KEPT,
        inheritable: inheritable & KEPT,
    };
    if let Err(e) = set_capabilities(None, sets) {
        tracing::warn!("capabilities that aren't needed can't be dropped: {e}");
    }
}
