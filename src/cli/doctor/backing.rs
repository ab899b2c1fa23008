//! How data would move between GPU memory and the backings that were named.
//!
//! It's the probe that a mount runs when it starts: a process of its own, which the libraries may hang as they
//! like, writes 4 MiB from GPU memory into each directory and reads them back.

use std::path::PathBuf;

use super::check::{Check, Status};
use super::system::System;
use crate::direct::abi::{Path, Why};
use crate::direct::gpu::probe::Finding;

pub(super) fn checks(system: &System, backings: &[PathBuf]) -> Vec<Check> {
    if backings.is_empty() {
        return Vec::new();
    }
    let found = system.gpu_paths(backings);
    let check = Check::new("backings", "GPU memory");
    let text = |(dir, finding): (&PathBuf, &Finding)| {
        format!("{}: {} ({})", dir.display(), way(finding.path), finding.detail)
    };
    let text = backings.iter().zip(&found).map(text).collect::<Vec<_>>().join("; ");
    // The worst of them counts: data is spread over all.
    let worst = found.iter().map(|f| (status(f), f.why)).max_by_key(|(status, _)| rank(*status));
    vec![match worst {
        Some((Status::Ok, _)) => check.ok(text),
        Some((Status::Limited, why)) => check.limited(text, advice(why)),
        Some((Status::Missing, why)) => check.missing(text, advice(why)),
        Some((Status::None, _)) | None => check.none(text),
    }]
}

fn way(path: Path) -> &'static str {
    match path {
        Path::None => "not possible",
        Path::UringHost | Path::Bounce => "by way of host memory",
        Path::CufileStaged | Path::CufileDirect => "cuFile",
        Path::Hipfile => "hipFile",
    }
}

fn status(finding: &Finding) -> Status {
    match (finding.path, finding.why) {
        (Path::CufileStaged | Path::CufileDirect | Path::Hipfile, _) => Status::Ok,
        (Path::None, Why::NoGpu) => Status::None,
        (Path::None, _) => Status::Missing,
        _ => Status::Limited,
    }
}

fn rank(status: Status) -> u8 {
    match status {
        Status::None => 0,
        Status::Ok => 1,
        Status::Limited => 2,
        Status::Missing => 3,
    }
}

fn advice(why: Why) -> &'static str {
    match why {
        Why::NoCufile => "install libcufile.so.0 (package libcufile of CUDA, or nvidia-cufile from PyPI)",
        Why::WouldHang => "run a kernel that was built with CONFIG_MODULES, outside gVisor and the like",
        Why::ProbeDeadline => {
            "the libraries hang: look into the kernel's log for the GPU's driver and nvidia-fs"
        }
        Why::NoDirectIo => "put the backing on ext4 or xfs: this file system refuses direct I/O",
        Why::Unreadable => "see that the directory is there and can be written",
        Why::Cufile(5027 | 5030) => "run udev; in a container, mount the host's /run/udev read-only",
        Why::Cufile(5001 | 5033) => "load nvidia-fs, or set up P2PDMA: see `direct path` above",
        Why::Cufile(_) => "look the code up in cufile.h, and run NVIDIA's gdscheck",
        Why::NoGpu | Why::Worker => "see that a CUDA program can run here",
        Why::NoIoUring | Why::Best | Why::SwitchedOff | Why::NotProbed => "nothing to be done",
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::tests::Machine;
    use super::*;

    #[track_caller]
    fn check(findings: &[(Path, Why)]) -> Check {
        let mut machine = Machine::server();
        machine.gpu_paths(findings.iter().map(|(path, why)| Finding::new(*path, *why, "said so")).collect());
        let dirs: Vec<_> = (0..findings.len()).map(|n| PathBuf::from(format!("/nvme{n}"))).collect();
        checks(&machine.system(), &dirs).remove(0)
    }

    #[test]
    fn nothing_is_tried_unless_a_backing_is_named() {
        assert!(checks(&Machine::server().system(), &[]).is_empty());
    }

    #[test]
    fn the_worst_backing_counts() {
        let good = (Path::CufileStaged, Why::Best);
        assert_eq!(check(&[good, good]).status, Status::Ok);
        let mixed = check(&[good, (Path::Bounce, Why::Cufile(5027)), good]);
        assert_eq!(mixed.status, Status::Limited);
        assert!(mixed.found.contains("/nvme1: by way of host memory (said so); /nvme2: cuFile"), "{mixed:?}");
        assert!(mixed.advice.unwrap().contains("udev"));
        assert_eq!(check(&[(Path::None, Why::Unreadable), good]).status, Status::Missing);
        assert_eq!(check(&[(Path::None, Why::NoGpu)]).status, Status::None);
    }
}
