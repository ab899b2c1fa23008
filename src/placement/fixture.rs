//! A server for unit tests: its processes and its GPUs, as files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::process::Processes;
use super::{Evidence, EvidenceConfig};

/// A `/proc` in which processes come and go, with a driver's directory in it.
pub(super) struct FakeServer(TempDir);

/// The UUID of a fixture's GPU.
pub(super) fn gpu_uuid(number: u32) -> String {
    format!("GPU-8932f93{number:x}-d72c-4106-c12f-20bd9faed9f6")
}

/// The device of our own `/dev`, and of a container's.
const OUR_DEV: &str = "24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=4k\n";
const OTHER_DEV: &str =
    "27 1 254:0 / / rw - overlay overlay rw\n99 27 0:77 / /dev rw - tmpfs tmpfs rw,size=64k\n";

impl FakeServer {
    pub(super) fn new() -> Self {
        let server = Self(TempDir::new().expect("a temporary directory"));
        fs::create_dir_all(server.0.path().join("self/ns")).unwrap();
        fs::write(server.0.path().join("self/mountinfo"), OUR_DEV).unwrap();
        symlink("pid:[4026531836]", server.0.path().join("self/ns/pid")).unwrap();
        server
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn driver(&self) -> PathBuf {
        self.0.path().join("driver/nvidia")
    }

    /// Nothing but files: no library is found.
    pub(super) fn config(&self) -> EvidenceConfig {
        EvidenceConfig {
            proc_root: self.root().to_owned(),
            driver_root: self.driver(),
            nvml: Some(self.root().join("no-such-library.so")),
            ..EvidenceConfig::default()
        }
    }

    pub(super) fn evidence(&self) -> Evidence {
        Evidence::new(self.config())
    }

    pub(super) fn processes(&self) -> Processes {
        Processes::new(self.root())
    }

    /// A GPU at `0000:BUS:00.0`.
    pub(super) fn gpu(&self, bus: u8, uuid: &str, minor: u32, model: &str) {
        let pci = format!("0000:{bus:02x}:00.0");
        let directory = self.driver().join("gpus").join(&pci);
        fs::create_dir_all(&directory).unwrap();
        let information = format!(
            "Model: \t\t {model}\nIRQ:   \t\t 153\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00.30.00.01\nBus Type: \t \
             PCIe\nBus Location: \t {pci}\nDevice Minor: \t {minor}\nGPU Firmware: \t 535.104.05\nGPU Excluded:\t No\n"
        );
        fs::write(directory.join("information"), information).unwrap();
    }

    /// So many GPUs of one model. Their minors are in the opposite order.
    pub(super) fn gpus(&self, count: u32) {
        for number in 0..count {
            self.gpu(0x10 + number as u8, &gpu_uuid(number), count - 1 - number, "NVIDIA H100 80GB HBM3");
        }
    }

    /// A process, `python3`, a child of `init`, with an empty environment.
    pub(super) fn start(&self, pid: u32) -> FakeProcess {
        let process = FakeProcess { root: self.root().to_owned(), pid };
        fs::create_dir(process.path("")).expect("a new process");
        process.title("python3\0").started(1000, 1).environ("").thread(pid);
        fs::write(process.path("mountinfo"), OUR_DEV).unwrap();
        process
    }

    pub(super) fn end(&self, pid: u32) {
        fs::remove_dir_all(self.root().join(pid.to_string())).expect("it was started");
    }
}

/// One of its processes.
pub(super) struct FakeProcess {
    root: PathBuf,
    pub(super) pid: u32,
}

impl FakeProcess {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(self.pid.to_string()).join(name)
    }

    /// What its command line is now.
    pub(super) fn title(&self, title: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path("cmdline"), title).unwrap();
        self
    }

    /// When it started, and as whose child.
    pub(super) fn started(&self, ticks: u64, parent: u32) -> &Self {
        let rest = format!(
            "{parent} 5 5 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 1000 10 18446744073709551615"
        );
        fs::write(self.path("stat"), format!("{} (a) R 1 (b) S {rest} 0 0\n", self.pid)).unwrap();
        self
    }

    /// The variables, each with a NUL behind it.
    pub(super) fn environ(&self, variables: &str) -> &Self {
        let text =
            variables.split_inclusive('\n').map(|v| v.trim_end().to_owned() + "\0").collect::<String>();
        fs::write(self.path("environ"), text).unwrap();
        self
    }

    /// As setproctitle leaves it.
    pub(super) fn wiped(&self) -> &Self {
        fs::write(self.path("environ"), [0; 700]).unwrap();
        self
    }

    pub(super) fn user(&self, uid: u32) -> &Self {
        self.status(self.pid, uid);
        self
    }

    /// Another thread, or the first.
    pub(super) fn thread(&self, tid: u32) -> &Self {
        fs::create_dir_all(self.root.join(tid.to_string())).unwrap();
        self.status(tid, 1000);
        self
    }

    fn status(&self, tid: u32, uid: u32) {
        let text = format!(
            "Name:\tTgid: 9\nUmask:\t0022\nTgid:\t{}\nPid:\t{tid}\nUid:\t{uid}\t{uid}\t0\t0\n",
            self.pid
        );
        fs::write(self.root.join(tid.to_string()).join("status"), text).unwrap();
    }

    /// A `/dev` of its own, with these devices.
    pub(super) fn container(&self, devices: &[&str]) -> &Self {
        fs::write(self.path("mountinfo"), OTHER_DEV).unwrap();
        fs::create_dir_all(self.path("root/dev/nvidia-caps")).unwrap();
        for name in devices.iter().chain(&["null", "nvidiactl", "nvidia-uvm", "nvidia-modeset"]) {
            fs::write(self.path("root/dev").join(name), "").unwrap();
        }
        self
    }

    /// Files that it has open.
    pub(super) fn open(&self, targets: &[&str]) -> &Self {
        let _ = fs::remove_dir_all(self.path("fd"));
        fs::create_dir(self.path("fd")).unwrap();
        for (fd, target) in targets.iter().enumerate() {
            symlink(target, self.path("fd").join(fd.to_string())).unwrap();
        }
        self
    }
}
