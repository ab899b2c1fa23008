//! A machine with a GPU that isn't one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::executable::Executable;
use super::super::job::{Job, Source};
use super::super::{GpuBuffer, GpuOptions, GpuRequest, Gpus, Granted};
use crate::direct::abi::Path;
use crate::direct::engine::Direction;
use crate::index::Slot;

/// Of the ring in the tests: small, so that ops take several.
pub(super) const SLOT: usize = 64 << 10;

/// The machine.
pub(super) struct Bench {
    dir: TempDir,
    pub(super) options: GpuOptions,
    libraries: PathBuf,
    env: Vec<(OsString, OsString)>,
    serial: AtomicU64,
}

impl Bench {
    /// With everything that there can be.
    pub(super) fn new() -> Bench {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for name in ["standin", "lib", "backing"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        static ONCE: OnceLock<PathBuf> = OnceLock::new();
        let standin = ONCE.get_or_init(|| {
            let standin = dir.path().join("standin");
            // SAFETY: the stand-in in this process reads it; a test is a process.
            unsafe { std::env::set_var("KVFS_STANDIN", &standin) };
            standin
        });
        let env = vec![
            ("LD_LIBRARY_PATH".into(), dir.path().join("lib").into()),
            ("KVFS_STANDIN".into(), standin.into()),
            ("KVFS_FAULT_CUFILE_UNGUARDED".into(), "1".into()),
        ];
        let options = GpuOptions {
            slot_bytes: SLOT,
            ring_slots: 3,
            submitters: 3,
            idle: Duration::from_secs(60),
            ..GpuOptions::default()
        };
        let bench = Bench { dir, options, libraries: standin::libraries(), env, serial: AtomicU64::new(1) };
        bench.install("libcuda.so.1");
        bench.install("libcufile.so.0");
        bench
    }

    pub(super) fn install(&self, library: &str) {
        let to = self.dir.path().join("lib").join(library);
        std::os::unix::fs::symlink(self.libraries.join(library), to).unwrap();
    }

    pub(super) fn uninstall(&self, library: &str) {
        fs::remove_file(self.dir.path().join("lib").join(library)).unwrap();
    }

    /// A machine without this variable.
    pub(super) fn without_env(mut self, name: &str) -> Bench {
        self.env.retain(|(n, _)| n != name);
        self
    }

    pub(super) fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }

    fn standin(&self) -> PathBuf {
        PathBuf::from(std::env::var_os("KVFS_STANDIN").unwrap())
    }

    /// What the libraries do wrong from now on; see standin.h.
    pub(super) fn faults(&self, faults: &str) {
        // Whole or not at all: it's read all the time.
        let new = self.standin().join("faults.new");
        fs::write(&new, faults).unwrap();
        fs::rename(new, self.standin().join("faults")).unwrap();
    }

    /// What has been called.
    pub(super) fn calls(&self) -> String {
        fs::read_to_string(self.standin().join("calls")).unwrap_or_default()
    }

    /// How often.
    pub(super) fn count(&self, call: &str) -> usize {
        standin::count(&self.calls(), call)
    }

    pub(super) fn executable(&self) -> Executable {
        Executable::of_tests("direct::gpu::tests::as_worker", self.env.clone())
    }

    pub(super) fn gpus(&self) -> Arc<Gpus> {
        let gpus = Gpus::with(self.options.clone(), self.executable(), Arc::default());
        gpus.probe(vec![(Slot(0), self.backing())]);
        gpus
    }

    /// A file of the backing with these bytes.
    pub(super) fn file(&self, content: &[u8]) -> Arc<TestFile> {
        let serial = self.serial.fetch_add(1, Relaxed);
        let path = self.backing().join(format!("file{serial}"));
        fs::write(&path, content).unwrap();
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
        Arc::new(TestFile { serial, direct: Some(open(libc::O_DIRECT)), buffered: open(0) })
    }

    /// Memory of a client, this process, with these bytes in it.
    pub(super) fn client(&self, content: &[u8]) -> Client {
        Client::new(content)
    }

    /// Nothing was used in a way that the libraries forbid.
    #[track_caller]
    pub(super) fn assert_no_misuse(&self) {
        let calls = self.calls();
        let bad = standin::misuse(&calls);
        assert!(bad.is_empty(), "{bad:?}");
    }
}

/// A backing file.
pub(super) struct TestFile {
    pub(super) serial: u64,
    pub(super) direct: Option<File>,
    pub(super) buffered: File,
}

impl TestFile {
    pub(super) fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.buffered.metadata().unwrap().len() as usize];
        self.buffered.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Source for TestFile {
    fn descriptors(&self) -> Result<(Option<BorrowedFd<'_>>, BorrowedFd<'_>), i32> {
        Ok((self.direct.as_ref().map(AsFd::as_fd), self.buffered.as_fd()))
    }
}

#[path = "../../../../tests/gpu/standin.rs"]
mod standin;
pub(super) use standin::{Client, UUID};

impl Client {
    /// All of it, as a buffer.
    pub(super) fn request(&self) -> GpuRequest {
        self.part(0, self.len)
    }

    pub(super) fn part(&self, offset: usize, length: usize) -> GpuRequest {
        GpuRequest::Ipc {
            uuid: UUID,
            handle: self.handle(),
            alloc_size: self.len as u64,
            offset: offset as u64,
            length: length as u64,
        }
    }

    pub(super) fn register(&self, gpus: &Arc<Gpus>) -> Granted {
        gpus.register(self.request()).unwrap()
    }
}

/// An op of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) direction: Direction,
    pub(super) buf_off: u64,
    pub(super) file_off: u64,
    pub(super) len: u64,
}

pub(super) fn read(buf_off: usize, file_off: usize, len: usize) -> Move {
    Move { direction: Direction::Read, buf_off: buf_off as u64, file_off: file_off as u64, len: len as u64 }
}

pub(super) fn write(buf_off: usize, file_off: usize, len: usize) -> Move {
    Move { direction: Direction::Write, ..read(buf_off, file_off, len) }
}

impl Gpus {
    /// Starts ops on a file; what becomes of each comes out of the channel, with its place.
    pub(super) fn start(
        &self,
        buffer: &GpuBuffer,
        file: &Arc<TestFile>,
        moves: &[Move],
    ) -> Receiver<(usize, i64, Path)> {
        let (send, answers) = channel();
        let jobs = moves.iter().enumerate().map(|(n, m)| {
            let send = send.clone();
            Job {
                file: file.clone(),
                serial: file.serial,
                align: 4096,
                cufile: self.by_cufile(Slot(0)),
                direction: m.direction,
                buf_off: m.buf_off,
                file_off: m.file_off,
                len: m.len,
                deadline: Instant::now() + self.options.deadline,
                told: Box::new(move |result, path| send.send((n, result, path)).unwrap_or(())),
            }
        });
        buffer.worker.submit(buffer.id, jobs.collect());
        answers
    }

    /// Moves, and waits for all of it.
    #[track_caller]
    pub(super) fn run(&self, buffer: &GpuBuffer, file: &Arc<TestFile>, moves: &[Move]) -> Vec<(i64, Path)> {
        let answers = self.start(buffer, file, moves);
        let mut all: Vec<_> = answers.iter().collect();
        all.sort_by_key(|(n, ..)| *n);
        assert_eq!(all.len(), moves.len(), "every op is answered");
        all.into_iter().map(|(_, result, path)| (result, path)).collect()
    }
}

/// Bytes that tell where they belong.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_add(seed << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// A memfd with these bytes: what a VMM allocation's descriptor is to the stand-in.
pub(super) fn vmm(content: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("vmm", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.write_all_at(content, 0).unwrap();
    file.into()
}

/// Waits until it's so.
#[track_caller]
pub(super) fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
