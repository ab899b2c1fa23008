//! What the index costs: finding a name, entering and removing one, and reading two directories with some of the same
//! names into one tree. With 100,000 names of 75 bytes, in one directory.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsFd;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvfs::index::{DirId, FileRef, Index, Kind, Slot, Source, scan};

const NAMES: u64 = 100_000;
/// What the scan reads from each of two directories; of these every tenth name is in both.
const FILES: u64 = 10_000;

/// 75 bytes, of the form that LMCache writes.
fn name(i: u64) -> Vec<u8> {
    let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("meta-llama-Llama-3.1-8B-Instruct@4@{}@{:010x}{hash:016x}@bfloat16.pt", i % 4, i).into_bytes()
}

fn file(index: &mut Index, i: u64) -> FileRef {
    FileRef { slot: Slot((i % 4) as u8), ino: index.pack_ino(i + 100), kind: Kind::File, reason: 0 }
}

fn filled(names: u64) -> Index {
    let mut index = Index::new(4);
    for i in 0..names {
        let file = file(&mut index, i);
        index.add_file(DirId::ROOT, &name(i), file).unwrap().unwrap();
    }
    index
}

fn lookup(c: &mut Criterion) {
    let index = filled(NAMES);
    let mut group = c.benchmark_group("index");
    let (there, absent): (Vec<_>, Vec<_>) =
        (0..1024).map(|i| (name(i * 97 % NAMES), name(NAMES + i))).unzip();
    for (what, names) in [("a name", there), ("an absent name", absent)] {
        let mut next = 0;
        group.bench_function(format!("find {what}"), |b| {
            b.iter(|| {
                next = (next + 1) % names.len();
                black_box(index.find(DirId::ROOT, &names[next]))
            });
        });
    }
    group.bench_function("list 1024 names", |b| {
        b.iter(|| index.children(DirId::ROOT, 0).take(1024).map(|e| index.place(e).1.len()).sum::<usize>());
    });
}

fn insert(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    let (mut index, mut next) = (filled(NAMES), NAMES);
    group.bench_function("enter and remove a name", |b| {
        b.iter(|| {
            next += 1;
            let file = file(&mut index, next);
            let entry = index.add_file(DirId::ROOT, &name(next), file).unwrap().unwrap();
            index.remove(entry);
        });
    });
    group.throughput(Throughput::Elements(FILES)).sample_size(20);
    group.bench_function(format!("enter {FILES} names"), |b| {
        b.iter_batched(|| (), |()| filled(FILES), BatchSize::PerIteration);
    });
}

fn scan_and_merge(c: &mut Criterion) {
    let place = tempfile::tempdir().unwrap();
    let dirs: Vec<_> = ["one", "two"].iter().map(|dir| place.path().join(dir)).collect();
    for (d, dir) in (0u64..).zip(&dirs) {
        fs::create_dir(dir).unwrap();
        for i in 0..FILES {
            let i = if i % 10 == 0 { i } else { i + d * FILES };
            File::create(dir.join(String::from_utf8(name(i)).unwrap())).unwrap();
        }
    }
    let roots: Vec<_> = dirs.iter().map(|dir| File::open(dir).unwrap()).collect();
    let source = |(n, root): (u8, &'static File)| Source {
        slot: Slot(n),
        root: root.as_fd(),
        is_reserved: |_| false,
        is_leftover: |_| false,
        reason: 0,
        sieve: None,
    };
    let roots: &'static [File] = roots.leak();
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(2 * FILES)).sample_size(20);
    group.bench_function(format!("scan and merge 2 x {FILES} names, a tenth in both"), |b| {
        b.iter(|| {
            let sources: Vec<_> = (0..).zip(roots).map(source).collect();
            let (index, _) = scan(&sources, None, |_| {}).unwrap();
            assert_eq!((index.files(), index.shadow_count()), (2 * FILES - FILES / 10, FILES / 10));
            index
        });
    });
}

criterion_group!(benches, lookup, insert, scan_and_merge);
criterion_main!(benches);
