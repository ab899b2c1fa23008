//! Workers, buffers and files: when they come and when they go.

use std::time::Duration;

use super::bench::{Bench, SLOT, UUID, read, until};
use crate::direct::abi::{Path, Why};
use crate::direct::gpu::worker::WorkerState;
use crate::direct::gpu::{GpuError, GpuRequest};
use crate::index::Slot;

#[test]
fn a_worker_comes_when_needed_and_goes_when_idle() {
    let mut bench = Bench::new();
    bench.options.idle = Duration::from_millis(100);
    let gpus = bench.gpus();
    until("the probe ends", || gpus.status().probed);
    assert!(gpus.status().workers.is_empty());
    let (file, client) = (bench.file(&[3; 4096]), bench.client(&[0; 4096]));
    for _ in 0..2 {
        let granted = client.register(&gpus);
        assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 4096)])[0].0, 4096);
        let status = gpus.status().workers.remove(0);
        assert_eq!((status.state, status.buffers), (WorkerState::Running, 1));
        let pid = status.pid.unwrap();
        // It stays as long as there are buffers.
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(gpus.status().workers[0].pid, Some(pid));
        drop(granted);
        until("it ends", || gpus.status().workers[0].state == WorkerState::Idle);
        until("it's reaped", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    let status = &gpus.status().workers[0];
    assert_eq!((status.restarts, status.buffers, status.ops), (0, 0, 2));
    assert_eq!(bench.count("cuIpcCloseMemHandle"), 2);
}

#[test]
fn an_allocation_is_mapped_once() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; 3 * 4096]);
    let buffers: Vec<_> = (0..3).map(|n| gpus.register(client.part(n * 4096, 4096)).unwrap()).collect();
    assert_eq!(bench.count("cuIpcOpenMemHandle"), 1);
    let file = bench.file(&[8; 4096]);
    assert_eq!(gpus.run(&buffers[1].buffer, &file, &[read(0, 0, 4096)])[0].0, 4096);
    let memory = client.get();
    assert_eq!((memory[4095], memory[4096], memory[8191], memory[8192]), (0, 8, 8, 0));
    drop(buffers);
    until("it's unmapped", || bench.count("cuIpcCloseMemHandle") == 1);
    bench.assert_no_misuse();
}

#[test]
fn a_file_is_kept_until_it_is_forgotten() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; 4096]);
    let granted = client.register(&gpus);
    let file = bench.file(&[1; 4096]);
    for _ in 0..3 {
        assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 4096)])[0].0, 4096);
    }
    let registered = bench.count("cuFileHandleRegister");
    assert_eq!(registered, 2, "one for the probe");
    gpus.forget(file.serial);
    gpus.forget(12345);
    until("it's let go of", || bench.count("cuFileHandleDeregister") == 2);
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 4096)])[0].0, 4096);
    assert_eq!(bench.count("cuFileHandleRegister"), 3);
    bench.assert_no_misuse();
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let mut bench = Bench::new();
    bench.options.daemon_alloc_bytes = 5 << 20;
    let gpus = bench.gpus();
    let client = bench.client(&[0; 8192]);
    let refused = |request| gpus.register(request).err().map(|e: GpuError| (e.errno(), e.reason()));
    let ipc = |uuid, alloc_size, offset, length| GpuRequest::Ipc {
        uuid,
        handle: client.handle(),
        alloc_size,
        offset,
        length,
    };
    assert_eq!(refused(ipc(UUID, 8192, 0, 0)), Some((libc::EINVAL, 0)));
    assert_eq!(refused(ipc(UUID, 8192, 4096, 4097)), Some((libc::EINVAL, 0)));
    assert_eq!(refused(ipc(UUID, 8192, u64::MAX, 2)), Some((libc::EINVAL, 0)));
    // The client says that it's larger than it is.
    assert_eq!(refused(ipc(UUID, 1 << 30, 4096, 4097)), Some((libc::EINVAL, 0)));
    assert_eq!(refused(ipc([9; 16], 8192, 0, 8192)), Some((libc::ENODEV, Why::NoGpu.code())));
    assert_eq!(gpus.status().workers.len(), 1, "none is kept for a GPU that isn't there");
    let mut broken = client.handle();
    broken[0] = b'x';
    let request = GpuRequest::Ipc { uuid: UUID, handle: broken, alloc_size: 8192, offset: 0, length: 8192 };
    assert_eq!(refused(request), Some((libc::EIO, 1)));
    let hip = GpuRequest::Hip { uuid: UUID, handle: [0; 64], alloc_size: 1, offset: 0, length: 1 };
    assert_eq!(refused(hip), Some((libc::EOPNOTSUPP, Why::NoGpu.code())));
    // 2 MiB each, for their pages.
    let alloc = || gpus.register(GpuRequest::Alloc { uuid: UUID, length: 1 });
    let (first, second) = (alloc().unwrap(), alloc().unwrap());
    assert_eq!(refused(GpuRequest::Alloc { uuid: UUID, length: 1 }).unwrap().0, libc::ENOMEM);
    assert_eq!(refused(GpuRequest::Alloc { uuid: UUID, length: u64::MAX }).unwrap().0, libc::ENOMEM);
    drop(first);
    let third = alloc().unwrap();
    drop((second, third));
    until("nothing is left", || gpus.status().workers[0].buffers == 0);
    bench.assert_no_misuse();
}

#[test]
fn switched_off_nothing_starts() {
    let mut bench = Bench::new();
    bench.options.enabled = false;
    let gpus = bench.gpus();
    assert_eq!(gpus.path(Slot(0)), (Path::None, Why::SwitchedOff));
    let error = gpus.register(bench.client(&[0; 4096]).request()).err().unwrap();
    assert_eq!((error.errno(), error.reason()), (libc::EOPNOTSUPP, Why::SwitchedOff.code()));
    assert_eq!((gpus.features(), gpus.status().workers.len()), (0, 0));
    assert_eq!(bench.count("cuInit"), 0);
}

#[test]
fn shutdown_fails_what_is_under_way() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; SLOT]);
    let granted = client.register(&gpus);
    bench.faults("cuFileRead hang");
    let answers = gpus.start(&granted.buffer, &bench.file(&[1; SLOT]), &[read(0, 0, SLOT)]);
    until("it hangs", || bench.count("cuFileRead") == 2);
    let pid = gpus.status().workers[0].pid.unwrap();
    gpus.shutdown();
    assert_eq!(answers.recv_timeout(Duration::from_secs(5)).unwrap().1, -i64::from(libc::EIO));
    until("it's gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(gpus.register(client.request()).is_err());
}
