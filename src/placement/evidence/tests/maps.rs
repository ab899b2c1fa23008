//! The operator's map.

use std::path::PathBuf;

use super::*;
use crate::placement::gpu::PciAddress;

fn backings() -> Vec<PathBuf> {
    ["/nvme0/kv", "/nvme1/kv", "/nvme=2/kv"].map(PathBuf::from).into()
}

fn map(values: &[&str]) -> Result<GpuMap, String> {
    GpuMap::parse(values, &backings()).map_err(|e| e.to_string())
}

#[test]
fn gpus_and_backings_have_several_names() {
    let server = FakeServer::new();
    server.gpus(3);
    let inventory = Evidence::new(server.config()).gpus.seen().inventory.clone();
    let slots = |values: &[&str]| {
        let map = map(values).unwrap();
        [0, 1, 2].map(|number| map.slot_of(inventory.get(number), None))
    };
    let uuid = |number| format!("{}=/nvme1/kv", gpu_uuid(number));
    assert_eq!(slots(&[&uuid(1)]), [None, Some(1), None]);
    assert_eq!(slots(&[&uuid(1).to_uppercase().replace("/NVME1/KV", "1")]), [None, Some(1), None]);
    assert_eq!(
        slots(&["0000:10:00.0=0,11:00.0=/nvme=2/kv", "00000000:12:00.0=file:///nvme1/kv/"]),
        [Some(0), Some(2), Some(1)]
    );
    assert_eq!(slots(&[" 10:00.0 = 2 , ,"]), [Some(2), None, None]);
    assert_eq!(slots(&[]), [None; 3]);
    let mig = "MIG-7a5b1c2d-0000-1111-2222-333344445555";
    let both = map(&[&format!("{mig}=2,10:00.0=1")]).unwrap();
    assert_eq!(both.slot_of(inventory.get(0), Some(mig)), Some(2), "the instance comes before its GPU");
    assert_eq!(both.slot_of(inventory.get(0), Some("MIG-other")), Some(1));
}

#[test]
fn faults_name_the_value_and_the_way_out() {
    let uuid = gpu_uuid(1);
    for (values, parts) in [
        (vec!["17:00.0"], ["\"17:00.0\"", "GPU=BACKING"]),
        (vec!["gpu3=1"], ["\"gpu3\"", "nvidia-smi -L"]),
        (vec!["3=1"], ["\"3\"", "PCI address"]),
        (vec!["GPU-8932f931=1"], ["\"GPU-8932f931\"", "complete"]),
        (vec!["GPU-8932f931d72c4106c12f20bd9faed9f6=1"], ["complete", "UUID"]),
        (vec!["10000:00.0=1"], ["10000:00.0", "PCI"]),
        (vec!["17:20.0=1"], ["17:20.0", "PCI"]),
        (vec!["=1"], ["\"\"", "PCI"]),
        (vec!["\u{e9}\u{e9}\u{e9}=1"], ["\u{e9}", "PCI"]),
        (vec!["17:00.0="], ["\"\"", "3 backings"]),
        (vec!["17:00.0=3"], ["\"3\"", "counted from 0"]),
        (vec!["17:00.0=/nvme9"], ["\"/nvme9\"", "--backing"]),
        (vec!["17:00.0=-1"], ["\"-1\"", "--backing"]),
        (vec!["17:00.0=0,0000:17:00.0=1"], ["0000:17:00.0", "twice"]),
        (
            vec![&*format!("{uuid}=0"), &*format!("{}=0", uuid.to_lowercase().replace("gpu", "Gpu"))],
            ["GPU-8932f931", "twice"],
        ),
    ] {
        let message = map(&values).expect_err(values[0]);
        assert!(message.starts_with("--gpu-map: ") && !message.contains('\n'), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} isn't in: {message}");
        }
    }
}

#[test]
fn what_the_server_has_is_compared_when_it_is_known() {
    let server = FakeServer::new();
    server.gpus(2);
    let check = |values: &[&str]| {
        let gpu_map = map(values).unwrap();
        Evidence::new(EvidenceConfig { gpu_map, ..server.config() }).check_map().map_err(|e| e.to_string())
    };
    let (one, other) = (format!("{}=0", gpu_uuid(1)), format!("{}=0", gpu_uuid(9)));
    assert_eq!(check(&[&one, "10:00.0=1"]), Ok(vec![]));
    assert_eq!(check(&[&one, &other, "c1:00.0=1"]), Ok(vec![gpu_uuid(9), "0000:c1:00.0".into()]));
    let twice = check(&[&one, "11:00.0=1"]).unwrap_err();
    assert!(twice.contains("0000:11:00.0 is named twice"), "{twice}");
    // Only NVML knows these.
    assert_eq!(check(&["MIG-7a5b1c2d-0000-1111-2222-333344445555=0"]), Ok(vec![]));
    // One of the GPUs may be the one: it hasn't been used yet.
    server.gpu(0x20, "GPU-????????-????-????-????-????????????", 5, "Unknown");
    assert_eq!(check(&[&other, "c1:00.0=1"]), Ok(vec!["0000:c1:00.0".into()]));
}

#[test]
fn a_mapped_gpu_goes_where_the_map_says_however_it_was_found() {
    let server = FakeServer::new();
    server.gpus(4);
    let gpu_map = GpuMap::parse(&[format!("{}=2,0000:13:00.0=0", gpu_uuid(1))], &backings()).unwrap();
    server.start(10).environ("CUDA_VISIBLE_DEVICES=1");
    server.start(11).title("VLLM::Worker_TP3\0").wiped();
    server.start(12).container(&["nvidia0"]);
    server.start(13).open(&["/dev/nvidia2", "/dev/nvidia-uvm"]);
    server.start(14).environ("CUDA_VISIBLE_DEVICES=2");
    let evidence = Evidence::new(EvidenceConfig { gpu_map, ..server.config() });
    let mapped = |tid| ask(&evidence, tid, ALONE).map(|found| (found.number(), found.mapped()));
    assert_eq!(mapped(10), Some((1, Some(2))));
    assert_eq!(mapped(11), Some((3, Some(0))));
    assert_eq!(mapped(12), Some((3, Some(0))));
    assert_eq!(mapped(13), Some((1, Some(2))));
    assert_eq!(mapped(14), Some((2, None)));
    assert_eq!(ask(&evidence, 0, "m@8@1@ab@half.pt").map(|found| found.mapped()), Some(Some(2)));
}

#[test]
fn addresses() {
    let read = |text: &str| text.parse::<PciAddress>().map(|pci| pci.to_string()).ok();
    for (text, wanted) in [
        ("0000:17:00.0", Some("0000:17:00.0")),
        ("17:00.0", Some("0000:17:00.0")),
        ("00000000:C1:00.0", Some("0000:c1:00.0")),
        ("10000:01:1f.7", Some("10000:01:1f.7")),
        ("0:1:2.3", Some("0000:01:02.3")),
        ("17:00", None),
        ("17:00.8", None),
        ("17:20.0", None),
        ("117:00.0", None),
        ("0000:0000:17:00.0", None),
        ("+1:00.0", None),
        ("", None),
        (":.", None),
        ("000000000:17:00.0", None),
    ] {
        assert_eq!(read(text).as_deref(), wanted, "{text}");
    }
    let address = |text: &str| text.parse::<PciAddress>().unwrap();
    assert!(address("0000:c1:00.0") < address("0001:17:00.0"));
}
