//! The tests themselves.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use kvfs::client::{Access, Batch, File, Mount as Client, OpError, Registered};
use rustix::io::Errno;

use crate::common::process::Process;
use crate::common::{kvfs, pattern};
use crate::machine::{Machine, alive, region, register, until};
use crate::standin::{Client as Memory, UUID};

const MIB: usize = 1 << 20;
/// `KVFS_PATH_*`.
const BOUNCE: u32 = 2;
const STAGED: u32 = 4;
const DIRECT: u32 = 5;
/// KVFS_WHY_NO_CUFILE
const NO_CUFILE: u32 = 4;

/// Writes from GPU memory and reads back, at odd places, and compares with what plain reads say.
#[track_caller]
fn there_and_back(mount: &crate::common::Mount, memory: &Memory, registered: &Registered) {
    let data = pattern(7, memory.len);
    memory.put(&data);
    let file = File::create(mount.path("chunk")).unwrap();
    assert_eq!(file.write(0, registered, 0, data.len() as u64).unwrap(), data.len() as u64);
    assert!(fs::read(mount.path("chunk")).unwrap() == data, "a plain read of what came from the GPU");
    assert_eq!(fs::metadata(mount.path("chunk")).unwrap().len(), data.len() as u64);
    // In the middle of what is there, and beyond the end.
    assert_eq!(file.write(4097, registered, 3, 100_000).unwrap(), 100_000);
    assert_eq!(file.write(data.len() as u64 + 5000, registered, 0, 4096).unwrap(), 4096);
    let mut want = data.clone();
    want[4097..104_097].copy_from_slice(&data[3..100_003]);
    want.resize(data.len() + 5000, 0);
    want.extend(&data[..4096]);
    assert!(fs::read(mount.path("chunk")).unwrap() == want);

    let plain = pattern(8, data.len() + 777);
    fs::write(mount.path("plain"), &plain).unwrap();
    let file = File::open(mount.path("plain")).unwrap();
    for (file_off, buf_off, len) in [
        (0, 0, data.len()),
        (1, 0, 5000),
        (4096, 100, 8192),
        (plain.len() - 700, 5, 4096),
        (plain.len(), 0, 9),
    ] {
        let before = memory.get();
        let there = len.min(plain.len() - file_off);
        let got = file.read(file_off as u64, registered, buf_off as u64, len as u64).unwrap();
        assert_eq!(got as usize, there, "{len} bytes at {file_off}");
        let mut want = before;
        want[buf_off..buf_off + there].copy_from_slice(&plain[file_off..file_off + there]);
        assert!(memory.get() == want, "{len} bytes at {file_off}, and nothing else");
    }
}

#[test]
fn staged() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 3 * MIB]);
    let registered = register(&client, &memory);
    assert_eq!((registered.transport().path, registered.transport().reason), (STAGED, 0));
    let abilities = client.query().unwrap().abilities;
    assert!(abilities.cuda_ipc && abilities.cuda_vmm && abilities.daemon_alloc);
    there_and_back(&mount, &memory, &registered);
    assert!(machine.count("cuMemcpyDtoDAsync") > 3 && machine.count("cuFileWrite") > 2);
    machine.assert_no_misuse();
}

#[test]
fn bounced() {
    let machine = Machine::new().without("libcufile.so.0");
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 3 * MIB]);
    let registered = register(&client, &memory);
    assert_eq!((registered.transport().path, registered.transport().reason), (BOUNCE, NO_CUFILE));
    there_and_back(&mount, &memory, &registered);
    machine.assert_no_misuse();
}

#[test]
fn allocated_by_the_daemon() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let (registered, handle) = client.allocate_on_gpu(UUID, 3 * MIB as u64, Access::Both).unwrap();
    assert_eq!((registered.transport().path, registered.transport().reason), (DIRECT, 0));
    let memory = Memory::of_handle(handle, 3 * MIB);
    there_and_back(&mount, &memory, &registered);
    registered.unregister().unwrap();
    until("it's freed", || machine.count("cuMemFree") == 1);
    machine.assert_no_misuse();
}

#[test]
fn status_shows_it_and_a_closed_file_is_let_go_of() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 8192]);
    let registered = register(&client, &memory);
    fs::write(mount.path("chunk"), [1; 8192]).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    assert_eq!(file.read(0, &registered, 0, 8192).unwrap(), 8192);
    let gpu = mount.status()["direct"]["gpu"].clone();
    assert_eq!((&gpu["probed"], &gpu["driver"]), (&true.into(), &"cuda".into()), "{gpu:#}");
    for backing in gpu["backings"].as_array().unwrap() {
        assert_eq!((&backing["path"], &backing["why"]), (&"cufile_staged".into(), &"best".into()), "{gpu:#}");
    }
    let worker = &gpu["workers"][0];
    assert_eq!(worker["pid"], machine.worker(), "{gpu:#}");
    assert_eq!(worker["state"], "running");
    assert_eq!([&worker["buffers"], &worker["ops"], &worker["bytes"], &worker["restarts"]], [1, 1, 8192, 0]);

    let before = machine.count("cuFileHandleDeregister");
    drop(file);
    until("cuFile lets go of it", || machine.count("cuFileHandleDeregister") == before + 1);
    let held = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|to| to.ends_with("chunk")).count()
    };
    until("it's closed", || held(machine.worker()) == 0);
    machine.assert_no_misuse();
}

#[test]
fn a_batch_over_many_files() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 100 * 10_000]);
    let registered = register(&client, &memory);
    let files: Vec<_> = (0..100)
        .map(|n| {
            fs::write(mount.path(format!("chunk{n}")), pattern(n, 10_000)).unwrap();
            File::open(mount.path(format!("chunk{n}"))).unwrap()
        })
        .collect();
    let mut batch = Batch::new();
    for (n, file) in files.iter().enumerate() {
        batch.read(file, 0, &registered, n as u64 * 10_000, 10_000);
    }
    assert_eq!(batch.submit(&client), [Ok(10_000); 100]);
    for (n, part) in memory.get().chunks(10_000).enumerate() {
        assert!(part == pattern(n as u64, 10_000), "chunk {n}");
    }
    machine.assert_no_misuse();
}

#[test]
fn a_worker_that_is_killed_takes_its_ops_with_it_and_nothing_else() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 64 * 1024]);
    let registered = register(&client, &memory);
    let (own, _) = client.allocate_on_gpu(UUID, 4096, Access::Both).unwrap();
    let data = pattern(3, 64 * 1024);
    fs::write(mount.path("chunk"), &data).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    machine.faults("cuFileRead hang");
    let worker = machine.worker();
    // The probe has read too.
    let before = machine.count("cuFileRead");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| {
            let mut batch = Batch::new();
            batch.read(&file, 0, &registered, 0, 64 * 1024);
            batch.read(&file, 4096, &registered, 0, 4096);
            batch.submit(&client)
        });
        until("it hangs", || machine.count("cuFileRead") >= before + 2);
        // The mount goes on.
        assert!(fs::read(mount.path("chunk")).unwrap() == data);
        // SAFETY: a process of this test's mount.
        assert_eq!(unsafe { libc::kill(worker as i32, libc::SIGKILL) }, 0);
        let killed = Instant::now();
        assert_eq!(hung.join().unwrap(), [Err(OpError::Os(Errno::IO)); 2]);
        assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    });
    machine.faults("");
    assert_eq!(file.read(0, &registered, 0, 64 * 1024).unwrap(), 64 * 1024);
    assert!(memory.get() == data);
    assert_ne!(machine.worker(), worker);
    let mut batch = Batch::new();
    batch.read(&file, 0, &own, 0, 4096);
    assert_eq!(
        batch.submit(&client),
        [Err(OpError::Os(Errno::NODEV))],
        "its memory has died with the worker"
    );
    until("it's reaped", || !alive(worker));
}

#[test]
fn a_worker_that_stops_answering_is_replaced_after_the_deadline() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&["--direct-timeout=1"]);
    let memory = Memory::new(&[0; 64 * 1024]);
    let registered = register(&client, &memory);
    let data = pattern(3, 64 * 1024);
    fs::write(mount.path("chunk"), &data).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    assert_eq!(file.read(0, &registered, 0, 4096).unwrap(), 4096);
    let worker = machine.worker();
    // SAFETY: a process of this test's mount.
    assert_eq!(unsafe { libc::kill(worker as i32, libc::SIGSTOP) }, 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let batch = || {
            let mut batch = Batch::new();
            (0..127).for_each(|_| batch.read(&file, 0, &registered, 0, 64 * 1024));
            batch.submit(&client)
        };
        let hung: Vec<_> = (0..8).map(|_| scope.spawn(batch)).collect();
        // More than the line to it holds: whoever asks the mount something else doesn't wait for that.
        let asked = Instant::now();
        assert!(fs::read(mount.path("chunk")).unwrap() == data);
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        for batch in hung {
            assert_eq!(batch.join().unwrap(), [Err(OpError::Os(Errno::TIMEDOUT)); 127]);
        }
    });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    until("it's killed", || !alive(worker));
    assert_eq!(file.read(0, &registered, 0, 64 * 1024).unwrap(), 64 * 1024);
    assert!(memory.get() == data);
    let status = mount.status()["direct"]["gpu"]["workers"][0].clone();
    assert!(status["last_error"].as_str().unwrap().contains("took too long"), "{status:#}");
}

#[test]
fn a_poisoned_gpu_and_refusals_reach_the_client() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 8192]);
    let registered = register(&client, &memory);
    fs::write(mount.path("chunk"), [5; 8192]).unwrap();
    let file = File::open(mount.path("chunk")).unwrap();
    let read = || {
        let mut batch = Batch::new();
        batch.read(&file, 0, &registered, 0, 8192);
        batch.submit(&client)[0]
    };
    machine.faults("cuMemcpyDtoDAsync sticky 700");
    assert_eq!(read(), Err(OpError::Os(Errno::IO)));
    machine.faults("");
    assert_eq!(read(), Ok(8192));
    machine.faults("cuFileRead 5012");
    assert!(matches!(read(), Err(OpError::Gpu(5012))), "{:?}", read());
    machine.faults("cuIpcOpenMemHandle 201");
    let other = Memory::new(&[0; 4096]);
    let refused = client.register_cuda_ipc(&region(&other, 0, 4096), Access::Both).unwrap_err();
    assert!(refused.to_string().contains("201"), "{refused}");
    machine.faults("");
    assert!(client.register_cuda_ipc(&region(&other, 4095, 2), Access::Both).is_err());
    assert_eq!(read(), Ok(8192));
}

#[test]
fn doctor_tries_what_a_mount_would_find() {
    let machine = Machine::new();
    let dir = machine.lab.dir("tried");
    let doctor = || {
        let out = kvfs(["doctor", "--json", "--backing", dir.to_str().unwrap()]).code(0);
        let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "GPU memory").unwrap().clone()
    };
    let check = doctor();
    assert_eq!(check["status"], "ok", "{check}");
    assert!(check["found"].as_str().unwrap().contains("cuFile (4 MiB came back whole)"), "{check}");
    machine.faults("cuFileHandleRegister 5027");
    let check = doctor();
    assert_eq!(check["status"], "limited", "{check}");
    assert!(check["advice"].as_str().unwrap().contains("udev"), "{check}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_worker_is_not_for_people() {
    assert!(!kvfs(["--help"]).code(0).stdout.contains("worker"));
    let uuid = "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0";
    let sizes = ["--ring-slots=1", "--slot-bytes=4096", "--submitters=1"];
    kvfs([&["worker", "gpu", "--uuid", uuid][..], &sizes[..]].concat()).fault(1, &["not by hand"]);
}

/// `tests/gpu/run`, which is for machines with a GPU, here without one and with the stand-in.
#[test]
fn the_command_for_machines_with_a_gpu() {
    let run = || {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu/run"));
        command.args(["--kvfs", crate::common::cli::BINARY, "--mib", "16"]);
        crate::common::cli::finish(command)
    };
    let none = run().code(77);
    assert!(none.stdout.contains("no GPU can be used here"), "{}", none.stdout);
    let machine = Machine::new();
    let out = run().code(0);
    let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    for (engine, path) in [
        ("bounce", "bounce"),
        ("shared", "cufile_staged"),
        ("shared_vmm", "cufile_staged"),
        ("daemon_allocated", "cufile_direct"),
    ] {
        assert_eq!(report["engines"][engine]["path"], path, "{report:#}");
        assert_eq!(report["engines"][engine]["bytes_right"], true, "{report:#}");
    }
    assert!(report["worker_killed"]["client_said"].as_str().unwrap().contains("moved -5"), "{report:#}");
    assert_eq!(report["imported"]["ipc"]["ring"]["bytes_right"], true, "{report:#}");
    drop(machine);
}

#[test]
fn what_a_dead_client_had_is_let_go_of() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    fs::write(mount.path("chunk"), pattern(1, 4 * MIB)).unwrap();
    let before = machine.count("cuFileRead");
    let mut child = Process::start(|say| {
        let client = Client::open(mount.point()).unwrap();
        let memory = Memory::new(&[0; 4 * MIB]);
        let registered = register(&client, &memory);
        let file = File::open(mount.path("chunk")).unwrap();
        say("ready");
        loop {
            file.read(0, &registered, 0, 4 * MIB as u64).unwrap();
        }
    });
    assert_eq!(child.hear(), "ready");
    until("it transfers", || machine.count("cuFileRead") > before + 1);
    let worker = machine.worker();
    child.kill();
    until("its memory is unmapped", || machine.count("cuIpcCloseMemHandle") == 1);
    // The worker is unharmed.
    let memory = Memory::new(&[0; 4096]);
    let registered = register(&client, &memory);
    let file = File::open(mount.path("chunk")).unwrap();
    assert_eq!(file.read(0, &registered, 0, 4096).unwrap(), 4096);
    assert_eq!(machine.worker(), worker);
    machine.assert_no_misuse();
}

#[test]
fn workers_end_with_the_daemon() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; 4096]);
    let registered = register(&client, &memory);
    let worker = machine.worker();
    assert!(alive(worker));
    // A mount whose connection somebody else has open outlives its daemon.
    for fd in fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten() {
        let what = fs::read_link(fd.path()).unwrap_or_default();
        assert_ne!(what.to_str(), Some("/dev/fuse"), "{fd:?}");
    }
    // The mount is busy as long as they have it open. The worker idles then, with a minute to go.
    drop((registered, client));
    let builder = mount.stop();
    until("it ends with the unmount", || !alive(worker));

    let mount = builder.start();
    let client = Client::open(mount.point()).unwrap();
    let _registered = register(&client, &memory);
    let worker = machine.worker();
    machine.faults("cuFileRead hang");
    fs::write(mount.path("chunk"), [1; 8192]).unwrap();
    mount.signal(libc::SIGKILL);
    until("it ends with a daemon that was killed", || !alive(worker));
    crate::common::ns::abort(mount.minor);
    let _ = mount.ended();
    crate::common::ns::unmount_below(&machine.lab.root());
}

#[test]
fn a_driver_that_hangs_holds_no_mount_up() {
    let machine = Machine::new();
    machine.faults("cuInit hang");
    let began = Instant::now();
    let mount = machine.lab.mount(&machine.lab.dirs(2)).start();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let client = Client::open(mount.point()).unwrap();
    let gpu = client.query().unwrap().gpu;
    assert_eq!((gpu.path, gpu.reason), (0, 2), "not probed");
    fs::write(mount.path("chunk"), b"bytes").unwrap();
    assert_eq!(fs::read(mount.path("chunk")).unwrap(), b"bytes");
}

#[test]
fn without_gpus_nothing_of_them_is_started() {
    let machine = Machine::new();
    let mount = machine.lab.mount(&machine.lab.dirs(2)).arg("--direct=host").start();
    let client = Client::open(mount.point()).unwrap();
    let gpu = client.query().unwrap().gpu;
    assert_eq!((gpu.path, gpu.reason), (0, 1), "switched off");
    let memory = Memory::new(&[0; 4096]);
    let refused = client.register_cuda_ipc(&region(&memory, 0, 4096), Access::Both).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::OPNOTSUPP));
    assert_eq!(machine.count("cuInit"), 0);
}

#[test]
fn a_file_that_is_removed_while_it_is_moved_stays_whole() {
    let machine = Machine::new();
    let (mount, client) = machine.mount(&[]);
    let memory = Memory::new(&[0; MIB]);
    let registered = register(&client, &memory);
    let data = pattern(5, MIB);
    fs::write(mount.path("chunk"), &data).unwrap();
    // cuFile hasn't seen it before it's removed: it goes without.
    let file = File::open(mount.path("chunk")).unwrap();
    fs::remove_file(mount.path("chunk")).unwrap();
    assert_eq!(file.read(0, &registered, 0, MIB as u64).unwrap(), MIB as u64);
    assert!(memory.get() == data);
    memory.put(&[9; MIB]);
    assert_eq!(file.write(4096, &registered, 0, 8192).ok(), None, "it's open for reading");
    let mut byte = [0; 1];
    file.std().read_exact_at(&mut byte, 4096).unwrap();
    assert_eq!(byte[0], data[4096]);
}
