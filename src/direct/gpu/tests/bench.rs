//! A machine with a GPU that isn't one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libloading::Library;
use tempfile::TempDir;

use super::super::executable::Executable;
use super::super::job::{Job, Source};
use super::super::{GpuBuffer, GpuOptions, GpuRequest, Gpus, Granted};
use crate::direct::abi::Path;
use crate::direct::engine::Direction;
use crate::index::Slot;

/// The UUID of the first GPU.
pub(super) const UUID: [u8; 16] = [0xa0; 16];
/// Of the ring in the tests: small, so that ops take several.
pub(super) const SLOT: usize = 64 << 10;

/// The libraries, compiled once for each version of their source.
fn libraries() -> PathBuf {
    let source = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/standin");
    let read = |name: &str| fs::read(source.join(name)).expect("the stand-ins' source");
    let files = ["standin.h", "libcuda.c", "libcufile.c"];
    let hash = xxhash_rust::xxh3::xxh3_64(&files.map(read).concat());
    let place = std::env::current_exe().unwrap().parent().unwrap().join(format!("standin-{hash:016x}"));
    if place.exists() {
        return place;
    }
    let fresh = tempfile::tempdir_in(place.parent().unwrap()).unwrap();
    for (name, source_name) in [("libcuda.so.1", "libcuda.c"), ("libcufile.so.0", "libcufile.c")] {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(fresh.path().join(name));
        let status = gcc.arg(source.join(source_name)).arg("-ldl").status().expect("gcc is installed");
        assert!(status.success());
    }
    // Whoever is first.
    let _ = fs::rename(fresh.keep(), &place);
    place
}

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
        let bench = Bench { dir, options, libraries: libraries(), env, serial: AtomicU64::new(1) };
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
        self.calls().lines().filter(|line| line.split(' ').nth(1) == Some(call)).count()
    }

    pub(super) fn executable(&self) -> Executable {
        Executable::of_tests("direct::gpu::tests::as_worker", self.env.clone())
    }

    pub(super) fn gpus(&self) -> Arc<Gpus> {
        let gpus = Gpus::with(self.options.clone(), self.executable());
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
        Client::new(&self.libraries, content)
    }

    /// Nothing was used in a way that the libraries forbid.
    #[track_caller]
    pub(super) fn assert_no_misuse(&self) {
        let calls = self.calls();
        let bad: Vec<_> = calls.lines().filter(|l| l.contains("MISUSE") || l.contains("TWICE")).collect();
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

/// GPU memory of the client, or of the daemon in the client's reach.
pub(super) struct Client {
    library: Library,
    at: u64,
    pub(super) len: usize,
}

impl Client {
    fn new(libraries: &FilePath, content: &[u8]) -> Client {
        let client = Client::bare(libraries, content.len());
        let mut at = 0;
        // SAFETY: libcuda.c's signature.
        let code = unsafe {
            client.library.get::<unsafe extern "C" fn(*mut u64, usize) -> i32>(b"cuMemAlloc_v2").unwrap()(
                &mut at,
                content.len(),
            )
        };
        assert_eq!(code, 0);
        let client = Client { at, ..client };
        client.put(content);
        client
    }

    fn bare(libraries: &FilePath, len: usize) -> Client {
        // SAFETY: our own library.
        let library = unsafe { Library::new(libraries.join("libcuda.so.1")) }.unwrap();
        // SAFETY: libcuda.c's signature.
        unsafe { library.get::<unsafe extern "C" fn(usize) -> i32>(b"cuCtxSetCurrent").unwrap()(1) };
        Client { library, at: 0, len }
    }

    /// Memory that the daemon allocated, by its handle.
    pub(super) fn of_handle(bench: &Bench, handle: [u8; 64], len: usize) -> Client {
        let client = Client::bare(&bench.libraries, len);
        let mut at = 0;
        type Open = unsafe extern "C" fn(*mut u64, [u64; 8], u32) -> i32;
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Handle([u8; 64]);
        type OpenHandle = unsafe extern "C" fn(*mut u64, Handle, u32) -> i32;
        let _ = std::marker::PhantomData::<Open>;
        // SAFETY: libcuda.c's signature.
        let code = unsafe {
            client.library.get::<OpenHandle>(b"cuIpcOpenMemHandle_v2").unwrap()(&mut at, Handle(handle), 1)
        };
        assert_eq!(code, 0);
        Client { at, ..client }
    }

    pub(super) fn handle(&self) -> [u8; 64] {
        let mut handle = [0; 64];
        // SAFETY: libcuda.c's signature.
        let code = unsafe {
            self.library.get::<unsafe extern "C" fn(*mut [u8; 64], u64) -> i32>(b"cuIpcGetMemHandle").unwrap()(
                &mut handle,
                self.at,
            )
        };
        assert_eq!(code, 0);
        handle
    }

    pub(super) fn put(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: libcuda.c's signature; the bytes are there.
        let code = unsafe {
            self.library
                .get::<unsafe extern "C" fn(u64, *const u8, usize) -> i32>(b"cuMemcpyHtoD_v2")
                .unwrap()(self.at, bytes.as_ptr(), bytes.len())
        };
        assert_eq!(code, 0);
    }

    pub(super) fn get(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: libcuda.c's signature; the bytes are there.
        let code =
            unsafe {
                self.library
                    .get::<unsafe extern "C" fn(*mut u8, u64, usize) -> i32>(b"cuMemcpyDtoH_v2")
                    .unwrap()(bytes.as_mut_ptr(), self.at, bytes.len())
            };
        assert_eq!(code, 0);
        bytes
    }

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
