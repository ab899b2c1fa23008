//! The filter of system calls (seccomp).
//!
//! What always holds: what is forbidden is answered with EPERM, and nothing is killed; it's a list of what no part
//! of the daemon calls, nor a GPU's driver in a worker, so a new C library doesn't break a mount. Calls that
//! the filter can't look into (`clone3`, whose flags are in memory) are answered ENOSYS, on which the C library
//! takes the older one.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::SandboxError;

/// What no part needs: whole kernels, modules and clocks; other processes' memory; namespaces and mounts, but for
/// umount2(2); files by handles, which know no directories; what kernel exploits like to start with.
const FORBIDDEN: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "aarch64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    // By their numbers of the x32 ABI (arch/x86/entry/syscalls/syscall_64.tbl): ptrace, kexec_load, process_vm_*.
    #[cfg(target_arch = "x86_64")]
    (X32 | 521),
    #[cfg(target_arch = "x86_64")]
    (X32 | 528),
    #[cfg(target_arch = "x86_64")]
    (X32 | 539),
    #[cfg(target_arch = "x86_64")]
    (X32 | 540),
];

/// The same processor tells the same calls by other numbers (`__X32_SYSCALL_BIT`).
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// New namespaces, by the flags of clone(2).
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Puts the filter on all threads, for good.
pub(super) fn install() -> Result<(), SandboxError> {
    // Made before anything is forbidden, so that the daemon isn't left with half of it.
    let programs = [forbidden()?, not_there()?];
    programs
        .iter()
        .try_for_each(|program| seccompiler::apply_filter_all_threads(program).map_err(SandboxError::Refused))
}

fn forbidden() -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for number in FORBIDDEN {
        rules.insert(*number, Vec::new());
        #[cfg(target_arch = "x86_64")]
        rules.insert(*number | X32, Vec::new());
    }
    let of_flag = |flag: i32| {
        let flag = u64::from(flag.cast_unsigned());
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag);
        condition.and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let clone = NAMESPACES.into_iter().map(of_flag).collect::<Result<Vec<_>, _>>();
    let clone = clone.map_err(SandboxError::NotMade)?;
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_clone | X32, clone.clone());
    rules.insert(libc::SYS_clone, clone);
    program(rules, libc::EPERM)
}

fn not_there() -> Result<BpfProgram, SandboxError> {
    let numbers = [
        libc::SYS_clone3,
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_clone3 | X32),
    ];
    program(numbers.map(|number| (number, Vec::new())).into(), libc::ENOSYS)
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, SandboxError> {
    let arch = std::env::consts::ARCH.try_into().map_err(SandboxError::NotMade)?;
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch);
    filter.and_then(BpfProgram::try_from).map_err(SandboxError::NotMade)
}

/// Those of the forbidden calls that this thread could make all the same. Their arguments are such that none does
/// anything.
#[cfg(any(test, feature = "fault-points"))]
pub(crate) fn not_refused() -> Vec<i64> {
    let refused = |number: i64, errno: i32, first: i64| {
        // SAFETY: no address and no descriptor is -1, and no call among these accepts it for all its arguments.
        let result = unsafe { libc::syscall(number, first, -1i64, -1i64, -1i64, -1i64, -1i64) };
        result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(errno)
    };
    let mut open: Vec<i64> =
        FORBIDDEN.iter().copied().filter(|number| !refused(*number, libc::EPERM, -1)).collect();
    // Together with another these are an error anyway, and nothing is made.
    let contradiction = i64::from(libc::CLONE_FS | libc::CLONE_NEWNS);
    if !refused(libc::SYS_clone, libc::EPERM, contradiction) {
        open.push(libc::SYS_clone);
    }
    if !refused(libc::SYS_clone3, libc::ENOSYS, -1) {
        open.push(libc::SYS_clone3);
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a process of its own: there's no way back.
    fn in_child(act: impl FnOnce() -> bool) -> bool {
        use nix::sys::wait::{WaitStatus, waitpid};
        // SAFETY: the child has one thread, and ends without running what belongs to the parent.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(false);
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(if well { 0 } else { 1 }) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                waitpid(child, None) == Ok(WaitStatus::Exited(child, 0))
            }
        }
    }

    #[test]
    fn what_is_forbidden_is_refused_on_all_threads_and_nothing_is_killed() {
        assert!(!not_refused().is_empty(), "without the filter");
        assert!(in_child(|| {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let earlier = std::thread::spawn(move || {
                let _ = wait.recv();
                not_refused()
            });
            install().unwrap();
            drop(go);
            let later = std::thread::spawn(not_refused).join().unwrap();
            let open = [not_refused(), earlier.join().unwrap(), later];
            let program = std::process::Command::new("true").status().unwrap().success();
            open.iter().all(Vec::is_empty) && program
        }));
    }
}
