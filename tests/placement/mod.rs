//! One file for each kind of evidence.

mod client;
mod containers;
mod driver;
mod servers;

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Builder, Lab, Mount, kvfs, sys};
use client::Client;

/// A hash as it's in the names; `i` keeps names apart.
fn hash(i: usize) -> String {
    format!("{:064x}", 0x9f86_d081_884c_7d65_u64 + i as u64)
}

/// LMCache's name for a chunk of the worker with this rank.
fn chunk(rank: usize, world: usize, i: usize) -> String {
    format!("meta-llama-Llama-3.1-8B-Instruct@{world}@{rank}@{}@bfloat16.pt", &hash(i)[48..])
}

/// A mount on four backings.
fn four(lab: &Lab) -> Mount {
    lab.mount(&lab.dirs(4)).start()
}

/// Where a file is, by the attribute that says so; the backing that has it must be the same.
#[track_caller]
fn slot(mount: &Mount, name: &str) -> usize {
    let value = sys::getxattr(mount.path(name), "user.kvfs.slot").unwrap_or_else(|e| panic!("{name}: {e}"));
    let slot = String::from_utf8(value).unwrap().parse().unwrap();
    assert_eq!(mount.holder(name), slot, "{name}");
    slot
}

/// Why a file is where it is.
fn why(mount: &Mount, name: &str) -> String {
    String::from_utf8(sys::getxattr(mount.path(name), "user.kvfs.placement").unwrap()).unwrap()
}

/// The UUID of a GPU of the stand-in for the driver.
fn uuid(number: usize) -> String {
    format!("GPU-8932f93{number}-d72c-4106-c12f-20bd9faed9f6")
}

/// A driver that lists so many GPUs of one model, at 0000:10:00.0 and on; GPU n of N has the minor N - 1 - n.
fn driver(lab: &Lab, gpus: usize) -> PathBuf {
    let root = lab.dir("driver");
    for n in 0..gpus {
        let pci = format!("0000:1{n}:00.0");
        let gpu = lab.dir(&format!("driver/gpus/{pci}"));
        let (uuid, minor) = (uuid(n), gpus - 1 - n);
        let text = format!(
            "Model: \t\t NVIDIA H100\nGPU UUID: \t {uuid}\nBus Location: \t {pci}\nDevice Minor: \t {minor}\n"
        );
        fs::write(gpu.join("information"), text).unwrap();
    }
    root
}

/// A mount that takes this for the driver.
fn with_driver(builder: Builder, driver: &Path) -> Builder {
    builder.env("KVFS_TEST_DRIVER_ROOT", driver)
}
