//! What the probe finds, and how long it may take.

use std::fs;
use std::time::{Duration, Instant};

use super::bench::{Bench, until};
use crate::direct::abi::{Path, Why};
use crate::direct::gpu::probe::{self, Findings};
use crate::index::Slot;

fn probe(bench: &Bench) -> Findings {
    probe::run(&bench.executable(), false, &[bench.backing(), bench.backing().join("none")], probe::DEADLINE)
}

#[track_caller]
fn expect(bench: &Bench, path: Path, why: Why) -> String {
    let found = probe(bench);
    assert_eq!((found.dirs[0].path, found.dirs[0].why), (path, why), "{found:?}");
    assert_eq!(fs::read_dir(bench.backing()).unwrap().count(), 0, "nothing is left behind");
    found.dirs[0].detail.clone()
}

#[test]
fn each_backing_gets_what_works_there() {
    let bench = Bench::new();
    let found = probe(&bench);
    assert_eq!(found.gpus, [uuid::Uuid::from_bytes([0xa0; 16])]);
    assert_eq!((found.dirs[0].path, found.dirs[0].why), (Path::CufileStaged, Why::Best));
    assert_eq!((found.dirs[1].path, found.dirs[1].why), (Path::None, Why::Unreadable));
    // It was really tried, and not in the compatibility mode.
    assert_eq!((bench.count("cuFileWrite"), bench.count("cuFileRead")), (1, 1));
    assert!(bench.calls().contains("cuFileSetParameterBool 1 0"));
    bench.assert_no_misuse();
}

#[test]
fn without_cufile_it_bounces_and_says_why() {
    let bench = Bench::new();
    for (fault, why) in [
        ("cuFileDriverOpen 5001", Why::Cufile(5001)),
        ("cuFileHandleRegister 5027", Why::Cufile(5027)),
        ("cuFileBufRegister 5012", Why::Cufile(5012)),
        ("cuFileRead 5019", Why::Cufile(5019)),
        ("cuFileWrite 5", Why::Cufile(5030)),
    ] {
        bench.faults(fault);
        let detail = expect(&bench, Path::Bounce, why);
        assert!(detail.contains(fault.split(' ').next_back().unwrap()), "{detail}");
    }
    bench.faults("");
    bench.uninstall("libcufile.so.0");
    let detail = expect(&bench, Path::Bounce, Why::NoCufile);
    assert!(detail.contains("libcufile.so.0"), "{detail}");
}

#[test]
fn without_a_gpu_there_is_no_path() {
    let bench = Bench::new();
    bench.faults("cuInit 100");
    expect(&bench, Path::None, Why::NoGpu);
    bench.faults("");
    bench.uninstall("libcuda.so.1");
    let began = Instant::now();
    expect(&bench, Path::None, Why::NoGpu);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let gpus = bench.gpus();
    until("the probe ends", || gpus.status().probed);
    assert_eq!((gpus.path(Slot(0)), gpus.features()), ((Path::None, Why::NoGpu), 0));
    assert_eq!(gpus.path(Slot(1)), (Path::None, Why::NotProbed));
    assert!(gpus.register(bench.client(&[0; 1]).request()).is_err());
}

#[test]
fn a_library_that_hangs_is_left_at_the_deadline() {
    let bench = Bench::new();
    let limit = Duration::from_millis(700);
    for (fault, want) in [
        ("cuFileDriverOpen spin", (Path::Bounce, Why::ProbeDeadline)),
        ("cuFileWrite hang", (Path::Bounce, Why::ProbeDeadline)),
        ("cuInit hang", (Path::None, Why::ProbeDeadline)),
        ("cuFileRead die", (Path::Bounce, Why::Worker)),
    ] {
        bench.faults(fault);
        let began = Instant::now();
        let found = probe::run(&bench.executable(), false, &[bench.backing()], limit);
        assert_eq!((found.dirs[0].path, found.dirs[0].why), want, "{fault}");
        assert!(began.elapsed() < limit + Duration::from_secs(1), "{fault}: {:?}", began.elapsed());
        assert_eq!(fs::read_dir(bench.backing()).unwrap().count(), 0, "{fault}: nothing is left behind");
    }
}

/// This is the guard itself: without the tests' way around it, a machine like this one never opens the library.
#[test]
fn where_it_would_hang_it_is_not_opened() {
    let bench = Bench::new().without_env("KVFS_FAULT_CUFILE_UNGUARDED");
    let modules = fs::read("/proc/modules").is_ok();
    let want = if modules { (Path::CufileStaged, Why::Best) } else { (Path::Bounce, Why::WouldHang) };
    expect(&bench, want.0, want.1);
    assert_eq!(bench.count("cuFileDriverOpen"), usize::from(modules));
}
