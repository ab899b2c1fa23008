//! What it costs a request to be timed and counted: from one thread, and from as many as there are processors.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use kvfs::index::Slot;
use kvfs::metrics::Metrics;

fn count(c: &mut Criterion) {
    let mut group = c.benchmark_group("metrics");
    group.bench_function("a look at the clock", |b| b.iter(Instant::now));
    let metrics = Metrics::new(40);
    let at = Instant::now();
    let request = |metrics: &Metrics| metrics.request(black_box(3), Some(Slot(black_box(1))), at.elapsed());
    group.bench_function("a request", |b| b.iter(|| request(&metrics)));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !ended.load(Relaxed) {
                    request(&metrics);
                }
            });
        }
        group.bench_function("a request, beside others", |b| b.iter(|| request(&metrics)));
        ended.store(true, Relaxed);
    });
    group.bench_function("a lookup", |b| b.iter(|| metrics.looked_up(black_box(true))));
    group.finish();
}

criterion_group!(benches, count);
criterion_main!(benches);
