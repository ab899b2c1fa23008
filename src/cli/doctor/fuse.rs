//! Whether the kernel has FUSE, who may mount it, and whether its passthrough can be used.

use super::check::Check;
use super::system::{System, capability};
use std::io::ErrorKind;

/// The name of the check for passthrough.
pub(super) const PASSTHROUGH: &str = "passthrough";

pub(super) fn checks(system: &System) -> Vec<Check> {
    vec![kernel(system), device(system), mounting(system), allow_other(system), passthrough(system)]
}

fn kernel(system: &System) -> Check {
    let check = Check::new("fuse", "kernel").essential();
    let Some(release) = system.read("/proc/sys/kernel/osrelease") else {
        return check.missing("/proc can't be read", "mount /proc here");
    };
    let filesystems = system.read("/proc/filesystems").unwrap_or_default();
    if filesystems.lines().any(|line| line.split_whitespace().last() == Some("fuse")) {
        check.ok(format!("Linux {release} with FUSE"))
    } else {
        check.missing(
            format!("Linux {release}, FUSE isn't loaded"),
            "run `modprobe fuse`, and list it in /etc/modules-load.d/ to have it at every boot",
        )
    }
}

/// The device has to open for ordinary users as well: `fusermount3` opens it with the rights of its caller.
fn device(system: &System) -> Check {
    let check = Check::new("fuse", "/dev/fuse").essential();
    match system.open("/dev/fuse") {
        Ok(()) => check.ok("opens for reading and writing"),
        Err(e) if e.kind() == ErrorKind::NotFound => check.missing(
            "isn't there",
            "run `modprobe fuse`; in a container, start it with `--device /dev/fuse`",
        ),
        Err(e) => check.missing(
            format!("can't be opened: {e}"),
            "run `chmod 666 /dev/fuse`; in a container, start it with `--device /dev/fuse`",
        ),
    }
}

fn mounting(system: &System) -> Check {
    let check = Check::new("fuse", "mounting").essential();
    if system.is_admin() {
        return check.ok("allowed directly (CAP_SYS_ADMIN)");
    }
    // Root of a container with users of its own: it may mount in there.
    if system.has_capability(capability::SYS_ADMIN) {
        return check.ok("allowed directly in this user namespace (CAP_SYS_ADMIN)");
    }
    match system.command("fusermount3") {
        Some((path, true)) => check.ok(format!("by {}", path.display())),
        Some((path, false)) => check.missing(
            format!("{} isn't set-user-ID root, and this process lacks CAP_SYS_ADMIN", path.display()),
            format!("run `chown root {0} && chmod 4755 {0}`, or mount as root", path.display()),
        ),
        None => check.missing(
            "no fusermount3, and this process lacks CAP_SYS_ADMIN",
            "install the package fuse3, or mount as root; in a container, add `--cap-add SYS_ADMIN`",
        ),
    }
}

fn allow_other(system: &System) -> Check {
    let check = Check::new("fuse", "allow_other");
    if system.is_admin() {
        return check.ok("other users can be let in");
    }
    let conf = system.read("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        check.ok("other users can be let in (user_allow_other in /etc/fuse.conf)")
    } else {
        check.limited(
            "only the user who mounts can use the mount",
            "add a line `user_allow_other` to /etc/fuse.conf, or mount as root",
        )
    }
}

fn passthrough(system: &System) -> Check {
    let check = Check::new("fuse", PASSTHROUGH);
    let new_enough = system.has_release(6, 9);
    match (new_enough, system.is_admin()) {
        (true, true) => check.ok("usable (Linux 6.9 or newer, CAP_SYS_ADMIN)"),
        (false, _) => check.missing("it came with Linux 6.9", "run a newer kernel"),
        (true, false) => check.missing(
            "this process lacks CAP_SYS_ADMIN in the initial user namespace",
            "mount as root; in a container, add `--cap-add SYS_ADMIN` and don't remap its users",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::system::tests::Machine;
    use super::*;

    #[test]
    fn the_device_and_the_file_system_are_both_needed() {
        let mut machine = Machine::server();
        machine.file("proc/filesystems", "nodev\tfuseblk\n\text4\n").without("dev/fuse");
        let system = machine.system();
        assert_eq!(kernel(&system).status, Status::Missing);
        let device = device(&system);
        assert_eq!((device.status, device.essential), (Status::Missing, true));
        assert_eq!(device.found, "isn't there");
    }

    #[test]
    fn a_user_needs_fusermount3_with_its_permission() {
        let mut machine = Machine::of_a_user();
        assert_eq!(mounting(&machine.system()).status, Status::Ok);
        machine.command("fusermount3", 0o755);
        let check = mounting(&machine.system());
        assert_eq!(check.status, Status::Missing);
        assert!(check.advice.is_some_and(|advice| advice.contains("chmod 4755 /usr/bin/fusermount3")));
        machine.without("usr/bin/fusermount3");
        assert_eq!(mounting(&machine.system()).status, Status::Missing);
    }

    #[test]
    fn root_of_a_container_mounts_without_passthrough() {
        let mut machine = Machine::server();
        machine.file("proc/self/uid_map", "0 100000 65536\n");
        assert_eq!(mounting(&machine.system()).status, Status::Ok);
        assert_eq!(passthrough(&machine.system()).status, Status::Missing);
    }

    #[test]
    fn a_commented_line_lets_nobody_in() {
        let mut machine = Machine::of_a_user();
        assert_eq!(allow_other(&machine.system()).status, Status::Limited);
        machine.file("etc/fuse.conf", "# user_allow_other\nmount_max = 1000\n");
        assert_eq!(allow_other(&machine.system()).status, Status::Limited);
        machine.file("etc/fuse.conf", "mount_max = 1000\nuser_allow_other\n");
        assert_eq!(allow_other(&machine.system()).status, Status::Ok);
    }

    #[test]
    fn passthrough_needs_the_kernel_and_the_capability() {
        assert_eq!(passthrough(&Machine::server().system()).status, Status::Ok);
        assert_eq!(passthrough(&Machine::of_a_user().system()).status, Status::Missing);
        let mut old = Machine::server();
        old.file("proc/sys/kernel/osrelease", "6.8.12");
        assert_eq!(passthrough(&old.system()).found, "it came with Linux 6.9");
    }
}
