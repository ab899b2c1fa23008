//! What the evidence of a server and its files comes to. Each case is a table of processes and names.

mod driver;
mod maps;

use super::*;
use crate::placement::Reason;
use crate::placement::fixture::{FakeServer, gpu_uuid};

fn ask(evidence: &Evidence, tid: u32, path: &str) -> Option<GpuFound> {
    evidence.gpu_of(&Asker { tid, uid: 1000, gid: 1000 }, &Target { path: path.as_bytes() })
}

/// The number of the GPU and the kind of evidence.
fn gpu(evidence: &Evidence, tid: u32, path: &str) -> Option<(u64, Reason)> {
    ask(evidence, tid, path).map(|found| (found.number(), found.reason()))
}

fn words(evidence: &Evidence, tid: u32, path: &str) -> String {
    ask(evidence, tid, path).map_or("unknown".into(), |found| found.to_string())
}

const ALONE: &str = "m@1@0@ab@half.pt";
const BLOCK: &str = "m_0123456789ab_r0/abc/de_g0/9f86.bin";
const SEEN: Reason = Reason::VisibleDevices;

fn of_server(rank: u32) -> String {
    format!("m@0x0800080{rank}@0@{}.data", "5f".repeat(32)).replace("0x080008", &format!("0x080{rank}08"))
}

#[test]
fn four_servers_with_a_gpu_each_use_four() {
    for driver in [false, true] {
        let server = FakeServer::new();
        if driver {
            server.gpus(8);
        }
        for (title, pid) in
            [("python3\0-m\0vllm\0", 100), ("VLLM::EngineCore\0", 200), ("VLLM::Worker\0", 300)]
        {
            for n in 0..4 {
                let list = format!("HOME=/\nCUDA_VISIBLE_DEVICES={n}");
                let main = server.start(pid + 10 + n);
                main.environ(&list);
                server.start(pid + n).started(1000, main.pid).title(title);
                if pid > 100 {
                    server.start(pid + 20 + n).started(1001, pid + n).title(title).wiped();
                    std::fs::write(server.root().join(format!("{}/environ", pid + n)), [0; 90]).unwrap();
                } else {
                    server.start(pid + 20 + n).environ(&list);
                }
            }
        }
        let evidence = server.evidence();
        for pid in [100, 200, 300] {
            for n in 0..4 {
                for path in [ALONE, BLOCK, "what ever"] {
                    assert_eq!(
                        gpu(&evidence, pid + 20 + n, path),
                        Some((n.into(), SEEN)),
                        "{pid} {path} {driver}"
                    );
                }
            }
        }
        assert_eq!(words(&evidence, 323, ALONE), "GPU 3 from CUDA_VISIBLE_DEVICES=3 of process 313");
    }
}

#[test]
fn a_local_number_counts_in_the_list_of_the_server() {
    let server = FakeServer::new();
    server.gpus(8);
    server.start(10).environ("CUDA_VISIBLE_DEVICES=4,5,6,7");
    let start = |pid, title: &str| {
        server.start(pid).started(2000, 10).wiped().title(format!("{title}\0"));
    };
    start(11, "VLLM::Worker_TP1");
    start(12, "VLLM::Worker_DP1_TP1");
    start(13, "VLLM::EngineCore_DP1");
    start(14, "sglang::scheduler_TP3");
    start(15, "VLLM::EngineCore");
    start(16, "VLLM::Worker_TP5");
    start(17, "VLLM::Worker_PP1_TP1");
    let evidence = server.evidence();
    for (tid, path, wanted) in [
        (11, BLOCK, Some(5)),
        (12, "m@2@1@ab@half.pt", Some(7)),
        (12, BLOCK, None),
        (13, ALONE, Some(5)),
        (13, "m@2@1@ab@half.pt", Some(7)),
        (13, BLOCK, None),
        (14, BLOCK, Some(7)),
        (15, BLOCK, None),
        (15, ALONE, None),
        (15, "m@4@2@ab@half.pt", Some(6)),
        (10, "m@4@2@ab@half.pt", Some(6)),
        (10, "no name of a client", None),
        // The second machine of a server that has four GPUs on each.
        (16, BLOCK, Some(5)),
        (17, "m@4@3@ab@half.pt", Some(7)),
        (17, BLOCK, None),
    ] {
        assert_eq!(gpu(&evidence, tid, path), wanted.map(|n| (n, SEEN)), "{tid} {path}");
    }
    assert_eq!(
        words(&evidence, 12, "m@2@1@ab@half.pt"),
        "GPU 7 from CUDA_VISIBLE_DEVICES=4,5,6,7 of process 10, number 3 there by the process title (vLLM worker, DP 1, TP 1)"
    );
    assert_eq!(
        words(&evidence, 10, "m@4@2@ab@half.pt"),
        "GPU 6 from CUDA_VISIBLE_DEVICES=4,5,6,7 of process 10, number 2 there by the file name (LMCache local_disk)"
    );
    assert_eq!(
        ask(&evidence, 11, BLOCK).and_then(|g| g.pci()).map(|p| p.to_string()),
        Some("0000:15:00.0".into())
    );
}

#[test]
fn a_number_stands_as_it_is_where_there_is_no_list() {
    let server = FakeServer::new();
    server.start(10).title("VLLM::Worker_TP3\0").wiped();
    server.start(11).title("python3\0").environ("CUDA_VISIBLE_DEVICES=");
    server.start(12).title("sglang::scheduler_TP6\0").environ("CUDA_VISIBLE_DEVICES=NoDevFiles");
    let evidence = server.evidence();
    for (tid, path, wanted) in [
        (10, BLOCK, Some((3, Reason::RankInTitle))),
        (11, "m@8@5@ab@half.pt", Some((5, Reason::RankInName))),
        (12, BLOCK, Some((6, Reason::RankInTitle))),
        (11, ALONE, None),
        (11, BLOCK, None),
        // Nobody that can be seen.
        (0, "m@8@5@ab@half.pt", Some((5, Reason::RankInName))),
        (999, "m@8@5@ab@half.pt", Some((5, Reason::RankInName))),
        (0, ALONE, None),
    ] {
        assert_eq!(gpu(&evidence, tid, path), wanted, "{tid} {path}");
    }
    assert_eq!(ask(&evidence, 10, BLOCK).and_then(|gpu| gpu.pci()), None, "nothing lists the GPUs");
    server.gpus(4);
    let evidence = server.evidence();
    assert_eq!(
        ask(&evidence, 10, BLOCK).and_then(|g| g.pci()).map(|p| p.to_string()),
        Some("0000:13:00.0".into())
    );
    assert_eq!(
        ask(&evidence, 12, BLOCK).map(|g| (g.number(), g.pci())),
        Some((6, None)),
        "there is no GPU 6"
    );
}

/// LMCache's multi-process server: one process for the GPUs of all.
#[test]
fn one_writer_for_all_gpus_is_known_by_the_rank_in_the_name_alone() {
    let server = FakeServer::new();
    server.gpus(8);
    let title = "/usr/bin/python3\0/usr/bin/lmcache\0server\0";
    server.start(10).title(title).environ("CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7");
    server.start(11).title(title);
    server.start(12).title(title).environ("CUDA_VISIBLE_DEVICES=7,6,5,4,3,2,1,0");
    server.start(13).title(title).environ("CUDA_VISIBLE_DEVICES=5");
    server.start(14).title(title).open(&["/dev/nvidia0", "/dev/nvidia-uvm"]);
    let evidence = server.evidence();
    for (tid, wanted) in [
        (10, Some((3, SEEN))),
        (11, Some((3, Reason::RankInName))),
        (12, Some((4, SEEN))),
        // Its one GPU isn't that of eight workers.
        (13, Some((3, Reason::RankInName))),
        (14, Some((3, Reason::RankInName))),
    ] {
        assert_eq!(gpu(&evidence, tid, &of_server(3)), wanted, "{tid}");
    }
    let rankless = format!("m@0x01000100@0@{}.data", "5f".repeat(32));
    assert_eq!([10, 11, 12].map(|tid| gpu(&evidence, tid, &rankless)), [None; 3], "of all of them");
    assert_eq!(gpu(&evidence, 13, &rankless), Some((5, SEEN)), "it serves one");
}

#[test]
fn lists_are_read_as_cuda_reads_them() {
    let mig = "MIG-7a5b1c2d-0000-1111-2222-333344445555";
    let cases: Vec<(String, Option<u64>)> = [
        ("2", Some(2)),
        (" 2 ", Some(2)),
        // The rank in the name is 1: the second.
        ("3,2", Some(2)),
        ("3, 2 ,1", Some(2)),
        ("3,2,-1,0", Some(2)),
        ("3,99,2", Some(3)),
        ("3,x", Some(3)),
        // None at all, so the rank stands.
        ("", Some(1)),
        ("-1", Some(1)),
        ("NoDevFiles", Some(1)),
        ("99", Some(1)),
        ("void", Some(1)),
        ("2,2", Some(1)),
        ("+2", Some(1)),
        ("0x2", Some(1)),
        // By UUID, or the beginning of one; if several begin so, it's none.
        (&gpu_uuid(2), Some(2)),
        ("GPU-8932f932", Some(2)),
        ("GPU-8932F932", Some(2)),
        (&format!("{},{}", gpu_uuid(3), gpu_uuid(0)), Some(0)),
        ("GPU-8932f93", Some(1)),
        ("GPU-ffffffff", Some(1)),
        ("GPU-8932f932,GPU-ffffffff,GPU-8932f933", Some(2)),
        // An instance of a GPU that nothing tells; in the old form it tells.
        (mig, None),
        (&format!("MIG-{}/1/0", gpu_uuid(2)), Some(2)),
        (&format!("MIG-{}/1/0,MIG-{}/2/0", gpu_uuid(2), gpu_uuid(3)), Some(2)),
        (&format!("3,{mig}"), Some(3)),
    ]
    .map(|(list, wanted)| (list.to_owned(), wanted))
    .into();
    for (list, wanted) in cases {
        let server = FakeServer::new();
        server.gpus(4);
        server.start(10).environ(&format!("CUDA_VISIBLE_DEVICES={list}\nHIP_VISIBLE_DEVICES=0"));
        let found = gpu(&server.evidence(), 10, "m@4@1@ab@half.pt");
        assert_eq!(found.map(|(number, _)| number), wanted, "{list:?}");
    }
}

#[test]
fn amds_lists() {
    for (environ, wanted) in [
        ("HIP_VISIBLE_DEVICES=3", Some((3, SEEN))),
        ("ROCR_VISIBLE_DEVICES=2", Some((2, SEEN))),
        ("ROCR_VISIBLE_DEVICES=2,3\nHIP_VISIBLE_DEVICES=1", None),
        ("ROCR_VISIBLE_DEVICES=GPU-1c0d00ab12340000", None),
    ] {
        let server = FakeServer::new();
        server.start(10).environ(environ);
        assert_eq!(gpu(&server.evidence(), 10, ALONE), wanted, "{environ}");
        let server = FakeServer::new();
        server.start(10).environ(environ).container(&[]);
        assert_eq!(gpu(&server.evidence(), 10, ALONE), wanted, "{environ}, in a container");
    }
}

#[test]
fn an_index_is_translated_only_where_the_order_is_certain() {
    let server = FakeServer::new();
    server.gpu(0x10, &gpu_uuid(0), 0, "NVIDIA T400");
    server.gpu(0x20, &gpu_uuid(1), 1, "NVIDIA H100 80GB HBM3");
    server.start(10).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(11).environ("CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=1");
    server.start(12).environ("CUDA_DEVICE_ORDER=FASTEST_FIRST\nCUDA_VISIBLE_DEVICES=0,1");
    server.start(13).environ(&format!("CUDA_VISIBLE_DEVICES={},{}", gpu_uuid(1), gpu_uuid(0)));
    server.start(14).environ("CUDA_VISIBLE_DEVICES=0").open(&["/dev/nvidia1", "/dev/nvidia-uvm"]);
    server.start(15).environ("CUDA_VISIBLE_DEVICES=0").container(&["nvidia1"]);
    let evidence = server.evidence();
    for (tid, path, wanted) in [
        (10, ALONE, None),
        (11, ALONE, Some((1, SEEN))),
        (12, "m@2@1@ab@half.pt", None),
        (13, "m@2@1@ab@half.pt", Some((0, SEEN))),
        // The device that it has open, or the only one there is.
        (14, ALONE, Some((1, SEEN))),
        (15, ALONE, Some((1, SEEN))),
    ] {
        assert_eq!(gpu(&evidence, tid, path), wanted, "{tid}");
    }
}

#[test]
fn a_containers_devices_are_what_an_index_counts() {
    let server = FakeServer::new();
    // GPU n has the minor 3 - n.
    server.gpus(4);
    server.start(10).container(&["nvidia1"]);
    server.start(11).container(&["nvidia1"]).environ("CUDA_VISIBLE_DEVICES=0");
    server.start(12).container(&["nvidia0", "nvidia2"]).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(13).container(&["nvidia0", "nvidia2"]).title("VLLM::Worker_TP0\0").wiped();
    server.start(14).container(&["nvidia0", "nvidia2"]);
    server.start(15).container(&["nvidia1"]).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(16).container(&[]).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(17).container(&["nvidia0", "nvidia9"]).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(18).container(&["nvidia1"]).title("sglang::scheduler_TP3\0");
    let evidence = server.evidence();
    for (tid, path, wanted) in [
        (10, ALONE, Some((2, SEEN))),
        (10, "no name of a client", Some((2, SEEN))),
        (11, ALONE, Some((2, SEEN))),
        (12, ALONE, Some((3, SEEN))),
        (13, ALONE, Some((1, SEEN))),
        (14, ALONE, None),
        (14, "m@2@1@ab@half.pt", Some((3, SEEN))),
        // No GPU at that index, or none at all.
        (15, ALONE, None),
        (16, ALONE, None),
        (16, "m@2@1@ab@half.pt", Some((1, Reason::RankInName))),
        // A device that the driver doesn't list.
        (17, ALONE, None),
        (18, BLOCK, Some((2, SEEN))),
    ] {
        assert_eq!(gpu(&evidence, tid, path), wanted, "{tid} {path}");
    }
    assert_eq!(words(&evidence, 10, ALONE), "GPU 2 from the only GPU device in the container of process 10");
    assert_eq!(
        words(&evidence, 14, "m@2@1@ab@half.pt"),
        "GPU 3 from the 2 GPU devices in the container of process 14, number 1 there by the file name (LMCache local_disk)"
    );
}

#[test]
fn an_open_device_is_evidence_after_the_lists() {
    let server = FakeServer::new();
    server.gpus(4);
    let open = &["/dev/nvidiactl", "/dev/nvidia1", "/dev/nvidia-uvm"];
    server.start(10).open(open);
    server.start(11).open(open).environ("CUDA_VISIBLE_DEVICES=0,1");
    server.start(12).open(open).title("VLLM::EngineCore_DP1\0");
    server.start(13).open(&["/dev/nvidia1"]);
    server.start(14).open(&["/dev/nvidia7", "/dev/nvidia-uvm"]);
    let evidence = server.evidence();
    for (tid, path, wanted) in [
        (10, ALONE, Some((2, SEEN))),
        (10, "m@8@0@ab@half.pt", Some((2, SEEN))),
        (11, "m@2@1@ab@half.pt", Some((1, SEEN))),
        (11, ALONE, Some((2, SEEN))),
        (12, BLOCK, Some((2, SEEN))),
        (13, ALONE, None),
        (14, ALONE, None),
    ] {
        assert_eq!(gpu(&evidence, tid, path), wanted, "{tid} {path}");
    }
    assert_eq!(words(&evidence, 10, ALONE), "GPU 2 from /dev/nvidia1, the only one that process 10 has open");
}

#[test]
fn a_driver_that_comes_later_is_found() {
    let server = FakeServer::new();
    server.start(10).environ(&format!("CUDA_VISIBLE_DEVICES={}", gpu_uuid(1)));
    let evidence = server.evidence();
    server.gpus(2);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while gpu(&evidence, 10, ALONE) != Some((1, SEEN)) {
        assert!(std::time::Instant::now() < deadline, "the GPUs aren't listed again");
        std::thread::yield_now();
    }
}

#[test]
fn what_the_driver_lists() {
    let server = FakeServer::new();
    server.gpu(0xc1, "GPU-????????-????-????-????-????????????", 1, "Unknown");
    server.gpu(0x17, &gpu_uuid(1), 0, "NVIDIA H100 80GB HBM3");
    let excluded = server.driver().join("gpus/0000:c1:00.0/information");
    let inventory = || Evidence::new(server.config()).gpus.seen().inventory.clone();
    let gpus = inventory();
    let facts =
        gpus.gpus().iter().map(|g| (g.pci.to_string(), g.uuid.as_deref(), g.minor, g.model.as_deref()));
    assert_eq!(
        facts.collect::<Vec<_>>(),
        [
            ("0000:17:00.0".into(), Some(&*gpu_uuid(1)), Some(0), Some("NVIDIA H100 80GB HBM3")),
            ("0000:c1:00.0".into(), None, Some(1), None),
        ]
    );
    assert!(!gpus.knows_all_uuids());
    let text = std::fs::read_to_string(&excluded).unwrap();
    std::fs::write(&excluded, text.replace("Excluded:\t No", "Excluded:\t Yes")).unwrap();
    assert_eq!(inventory().gpus().len(), 1);
    std::fs::write(&excluded, "\u{0}Bus Location: nonsense\n:::\n").unwrap();
    assert_eq!(inventory().gpus().len(), 1);
    assert!(
        Evidence::new(EvidenceConfig { driver_root: "/nonexistent".into(), ..server.config() })
            .gpus
            .seen()
            .inventory
            .is_empty()
    );
}
