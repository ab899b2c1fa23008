//! What goes wrong harms the ops that it concerns, and nothing else.

use std::time::{Duration, Instant};

use super::bench::{Bench, Client, SLOT, UUID, pattern, read, until, write};
use crate::direct::abi::{Path, Why};
use crate::direct::gpu::GpuRequest;
use crate::direct::gpu::worker::WorkerState;

const EIO: i64 = -(libc::EIO as i64);

#[test]
fn a_worker_that_dies_fails_its_batch_and_the_next_one_goes_on() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let content = pattern(1, 4 * SLOT);
    let (file, client) = (bench.file(&content), bench.client(&vec![0; 4 * SLOT]));
    let granted = client.register(&gpus);
    let own = gpus.register(GpuRequest::Alloc { uuid: UUID, length: 4096 }).unwrap();
    bench.faults("cuFileRead die");
    let began = Instant::now();
    let batch = gpus.run(&granted.buffer, &file, &[read(0, 0, SLOT), read(SLOT, SLOT, SLOT), read(0, 0, 10)]);
    assert!(began.elapsed() < Duration::from_secs(5));
    // The last may have come in before the end.
    assert!(batch[..2].iter().all(|(result, _)| *result == EIO), "{batch:?}");
    bench.faults("");
    until("it's noticed", || gpus.status().workers[0].restarts == 1);
    assert_eq!(
        gpus.run(&granted.buffer, &file, &[read(0, 0, 4 * SLOT)])[0],
        (4 * SLOT as i64, Path::CufileStaged)
    );
    assert!(client.get() == content);
    // The dead worker's own memory is gone; the buffer says so instead of moving anything.
    let gone = gpus.run(&own.buffer, &file, &[read(0, 0, 4096)]);
    assert_eq!(gone, [(-i64::from(libc::ENODEV), Path::None)]);
    let status = &gpus.status().workers[0];
    assert_eq!((status.state, status.restarts), (WorkerState::Running, 1));
    assert!(status.last_error.as_ref().unwrap().contains("signal"), "{status:?}");
}

#[test]
fn a_worker_that_hangs_is_killed_after_the_deadline() {
    let mut bench = Bench::new();
    bench.options.deadline = Duration::from_millis(300);
    let gpus = bench.gpus();
    let (file, client) = (bench.file(&[5; 8192]), bench.client(&[0; 8192]));
    let granted = loop {
        // The deadline is for the tests' hang; the probe may take longer.
        if let Ok(granted) = gpus.register(client.request()) {
            break granted;
        }
    };
    bench.faults("cuFileRead hang");
    let began = Instant::now();
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0, EIO);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    bench.faults("");
    until("another worker moves it", || gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0 == 8192);
    assert_eq!(client.get(), [5; 8192]);
    // The same for a registration.
    bench.faults("cuIpcOpenMemHandle hang");
    let other = bench.client(&[0; 4096]);
    let error = gpus.register(other.request()).err().unwrap();
    assert_eq!((error.errno(), error.reason()), (libc::ETIMEDOUT, Why::Worker.code()));
    bench.faults("");
    until("another worker takes it", || gpus.register(other.request()).is_ok());
}

#[test]
fn a_poisoned_context_ends_its_process() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let (file, client) = (bench.file(&[5; 8192]), bench.client(&[0; 8192]));
    let granted = client.register(&gpus);
    bench.faults("cuMemcpyDtoDAsync sticky 700");
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0, EIO);
    bench.faults("");
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0, 8192);
    let status = &gpus.status().workers[0];
    assert_eq!(status.restarts, 1);
    assert!(status.last_error.as_ref().unwrap().contains("cuMemcpyDtoDAsync failed with 700"), "{status:?}");
    // One that isn't the context's end fails its op alone.
    bench.faults("cuMemcpyDtoDAsync 1");
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0, EIO);
    bench.faults("");
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)])[0].0, 8192);
    assert_eq!(gpus.status().workers[0].restarts, 1);
}

#[test]
fn codes_reach_the_client() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let (file, client) = (bench.file(&[5; 8192]), bench.client(&[6; 8192]));
    let granted = client.register(&gpus);
    for (code, result) in [("5012", -5012), ("5050", -5050), ("28", -28)] {
        bench.faults(&format!("cuFileWrite {code}"));
        assert_eq!(gpus.run(&granted.buffer, &file, &[write(0, 0, 8192)])[0].0, result);
    }
    bench.faults("cuIpcOpenMemHandle 201");
    let refused = gpus.register(bench.client(&[0; 4096]).request()).err().unwrap();
    assert_eq!((refused.errno(), refused.reason()), (libc::EIO, 201));
    bench.faults("cuMemAlloc 2");
    let refused = gpus.register(GpuRequest::Alloc { uuid: UUID, length: 1 }).err().unwrap();
    assert_eq!((refused.errno(), refused.reason()), (libc::ENOMEM, 2));
    bench.faults("");
    assert_eq!(gpus.status().workers[0].restarts, 0);
}

#[test]
fn a_file_that_cufile_refuses_goes_without_it() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&vec![0; 2 * SLOT]);
    let granted = client.register(&gpus);
    for code in [5031, 5019, 5027] {
        bench.faults(&format!("cuFileHandleRegister {code}"));
        let content = pattern(code, 2 * SLOT);
        let file = bench.file(&content);
        let done = gpus.run(&granted.buffer, &file, &[read(0, 0, 2 * SLOT)]);
        assert_eq!(done, [(2 * SLOT as i64, Path::Bounce)], "{code}");
        assert!(client.get() == content);
    }
    bench.faults("");
    let done = gpus.run(&granted.buffer, &bench.file(&[1; 4096]), &[read(0, 0, 4096)]);
    assert_eq!(done, [(4096, Path::CufileStaged)]);
}

#[test]
fn without_memory_for_the_ring_everything_goes_without_cufile() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; 8192]);
    let granted = client.register(&gpus);
    bench.faults("cuFileBufRegister 5012");
    let file = bench.file(&[9; 8192]);
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 8192)]), [(8192, Path::Bounce)]);
    assert_eq!(client.get(), [9; 8192]);
    let own = gpus.register(GpuRequest::Alloc { uuid: UUID, length: 8192 }).unwrap();
    assert_eq!(own.why, Why::Cufile(5012));
    let mine = Client::of_handle(own.handle.unwrap(), 8192);
    assert_eq!(gpus.run(&own.buffer, &file, &[read(0, 0, 8192)]), [(8192, Path::Bounce)]);
    assert_eq!(mine.get(), [9; 8192]);
}

#[test]
fn what_cannot_be_read_is_an_error() {
    use std::os::unix::fs::OpenOptionsExt;
    let bench = Bench::new();
    bench.uninstall("libcufile.so.0");
    let gpus = bench.gpus();
    let client = bench.client(&vec![0; 2 * SLOT]);
    let granted = client.register(&gpus);
    let mut file = bench.file(&vec![1; 2 * SLOT]);
    {
        let file = std::sync::Arc::get_mut(&mut file).unwrap();
        let path =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.buffered)));
        let open =
            |flags| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path.as_ref().unwrap());
        (file.direct, file.buffered) = (Some(open(libc::O_DIRECT).unwrap()), open(0).unwrap());
    }
    for m in [write(0, 0, 2 * SLOT), write(0, 1, 5), write(10, 3, SLOT)] {
        assert_eq!(gpus.run(&granted.buffer, &file, &[m])[0].0, -i64::from(libc::EBADF), "{m:?}");
    }
    assert_eq!(gpus.run(&granted.buffer, &file, &[read(0, 0, 2 * SLOT)])[0].0, 2 * SLOT as i64);
}
