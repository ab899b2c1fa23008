//! What it costs to read the largest batch that one ioctl carries: 127 ops, from bytes to checked structures.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvfs::direct::{abi, ops_of};
use zerocopy::IntoBytes;

/// The argument of a SUBMIT with so many reads of 4 KiB.
fn batch(ops: usize) -> Vec<u8> {
    let mut argument = abi::Batch { nr_ops: ops as u32, ..Default::default() }.as_bytes().to_vec();
    for i in 0..ops as u64 {
        let op = abi::Op {
            opcode: abi::OP_READ,
            file: 7,
            buf_id: 1,
            buf_off: i << 12,
            file_off: i << 20,
            length: 4096,
            user_data: i,
            ..Default::default()
        };
        argument.extend_from_slice(op.as_bytes());
    }
    argument
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("abi");
    for ops in [1, abi::BATCH_MAX] {
        let argument = batch(ops);
        let command = abi::command(abi::nr::SUBMIT, argument.len());
        assert_eq!(ops_of(command, &argument), Ok(ops));
        group.throughput(Throughput::Elements(ops as u64));
        group.bench_function(format!("decode a batch of {ops}"), |b| {
            b.iter(|| ops_of(black_box(command), black_box(&argument)));
        });
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
