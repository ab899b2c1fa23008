//! A mount on a machine whose GPU is a stand-in.

use std::fs;
use std::time::{Duration, Instant};

use kvfs::client::{Access, CudaIpc, Mount as Client, Registered};

use crate::common::{Builder, Lab, Mount};
use crate::standin::{self, Client as Memory, UUID};

/// The machine. What is started from this process on finds the stand-ins.
pub(crate) struct Machine {
    pub(crate) lab: Lab,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        let lab = Lab::new();
        let (log, libraries) = (lab.dir("standin"), lab.dir("lib"));
        for name in ["libcuda.so.1", "libcufile.so.0"] {
            std::os::unix::fs::symlink(standin::libraries().join(name), libraries.join(name)).unwrap();
        }
        // SAFETY: no other thread of this test, which is a process, looks at the environment yet.
        unsafe {
            std::env::set_var("LD_LIBRARY_PATH", &libraries);
            std::env::set_var("KVFS_STANDIN", &log);
            std::env::set_var("KVFS_FAULT_CUFILE_UNGUARDED", "1");
        }
        Machine { lab }
    }

    pub(crate) fn without(self, library: &str) -> Machine {
        fs::remove_file(self.lab.path("lib").join(library)).unwrap();
        self
    }

    /// What the libraries do wrong from now on; see standin.h.
    pub(crate) fn faults(&self, faults: &str) {
        let new = self.lab.path("standin/faults.new");
        fs::write(&new, faults).unwrap();
        fs::rename(new, self.lab.path("standin/faults")).unwrap();
    }

    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.lab.path("standin/calls")).unwrap_or_default()
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        standin::count(&self.calls(), name)
    }

    /// The newest worker: who registered host memory last.
    pub(crate) fn worker(&self) -> u32 {
        let calls = self.calls();
        let last =
            calls.lines().rfind(|line| line.contains("cuIpcOpenMemHandle") || line.contains("cuIpcGet"));
        last.and_then(|line| line.split(' ').next()?.parse().ok()).expect("a worker")
    }

    /// A mount, once it's known what it can do.
    pub(crate) fn mount(&self, args: &[&str]) -> (Mount, Client) {
        let builder = self.lab.mount(&self.lab.dirs(2));
        self.start(args.iter().fold(builder, |builder, arg| builder.arg(*arg)))
    }

    /// The same with this mount.
    pub(crate) fn start(&self, builder: Builder) -> (Mount, Client) {
        let mount = builder.start();
        let client = Client::open(mount.point()).unwrap();
        until("the probe ends", || client.query().unwrap().gpu.reason != NOT_PROBED);
        (mount, client)
    }

    #[track_caller]
    pub(crate) fn assert_no_misuse(&self) {
        let calls = self.calls();
        assert_eq!(standin::misuse(&calls), [""; 0]);
    }
}

/// KVFS_WHY_NOT_PROBED
const NOT_PROBED: u32 = 2;

/// Registers all of this memory.
pub(crate) fn register(client: &Client, memory: &Memory) -> Registered {
    client.register_cuda_ipc(&region(memory, 0, memory.len), Access::Both).unwrap()
}

pub(crate) fn region(memory: &Memory, offset: usize, length: usize) -> CudaIpc {
    CudaIpc {
        handle: memory.handle(),
        gpu: UUID,
        offset: offset as u64,
        length: length as u64,
        alloc_size: memory.len as u64,
    }
}

/// Whether a process lives. One that has ended may wait for whoever took it in from a dead parent.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).is_some_and(|state| !"ZX".contains(state))
}

/// Waits until it's so.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
