//! What the driver and the operator say, with stand-ins for the driver's files and its library.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::common::lab;

/// Puts the stand-in for NVML beside the driver's files.
fn library(driver: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/standin/nvml.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
    lab::run(gcc.arg(driver.join("libnvidia-ml.so.1")).arg(source).arg("-ldl"));
}

/// What NVML says from now on: four GPUs, and on each of them these processes.
fn says(driver: &Path, processes: [&[u32]; 4]) {
    let mut text = String::new();
    for (n, pids) in processes.into_iter().enumerate() {
        text += &format!("gpu 0000:1{n}:00.0 {} {} H100\n", uuid(n), 3 - n);
        pids.iter().for_each(|pid| text += &format!("process {pid}\n"));
    }
    fs::write(driver.join("new"), text).unwrap();
    fs::rename(driver.join("new"), driver.join("nvml.txt")).unwrap();
}

#[test]
fn nvml_knows_which_gpu_a_process_computes_on() {
    let lab = Lab::new();
    let driver = driver(&lab, 4);
    library(&driver);
    says(&driver, [&[]; 4]);
    let mount = with_driver(lab.mount(&lab.dirs(4)), &driver).start();
    // Nothing else tells: the list was set in the process.
    let clients: Vec<_> = (0..4)
        .map(|gpu| {
            Client::of(&mount)
                .sees("0,1,2,3")
                .does("title=RayWorker")
                .does("wait")
                .makes(&chunk(0, 1, gpu))
                .makes_in_thread(&format!("thread of {gpu}"))
                .start()
        })
        .collect();
    let pids: Vec<u32> = clients.iter().map(|client| client.pid).collect();
    says(&driver, [&pids[0..1], &pids[1..2], &pids[2..3], &pids[3..4]]);
    // It's asked as soon as somebody asks kvfs; these files are placed by what was known before.
    let deadline = Instant::now() + Duration::from_secs(60);
    let rounds = || {
        let calls = fs::read_to_string(driver.join("calls.txt")).unwrap_or_default();
        calls.lines().filter(|call| *call == "nvmlDeviceGetComputeRunningProcesses_v3").count()
    };
    let mut i = 0;
    while rounds() < 4 * 2 * 2 {
        assert!(Instant::now() < deadline, "NVML isn't asked");
        fs::write(mount.path(format!("ask {i}")), "").unwrap();
        i += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    clients.into_iter().for_each(client::Waiting::finish);
    for gpu in 0..4 {
        for name in [chunk(0, 1, gpu), format!("thread of {gpu}")] {
            assert_eq!(slot(&mount, &name), gpu, "{}", why(&mount, &name));
        }
    }
    let words = why(&mount, &chunk(0, 1, 2));
    assert_eq!(
        words,
        format!(
            "by_gpu: GPU 2 from the driver, the only one that process {} computes on, 2 % 4 = backing 2",
            pids[2]
        )
    );
}

#[test]
fn a_hanging_driver_holds_nobody_up() {
    let lab = Lab::new();
    let driver = driver(&lab, 4);
    library(&driver);
    fs::write(driver.join("nvml.txt"), "fault nvmlInit_v2 hang\n").unwrap();
    let mount = with_driver(lab.mount(&lab.dirs(4)), &driver).start();
    for gpu in 0..4 {
        Client::of(&mount).sees(gpu).makes(&chunk(0, 1, gpu)).run();
        assert_eq!(slot(&mount, &chunk(0, 1, gpu)), gpu);
    }
    let calls = fs::read_to_string(driver.join("calls.txt")).unwrap();
    assert_eq!(calls, "nvmlInit_v2\n", "it was asked, once");
    // And it ends as always.
    mount.stop();
}

#[test]
fn the_operators_map_is_obeyed() {
    let lab = Lab::new();
    let driver = driver(&lab, 4);
    let backings = lab.dirs(4);
    let map = format!("{}={},0000:12:00.0=3", uuid(0), backings[2].display());
    let builder =
        lab.mount(&backings).arg("--gpu-map").arg(map).arg("--gpu-map").arg(format!("{}=0", uuid(3)));
    let mount = with_driver(builder.arg("--gpu-map").arg("c1:00.0=1"), &driver).start();
    for (gpu, wanted) in [(0, 2), (1, 1), (2, 3), (3, 0)] {
        let names = [chunk(0, 1, gpu), format!("titled {gpu}")];
        Client::of(&mount).sees(uuid(gpu)).makes(&names[0]).run();
        Client::of(&mount).does("fork").does(format!("title=VLLM::Worker_TP{gpu}")).makes(&names[1]).run();
        for name in &names {
            assert_eq!(slot(&mount, name), wanted, "{}", why(&mount, name));
        }
    }
    let words = why(&mount, &chunk(0, 1, 0));
    assert!(words.contains("GPU 0 from CUDA_VISIBLE_DEVICES=GPU-8932f930"), "{words}");
    assert!(words.ends_with("; the operator's map gives it backing 2"), "{words}");
    let log = fs::read_to_string(&mount.log).unwrap();
    assert!(log.contains("--gpu-map: this server has no GPU 0000:c1:00.0"), "{log}");
    // It's remembered with the file.
    let again = mount.restart();
    assert_eq!(slot(&again, &chunk(0, 1, 0)), 2);
}

#[test]
fn a_map_that_can_not_be_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    let driver = driver(&lab, 2);
    let (point, backings) = (lab.dir("mnt"), [lab.path("new0"), lab.path("new1")]);
    let twice = format!("{}=0,0000:11:00.0=1", uuid(1));
    for (map, naming) in [
        ("gpu1=0", ["\"gpu1\"", "nvidia-smi -L"]),
        ("17:00.0", ["\"17:00.0\"", "GPU=BACKING"]),
        ("17:00.0=2", ["\"2\"", "--backing"]),
        ("17:00.0=/elsewhere", ["\"/elsewhere\"", "--backing"]),
        ("17:00.0=0,0000:17:00.0=0", ["0000:17:00.0", "twice"]),
        (&twice, ["0000:11:00.0", "twice"]),
    ] {
        let mut command = Command::new(crate::common::cli::BINARY);
        command.arg("mount").arg(&point).arg("--backing").arg(lab::list(&backings)).args(["--gpu-map", map]);
        command.env("KVFS_TEST_DRIVER_ROOT", &driver);
        crate::common::cli::finish(command).fault(41, &naming);
        assert!(backings.iter().all(|backing| !backing.exists()), "{map}");
    }
}
