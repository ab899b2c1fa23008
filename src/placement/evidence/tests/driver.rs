//! NVML, by a stand-in for its library (`tests/gpu/standin/nvml.c`) that is compiled here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

/// The stand-in, in a directory of its own with what it's to say.
struct Library(tempfile::TempDir);

impl Library {
    fn new(flags: &[&str], says: &str) -> Self {
        let library = Self(tempfile::TempDir::new().expect("a temporary directory"));
        library.says(says);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/standin/nvml.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]).args(flags);
        let status =
            gcc.arg("-o").arg(library.path()).arg(source).arg("-ldl").status().expect("gcc is installed");
        assert!(status.success(), "the stand-in doesn't compile");
        library
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("libnvidia-ml.so.1")
    }

    fn says(&self, text: &str) {
        // As a whole: it's read at any time.
        fs::write(self.0.path().join("new"), text).unwrap();
        fs::rename(self.0.path().join("new"), self.0.path().join("nvml.txt")).unwrap();
    }

    fn calls(&self, function: &str) -> usize {
        let calls = fs::read_to_string(self.0.path().join("calls.txt")).unwrap_or_default();
        calls.lines().filter(|call| *call == function).count()
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The evidence of a server with this library, once it has been asked `rounds` times.
fn asked(server: &FakeServer, library: &Library, rounds: usize) -> Evidence {
    let evidence = Evidence::new(EvidenceConfig { nvml: Some(library.path()), ..server.config() });
    ask(&evidence, 10, ALONE);
    until("the driver isn't asked", || library.calls("nvmlDeviceGetCount_v2") > rounds);
    let start = Instant::now();
    // What it said has been taken in: shortly after the last call of a round.
    while start.elapsed() < Duration::from_millis(200) {
        std::thread::sleep(Duration::from_millis(5));
    }
    evidence
}

fn four_gpus(with: [&str; 4]) -> String {
    (0..4)
        .map(|n| format!("gpu 0000:1{n}:00.0 {} {} H100\n{}\n", gpu_uuid(n), 3 - n, with[n as usize]))
        .collect()
}

#[test]
fn the_only_gpu_that_a_process_computes_on_is_its_own() {
    let server = FakeServer::new();
    for pid in 10..15 {
        server.start(pid).environ("CUDA_VISIBLE_DEVICES=0").title("VLLM::Worker_TP0\0");
    }
    let says = four_gpus(["process 11\nprocess 99", "process 12\nprocess 11", "process 10", ""]);
    let library = Library::new(&[], &says);
    let evidence = asked(&server, &library, 1);
    assert_eq!(gpu(&evidence, 10, ALONE), Some((2, Reason::Driver)));
    assert_eq!(gpu(&evidence, 12, ALONE), Some((1, Reason::Driver)));
    assert_eq!(gpu(&evidence, 11, ALONE), Some((0, SEEN)), "two of them decide nothing");
    assert_eq!(gpu(&evidence, 13, ALONE), Some((0, SEEN)), "not on any");
    assert_eq!(
        words(&evidence, 10, ALONE),
        "GPU 2 from the driver, the only one that process 10 computes on"
    );
    assert_eq!(
        ask(&evidence, 10, ALONE).and_then(|g| g.pci()).map(|p| p.to_string()),
        Some("0000:12:00.0".into())
    );
    // Nobody's GPU but that in the name.
    assert_eq!(gpu(&evidence, 10, &of_server(3)).map(|found| found.0), Some(3));
    // A process with an id that another had when the driver was asked.
    server.end(10);
    std::thread::sleep(Duration::from_millis(20));
    server.start(10).started(u64::MAX, 1);
    assert_eq!(gpu(&evidence, 10, ALONE), None);
    // It goes on asking, and lets go of what isn't so any more.
    library.says(&four_gpus(["", "", "", "process 12"]));
    until("it isn't asked again", || gpu(&evidence, 12, ALONE) == Some((3, Reason::Driver)));
    // The GPUs are known by it though nothing lists them.
    let evidence = asked(&server, &library, 1);
    server.start(20).environ(&format!("CUDA_VISIBLE_DEVICES={}", gpu_uuid(2)));
    assert_eq!(gpu(&evidence, 20, ALONE), Some((2, SEEN)));
}

#[test]
fn instances_belong_to_their_gpu() {
    let server = FakeServer::new();
    server.gpus(4);
    let instance = |n: u32| format!("MIG-7a5b1c2d-0000-1111-2222-33334444555{n}");
    server.start(10);
    server.start(11).environ(&format!("CUDA_VISIBLE_DEVICES={}", instance(2)));
    server.start(12);
    server.start(13).environ(&format!("CUDA_VISIBLE_DEVICES={}", instance(9)));
    let on_two = format!("mig {}\nprocess 10\nprocess 12\nmig {}\nprocess 12", instance(1), instance(2));
    let library = Library::new(&[], &four_gpus(["", "", &on_two, ""]));
    let map = format!("{}=0,{}=1", instance(1), gpu_uuid(2));
    let gpu_map = GpuMap::parse(&[map], &["/a".into(), "/b".into()]).unwrap();
    let evidence = Evidence { map: gpu_map, ..asked(&server, &library, 1) };
    let found =
        |tid| ask(&evidence, tid, ALONE).map(|found| (found.number(), found.reason(), found.mapped()));
    assert_eq!(found(10), Some((2, Reason::Driver, Some(0))), "its instance is in the map");
    assert_eq!(found(11), Some((2, SEEN, Some(1))), "its GPU is");
    assert_eq!(found(12), Some((2, Reason::Driver, Some(1))), "two instances of one GPU");
    assert_eq!(found(13), None, "no instance of this server's");
}

#[test]
fn what_nvml_does_not_say_is_not_known() {
    let server = FakeServer::new();
    server.start(10).environ("CUDA_VISIBLE_DEVICES=1");
    let says = four_gpus(["", "", "process 10", ""]);
    for (flags, fault) in [
        (&["-DWITHOUT_PROCESSES"][..], ""),
        (&[][..], "fault nvmlDeviceGetComputeRunningProcesses_v3 999"),
        (&[][..], "fault nvmlDeviceGetPciInfo_v3 999"),
        (&[][..], "fault nvmlDeviceGetHandleByIndex_v2 4"),
    ] {
        let library = Library::new(flags, &(says.clone() + fault));
        let evidence = asked(&server, &library, 1);
        assert_eq!(gpu(&evidence, 10, ALONE), Some((1, SEEN)), "{fault}");
    }
    // It can't even be started, or is no library.
    let library = Library::new(&[], &(says + "fault nvmlInit_v2 9"));
    let evidence = Evidence::new(EvidenceConfig { nvml: Some(library.path()), ..server.config() });
    ask(&evidence, 10, ALONE);
    until("it isn't tried", || library.calls("nvmlInit_v2") == 1);
    fs::write(library.path().with_file_name("no-library"), "no library").unwrap();
    let config =
        EvidenceConfig { nvml: Some(library.path().with_file_name("no-library")), ..server.config() };
    let other = Evidence::new(config);
    for evidence in [&evidence, &other] {
        (0..200).for_each(|_| assert_eq!(gpu(evidence, 10, ALONE), Some((1, SEEN))));
    }
    assert_eq!(library.calls("nvmlInit_v2"), 1, "not again for every file");
}

#[test]
fn a_lost_gpu_is_nobodys() {
    let server = FakeServer::new();
    server.start(10);
    let says = four_gpus(["", "", "process 10", ""]);
    let library = Library::new(&[], &(says + "fault nvmlDeviceGetComputeRunningProcesses_v3 15"));
    assert_eq!(gpu(&asked(&server, &library, 1), 10, ALONE), None);
}

#[test]
fn nobody_waits_for_a_driver_that_hangs() {
    for function in ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetComputeRunningProcesses_v3"] {
        let server = FakeServer::new();
        server.gpus(4);
        server.start(10).environ("CUDA_VISIBLE_DEVICES=1");
        let library = Library::new(&[], &format!("{}fault {function} hang", four_gpus([""; 4])));
        let evidence =
            Arc::new(Evidence::new(EvidenceConfig { nvml: Some(library.path()), ..server.config() }));
        // In threads, so that one who waits is told of as a failure: the first to ask, and those after it.
        let (done, ended) = std::sync::mpsc::channel();
        let (first, first_done) = (evidence.clone(), done.clone());
        std::thread::spawn(move || {
            ask(&first, 10, ALONE);
            first_done.send(None)
        });
        until("it isn't asked", || library.calls(function) == 1);
        std::thread::spawn(move || {
            (0..1000).for_each(|_| assert_eq!(gpu(&evidence, 10, ALONE), Some((1, SEEN))));
            done.send(Some(server))
        });
        let _server = [(); 2].map(|()| ended.recv_timeout(DEADLINE).expect("an answer without the driver"));
        assert_eq!(library.calls(function), 1, "one thread hangs, not more");
    }
}

#[test]
fn ids_of_another_namespace_say_nothing() {
    let server = FakeServer::new();
    server.start(10);
    fs::remove_file(server.root().join("self/ns/pid")).unwrap();
    std::os::unix::fs::symlink("pid:[4026532177]", server.root().join("self/ns/pid")).unwrap();
    let library = Library::new(&[], &four_gpus(["", "", "process 10", ""]));
    let evidence = Evidence::new(EvidenceConfig { nvml: Some(library.path()), ..server.config() });
    ask(&evidence, 10, ALONE);
    until("the GPUs aren't listed", || evidence.gpus.seen().inventory.gpus().len() == 4);
    assert_eq!(gpu(&evidence, 10, ALONE), None);
    assert_eq!(library.calls("nvmlDeviceGetComputeRunningProcesses_v3"), 0);
}

#[test]
fn nobody_asks_and_nothing_is_loaded() {
    let server = FakeServer::new();
    let library = Library::new(&[], &four_gpus([""; 4]));
    let evidence = Evidence::new(EvidenceConfig { nvml: Some(library.path()), ..server.config() });
    // A file that nobody visible asks for, as `kvfs locate` does.
    assert_eq!(gpu(&evidence, 0, "m@8@5@ab@half.pt"), Some((5, Reason::RankInName)));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(library.calls("nvmlInit_v2"), 0);
}
