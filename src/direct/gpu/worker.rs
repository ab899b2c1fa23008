//! A GPU's worker process as the daemon has it: started when first needed, ended when idle, started again
//! when it has died.
//!
//! What always holds: nobody waits for the process but this worker's own thread, which is the only one that
//! talks to it (and the one it dies with). An op that was taken ends: with the process's answer, or with an
//! error when the process dies or takes too long, after which it's killed; one that can't even be killed is
//! left behind. Buffers that clients share are shared again with the next process; the process's own are gone
//! with it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::executable::Executable;
use super::job::Job;
use super::probed::Probed;
use super::process::{Lost, Process};
use super::proto::{self, Made, Origin, Request};
use super::{GpuError, GpuOptions};
use crate::processors::anywhere;
use crate::supervise::Lifeline;

// What `status` shows is public with it.
/// How a worker stands.
#[allow(unreachable_pub)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It has no process, and needs none.
    #[default]
    Idle,
    /// Its process works.
    Running,
    /// Its process has died; another is started when needed, but not at once.
    Failed,
}

/// A worker, for people.
#[allow(unreachable_pub)]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The GPU.
    pub gpu: Uuid,
    /// The process, if there is one.
    pub pid: Option<u32>,
    /// How it stands.
    pub state: WorkerState,
    /// Buffers that clients have on this GPU.
    pub buffers: u64,
    /// Transfers that have ended, since the mount.
    pub ops: u64,
    /// Bytes they have moved.
    pub bytes: u64,
    /// How often the process has died.
    pub restarts: u64,
    /// What the last fault was.
    pub last_error: Option<String>,
}

/// Where a buffer comes from; enough to make it again in another process.
pub(super) struct Recipe {
    pub(super) origin: Origin,
    pub(super) fd: Option<OwnedFd>,
    pub(super) alloc_size: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What the worker's thread is told.
enum Command {
    Register(u64, Arc<Recipe>, SyncSender<Result<Made, GpuError>>, Instant),
    /// One that was registered with a daemon before.
    Adopt(u64, Arc<Recipe>),
    Jobs(u64, Vec<Job>),
    Drop(u64),
    Forget(u64),
    Stop,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) ops: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) buffers: AtomicU64,
    pub(super) allocated: AtomicU64,
}

/// One GPU's.
pub(super) struct Worker {
    pub(super) gpu: Uuid,
    commands: Sender<Command>,
    pub(super) counters: Arc<Counters>,
    status: Arc<Mutex<WorkerStatus>>,
    next: AtomicU64,
}

/// What a worker's process is started with.
#[derive(Clone)]
pub(super) struct Start {
    pub(super) options: GpuOptions,
    pub(super) executable: Executable,
    pub(super) probed: Arc<Probed>,
    pub(super) lifeline: Arc<Lifeline>,
}

impl Worker {
    /// A worker without a process.
    pub(super) fn new(gpu: Uuid, start: Start) -> std::io::Result<Arc<Worker>> {
        let (commands, receiver) = channel();
        let worker = Arc::new(Worker {
            gpu,
            commands,
            counters: Arc::default(),
            status: Arc::new(Mutex::new(WorkerStatus { gpu, ..WorkerStatus::default() })),
            next: AtomicU64::new(1),
        });
        let keeper = Keeper {
            gpu,
            start,
            commands: receiver,
            counters: worker.counters.clone(),
            status: worker.status.clone(),
            process: None,
            known: HashSet::new(),
            files: LruCache::new(files_kept()),
            recipes: HashMap::new(),
            deaths: 0,
            not_before: None,
        };
        std::thread::Builder::new().name("kvfs-gpu".into()).spawn(move || (anywhere(), keeper.run()).1)?;
        Ok(worker)
    }

    /// Makes a buffer, and waits for that until the deadline. Its number.
    pub(super) fn register(&self, recipe: &Arc<Recipe>, deadline: Instant) -> Result<(u64, Made), GpuError> {
        let id = self.next.fetch_add(1, Relaxed);
        let (send, answer) = std::sync::mpsc::sync_channel(1);
        self.tell(Command::Register(id, recipe.clone(), send, deadline));
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(made)) => {
                self.counters.buffers.fetch_add(1, Relaxed);
                Ok((id, made))
            }
            failed => {
                // It may come yet.
                self.tell(Command::Drop(id));
                Err(match failed {
                    Ok(refused) => refused.err().unwrap_or(GpuError::Deadline),
                    Err(RecvTimeoutError::Timeout) => GpuError::Deadline,
                    Err(RecvTimeoutError::Disconnected) => GpuError::Worker("it was ended".into()),
                })
            }
        }
    }

    /// Has a buffer from a daemon before, which is made when it's used. Its number.
    pub(super) fn adopt(&self, recipe: Recipe) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.counters.buffers.fetch_add(1, Relaxed);
        self.tell(Command::Adopt(id, Arc::new(recipe)));
        id
    }

    /// Moves bytes to and from a buffer.
    pub(super) fn submit(&self, buffer: u64, jobs: Vec<Job>) {
        self.tell(Command::Jobs(buffer, jobs));
    }

    /// Lets go of a buffer that was registered.
    pub(super) fn release(&self, buffer: u64) {
        self.counters.buffers.fetch_sub(1, Relaxed);
        self.tell(Command::Drop(buffer));
    }

    /// Lets go of a file.
    pub(super) fn forget(&self, serial: u64) {
        self.tell(Command::Forget(serial));
    }

    /// Ends the process and the thread.
    pub(super) fn stop(&self) {
        self.tell(Command::Stop);
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let mut status = self.status.lock().clone();
        status.buffers = self.counters.buffers.load(Relaxed);
        status.ops = self.counters.ops.load(Relaxed);
        status.bytes = self.counters.bytes.load(Relaxed);
        status
    }

    fn tell(&self, command: Command) {
        // A command that's dropped ends what is in it.
        let _ = self.commands.send(command);
    }
}

/// How many files a process is given at most: each takes it two descriptors, and cuFile a third.
fn files_kept() -> std::num::NonZeroUsize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(4096 * 4);
    let files = (limit.saturating_sub(128) / 3).clamp(32, 4096);
    std::num::NonZeroUsize::new(files as usize).unwrap_or(std::num::NonZeroUsize::MIN)
}

/// The worker's thread.
struct Keeper {
    gpu: Uuid,
    start: Start,
    commands: Receiver<Command>,
    counters: Arc<Counters>,
    status: Arc<Mutex<WorkerStatus>>,
    process: Option<Process>,
    /// Buffers that the process has.
    known: HashSet<u64>,
    /// Files that it has.
    files: LruCache<u64, ()>,
    /// All buffers. Of the process's own: none after the one that made it has died.
    recipes: HashMap<u64, Arc<Recipe>>,
    /// In a row.
    deaths: u32,
    not_before: Option<Instant>,
}

impl Keeper {
    fn run(mut self) {
        let tick = self.start.options.idle.clamp(Duration::from_millis(20), Duration::from_secs(1));
        let mut idle_since = Instant::now();
        loop {
            let command = self.commands.recv_timeout(tick);
            self.bury();
            match command {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => {
                    idle_since = Instant::now();
                    self.handle(command);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let busy = self.process.as_ref().is_some_and(|p| !p.is_idle());
                    if busy || !self.recipes.is_empty() {
                        idle_since = Instant::now();
                    } else if self.process.is_some() && idle_since.elapsed() >= self.start.options.idle {
                        self.end_process();
                    }
                }
            }
        }
        self.end_process();
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Register(id, recipe, answer, deadline) => {
                if let Err(e) = self.ready() {
                    let _ = answer.send(Err(e));
                    return;
                }
                self.recipes.insert(id, recipe.clone());
                if let Some(process) = &self.process {
                    process.expect_buffer(id, answer, deadline);
                }
                self.send_buffer(id, &recipe);
            }
            Command::Adopt(id, recipe) => drop(self.recipes.insert(id, recipe)),
            Command::Jobs(buffer, jobs) => self.jobs(buffer, jobs),
            Command::Drop(id) => {
                self.recipes.remove(&id);
                if self.known.remove(&id) {
                    self.send(&Request::Drop { id }, &[]);
                }
            }
            Command::Forget(serial) => {
                if self.files.pop(&serial).is_some() {
                    self.send(&Request::Forget { serial }, &[]);
                }
            }
            Command::Stop => {}
        }
    }

    fn jobs(&mut self, buffer: u64, jobs: Vec<Job>) {
        let fail = |jobs: Vec<Job>, errno| jobs.into_iter().for_each(|job| job.fail(errno));
        if self.ready().is_err() {
            return fail(jobs, libc::EIO);
        }
        if !self.known.contains(&buffer) {
            match self.recipes.get(&buffer).cloned() {
                Some(recipe) if !matches!(recipe.origin, Origin::Own) => self.send_buffer(buffer, &recipe),
                // Its memory went with the process that had it.
                _ => return fail(jobs, libc::ENODEV),
            }
        }
        let mut ops = VecDeque::new();
        let now = Instant::now();
        for job in jobs {
            // Its client has been told so already, while the process before this one was waited for.
            if job.deadline < now {
                job.fail(libc::ETIMEDOUT);
                continue;
            }
            if let Err(errno) = self.send_file(&job) {
                job.fail(errno);
                continue;
            }
            let Some(process) = &self.process else { return job.fail(libc::EIO) };
            ops.push_back(process.expect_job(buffer, job));
            if ops.len() == proto::MAX_OPS {
                self.send(&Request::Ops(ops.drain(..).collect()), &[]);
            }
        }
        if !ops.is_empty() {
            self.send(&Request::Ops(ops.into()), &[]);
        }
    }

    fn send_buffer(&mut self, id: u64, recipe: &Recipe) {
        let &Recipe { alloc_size, offset, length, .. } = recipe;
        let request = Request::Buffer { id, origin: recipe.origin.clone(), alloc_size, offset, length };
        self.known.insert(id);
        self.send(&request, &recipe.fd.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    }

    /// Gives the process the file of a job, if it hasn't got it.
    fn send_file(&mut self, job: &Job) -> Result<(), i32> {
        let serial = job.serial;
        if self.files.get(&serial).is_some() {
            return Ok(());
        }
        let (direct, buffered) = job.file.descriptors()?;
        if let Some((old, ())) = self.files.push(serial, ()) {
            self.send(&Request::Forget { serial: old }, &[]);
        }
        let fds: Vec<_> = direct.into_iter().chain([buffered]).collect();
        self.send(&Request::File { serial, direct: direct.is_some(), cufile: job.cufile }, &fds);
        Ok(())
    }

    /// Sends; an error means that the process is gone, which `bury` sees to.
    fn send(&mut self, request: &Request, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Some(process) = &self.process {
            process.send(request, fds);
        }
    }

    /// Has a process, or says why there can't be one now.
    fn ready(&mut self) -> Result<(), GpuError> {
        self.bury();
        if self.process.is_some() {
            return Ok(());
        }
        if let Some(wait) = self.not_before.and_then(|t| t.checked_duration_since(Instant::now())) {
            let error = self.status.lock().last_error.clone().unwrap_or_default();
            return Err(GpuError::Worker(format!("{error}; the next try is in {} ms", wait.as_millis())));
        }
        let found = self.start.probed.get().ok_or(GpuError::NotProbed)?;
        match Process::start(self.gpu, &self.start, &found, self.counters.clone()) {
            Ok(process) => {
                let mut status = self.status.lock();
                (status.pid, status.state) = (Some(process.pid()), WorkerState::Running);
                self.process = Some(process);
                Ok(())
            }
            Err(e) => {
                let message = format!("it can't be started: {e}");
                self.died(message.clone());
                Err(GpuError::Worker(message))
            }
        }
    }

    /// Sees whether the process has died, and forgets what it had.
    fn bury(&mut self) {
        let Some(lost) = self.process.as_ref().and_then(Process::lost) else { return };
        let worked = self.process.as_ref().is_some_and(Process::has_worked);
        self.forget_process();
        if worked {
            self.deaths = 0;
        }
        let (Lost::NoSuchGpu(message) | Lost::Died(message)) = lost;
        self.died(message);
    }

    fn died(&mut self, message: String) {
        tracing::warn!("the worker of GPU {} has failed: {message}", self.gpu);
        let mut status = self.status.lock();
        (status.pid, status.state) = (None, WorkerState::Failed);
        status.restarts += 1;
        status.last_error = Some(message);
        // The first time at once, then after 0.2 s, 0.4 s and so on.
        self.deaths += 1;
        let pause = (self.deaths > 1).then(|| Duration::from_millis(100 << self.deaths.min(7)));
        self.not_before = pause.map(|pause| Instant::now() + pause);
    }

    fn end_process(&mut self) {
        if let Some(process) = &self.process {
            process.end();
            self.forget_process();
            let mut status = self.status.lock();
            (status.pid, status.state) = (None, WorkerState::Idle);
        }
    }

    fn forget_process(&mut self) {
        self.process = None;
        self.known.clear();
        self.files.clear();
        // Shared buffers are shared again when they're used; our own are gone, which their ops are told.
    }
}
