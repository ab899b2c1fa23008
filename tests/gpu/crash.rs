//! Registered GPU memory while the daemon is killed, and its worker with it.

use std::os::fd::{AsFd, OwnedFd};

use kvfs::client::{Access, Batch, CudaVmm, File, Mount as Client, OpError, Registered};
use rustix::io::Errno;

use crate::common::{Mount, ns, pattern, sys};
use crate::machine::{Machine, alive, register, until};
use crate::standin::{Client as Memory, UUID};

const LEN: usize = 300_000;

fn mounted(machine: &Machine) -> (Mount, Client) {
    machine.start(machine.lab.mount(&machine.lab.dirs(2)).supervised())
}

/// Kills the daemon, and returns when another answers.
#[track_caller]
fn kill(mount: &Mount) {
    let status = mount.status();
    let (pid, daemons) = (status["pid"].as_u64().unwrap() as u32, status["supervised"]["daemons"].clone());
    sys::signal(&sys::pidfd(pid).unwrap(), libc::SIGKILL).unwrap();
    let deadline = std::time::Instant::now() + ns::HANG;
    let next = || mount.try_status().is_some_and(|status| status["supervised"]["daemons"] != daemons);
    while !next() {
        assert!(std::time::Instant::now() < deadline, "no other daemon:\n{}", mount.story());
    }
}

fn read(client: &Client, file: &File, registered: &Registered, len: usize) -> Result<u64, OpError> {
    let mut batch = Batch::new();
    batch.read(file, 0, registered, 0, len as u64);
    batch.submit(client)[0]
}

#[test]
fn what_clients_share_is_shared_again() {
    let machine = Machine::new();
    let (mount, client) = mounted(&machine);
    let memory = Memory::new(&[0; LEN]);
    let by_handle = register(&client, &memory);
    // The stand-in's descriptors of VMM allocations are of memory.
    let vmm: OwnedFd = rustix::fs::memfd_create("vmm", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&vmm, 2 << 20).unwrap();
    let region = CudaVmm { fd: vmm.as_fd(), gpu: UUID, offset: 0, length: LEN as u64, alloc_size: 2 << 20 };
    let by_fd = client.register_cuda_vmm(&region, Access::Both).unwrap();
    let (own, _) = client.allocate_on_gpu(UUID, 8192, Access::Both).unwrap();
    std::fs::write(mount.path("chunk"), pattern(3, LEN)).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    let ids = [by_handle.id(), by_fd.id()];
    for _ in 0..3 {
        let worker = machine.worker();
        kill(&mount);
        until("the worker has gone with its daemon", || !alive(worker));
        memory.put(&[0; LEN]);
        sys::pwrite(&vmm, &[0; LEN], 0).unwrap();
        // At once, before it's known again what the GPU can do.
        assert_eq!(read(&client, &file, &by_handle, LEN), Ok(LEN as u64), "{}", mount.story());
        assert!(memory.get() == pattern(3, LEN));
        assert_eq!(read(&client, &file, &by_fd, LEN), Ok(LEN as u64), "{}", mount.story());
        assert_eq!(sys::pread(&vmm, LEN, 0), Ok(pattern(3, LEN)));
        assert_eq!(ids, [by_handle.id(), by_fd.id()]);
        assert_eq!(read(&client, &file, &own, 8192), Err(OpError::Os(Errno::NOENT)), "its memory has died");
        assert_eq!(mount.status()["direct"]["gpu"]["workers"][0]["buffers"], 2);
    }
    by_fd.unregister().unwrap();
    kill(&mount);
    assert_eq!(mount.status()["supervised"]["buffers"], 1);
    let gone = std::fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap().flatten();
    let targets = gone.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert_eq!(targets.filter(|to| to.to_string_lossy().contains("memfd:vmm")).count(), 0);
    machine.assert_no_misuse();
}

#[test]
fn what_was_under_way_is_done_again() {
    let machine = Machine::new();
    let (mount, client) = mounted(&machine);
    let memory = Memory::new(&[0; LEN]);
    let registered = register(&client, &memory);
    std::fs::write(mount.path("chunk"), pattern(4, LEN)).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    let before = machine.count("cuFileRead");
    machine.faults("cuFileRead hang");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| read(&client, &file, &registered, LEN));
        until("it hangs", || machine.count("cuFileRead") > before);
        machine.faults("");
        kill(&mount);
        assert_eq!(hung.join().unwrap(), Ok(LEN as u64));
    });
    assert!(memory.get() == pattern(4, LEN));
}
