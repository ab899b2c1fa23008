//! GPU memory: a worker process per GPU, which moves bytes between backing files and the buffers there.
//!
//! What always holds: no library of a GPU's maker is loaded in the daemon, so none can make it hang or take it
//! down; nothing here makes the caller wait but `register`, and that no longer than the deadline. Where cuFile
//! can't be used, or isn't known to work, bytes go through pinned host memory: the same bytes.
//!
//! The pieces: `probe` finds out what works here; `worker` keeps a process for a GPU, `process` talks to it
//! (`proto`); `serve` is what runs in there, with the drivers (`cuda`, `hip`) and `cufile`.

mod cuda;
mod cufile;
mod device;
mod error;
pub(crate) mod executable;
mod hip;
mod job;
pub(crate) mod probe;
mod probed;
mod process;
mod proto;
pub(crate) mod serve;
mod status;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use self::device::Handle;
use self::executable::Executable;
use self::job::Job;
use self::probe::Finding;
use self::probed::{Found, Probed};
use self::proto::Origin;
use self::worker::{Recipe, Start, Worker};
use super::abi::{Path, RegBuf, Why, feature, kind};
use super::buffer::Memory;
use super::engine::{Engine, Op};
use crate::index::Slot;
use crate::supervise::Lifeline;

pub(crate) use error::GpuError;
pub(crate) use status::GpuStatus;

/// GPUs of one mount at most, MIG instances counted: far more than a server has.
const MAX_WORKERS: usize = 64;
/// What a daemon-allocated buffer is rounded up to (see `serve::memory`).
const PAGE: u64 = 2 << 20;

/// How a mount uses GPUs.
#[derive(Clone, Debug)]
pub(crate) struct GpuOptions {
    /// Whether it does.
    pub(crate) enabled: bool,
    /// Use AMD's GPUs and hipFile where there is no GPU of NVIDIA's. It was never tried.
    pub(crate) hipfile: bool,
    /// How long a registration or an op may take.
    pub(crate) deadline: Duration,
    /// A worker without buffers ends after this: its context holds some hundred MB of GPU memory.
    pub(crate) idle: Duration,
    /// Slots of a worker's ring.
    pub(crate) ring_slots: usize,
    /// Bytes in each: what one call of cuFile moves at most (`max_direct_io_size_kb`, 16384).
    pub(crate) slot_bytes: usize,
    /// Transfers at once on each GPU; each needs a slot. One alone is bound by its latency.
    pub(crate) submitters: usize,
    /// Bytes that a worker allocates for clients at most.
    pub(crate) daemon_alloc_bytes: u64,
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        GpuOptions {
            enabled: true,
            hipfile: false,
            deadline: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            ring_slots: 8,
            slot_bytes: 16 << 20,
            submitters: 8,
            daemon_alloc_bytes: 4 << 30,
        }
    }
}

/// Memory that a client wants to use, on the GPU `uuid`. Bytes; the buffer is `length` at `offset` of an
/// allocation of `alloc_size`.
pub(crate) enum GpuRequest {
    /// By a `CUipcMemHandle`.
    Ipc { uuid: [u8; 16], handle: [u8; 64], alloc_size: u64, offset: u64, length: u64 },
    /// By the descriptor of a VMM allocation.
    Vmm { uuid: [u8; 16], fd: OwnedFd, alloc_size: u64, offset: u64, length: u64 },
    /// By a `hipIpcMemHandle_t`.
    Hip { uuid: [u8; 16], handle: [u8; 64], alloc_size: u64, offset: u64, length: u64 },
    /// To be allocated.
    Alloc { uuid: [u8; 16], length: u64 },
}

impl GpuRequest {
    /// For memory that a client shares, as REGISTER says it. `None` where that's no such memory.
    pub(crate) fn shared(reg: &RegBuf, fd: Option<OwnedFd>) -> Option<GpuRequest> {
        let &RegBuf { gpu_uuid: uuid, handle, alloc_size, offset, length, .. } = reg;
        match (reg.kind, fd) {
            (kind::CUDA_IPC, _) => Some(GpuRequest::Ipc { uuid, handle, alloc_size, offset, length }),
            (kind::HIP_IPC, _) => Some(GpuRequest::Hip { uuid, handle, alloc_size, offset, length }),
            (kind::CUDA_VMM_FD, Some(fd)) => Some(GpuRequest::Vmm { uuid, fd, alloc_size, offset, length }),
            _ => None,
        }
    }
}

/// A buffer, and how its bytes move.
pub(crate) struct Granted {
    pub(crate) buffer: GpuBuffer,
    /// The best that any backing allows.
    pub(crate) path: Path,
    /// Why it's no better.
    pub(crate) why: Why,
    /// Of an allocated one: the IPC handle for the client.
    pub(crate) handle: Option<[u8; 64]>,
}

/// A buffer on a GPU. Dropped, the worker lets go of its memory.
pub(crate) struct GpuBuffer {
    worker: Arc<Worker>,
    id: u64,
    /// Counted against the limit.
    allocated: u64,
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        self.worker.counters.allocated.fetch_sub(self.allocated, Relaxed);
        self.worker.release(self.id);
    }
}

/// The GPUs of a mount.
pub(crate) struct Gpus {
    options: GpuOptions,
    executable: Executable,
    lifeline: Arc<Lifeline>,
    probed: Arc<Probed>,
    workers: Mutex<HashMap<Uuid, Arc<Worker>>>,
    closed: AtomicBool,
}

impl Gpus {
    /// Nothing is started yet.
    /// `lifeline` tells a daemon after this one when the last request has ended.
    pub(crate) fn new(options: GpuOptions, lifeline: Arc<Lifeline>) -> Arc<Gpus> {
        Gpus::with(options, Executable::default(), lifeline)
    }

    fn with(options: GpuOptions, executable: Executable, lifeline: Arc<Lifeline>) -> Arc<Gpus> {
        Arc::new(Gpus {
            options,
            executable,
            lifeline,
            probed: Arc::default(),
            workers: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// Finds out, in the background, how data can move to and from these backings.
    pub(crate) fn probe(self: &Arc<Gpus>, backings: Vec<(Slot, PathBuf)>) {
        if !self.options.enabled {
            return;
        }
        let gpus = self.clone();
        let (slots, dirs): (Vec<Slot>, Vec<PathBuf>) = backings.into_iter().unzip();
        let probe = move || {
            let probe = |hip| probe::run(&gpus.executable, hip, &dirs, probe::DEADLINE);
            let mut hip = false;
            let mut findings = probe(hip);
            if findings.gpus.is_empty() && gpus.options.hipfile {
                hip = true;
                findings = probe(hip);
            }
            for (dir, finding) in dirs.iter().zip(&findings.dirs) {
                let Finding { path, why, detail } = finding;
                tracing::info!("GPU memory and {}: {path:?}, {why:?}: {detail}", dir.display());
            }
            let dirs = slots.into_iter().zip(findings.dirs.iter().cloned()).collect();
            let early = gpus.probed.set(Found { hip, findings, dirs });
            gpus.submit(early);
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-probe".into()).spawn(probe) {
            tracing::warn!("GPUs can't be looked for: {e}");
        }
    }

    /// A backing joins: how data moves to and from it is found out in the background.
    pub(crate) fn enter(self: &Arc<Gpus>, slot: Slot, dir: PathBuf) {
        if !self.options.enabled {
            return;
        }
        let gpus = self.clone();
        let probe = move || {
            // After the probe at the start, which says for whose GPUs.
            let Ok(first) = gpus.probed.wait(Instant::now() + 2 * probe::DEADLINE) else { return };
            let mut more =
                probe::run(&gpus.executable, first.hip, std::slice::from_ref(&dir), probe::DEADLINE);
            let Some(finding) = more.dirs.pop() else { return };
            let Finding { path, why, detail } = &finding;
            tracing::info!("GPU memory and {}: {path:?}, {why:?}: {detail}", dir.display());
            gpus.probed.change_dirs(|dirs| drop(dirs.insert(slot, finding)));
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-probe".into()).spawn(probe) {
            tracing::warn!("a backing can't be tried with GPUs: {e}");
        }
    }

    /// A backing has left.
    pub(crate) fn leave(&self, slot: Slot) {
        self.probed.change_dirs(|dirs| drop(dirs.remove(&slot)));
    }

    /// How an op on a file of this backing goes now to memory that a client shares, and why no better.
    pub(crate) fn path(&self, slot: Slot) -> (Path, Why) {
        if !self.options.enabled {
            return (Path::None, Why::SwitchedOff);
        }
        let found = self.probed.get();
        found.and_then(|f| f.dirs.get(&slot).map(|d| (d.path, d.why))).unwrap_or((Path::None, Why::NotProbed))
    }

    /// Which kinds of buffers there can be; none until the probe has ended.
    pub(crate) fn features(&self) -> u64 {
        match self.probed.get().as_deref() {
            Some(found) if found.findings.gpus.is_empty() => 0,
            Some(Found { hip: false, .. }) => {
                feature::CUDA_IPC | feature::CUDA_VMM_FD | feature::DAEMON_ALLOC
            }
            Some(Found { hip: true, .. }) => feature::HIP_IPC | feature::DAEMON_ALLOC,
            None => 0,
        }
    }

    /// Makes a buffer. Waits for it, up to the deadline.
    pub(crate) fn register(self: &Arc<Gpus>, request: GpuRequest) -> Result<Granted, GpuError> {
        if !self.options.enabled {
            return Err(GpuError::Off);
        }
        let deadline = Instant::now() + self.options.deadline;
        let found = self.probed.wait(deadline)?;
        let (uuid, recipe, hip) = recipe(request)?;
        if found.findings.gpus.is_empty() || hip.is_some_and(|hip| hip != found.hip) {
            return Err(GpuError::NoGpu);
        }
        let worker = self.worker(uuid)?;
        let allocated = match recipe.origin {
            Origin::Own => recipe.length.checked_next_multiple_of(PAGE).ok_or(GpuError::Limit)?,
            _ => 0,
        };
        let limit = self.options.daemon_alloc_bytes;
        let add = |now: u64| now.checked_add(allocated).filter(|sum| *sum <= limit);
        worker.counters.allocated.fetch_update(Relaxed, Relaxed, add).map_err(|_| GpuError::Limit)?;
        let recipe = Arc::new(recipe);
        let (id, made) = worker.register(&recipe, deadline).inspect_err(|e| {
            worker.counters.allocated.fetch_sub(allocated, Relaxed);
            if matches!(e, GpuError::NoSuchGpu) {
                self.discard(&worker);
            }
        })?;
        let buffer = GpuBuffer { worker, id, allocated };
        let (path, why) = found.best();
        let (path, why) = match (&recipe.origin, made.direct) {
            (Origin::Own, Ok(())) if path == Path::CufileStaged => (Path::CufileDirect, Why::Best),
            (Origin::Own, Err(why)) if path == Path::CufileStaged => (path, why),
            _ => (path, why),
        };
        Ok(Granted { buffer, path, why, handle: made.handle.map(|h| h.0) })
    }

    /// Makes a buffer again that a daemon before had, of memory that a client shares. Waits for nothing: whether it
    /// can be had is seen when it's used.
    pub(crate) fn register_again(&self, request: GpuRequest) -> Result<GpuBuffer, GpuError> {
        if !self.options.enabled {
            return Err(GpuError::Off);
        }
        let (uuid, recipe, _) = recipe(request)?;
        let worker = self.worker(uuid)?;
        let id = worker.adopt(recipe);
        Ok(GpuBuffer { worker, id, allocated: 0 })
    }

    /// Whether there is anything that a closed file matters to.
    pub(crate) fn has_workers(&self) -> bool {
        !self.workers.lock().is_empty()
    }

    /// A file has been closed: nobody keeps it open for it any more.
    pub(crate) fn forget(&self, serial: u64) {
        for worker in self.workers.lock().values() {
            worker.forget(serial);
        }
    }

    /// What there is, for people.
    pub(crate) fn status(&self) -> GpuStatus {
        let found = self.probed.get();
        let mut workers: Vec<_> = self.workers.lock().values().map(|worker| worker.status()).collect();
        workers.sort_by_key(|worker| worker.gpu);
        GpuStatus::new(self.options.enabled, found.as_deref().map(|f| (f.hip, &f.findings, &f.dirs)), workers)
    }

    /// Ends all workers. What they haven't done fails.
    pub(crate) fn shutdown(&self) {
        self.closed.store(true, Relaxed);
        for (_, worker) in self.workers.lock().drain() {
            worker.stop();
        }
    }

    /// The worker of a GPU. One that the probe hasn't seen may still be there: it sees one MIG instance alone.
    fn worker(&self, uuid: Uuid) -> Result<Arc<Worker>, GpuError> {
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.get(&uuid) {
            return Ok(worker.clone());
        }
        if self.closed.load(Relaxed) {
            return Err(GpuError::Worker("the mount ends".into()));
        }
        if workers.len() >= MAX_WORKERS {
            return Err(GpuError::NoSuchGpu);
        }
        let start = Start {
            options: self.options.clone(),
            executable: self.executable.clone(),
            probed: self.probed.clone(),
            lifeline: self.lifeline.clone(),
        };
        let worker = Worker::new(uuid, start).map_err(|e| GpuError::Worker(e.to_string()))?;
        workers.insert(uuid, worker.clone());
        Ok(worker)
    }

    /// A GPU isn't there: nothing of it is kept, so that clients can't make us keep much.
    fn discard(&self, worker: &Arc<Worker>) {
        let mut workers = self.workers.lock();
        if worker.counters.buffers.load(Relaxed) == 0
            && workers.get(&worker.gpu).is_some_and(|known| Arc::ptr_eq(known, worker))
        {
            workers.remove(&worker.gpu);
            worker.stop();
        }
    }

    /// Whether cuFile can read this backing.
    fn by_cufile(&self, slot: Slot) -> bool {
        by_cufile(self.path(slot).0)
    }
}

impl Engine for Gpus {
    /// The best that any backing allows.
    fn path(&self) -> Path {
        self.probed.get().map_or(Path::None, |found| found.best().0)
    }

    fn submit(&self, ops: Vec<Op>) {
        let ops = self.probed.unless_early(ops);
        // By buffer, in the order that they came in.
        let mut groups: Vec<(Arc<Worker>, u64, Vec<Job>)> = Vec::new();
        for op in ops {
            let Memory::Gpu(GpuBuffer { worker, id, .. }) = op.buffer.memory() else {
                op.fail(libc::EINVAL);
                continue;
            };
            let (worker, id) = (worker.clone(), *id);
            let job = Job::new(op, |slot| self.by_cufile(slot));
            match groups.iter_mut().find(|(w, b, _)| Arc::ptr_eq(w, &worker) && *b == id) {
                Some((.., jobs)) => jobs.push(job),
                None => groups.push((worker, id, vec![job])),
            }
        }
        for (worker, id, jobs) in groups {
            worker.submit(id, jobs);
        }
    }
}

fn by_cufile(path: Path) -> bool {
    matches!(path, Path::CufileStaged | Path::Hipfile)
}

/// A request as the worker needs it, on which GPU, and whether that's one of AMD's if it matters.
fn recipe(request: GpuRequest) -> Result<(Uuid, Recipe, Option<bool>), GpuError> {
    let within = |offset: u64, length: u64, size| {
        let fits = offset.checked_add(length).is_some_and(|end| end <= size);
        if length > 0 && fits { Ok(()) } else { Err(GpuError::Invalid) }
    };
    Ok(match request {
        GpuRequest::Ipc { uuid, handle, alloc_size, offset, length } => {
            within(offset, length, alloc_size)?;
            let origin = Origin::Ipc(Handle(handle));
            (Uuid::from_bytes(uuid), Recipe { origin, fd: None, alloc_size, offset, length }, Some(false))
        }
        GpuRequest::Vmm { uuid, fd, alloc_size, offset, length } => {
            within(offset, length, alloc_size)?;
            let recipe = Recipe { origin: Origin::Fd, fd: Some(fd), alloc_size, offset, length };
            (Uuid::from_bytes(uuid), recipe, Some(false))
        }
        GpuRequest::Hip { uuid, handle, alloc_size, offset, length } => {
            within(offset, length, alloc_size)?;
            let origin = Origin::Ipc(Handle(handle));
            (Uuid::from_bytes(uuid), Recipe { origin, fd: None, alloc_size, offset, length }, Some(true))
        }
        GpuRequest::Alloc { uuid, length } => {
            within(0, length, u64::MAX)?;
            let recipe = Recipe { origin: Origin::Own, fd: None, alloc_size: length, offset: 0, length };
            (Uuid::from_bytes(uuid), recipe, None)
        }
    })
}
