use std::sync::atomic::Ordering;

use super::super::fixture::FakeServer;
use super::*;

fn tp(processes: &Processes, tid: u32) -> Option<u32> {
    processes.of(tid)?.title?.tp
}

/// Makes the process due for another look.
fn make_due(processes: &Processes, pid: u32) {
    let known = processes.known.lock().get(&pid).cloned().expect("it was asked about");
    known.look.write().again = Instant::now();
}

fn accesses(processes: &Processes) -> usize {
    processes.reader.accesses.load(Ordering::Relaxed)
}

/// A process of our own that lives until it's dropped.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start() -> Self {
        let mut command = std::process::Command::new("sleep");
        Self(command.arg("1000").spawn().expect("sleep"))
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_title_ends_where_setproctitle_padded_it() {
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(11).title(b"VLLM::Worker_TP3\0\0\0\0\0\0");
    server.start(12).title(b"VLLM::Worker_TP2   ");
    server.start(13).title(b"python3\0-c\0VLLM::Worker_TP1\0");
    server.start(14).title(b"");
    server.start(15).title([b"x".repeat(5000).as_slice(), b"::Worker_TP1"].concat());
    let got: Vec<_> = (11..16).map(|tid| tp(&processes, tid)).collect();
    assert_eq!(got, [Some(3), Some(2), None, None, None]);
}

#[test]
fn a_reused_id_inherits_nothing() {
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(7).title(b"VLLM::Worker_TP3\0");
    assert_eq!(tp(&processes, 7), Some(3));
    server.end(7);
    assert_eq!(tp(&processes, 7), None);
    // Further apart than the clock that stamps inodes ticks.
    std::thread::sleep(Duration::from_millis(20));
    server.start(7).title(b"/bin/cp\0a\0b\0");
    assert_eq!(tp(&processes, 7), None);
    server.end(7);
    std::thread::sleep(Duration::from_millis(20));
    server.start(7).title(b"sglang::scheduler_TP5\0");
    assert_eq!(tp(&processes, 7), Some(5));
}

#[test]
fn a_title_is_remembered_and_after_a_while_read_again() {
    let server = FakeServer::new();
    let processes = server.processes();
    let process = server.start(7);
    assert_eq!(tp(&processes, 7), None);
    process.title(b"VLLM::Worker_TP3\0");
    assert_eq!(tp(&processes, 7), None, "read again at once");
    make_due(&processes, 7);
    assert_eq!(tp(&processes, 7), Some(3));
    // What can't be read any more stays known as long as the process is.
    process.title(b"");
    std::fs::write(server.root().join("7/stat"), "nonsense").unwrap();
    make_due(&processes, 7);
    assert_eq!(tp(&processes, 7), Some(3));
}

#[test]
fn a_process_is_due_when_it_is_twice_as_old() {
    let per_second = rustix::param::clock_ticks_per_second();
    let due = |seconds: u64| {
        let server = FakeServer::new();
        let start = ticks_since_boot().saturating_sub(seconds * per_second);
        server.start(7).started(start, 1);
        let process = server.processes().of(7).expect("it's there");
        assert_eq!((process.pid, process.start), (7, start));
        next_look(&process).saturating_duration_since(Instant::now()).as_secs_f64()
    };
    assert!((0.9..1.1).contains(&due(0)), "at least a second");
    assert!((9.9..10.5).contains(&due(10)), "as long as it has lived");
    let server = FakeServer::new();
    server.start(7).started(0, 1);
    let old = server.processes().of(7).expect("it's there");
    assert!(next_look(&old) <= Instant::now() + LONGEST, "at most an hour");
}

#[test]
fn threads_belong_to_their_process() {
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(7).title("VLLM::Worker_TP3\0").thread(8).thread(9);
    let first = processes.of(9).expect("a thread");
    assert_eq!((first.pid, tp(&processes, 8), tp(&processes, 7)), (7, Some(3), Some(3)));
    assert!(Arc::ptr_eq(&first, &processes.of(8).unwrap()), "read once for all threads");
    // A thread that ends, and whose id another process gets.
    server.end(9);
    assert_eq!(processes.of(9), None);
    std::thread::sleep(Duration::from_millis(20));
    server.start(9).title("VLLM::Worker_TP1\0");
    assert_eq!((tp(&processes, 9), tp(&processes, 8)), (Some(1), Some(3)));
}

#[test]
fn nobody_is_asked_about_an_invisible_caller() {
    let server = FakeServer::new();
    server.start(0).title(b"VLLM::Worker_TP3\0");
    assert_eq!(server.processes().of(0), None);
    assert_eq!(Processes::new("/nonexistent").of(1), None);
}

#[test]
fn the_real_proc_knows_this_process() {
    let processes = Processes::new("/proc");
    let me = std::process::id();
    let process = processes.of(me).expect("it's us");
    assert_eq!((process.pid, process.title), (me, None));
    assert!(processes.is_alive(me, process.start));
    assert!(!processes.is_alive(me, process.start + 1));
    assert!(process.start > 0 && process.start <= ticks_since_boot());
    assert_eq!(process.environment.as_ref().map(|e| e.pid), Some(me));
    assert_eq!(process.container, Container::None);
}

#[test]
fn a_process_lives_until_its_last_thread_has_ended() {
    let processes = Processes::new("/proc");
    let mut sleeper = Sleeper::start();
    let process = processes.of(sleeper.0.id()).expect("it sleeps");
    assert!(processes.is_alive(process.pid, process.start));
    sleeper.0.kill().unwrap();
    // Not waited for: a zombie.
    let deadline = Instant::now() + Duration::from_secs(20);
    while processes.is_alive(process.pid, process.start) {
        assert!(Instant::now() < deadline, "a zombie counts as alive");
        std::thread::yield_now();
    }
    sleeper.end();
    assert!(!processes.is_alive(process.pid, process.start));
    assert_eq!(processes.of(process.pid), None);
    // The first thread ended, another goes on.
    let server = FakeServer::new();
    server.start(7).started(5, 1);
    let stat = std::fs::read_to_string(server.root().join("7/stat")).unwrap();
    let write = |text: String| std::fs::write(server.root().join("7/stat"), text).unwrap();
    write(stat.replace(") S ", ") Z "));
    assert!(!server.processes().is_alive(7, 5));
    write(stat.replace(") S ", ") Z ").replace(" 20 0 1 0 5 ", " 20 0 2 0 5 "));
    assert!(server.processes().is_alive(7, 5));
}

#[test]
fn the_second_file_reads_nothing() {
    let processes = Processes::new("/proc");
    let (me, tid) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get() as u32);
    let first = processes.of(tid).expect("it's us");
    assert_eq!(first.pid, me);
    // A test runs for less than an hour, and was started a while ago or just now: either way not due.
    processes.known.lock().get(&me).expect("known").look.write().again = Instant::now() + LONGEST;
    let (after_first, long) = (accesses(&processes), 1000);
    for _ in 0..long {
        assert!(Arc::ptr_eq(&first, &processes.of(tid).expect("it's us")));
    }
    assert_eq!(accesses(&processes), after_first, "the same thread");
    let other = std::thread::scope(|scope| {
        let processes = &processes;
        let other = scope.spawn(move || {
            let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            let before = accesses(processes);
            let process = processes.of(tid).expect("it's us");
            let of_first = accesses(processes) - before;
            (0..long).for_each(|_| drop(processes.of(tid)));
            (tid, process, of_first, accesses(processes) - before)
        });
        other.join().expect("a thread")
    });
    let (tid, process, of_first, of_all) = other;
    assert!(Arc::ptr_eq(&first, &process));
    assert_eq!((of_first, of_all), (1, 1), "another thread: whose it is, and nothing else");
    // It has ended: not from memory.
    assert_eq!(processes.of(tid), None);
}

#[test]
fn descriptors_are_bounded_and_given_back() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let processes = Processes::new("/proc");
    processes.threads.lock().resize(NonZeroUsize::new(4).unwrap());
    processes.known.lock().resize(NonZeroUsize::new(4).unwrap());
    let mut sleepers: Vec<_> = (0..12).map(|_| Sleeper::start()).collect();
    let before = open();
    for _ in 0..3 {
        for sleeper in &sleepers {
            assert_eq!(processes.of(sleeper.0.id()).map(|p| p.pid), Some(sleeper.0.id()));
        }
    }
    assert!(open() <= before + 8, "{} descriptors for 4 threads and 4 processes", open() - before);
    drop(processes);
    assert!(open() <= before);
    sleepers.clear();
}

/// The kernel gives the id of a process that has ended to the next, when it's told where to go on.
#[test]
fn an_id_that_the_kernel_gives_again_inherits_nothing() {
    let processes = Processes::new("/proc");
    let last_pid = "/proc/sys/kernel/ns_last_pid";
    for _ in 0..200 {
        let mut first = Sleeper::start();
        let pid = first.0.id();
        let known = processes.of(pid).expect("it sleeps");
        first.end();
        if std::fs::write(last_pid, (pid - 1).to_string()).is_err() {
            eprintln!("not root: the kernel can't be told which id to give next");
            return;
        }
        let second = Sleeper::start();
        // Another process of the machine may have been quicker.
        if second.0.id() == pid {
            let process = processes.of(pid).expect("it sleeps");
            assert!(!Arc::ptr_eq(&known, &process), "taken for the process that had the id before");
            return;
        }
    }
    panic!("the kernel never gave an id again");
}

#[test]
fn an_environment_is_the_nearest_that_is_left() {
    let of = |processes: &Processes, pid| {
        processes.of(pid).expect("it's there").environment.as_ref().map(|environment| environment.pid)
    };
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(100).started(100, 1).environ("A=1\nCUDA_VISIBLE_DEVICES=4,5");
    server.start(200).started(200, 100).wiped().title("VLLM::APIServer_1\0");
    server.start(300).started(300, 200).wiped().title("VLLM::EngineCore_DP0\0");
    server.start(400).started(400, 300).wiped().title("VLLM::Worker_DP0_TP1\0");
    server.start(401).started(400, 300).environ("PATH=/bin").title("VLLM::Worker_DP0_TP2\0");
    assert_eq!(of(&processes, 400), Some(100));
    assert_eq!(of(&processes, 401), Some(401), "its own, though nothing is in it");
    // Of another user; an id that has been given to a later process; init's.
    server.start(500).started(500, 200).wiped().user(0);
    server.start(501).started(150, 200).wiped();
    server.start(502).started(500, 1).wiped();
    server.start(503).started(500, 999).wiped();
    assert_eq!([500, 501, 502, 503].map(|pid| of(&processes, pid)), [None; 4]);
    // Too far up.
    for generation in 0..9 {
        server
            .start(600 + generation)
            .started(600, if generation == 0 { 100 } else { 599 + generation })
            .wiped();
    }
    assert_eq!((of(&processes, 606), of(&processes, 608)), (Some(100), None));
}

#[test]
fn an_environment_that_was_seen_before_the_title_was_set_is_kept() {
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(100).started(100, 1).environ("CUDA_VISIBLE_DEVICES=0");
    let worker = server.start(200);
    worker.started(200, 100).environ("CUDA_VISIBLE_DEVICES=3");
    let environment = |processes: &Processes| processes.of(200).unwrap().environment.clone();
    let own = environment(&processes);
    assert_eq!(own.as_ref().map(|e| e.pid), Some(200));
    worker.wiped().title("VLLM::Worker\0");
    make_due(&processes, 200);
    assert_eq!(environment(&processes), own);
    // Another program in the same process has its own.
    worker.environ("CUDA_VISIBLE_DEVICES=2");
    make_due(&processes, 200);
    assert_ne!(environment(&processes), own);
}

#[test]
fn devices_of_a_container_are_its_own() {
    let server = FakeServer::new();
    let processes = server.processes();
    let container = |pid| processes.of(pid).unwrap().container.clone();
    server.start(1001);
    server.start(1002).container(&["nvidia5", "nvidia10", "nvidia", "nvidia1x"]);
    server.start(1003).container(&[]);
    assert_eq!(container(1001), Container::None);
    assert_eq!(container(1002), Container::Devices([5, 10].into()));
    assert_eq!(container(1003), Container::Devices([].into()));
    // Not in memory: it isn't looked into. Not there at all.
    let path = server.root().join("1002/mountinfo");
    let text = std::fs::read_to_string(&path).unwrap();
    server.start(1004).container(&["nvidia1"]);
    std::fs::write(server.root().join("1004/mountinfo"), text.replace("tmpfs", "fuse.kvfs")).unwrap();
    server.start(1005).container(&["nvidia1"]);
    std::fs::write(server.root().join("1005/mountinfo"), text.lines().next().unwrap()).unwrap();
    assert_eq!([1004, 1005].map(container), [Container::Unknown, Container::Unknown]);
}

#[test]
fn an_open_device_counts_beside_cudas_memory() {
    let server = FakeServer::new();
    let processes = server.processes();
    let open = |pid| processes.of(pid).unwrap().open_device;
    server.start(1).open(&["/dev/nvidia3", "/dev/nvidia-uvm"]);
    assert_eq!(open(1), None, "no such driver");
    server.gpus(4);
    server.start(11).open(&[
        "/dev/null",
        "/dev/nvidiactl",
        "/dev/nvidia3",
        "/dev/nvidia-uvm",
        "/dev/nvidia3",
    ]);
    server.start(12).open(&["/dev/nvidia3", "/dev/nvidia2", "/dev/nvidia-uvm"]);
    server.start(13).open(&["/dev/nvidiactl", "/dev/nvidia3"]);
    server.start(14).open(&["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/mnt/nvidia3", "socket:[1]"]);
    assert_eq!([11, 12, 13, 14].map(open), [Some(3), None, None, None]);
}

#[test]
fn a_process_that_hangs_is_given_up() {
    let server = FakeServer::new();
    let processes = server.processes();
    server.start(11).title(b"VLLM::Worker_TP3\0");
    server.start(12).title(b"VLLM::Worker_TP2\0");
    let environ = server.root().join("11/environ");
    let _ = std::fs::remove_file(&environ);
    nix::unistd::mkfifo(&environ, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let hung = std::fs::File::options().read(true).write(true).open(&environ).unwrap();
    assert_eq!(processes.of(11), None);
    let before = accesses(&processes);
    assert_eq!(processes.of(11), None, "who hangs already");
    assert!(accesses(&processes) - before < 8, "isn't read again");
    assert_eq!(tp(&processes, 12), Some(2), "others are");
    std::fs::remove_file(&environ).unwrap();
    std::fs::write(&environ, "").unwrap();
    drop(hung);
    while processes.of(11).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(tp(&processes, 11), Some(3));
}
