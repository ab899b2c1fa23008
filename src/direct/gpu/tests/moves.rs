//! Bytes get to where they belong, by every path.

use super::bench::{Bench, Client, Move, SLOT, UUID, pattern, read, until, vmm, write};
use crate::direct::abi::{Path, Why, feature};
use crate::direct::engine::Direction;
use crate::direct::gpu::{GpuRequest, Gpus, Granted};

/// Ops with every kind of alignment, across slots, and at the end of the file.
fn moves(file_len: usize, buffer_len: usize) -> Vec<Move> {
    let shapes = [
        (0, 0, buffer_len),
        (0, 0, 4096),
        (4096, 8192, SLOT),
        (0, 4096, 3 * SLOT),
        (100, 0, 2 * SLOT),
        (0, 1, 10),
        (7, 4095, 2),
        (3, 4000, 9000),
        (512, 513, 2 * SLOT + 77),
        (0, file_len - 5000, 20_000),
        (9, file_len - 10, 10),
        (1, file_len, 4096),
        (0, file_len + 100_000, 50),
    ];
    let fits = |(buf_off, _, len): &(usize, usize, usize)| buf_off + len <= buffer_len;
    shapes.into_iter().filter(fits).map(|(b, f, l)| read(b, f, l)).collect()
}

/// Runs all of them, one after another, and compares with what a file and a buffer in plain memory would hold.
#[track_caller]
fn compare(bench: &Bench, gpus: &Gpus, granted: &Granted, client: &Client, by_cufile: Option<Path>) {
    let file_len = 5 * SLOT + 1234;
    let mut model_file = pattern(1, file_len);
    let file = bench.file(&model_file);
    let mut model = pattern(2, client.len);
    client.put(&model);
    for m in moves(file_len, client.len) {
        let (from, to) = (m.file_off as usize, m.buf_off as usize);
        let there = m.len.min((model_file.len() as u64).saturating_sub(m.file_off)) as usize;
        let [(result, path)] = gpus.run(&granted.buffer, &file, &[m])[..] else { panic!() };
        assert_eq!(result, there as i64, "{m:?}");
        model[to..to + there].copy_from_slice(&model_file[from.min(file_len)..][..there]);
        assert!(client.get() == model, "{m:?}");
        let blocks = (m.file_off + m.len) / 4096 > m.file_off.div_ceil(4096);
        let want = by_cufile.filter(|_| blocks).unwrap_or(Path::Bounce);
        // A buffer's offset that isn't a block's can't be cuFile's own: that goes by the ring.
        let skewed = want == Path::CufileDirect
            && (m.buf_off + m.file_off.next_multiple_of(4096) - m.file_off) % 4096 != 0;
        assert_eq!(path, if skewed { Path::CufileStaged } else { want }, "{m:?}");
    }
    for (n, m) in moves(file_len, client.len).into_iter().enumerate() {
        let m = Move { direction: Direction::Write, ..m };
        model = pattern(10 + n as u64, client.len);
        client.put(&model);
        let end = (m.file_off + m.len) as usize;
        if model_file.len() < end {
            model_file.resize(end, 0);
        }
        model_file[m.file_off as usize..end].copy_from_slice(&model[m.buf_off as usize..][..m.len as usize]);
        assert_eq!(gpus.run(&granted.buffer, &file, &[m])[0].0, m.len as i64, "{m:?}");
        assert!(file.content() == model_file, "{m:?}");
        assert!(client.get() == model, "{m:?}");
    }
    bench.assert_no_misuse();
}

#[test]
fn staged() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; 4 * SLOT]);
    let granted = client.register(&gpus);
    assert_eq!((granted.path, granted.why, granted.handle), (Path::CufileStaged, Why::Best, None));
    compare(&bench, &gpus, &granted, &client, Some(Path::CufileStaged));
    assert!(bench.count("cuMemcpyDtoDAsync") > 0);
    assert_eq!(bench.count("cuFileHandleRegister"), 2, "one for the probe, one for the file");
    gpus.shutdown();
}

#[test]
fn bounced() {
    let bench = Bench::new();
    bench.uninstall("libcufile.so.0");
    let gpus = bench.gpus();
    let client = bench.client(&[0; 4 * SLOT]);
    let granted = client.register(&gpus);
    assert_eq!((granted.path, granted.why), (Path::Bounce, Why::NoCufile));
    compare(&bench, &gpus, &granted, &client, None);
    assert_eq!(bench.count("cuMemcpyDtoDAsync"), 0);
}

#[test]
fn without_direct_io() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&[0; 2 * SLOT]);
    let granted = client.register(&gpus);
    let content = pattern(3, 2 * SLOT);
    let mut file = bench.file(&content);
    std::sync::Arc::get_mut(&mut file).unwrap().direct = None;
    let done = gpus.run(&granted.buffer, &file, &[read(0, 0, 2 * SLOT)]);
    assert_eq!(done, [(2 * SLOT as i64, Path::Bounce)]);
    assert!(client.get() == content);
}

#[test]
fn daemon_allocated() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let len = 4 * SLOT;
    let granted = gpus.register(GpuRequest::Alloc { uuid: UUID, length: len as u64 }).unwrap();
    assert_eq!((granted.path, granted.why), (Path::CufileDirect, Why::Best));
    let client = Client::of_handle(granted.handle.unwrap(), len);
    assert!(client.get() == vec![0; len], "nobody else's bytes are in it");
    compare(&bench, &gpus, &granted, &client, Some(Path::CufileDirect));
    drop(granted);
    until("it's freed", || bench.count("cuMemFree") == 1);
    bench.assert_no_misuse();
}

#[test]
fn by_the_descriptor_of_a_vmm_allocation() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let content = pattern(4, 2 << 20);
    let fd = vmm(&content);
    let copy = fd.try_clone().unwrap();
    let (size, offset, length) = (content.len() as u64, 8192, SLOT as u64);
    let granted =
        gpus.register(GpuRequest::Vmm { uuid: UUID, fd, alloc_size: size, offset, length }).unwrap();
    let file = bench.file(b"");
    assert_eq!(gpus.run(&granted.buffer, &file, &[write(4096, 0, 8192)])[0].0, 8192);
    assert!(file.content() == content[8192 + 4096..][..8192]);
    let source = bench.file(&[7; 100]);
    assert_eq!(gpus.run(&granted.buffer, &source, &[read(5, 0, 4096)])[0].0, 100);
    let mut seen = vec![0; 102];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::from(copy), &mut seen, 8192 + 4).unwrap();
    assert_eq!(seen[1..101], [7; 100]);
    assert_eq!((seen[0], seen[101]), (content[8192 + 4], content[8192 + 105]));
    drop(granted);
    until("it's unmapped", || bench.count("cuMemAddressFree") == 1);
    assert_eq!(bench.count("cuMemRelease"), 1);
}

#[test]
fn many_at_once_over_many_files() {
    let bench = Bench::new();
    let gpus = bench.gpus();
    let client = bench.client(&vec![0; 64 * 5000]);
    let granted = client.register(&gpus);
    assert_eq!(gpus.features(), feature::CUDA_IPC | feature::CUDA_VMM_FD | feature::DAEMON_ALLOC);
    let files: Vec<_> = (0..64).map(|n| bench.file(&pattern(n, 5000))).collect();
    let answers: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(n, file)| {
            gpus.start(&granted.buffer, file, &[read(n * 5000, 0, 4096), read(n * 5000 + 4096, 4096, 904)])
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.iter().map(|(_, result, _)| result).sum::<i64>(), 5000);
    }
    let all = client.get();
    for (n, part) in all.chunks(5000).enumerate() {
        assert!(part == pattern(n as u64, 5000), "file {n}");
    }
    let status = gpus.status();
    assert_eq!((status.workers[0].ops, status.workers[0].bytes), (128, 64 * 5000));
    bench.assert_no_misuse();
}

/// HIP is the same under other names, as far as that can be seen without a GPU of AMD's.
#[test]
fn by_hip() {
    let mut bench = Bench::new();
    for library in ["libcuda.so.1", "libcufile.so.0"] {
        bench.uninstall(library);
    }
    for library in ["libamdhip64.so", "libhipfile.so.0"] {
        bench.install(library);
    }
    bench.options.hipfile = true;
    let gpus = bench.gpus();
    let client = bench.client(&[0; 4 * SLOT]);
    let (handle, len) = (client.handle(), client.len as u64);
    let hip = GpuRequest::Hip { uuid: UUID, handle, alloc_size: len, offset: 0, length: len };
    let granted = gpus.register(hip).unwrap();
    assert_eq!((granted.path, granted.why), (Path::Hipfile, Why::Best));
    assert_eq!(gpus.features(), feature::HIP_IPC | feature::DAEMON_ALLOC);
    assert!(gpus.register(client.request()).is_err(), "there is no GPU of NVIDIA's");
    compare(&bench, &gpus, &granted, &client, Some(Path::Hipfile));
    let own = gpus.register(GpuRequest::Alloc { uuid: UUID, length: 4096 }).unwrap();
    let mine = Client::of_handle(own.handle.unwrap(), 4096);
    let done = gpus.run(&own.buffer, &bench.file(&[3; 4096]), &[read(0, 0, 4096)]);
    assert_eq!((done, mine.get()), (vec![(4096, Path::Hipfile)], vec![3; 4096]));
    assert_eq!(gpus.status().driver.as_deref(), Some("hip"));
}
