//! The worker process: it owns the context on one GPU, and moves bytes between backing files and buffers
//! there, for the daemon at the other end of its standard input.
//!
//! What always holds: it trusts the daemon and nobody else; every op it was given is answered, or the process
//! ends; it ends with the daemon. A fault after which the GPU's context is worth nothing ends it too: the
//! daemon starts another.

mod disk;
mod files;
mod memory;
mod queue;
mod transfer;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use self::files::Files;
use self::memory::Memory;
use self::queue::Queue;
use self::transfer::Submitter;
use super::cufile::{self, Cufile, Kind};
use super::device::{Address, Device, OpenError};
use super::proto::{Channel, Reply, Request};
use super::{cuda, hip};
use crate::direct::abi::{Path, Why};
use crate::supervise::Lifeline;

/// What the command line of a worker says.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The GPU.
    pub(crate) gpu: Uuid,
    /// AMD's libraries instead of NVIDIA's.
    pub(crate) hip: bool,
    /// Whether there's a backing that cuFile can read.
    pub(crate) cufile: bool,
    /// Slots of the ring for cuFile.
    pub(crate) ring_slots: usize,
    /// Bytes in each; a multiple of 4096.
    pub(crate) slot_bytes: usize,
    /// Transfers at once.
    pub(crate) submitters: usize,
}

/// Why a worker ends other than by being told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Standard input isn't the daemon.
    #[error("a worker is started by the daemon of a mount, not by hand ({0})")]
    NotStarted(std::io::Error),
    /// No GPU, or not this one.
    #[error("{0}")]
    NoGpu(String),
    /// The line broke.
    #[error("the daemon can't be understood: {0}")]
    Line(#[from] std::io::Error),
}

/// GPU memory that cuFile knows: `slots` times `slot_bytes`.
struct Ring {
    cufile: Cufile,
    base: Address,
}

/// What all threads of the worker share.
struct Worker {
    setup: Setup,
    device: Arc<dyn Device>,
    channel: Arc<Channel>,
    /// Sends what became of an op.
    answer: Arc<queue::Answer>,
    memory: Memory,
    files: Files,
    queue: Queue,
    /// The daemon's: held until the process has ended.
    lifeline: OnceLock<Lifeline>,
    /// Made when the first file wants it.
    ring: OnceLock<Result<&'static Ring, Why>>,
}

/// Serves until the daemon goes.
///
/// # Safety
/// The process has no other thread yet.
pub(crate) unsafe fn run(mut setup: Setup) -> Result<(), ServeError> {
    // Each has a slot.
    setup.submitters = setup.submitters.min(setup.ring_slots).max(1);
    let channel = Channel::new(line().map_err(ServeError::NotStarted)?);
    // Whoever started us may be dead already; then the line is closed, and the loop below ends at once.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // SAFETY: the caller's promise.
    unsafe { cufile::prepare_environment() };
    let device = match open(&setup) {
        Ok(device) => device,
        Err(e) => {
            let missing = matches!(e, OpenError::NoSuchGpu(_));
            if missing && !setup.hip {
                as_mig_instance(setup.gpu, &channel);
            }
            let message = e.to_string();
            let _ = channel.send(&Reply::NoGpu { missing, message: message.clone() }, &[], || true);
            return Err(ServeError::NoGpu(message));
        }
    };
    let channel = Arc::new(channel);
    let answers = channel.clone();
    let worker = Arc::new(Worker {
        answer: Arc::new(move |id, result, path| {
            let _ = answers.send(&Reply::Done { id, result, path }, &[], || true);
        }),
        memory: Memory::new(device.clone()),
        files: Files::default(),
        queue: Queue::default(),
        lifeline: OnceLock::new(),
        ring: OnceLock::new(),
        setup,
        device,
        channel,
    });
    // A thread that panicked would leave its op without an answer.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        std::process::exit(101);
    }));
    worker.reply(&Reply::Ready);
    for n in 0..worker.setup.submitters {
        let worker = worker.clone();
        std::thread::Builder::new()
            .name(format!("kvfs-gpu-{n}"))
            .spawn(move || Submitter::new(worker, n).run())
            .map_err(ServeError::Line)?;
    }
    while let Some((request, fds)) = worker.channel.receive()? {
        worker.handle(request, fds);
    }
    Ok(())
}

/// The daemon's line, which is standard input; that becomes /dev/null.
fn line() -> std::io::Result<OwnedFd> {
    let stdin = std::io::stdin();
    rustix::net::sockopt::socket_type(stdin.as_fd())?;
    let line = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(line)
}

fn open(setup: &Setup) -> Result<Arc<dyn Device>, OpenError> {
    if setup.hip {
        return Ok(Arc::new(hip::Hip::load()?.open(setup.gpu)?));
    }
    Ok(Arc::new(cuda::Cuda::load()?.open(setup.gpu)?))
}

/// A process sees the first MIG instance alone unless its environment names another, when it starts: so it
/// starts again. Returns if it has tried that.
fn as_mig_instance(gpu: Uuid, channel: &Channel) {
    use std::os::unix::process::CommandExt;
    const NAME: &str = "CUDA_VISIBLE_DEVICES";
    let value = format!("MIG-{gpu}");
    if std::env::var_os(NAME).is_some_and(|now| now == *value) {
        return;
    }
    // Where it's looked for.
    if rustix::stdio::dup2_stdin(channel.as_fd()).is_err() {
        return;
    }
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let mut again = std::process::Command::new("/proc/self/exe");
    let _ = again.arg0(name).args(args).env(NAME, value).exec();
}

impl Worker {
    fn reply(&self, reply: &Reply) {
        // If the daemon is gone, so is this process in a moment.
        let _ = self.channel.send(reply, &[], || true);
    }

    fn note(&self, text: String) {
        self.reply(&Reply::Note(text));
    }

    /// Ends the process: nothing on this GPU works in it any more.
    fn lost(&self, message: String) -> ! {
        self.reply(&Reply::Fault(message));
        std::process::exit(3);
    }

    fn handle(&self, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Buffer { id, origin, alloc_size, offset, length } => {
                let cufile = || self.ring().map(|ring| &ring.cufile);
                let made =
                    self.memory.make(id, origin, fds.into_iter().next(), alloc_size, offset, length, cufile);
                let fault = made.as_ref().err().and_then(memory::Error::sticky);
                if let Some(fault) = fault {
                    self.lost(fault.to_string());
                }
                let outcome = made.map_err(|e| e.refused());
                self.reply(&Reply::Buffer { id, outcome });
            }
            Request::Lifeline => {
                let held = fds.into_iter().next().map(Lifeline::held);
                let _ = held.map(|held| self.lifeline.set(held));
            }
            Request::Drop { id } => self.memory.drop(id),
            Request::File { serial, direct, cufile } => self.files.add(serial, fds, direct, cufile),
            Request::Forget { serial } => self.files.forget(serial),
            Request::Ops(ops) => {
                for op in ops {
                    let id = op.id;
                    let file = self.files.get(op.serial);
                    let buffer = self.memory.get(op.buffer);
                    match file.zip(buffer) {
                        Some((file, buffer)) => {
                            self.queue.add(&op, file, buffer, self.setup.slot_bytes, self.answer.clone())
                        }
                        None => {
                            let result = -i64::from(libc::ENODEV);
                            self.reply(&Reply::Done { id, result, path: Path::None });
                        }
                    }
                }
            }
        }
    }

    /// The ring, if cuFile can be used.
    fn ring(&self) -> Result<&'static Ring, Why> {
        *self.ring.get_or_init(|| {
            if !self.setup.cufile {
                return Err(Why::NoCufile);
            }
            let kind = if self.setup.hip { Kind::Hipfile } else { Kind::Cufile };
            match Ring::new(&*self.device, kind, &self.setup) {
                // It goes with the process.
                Ok(ring) => Ok(Box::leak(Box::new(ring))),
                Err((why, message)) => {
                    self.note(format!("cuFile isn't used on GPU {}: {message}", self.setup.gpu));
                    Err(why)
                }
            }
        })
    }
}

impl Ring {
    fn new(device: &dyn Device, kind: Kind, setup: &Setup) -> Result<Ring, (Why, String)> {
        let cufile = Cufile::open(kind).map_err(|e| (e.why(), e.to_string()))?;
        // Its first use is on any thread.
        device.bind().map_err(|e| (Why::Worker, e.to_string()))?;
        let bytes = (setup.submitters * setup.slot_bytes) as u64;
        let base = device.alloc(bytes).map_err(|e| (Why::Worker, e.to_string()))?;
        match cufile.register_memory(base, bytes) {
            Ok(()) => Ok(Ring { cufile, base }),
            Err(e) => {
                let _ = device.free(base);
                Err((e.why(), e.to_string()))
            }
        }
    }
}
