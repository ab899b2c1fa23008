//! `kvfs bench direct`: the fast path beside plain reads and writes.

use std::path::PathBuf;

use io_uring::IoUring;
use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::samples::{Row, Way, compare, sizes};
use super::ways::Scratch;
use super::{Output, output};
use crate::cli::Failure;
use crate::client::{self, Access, Batch, HostBuffer, Mount, Pages, Registered};
use crate::direct::abi;

/// Measure the ioctl fast path
#[derive(Debug, clap::Args)]
pub(super) struct DirectArgs {
    /// A directory in a kvfs mount; a file is made in it, measured, and removed
    directory: PathBuf,

    /// Another directory to compare with, as NAME=DIR: a backing itself, or another mount. May be given
    /// several times
    #[arg(long, value_name = "NAME=DIR", value_parser = named)]
    compare: Vec<(String, PathBuf)>,

    /// Sizes of a transfer, with K or M
    #[arg(long, default_value = "64K,1M,4M,32M", value_delimiter = ',', value_name = "SIZES")]
    size: Vec<String>,

    /// Bytes of the file that is measured
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    file_size: String,

    /// Rounds of each comparison [default: as many as move 4 GiB, 50 to 1000]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// Also measure a buffer that the daemon allocates on this GPU (`nvidia-smi -L` tells the UUID)
    #[arg(long, value_name = "UUID", value_parser = gpu_uuid)]
    gpu: Option<[u8; 16]>,

    #[command(flatten)]
    output: Output,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("write NAME=DIR")?;
    Ok((name.to_owned(), PathBuf::from(dir)))
}

fn gpu_uuid(text: &str) -> Result<[u8; 16], String> {
    let plain = text.strip_prefix("GPU-").unwrap_or(text);
    uuid::Uuid::parse_str(plain).map(|uuid| *uuid.as_bytes()).map_err(|e| e.to_string())
}

/// Everything that the comparisons use.
struct Bench {
    mount: Mount,
    file: client::File,
    buffer: HostBuffer,
    registered: Registered,
    gpu: Option<Registered>,
    /// Of the mount first, then those to compare with.
    scratch: Vec<Scratch>,
    file_size: u64,
    rounds: Option<usize>,
}

pub(super) fn run(args: &DirectArgs) -> Result<(), Failure> {
    let sizes = sizes(&args.size)?;
    let largest = sizes.iter().copied().max().unwrap_or(0).max(64 << 20);
    let file_size = crate::backing::parse_bytes(&args.file_size).map_err(Failure::bad_value)?;
    let bench = Bench::prepare(args, largest, file_size.next_multiple_of(largest))?;
    let mut rows = Vec::new();
    let mut add = |measured: Result<Vec<Row>, String>| -> Result<(), Failure> {
        let measured = measured.map_err(Failure::other)?;
        output(&args.output, &measured)?;
        rows.extend(measured);
        Ok(())
    };
    add(bench.no_op())?;
    for size in &sizes {
        add(bench.single(*size, false))?;
        add(bench.single(*size, true))?;
    }
    for (size, ops) in [(4 << 10, 256), (64 << 10, 64), (1 << 20, 32), (4 << 20, 16)] {
        add(bench.batch(size, ops))?;
    }
    args.output.draw(&rows)?;
    bench.verify().map_err(Failure::other)
}

impl Bench {
    fn prepare(args: &DirectArgs, largest: u64, file_size: u64) -> Result<Bench, Failure> {
        let mount = Mount::open(&args.directory).map_err(Failure::other)?;
        let mut buffer = HostBuffer::new(largest as usize, Pages::Ordinary).map_err(Failure::other)?;
        // SAFETY: nothing is registered yet.
        for (at, word) in unsafe { buffer.as_mut_slice() }.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        let registered = mount.register(&buffer, Access::Both).map_err(Failure::other)?;
        let gpu = match args.gpu {
            Some(uuid) => {
                let made = mount.allocate_on_gpu(uuid, largest, Access::Both);
                Some(made.map_err(Failure::other)?.0)
            }
            None => None,
        };
        let own = ("plain, in the mount".to_owned(), args.directory.clone());
        let scratch = std::iter::once(&own)
            .chain(&args.compare)
            .map(|(name, dir)| Scratch::make(name.clone(), dir, file_size, &buffer))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Failure::other)?;
        let file = client::File::with(&scratch[0].path, std::fs::File::options().read(true).write(true));
        let file = file.map_err(Failure::other)?;
        Ok(Bench { mount, file, buffer, registered, gpu, scratch, file_size, rounds: args.rounds })
    }

    fn rounds(&self, bytes: u64) -> usize {
        self.rounds.unwrap_or(((4 << 30) / bytes.max(1)).clamp(50, 1000) as usize)
    }

    /// What a call costs that moves nothing, beside a round trip that the daemon refuses at once.
    fn no_op(&self) -> Result<Vec<Row>, String> {
        let mut ways: Vec<Way<'_>> = vec![
            ("bare round trip".into(), Box::new(|_| self.round_trip())),
            ("QUERY".into(), Box::new(|_| self.file.query().map(drop).map_err(|e| e.to_string()))),
            ("statfs".into(), Box::new(|_| self.statfs())),
        ];
        compare("no-op", 0, 0, self.rounds.unwrap_or(20_000), &mut ways)
    }

    /// An ioctl of QUERY's size that no version knows.
    fn round_trip(&self) -> Result<(), String> {
        let command = abi::command(0xff, size_of::<abi::Query>()) as Opcode;
        let mut nothing = [0u8; size_of::<abi::Query>()];
        // SAFETY: the kernel copies as many bytes as the command says, which is what there is.
        let answer = unsafe {
            libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(self.file.std()), command as _, &mut nothing)
        };
        let errno = std::io::Error::last_os_error().raw_os_error();
        if answer == -1 && errno == Some(Errno::NOTTY.raw_os_error()) {
            Ok(())
        } else {
            Err("not refused".into())
        }
    }

    fn statfs(&self) -> Result<(), String> {
        rustix::fs::fstatfs(self.file.std()).map(drop).map_err(|e| e.to_string())
    }

    fn offset(&self, round: usize, size: u64) -> u64 {
        round as u64 * size % self.file_size
    }

    fn single(&self, size: u64, write: bool) -> Result<Vec<Row>, String> {
        let mut ways: Vec<Way<'_>> = Vec::new();
        for scratch in &self.scratch {
            let plain = move |round| {
                let offset = self.offset(round, size);
                if write {
                    scratch.write(&self.buffer, offset, size)
                } else {
                    scratch.read(&self.buffer, offset, size)
                }
            };
            ways.push((scratch.name.clone(), Box::new(plain)));
        }
        let buffers = [("ioctl, host", Some(&self.registered)), ("ioctl, GPU", self.gpu.as_ref())];
        for (name, registered) in buffers {
            let Some(registered) = registered else { continue };
            let ioctl = move |round| {
                let offset = self.offset(round, size);
                let done = if write {
                    self.file.write(offset, registered, 0, size)
                } else {
                    self.file.read(offset, registered, 0, size)
                };
                moved(done.map_err(|e| e.to_string())?, size)
            };
            ways.push((name.into(), Box::new(ioctl)));
        }
        compare(if write { "write" } else { "read" }, size, 1, self.rounds(size), &mut ways)
    }

    /// Many reads at once, at scattered places: one ioctl, beside a ring of the same depth.
    fn batch(&self, size: u64, ops: u64) -> Result<Vec<Row>, String> {
        let places = self.file_size / size;
        let offsets = move |round: usize| -> Vec<u64> {
            let at = |n: u64| (round as u64 * ops + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            (0..ops).map(|n| at(n) % places * size).collect()
        };
        let mut ways: Vec<Way<'_>> = Vec::new();
        for scratch in self.scratch.iter().rev() {
            let mut ring = IoUring::new(256).map_err(|e| format!("io_uring: {e}"))?;
            let read = move |round| scratch.read_many(&mut ring, &self.buffer, &offsets(round), size);
            ways.push((format!("io_uring, {}", scratch.name), Box::new(read)));
        }
        let buffers = [("ioctl, host", Some(&self.registered)), ("ioctl, GPU", self.gpu.as_ref())];
        for (name, registered) in buffers {
            let Some(registered) = registered else { continue };
            let submit = move |round| {
                let mut batch = Batch::new();
                for (at, offset) in offsets(round).into_iter().enumerate() {
                    batch.read(&self.file, offset, registered, at as u64 * size, size);
                }
                for result in batch.submit(&self.mount) {
                    moved(result.map_err(|e| e.to_string())?, size)?;
                }
                Ok(())
            };
            ways.push((name.into(), Box::new(submit)));
        }
        compare("batch read", size, ops, self.rounds(size * ops), &mut ways)
    }

    /// That what was measured has moved the right bytes.
    fn verify(&self) -> Result<(), String> {
        let len = self.buffer.len() as u64;
        let mut expected = vec![0; self.buffer.len()];
        self.scratch[0].read(&self.buffer, 0, len)?;
        self.buffer.copy_out(0, &mut expected);
        self.buffer.copy_in(0, &vec![0; expected.len()]);
        moved(self.file.read(0, &self.registered, 0, len).map_err(|e| e.to_string())?, len)?;
        let mut got = vec![0; expected.len()];
        self.buffer.copy_out(0, &mut got);
        if got == expected { Ok(()) } else { Err("the fast path has read other bytes than pread".into()) }
    }
}

fn moved(bytes: u64, wanted: u64) -> Result<(), String> {
    if bytes == wanted { Ok(()) } else { Err(format!("{bytes} bytes instead of {wanted}")) }
}
