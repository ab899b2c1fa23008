//! Whether io_uring works here, and what FUSE itself can do with it.

use super::check::Check;
use super::system::System;

/// The name of the check that sets up a ring.
pub(super) const RING: &str = "io_uring";

pub(super) fn checks(system: &System) -> Vec<Check> {
    vec![ring(system), fuse_over_io_uring(system)]
}

fn ring(system: &System) -> Check {
    let check = Check::new("io_uring", RING);
    let error = match system.io_uring() {
        Ok(()) => return check.ok("a ring can be set up"),
        Err(e) => e,
    };
    // 1 leaves it to the members of a group and the privileged, 2 to nobody (kernel.io_uring_disabled).
    let disabled = system.number("/proc/sys/kernel/io_uring_disabled");
    let found = match disabled {
        Some(value @ 1..) => format!("{error}; kernel.io_uring_disabled = {value}"),
        _ => error.to_string(),
    };
    check.missing(
        found,
        match (disabled, error.raw_os_error()) {
            (Some(1..), _) => "run `sysctl kernel.io_uring_disabled=0`",
            (_, Some(libc::ENOSYS)) => "run a kernel that was built with CONFIG_IO_URING",
            (_, Some(libc::ENOMEM)) => "raise RLIMIT_MEMLOCK (`LimitMEMLOCK=` in a systemd unit)",
            _ => "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
        },
    )
}

fn fuse_over_io_uring(system: &System) -> Check {
    let check = Check::new("io_uring", "FUSE requests");
    match system.read("/sys/module/fuse/parameters/enable_uring").as_deref() {
        Some("Y" | "1") => check.ok(
            "can arrive by io_uring (fuse.enable_uring = Y): `--transport io-uring`, with `--supervise off`",
        ),
        Some(_) => check.none("arrive by /dev/fuse (fuse.enable_uring = N)"),
        None => check.none("arrive by /dev/fuse (io_uring for them came with Linux 6.14)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::system::tests::Machine;
    use super::*;

    #[test]
    fn a_ring_that_cannot_be_set_up_is_explained() {
        let mut machine = Machine::server();
        assert_eq!(ring(&machine.system()).status, Status::Ok);
        machine.without_io_uring();
        let advice = |machine: &Machine| ring(&machine.system()).advice.unwrap_or_default();
        assert!(advice(&machine).contains("seccomp"));
        machine.file("proc/sys/kernel/io_uring_disabled", "2\n");
        assert!(advice(&machine).contains("sysctl kernel.io_uring_disabled=0"));
        assert!(ring(&machine.system()).found.ends_with("kernel.io_uring_disabled = 2"));
    }

    #[test]
    fn the_transport_is_only_noted() {
        let mut machine = Machine::server();
        assert_eq!(fuse_over_io_uring(&machine.system()).status, Status::Ok);
        machine.file("sys/module/fuse/parameters/enable_uring", "N\n");
        assert_eq!(fuse_over_io_uring(&machine.system()).status, Status::None);
        assert_eq!(fuse_over_io_uring(&Machine::bare().system()).status, Status::None);
    }
}
