//! Which GPUs are here, and whether the libraries that talk to them load.
//!
//! A machine without GPUs is a normal answer: everything but the transfers to GPU memory works there.

use super::check::Check;
use super::system::System;

pub(super) fn checks(system: &System) -> Vec<Check> {
    let mut checks = vec![nvidia(system), nvidia_devices(system)];
    checks.extend(LIBRARIES.iter().map(|library| library.check(system)));
    checks.extend([amd(system), hipfile(system)]);
    checks
}

/// The addresses of the NVIDIA GPUs that the driver serves.
pub(super) fn nvidia_gpus(system: &System) -> Vec<String> {
    system.list("/proc/driver/nvidia/gpus")
}

fn nvidia(system: &System) -> Check {
    let check = Check::new("gpu", "NVIDIA GPUs");
    let gpus = nvidia_gpus(system);
    if gpus.is_empty() {
        return if nvidia_nodes(system).is_empty() {
            check.none("none")
        } else {
            check.missing("device files, but no driver", "load the kernel module (`modprobe nvidia`)")
        };
    }
    let model = |gpu: &String| system.field(&format!("/proc/driver/nvidia/gpus/{gpu}/information"), "Model");
    let mut models: Vec<(String, usize)> = Vec::new();
    for gpu in &gpus {
        let model = model(gpu).unwrap_or_else(|| "unknown model".to_owned());
        match models.iter_mut().find(|(known, _)| *known == model) {
            Some((_, count)) => *count += 1,
            None => models.push((model, 1)),
        }
    }
    let models: Vec<_> = models.into_iter().map(|(model, count)| format!("{count} x {model}")).collect();
    check.ok(models.join(", "))
}

/// The device files of single GPUs: `nvidia0` and so on.
fn nvidia_nodes(system: &System) -> Vec<String> {
    let number = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
    let mut nodes = system.list("/dev");
    nodes.retain(|name| number(name));
    nodes
}

fn nvidia_devices(system: &System) -> Check {
    let check = Check::new("gpu", "NVIDIA devices");
    let nodes = nvidia_nodes(system);
    let gpus = nvidia_gpus(system).len();
    if gpus == 0 && nodes.is_empty() {
        return check.none("none");
    }
    const EXPOSE: &str = "run `nvidia-modprobe -u`; in a container, start it with `--gpus all`";
    let control = ["/dev/nvidiactl", "/dev/nvidia-uvm"].into_iter().find(|path| !system.exists(path));
    match control {
        Some(path) => check.missing(format!("{path} isn't there"), EXPOSE),
        None if nodes.is_empty() => check.missing("no /dev/nvidia*", EXPOSE),
        None if nodes.len() < gpus => {
            check.limited(format!("/dev/{}: {} of {gpus} GPUs", nodes.join(", /dev/"), nodes.len()), EXPOSE)
        }
        None => check.ok(format!("/dev/{}", nodes.join(", /dev/"))),
    }
}

/// A library of NVIDIA's driver.
struct Library {
    title: &'static str,
    name: &'static str,
    purpose: &'static str,
}

const LIBRARIES: &[Library] = &[
    Library { title: "NVML", name: "libnvidia-ml.so.1", purpose: "which process uses which GPU isn't known" },
    Library { title: "CUDA driver", name: "libcuda.so.1", purpose: "no transfers to GPU memory" },
];

impl Library {
    fn check(&self, system: &System) -> Check {
        let check = Check::new("gpu", self.title);
        match system.library(&[self.name]) {
            Ok(name) => check.ok(format!("{name} loads")),
            Err(_) if nvidia_gpus(system).is_empty() => check.none("not installed, no GPU to use it"),
            Err(e) => check.missing(
                format!("{e}: {}", self.purpose),
                "install the driver's libraries; in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ),
        }
    }
}

fn amd(system: &System) -> Check {
    let check = Check::new("gpu", "AMD GPUs");
    if !system.exists("/dev/kfd") {
        return check.none("none");
    }
    // CPUs are nodes of this tree too; only GPUs have SIMDs.
    const NODES: &str = "/sys/class/kfd/kfd/topology/nodes";
    let simds = |node: &String| {
        let properties = system.read(&format!("{NODES}/{node}/properties"))?;
        let value = properties.lines().find_map(|line| line.strip_prefix("simd_count "))?;
        value.trim().parse::<u64>().ok()
    };
    match system.list(NODES).iter().filter(|node| simds(node).is_some_and(|count| count > 0)).count() {
        0 => check.none("none (/dev/kfd is there)"),
        count => check.ok(format!("{count}")),
    }
}

fn hipfile(system: &System) -> Check {
    let check = Check::new("gpu", "hipFile");
    match system.library(&["libhipfile.so.0", "libhipfile.so"]) {
        Ok(name) => check
            .limited(format!("{name} loads"), "AMD calls it a preview, and kvfs hasn't been tried with it"),
        Err(_) if system.exists("/dev/kfd") => {
            check.missing("not installed", "it comes with ROCm 7.2 and newer, as a preview")
        }
        Err(_) => check.none("not installed, no GPU to use it"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::check::Status;
    use super::super::system::tests::Machine;
    use super::*;

    /// A server with two GPUs and the whole of NVIDIA's driver.
    pub(in super::super) fn gpu_server() -> Machine {
        let mut machine = Machine::server();
        for (number, address) in ["0000:18:00.0", "0000:2a:00.0"].into_iter().enumerate() {
            let information = format!("Model: \t\t NVIDIA H200\nIRQ:   \t\t 77\nDevice Minor: \t {number}\n");
            machine.file(&format!("proc/driver/nvidia/gpus/{address}/information"), &information);
            machine.file(&format!("dev/nvidia{number}"), "");
        }
        machine.file("dev/nvidiactl", "").file("dev/nvidia-uvm", "");
        machine.library("libnvidia-ml.so.1").library("libcuda.so.1");
        machine
    }

    #[test]
    fn no_gpu_is_a_normal_answer() {
        for check in checks(&Machine::server().system()) {
            assert_eq!((check.status, check.advice), (Status::None, None), "{}", check.name);
        }
    }

    #[test]
    fn gpus_are_counted_by_model() {
        let mut machine = gpu_server();
        assert_eq!(nvidia(&machine.system()).found, "2 x NVIDIA H200");
        assert_eq!(nvidia_devices(&machine.system()).found, "/dev/nvidia0, /dev/nvidia1");
        machine.file("proc/driver/nvidia/gpus/0000:3b:00.0/information", "no model here");
        assert_eq!(nvidia(&machine.system()).found, "2 x NVIDIA H200, 1 x unknown model");
        assert_eq!(nvidia_devices(&machine.system()).status, Status::Limited);
    }

    #[test]
    fn a_gpu_without_its_library_or_devices_misses_them() {
        let mut machine = gpu_server();
        machine.without("dev/nvidia-uvm");
        let check = nvidia_devices(&machine.system());
        assert_eq!((check.status, &*check.found), (Status::Missing, "/dev/nvidia-uvm isn't there"));

        let mut machine = Machine::server();
        machine.file("proc/driver/nvidia/gpus/0000:18:00.0/information", "");
        for library in LIBRARIES {
            assert_eq!(library.check(&machine.system()).status, Status::Missing);
        }
        assert!(LIBRARIES.iter().all(|library| library.check(&gpu_server().system()).status == Status::Ok));
    }

    #[test]
    fn amd_gpus_are_the_nodes_with_simds() {
        let mut machine = Machine::server();
        machine.file("dev/kfd", "");
        assert_eq!(amd(&machine.system()).status, Status::None);
        for (node, simds) in [0, 0, 1216, 1216].into_iter().enumerate() {
            let properties = format!("cpu_cores_count 4\nsimd_count {simds}\nmem_banks_count 1\n");
            machine.file(&format!("sys/class/kfd/kfd/topology/nodes/{node}/properties"), &properties);
        }
        let check = amd(&machine.system());
        assert_eq!((check.status, &*check.found), (Status::Ok, "2"));
        assert_eq!(hipfile(&machine.system()).status, Status::Missing);
        machine.library("libhipfile.so");
        assert_eq!(hipfile(&machine.system()).found, "libhipfile.so loads");
    }
}
