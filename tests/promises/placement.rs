//! Where a new file goes, that it stays there, and that the order of the backings on the command
//! line or the paths they are mounted at don't matter to hashing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::text;
use crate::common::{Lab, Mount, ranked, sys};

#[test]
fn by_gpu_sends_a_rank_to_its_backing() {
    for n in [2, 3, 4] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(n)).start();
        let name = "meta-llama-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.pt";
        std::fs::write(mount.path(name), "kv").unwrap();
        assert_eq!(mount.holder(name), 3 % n);
        for rank in 0..8 {
            for i in 0..3 {
                std::fs::write(mount.path(ranked(rank, i)), "kv").unwrap();
                assert_eq!(mount.holder(ranked(rank, i)), rank % n, "rank {rank} of {n} backings");
            }
        }
    }
}

#[test]
fn by_gpu_knows_the_names_of_the_clients() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(4)).start();
    let hash = "0123456789abcdef".repeat(4);
    let names: Vec<(String, usize)> = vec![
        ("Qwen-Qwen3-8B@2@1@9e0d44aa11c2b3f0@half@17@user%alice.pt".into(), 1),
        ("-data-models-DeepSeek-V3@4@2@-3f9a1c77be210d4@bfloat16.pt".into(), 2),
        ("73/12/meta-llama%2FLlama-3.1-8B-Instruct%408%403%40657aaba709c54b87%40bfloat16.kvcache.safetensors".into(), 3),
        ("73/12/meta-llama%2FLlama-3.1-8B-Instruct%408%402%40657aaba709c54b87%40bfloat16.kvcache.safetensors.metadata".into(), 2),
        (format!("meta-llama-SEP-Llama-3.1-8B-Instruct@0x08030803@0@{hash}.data"), 3),
        (format!("meta-llama-SEP-Llama-3.1-8B-Instruct@0x04020402@1@{hash}@tenantA.data"), 2),
        (format!("meta-llama--Llama-3.1-8B-Instruct_08010801_0_{hash}.bin"), 1),
        (format!("{hash}_meta-llama-Llama-3.1-8B-Instruct_3_8.bin"), 3),
    ];
    for (name, rank) in &names {
        let path = mount.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "kv").unwrap();
        assert_eq!(mount.holder(name), rank % 4, "{name}");
    }
    // The temporary name a client writes under goes where the final one would.
    let tmp = "73/12/meta-llama%2FLlama-3.1-8B-Instruct%408%403%40aaaaaba709c54b87%40bfloat16.kvcache.safetensors.tmp72ec72f3";
    std::fs::write(mount.path(tmp), "kv").unwrap();
    assert_eq!(mount.holder(tmp), 3, "{tmp}");
}

#[test]
fn unknown_never_means_backing_0() {
    for policy in ["by_gpu", "hash", "round-robin", "most-free", "nearest"] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(3)).arg("--placement").arg(policy).start();
        let mut on = [0usize; 3];
        for i in 0..300 {
            let name = format!("some file {i}");
            std::fs::write(mount.path(&name), "x").unwrap();
            on[mount.holder(&name)] += 1;
        }
        // 100 each with a deviation of 8; five of them either way.
        assert!(on.iter().all(|n| (60..=140).contains(n)), "{policy} spreads 300 names over three: {on:?}");
    }
}

#[test]
fn a_file_of_unknown_origin_is_placed_by_its_name_alone() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(4)).start();
    for i in 0..20 {
        let name = format!("f{i}");
        std::fs::write(mount.path(&name), "x").unwrap();
        let first = mount.holder(&name);
        sys::unlink(mount.path(&name)).unwrap();
        std::fs::write(mount.path(&name), "x").unwrap();
        assert_eq!(mount.holder(&name), first, "{name}");
    }
}

/// Where each of some names goes, by the path of the backing.
fn spread(mount: &Mount) -> BTreeMap<String, PathBuf> {
    (0..60)
        .map(|i| {
            let name = format!("chunk-{i}");
            std::fs::write(mount.path(&name), "x").unwrap();
            let at = mount.backings()[mount.holder(&name)].clone();
            sys::unlink(mount.path(&name)).unwrap();
            (name, at)
        })
        .collect()
}

#[test]
fn hash_does_not_care_about_the_order_of_backings() {
    let lab = Lab::new();
    let b = lab.dirs(4);
    let mount = lab.mount(&b).arg("--placement").arg("hash").start();
    let before = spread(&mount);
    let mut builder = mount.stop();
    builder.backings = vec![b[2].clone(), b[0].clone(), b[3].clone(), b[1].clone()];
    assert_eq!(spread(&builder.start()), before);
}

#[test]
fn hash_does_not_care_where_a_backing_is_mounted() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).arg("--placement").arg("hash").start();
    let before = spread(&mount);
    let mut builder = mount.stop();
    let moved = lab.path("moved elsewhere");
    std::fs::rename(&b[1], &moved).unwrap();
    builder.backings[1] = moved.clone();
    let mut after = spread(&builder.start());
    after.values_mut().filter(|at| **at == moved).for_each(|at| *at = b[1].clone());
    assert_eq!(after, before, "the marker says which backing it is, not the path");
}

#[test]
fn one_more_backing_moves_only_what_goes_there() {
    let lab = Lab::new();
    let b = lab.dirs(4);
    let mount = lab.mount(&b[..3]).arg("--placement").arg("hash").start();
    let before = spread(&mount);
    let mut builder = mount.stop();
    builder.backings = b.clone();
    for (name, at) in spread(&builder.start()) {
        assert!(at == before[&name] || at == b[3], "{name} went from {:?} to {at:?}", before[&name]);
    }
}

#[test]
fn rename_keeps_the_data_where_it_is() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    let (from, to) = (ranked(0, 1), ranked(1, 1));
    std::fs::write(mount.path(&from), "the new").unwrap();
    std::fs::write(mount.path(&to), "the old").unwrap();
    assert_eq!((mount.holder(&from), mount.holder(&to)), (0, 1));
    let ino = sys::lstat(b[0].join(&from)).unwrap().st_ino;
    sys::rename(mount.path(&from), mount.path(&to)).unwrap();
    assert_eq!(mount.holders(&from), [0usize; 0]);
    assert_eq!(mount.holders(&to), [0], "over a name on another backing");
    assert_eq!(sys::lstat(b[0].join(&to)).unwrap().st_ino, ino, "moved by name, not copied");
    assert_eq!(text(&mount.path(&to)), "the new");
    let again = mount.restart();
    assert_eq!(text(&again.path(&to)), "the new");
    assert_eq!(sys::lstat(again.path(&from)).map(drop), Err(crate::common::Errno::ENOENT));
}
