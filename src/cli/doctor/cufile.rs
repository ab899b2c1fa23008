//! Whether cuFile can move data between drives and GPU memory without a stop in the CPU's.
//!
//! That the library loads proves little: it quietly falls back to a copy through CPU memory. So the ways by
//! which it can do better are looked for themselves, and what is known to make it hang or fail as well.
//! Where it isn't usable, kvfs copies through pinned CPU memory itself.

use super::check::Check;
use super::gpu::nvidia_gpus;
use super::system::System;

/// What NVIDIA ships at run time has only the first of these names.
const NAMES: &[&str] = &["libcufile.so.0", "libcufile.so"];

pub(super) fn checks(system: &System) -> Vec<Check> {
    vec![library(system), direct_path(system), surroundings(system)]
}

fn library(system: &System) -> Check {
    let check = Check::new("cuFile", "cuFile library");
    match system.library(NAMES) {
        Ok(name) => check.ok(format!("{name} loads")),
        Err(_) if nvidia_gpus(system).is_empty() => check.none("not installed, no GPU to use it"),
        Err(e) => check.missing(
            e,
            "install it (package libcufile or gds-tools of CUDA, or nvidia-cufile from PyPI) where ld.so finds it",
        ),
    }
}

fn direct_path(system: &System) -> Check {
    let check = Check::new("cuFile", "direct path");
    if nvidia_gpus(system).is_empty() {
        return check.none("no GPU to use it");
    }
    if let Some(version) = system.read("/proc/driver/nvidia-fs/version") {
        let version = version.lines().next().unwrap_or_default().to_owned();
        return check.ok(format!("by the module nvidia-fs ({version})"));
    }
    let lacking = lacking_for_p2pdma(system);
    match lacking.first() {
        None => check.ok("by the kernel's PCI P2PDMA (not on RAID 0 or NVMe multipath)"),
        Some(first) => check.missing(
            format!("the module nvidia-fs isn't loaded; P2PDMA lacks {}", lacking.join(", ")),
            format!("load nvidia-fs (`modprobe nvidia-fs`), or for P2PDMA get {first}"),
        ),
    }
}

/// What the way without nvidia-fs needs and isn't there (NVIDIA's GPUDirect Storage guide on P2PDMA).
fn lacking_for_p2pdma(system: &System) -> Vec<&'static str> {
    let version = system.read("/proc/driver/nvidia/version").unwrap_or_default();
    let parameters = system.read("/proc/driver/nvidia/params").unwrap_or_default();
    let needs = [
        (system.has_release(6, 2), "Linux 6.2"),
        (version.contains("Open Kernel Module"), "NVIDIA's open kernel module"),
        (
            parameters.contains("RMForceStaticBar1=1"),
            "the module option NVreg_RegistryDwords=\"RMForceStaticBar1=1;RmForceDisableIomapWC=1\"",
        ),
    ];
    needs.into_iter().filter(|(met, _)| !met).map(|(_, need)| need).collect()
}

fn surroundings(system: &System) -> Check {
    let check = Check::new("cuFile", "cuFile's surroundings");
    if system.library(NAMES).is_err() {
        return check.none("not looked at without the library");
    }
    // Releases from 1.16 on read it in a loop that never ends when it can't be opened.
    if system.read("/proc/modules").is_none() {
        return check.missing(
            "/proc/modules can't be read: cuFile would hang when it starts",
            "run a kernel that was built with CONFIG_MODULES, outside gVisor and the like",
        );
    }
    // Without it every file is refused, with error 5027 or 5030.
    if system.list("/run/udev/data").is_empty() {
        return check.missing(
            "/run/udev/data has nothing: cuFile would refuse every file",
            "run udev; in a container, mount the host's /run/udev read-only",
        );
    }
    check.ok("/proc/modules and /run/udev/data can be read")
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::gpu::tests::gpu_server;
    use super::super::system::tests::Machine;
    use super::*;

    #[test]
    fn without_a_gpu_nothing_is_missing() {
        for check in checks(&Machine::server().system()) {
            assert_eq!(check.status, Status::None, "{}", check.name);
        }
    }

    #[test]
    fn the_library_is_looked_for_under_both_names() {
        assert_eq!(library(&gpu_server().system()).status, Status::Missing);
        assert_eq!(library(&gpu_server().library("libcufile.so").system()).found, "libcufile.so loads");
        assert_eq!(library(&gpu_server().library("libcufile.so.0").system()).found, "libcufile.so.0 loads");
    }

    #[test]
    fn either_way_is_enough() {
        let mut machine = gpu_server();
        let check = direct_path(&machine.system());
        assert_eq!(check.status, Status::Missing);
        assert!(check.found.contains("open kernel module, the module option"), "{}", check.found);

        machine
            .file(
                "proc/driver/nvidia/version",
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05\n",
            )
            .file(
                "proc/driver/nvidia/params",
                "RegistryDwords: \"RMForceStaticBar1=1;RmForceDisableIomapWC=1\"\n",
            );
        assert_eq!(direct_path(&machine.system()).status, Status::Ok);

        let mut machine = gpu_server();
        machine.file("proc/driver/nvidia-fs/version", "version: 2.26.6\n");
        assert_eq!(direct_path(&machine.system()).found, "by the module nvidia-fs (version: 2.26.6)");
    }

    #[test]
    fn what_makes_cufile_hang_or_fail_is_found() {
        let mut machine = gpu_server();
        machine.library("libcufile.so.0");
        assert!(surroundings(&machine.system()).found.contains("hang"));
        machine.file("proc/modules", "nvidia 1 0 - Live 0x0\n");
        assert!(surroundings(&machine.system()).found.contains("refuse"));
        machine.file("run/udev/data/b259:0", "E:ID_FS_TYPE=ext4\n");
        assert_eq!(surroundings(&machine.system()).status, Status::Ok);
    }
}
