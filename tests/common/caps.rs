//! What the daemons that a test starts may do.

/// CAP_SYS_PTRACE (include/uapi/linux/capability.h).
const SYS_PTRACE: libc::c_ulong = 19;

/// From now on what this thread starts has no CAP_SYS_PTRACE, so it can't take descriptors from processes that
/// have it, as this one still does.
pub(crate) fn start_without_ptrace() {
    // SAFETY: prctl with numbers alone touches no memory of ours.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_PTRACE, 0, 0, 0) };
    assert_eq!(done, 0, "drop a capability: {}", std::io::Error::last_os_error());
}
