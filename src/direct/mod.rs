//! The ioctl fast path: data between backing files and buffers that clients have registered.
//!
//! An ioctl's way: `decode` reads it, this module asks who it is (`owner`) and what may be done (`buffer`,
//! `tokens`, the file's open mode), an engine moves the bytes (`host`, `gpu`), and the op that ends last
//! answers (`call`). What always holds: no thread that answers the kernel waits for a disk or a GPU; no client
//! reaches another's buffer, or a file it hasn't open; every ioctl is answered by its deadline.

pub mod abi;
pub(crate) mod buffer;
pub(crate) mod call;
mod deadline;
mod decode;
pub(crate) mod engine;
pub(crate) mod gpu;
mod handed;
pub(crate) mod host;
mod locate;
pub(crate) mod owner;
mod query;
mod readahead;
mod register;
mod socket;
mod stats;
mod survival;
mod tokens;
mod transfer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::backing::Backing;
use crate::fs::{Caller, Fs};
use crate::index::{MAX_BACKINGS, NodeId, Slot};
use crate::shares::Shares;
use crate::supervise;
use buffer::{Buffers, Quota};
use deadline::Deadlines;
pub(crate) use decode::looks_names_up;
use decode::{Command, decode};
use gpu::{GpuOptions, Gpus};
use host::HostEngine;
use owner::{Owner, Owners};
use readahead::Readahead;
use socket::Sent;
use survival::Book;
use tokens::Tokens;

pub(crate) use socket::bind_here as bind_socket;
pub use stats::{DirectStatus, OpCounts};
pub use survival::RecoveredBuffers;

/// Calls that may be under way, and registrations of GPU memory.
const CALLS: usize = 16384;
const REGISTRATIONS: usize = 256;

/// What the fast path is to do.
#[derive(Clone, Debug)]
pub struct DirectOptions {
    /// Whether ioctls are answered at all.
    pub enabled: bool,
    /// Whether GPU memory is served.
    pub gpu: bool,
    /// Whether AMD's GPUs are used where there is none of NVIDIA's: never tried on one.
    pub hipfile: bool,
    /// Whether clients may be told where files really are.
    pub locate: bool,
    /// How long a call may take.
    pub deadline: Duration,
    /// Buffers that one user may register.
    pub buffers: u32,
    /// Bytes in all of them.
    pub buffer_bytes: u64,
}

impl Default for DirectOptions {
    fn default() -> Self {
        DirectOptions {
            enabled: true,
            gpu: true,
            hipfile: false,
            locate: false,
            deadline: Duration::from_secs(30),
            buffers: 1024,
            buffer_bytes: 1 << 40,
        }
    }
}

/// How many ops the argument of a call asks for, when it's read as the daemon reads it; 0 where it's no SUBMIT.
/// For the benchmark of just that (`bench/criterion/abi.rs`).
///
/// # Errors
/// The errno that the client would get.
#[doc(hidden)]
pub fn ops_of(command: u32, argument: &[u8]) -> Result<usize, Errno> {
    match decode(command, argument, argument.len() as u32)? {
        Command::Submit(_, ops) => Ok(ops.len()),
        _ => Ok(0),
    }
}

/// What an ioctl is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An open directory.
    Dir(NodeId),
    /// An open file, by its handle.
    File(u64),
}

/// What the client gets: 0 or an errno, and the argument as it is then.
pub struct Reply {
    /// 0, or what errno becomes.
    pub errno: i32,
    /// Exactly as long as the argument came, or empty: nothing is copied back.
    pub data: Vec<u8>,
}

/// Told the reply, once, on any thread.
pub type Replier = Box<dyn FnOnce(Reply) + Send>;

/// The fast path of a mount.
pub struct Direct {
    fs: Arc<Fs>,
    options: DirectOptions,
    host: Result<HostEngine, String>,
    gpus: Arc<Gpus>,
    owners: Arc<Owners>,
    buffers: Arc<Buffers>,
    tokens: Arc<Tokens>,
    book: Arc<Book>,
    deadlines: Arc<Deadlines>,
    readahead: Readahead,
    sent: Arc<Sent>,
    counts: Arc<stats::Counts>,
    /// Calls that aren't answered yet, and of those registrations, each on a thread.
    calls: Arc<Shares>,
    registrations: Arc<Shares>,
    /// `kvfs_query.session`.
    session: u64,
    /// By slot.
    numa_nodes: Vec<AtomicI32>,
}

/// A call on its way through this room.
struct Asked {
    caller: Caller,
    target: Target,
    /// The length of the argument, and of the answer.
    size: usize,
    reply: Replier,
    /// The request's number, and whether a daemon before this one has read it.
    request: u64,
    again: bool,
}

impl Asked {
    fn done(self, answer: &[u8]) {
        let mut data = answer.to_vec();
        data.resize(self.size, 0);
        (self.reply)(Reply { errno: 0, data });
    }

    fn failed(self, errno: Errno) {
        (self.reply)(Reply { errno: errno.raw_os_error(), data: Vec::new() });
    }

    fn answer(self, answer: Result<impl AsRef<[u8]>, Errno>) {
        match answer {
            Ok(answer) => self.done(answer.as_ref()),
            Err(errno) => self.failed(errno),
        }
    }
}

impl Direct {
    /// The fast path to the files of `fs`.
    pub fn new(fs: Arc<Fs>, options: DirectOptions) -> io::Result<Arc<Direct>> {
        let quota = Quota { buffers: options.buffers, bytes: options.buffer_bytes };
        let buffers = Arc::new(Buffers::new(quota));
        let book = Book::of(&fs);
        let tokens = Arc::new(Tokens::new(book.clone()));
        let sent = Arc::new(Sent::default());
        let owners = Owners::start({
            let (buffers, tokens, sent) = (buffers.clone(), tokens.clone(), sent.clone());
            move |ended: &Arc<Owner>| {
                tokens.ended(ended);
                sent.ended(ended.tgid);
                let dropped = buffers.remove_all(|buffer| Arc::ptr_eq(&buffer.owner, ended));
                tracing::debug!("process {} has ended; {dropped} of its buffers are dropped", ended.tgid);
            }
        })?;
        let gpus = Gpus::new(
            GpuOptions {
                enabled: options.enabled && options.gpu,
                hipfile: options.hipfile,
                deadline: options.deadline,
                ..GpuOptions::default()
            },
            fs.lifeline.clone(),
        );
        if options.enabled {
            gpus.probe(fs.backings().iter().map(|b| (b.slot, b.path.clone())).collect());
        }
        Ok(Arc::new(Direct {
            host: HostEngine::new(fs.backings().iter().map(|b| b.slot), fs.lifeline.clone())
                .map_err(|e| format!("io_uring can't be used: {e}")),
            gpus,
            owners,
            buffers,
            tokens,
            deadlines: Deadlines::start(options.deadline)?,
            readahead: Readahead::start(fs.clone())?,
            sent,
            counts: Arc::default(),
            calls: Shares::new("calls under way", CALLS),
            registrations: Shares::new("registrations of GPU memory under way", REGISTRATIONS),
            session: book.session(buffer::random()?),
            book,
            numa_nodes: numa_nodes(&fs),
            options,
            fs,
        }))
    }

    /// Offers the socket for descriptors in the mount, as soon as that answers.
    pub fn serve_socket(&self, point: PathBuf, device: (u32, u32)) -> io::Result<()> {
        if self.options.enabled {
            socket::serve(self.fs.clone(), self.owners.clone(), self.sent.clone(), point, device)
        } else {
            Ok(())
        }
    }

    /// Answers an ioctl, now or later. `out` is how many bytes the caller takes back.
    pub fn ioctl(
        self: &Arc<Direct>,
        caller: Caller,
        target: Target,
        cmd: u32,
        data: &[u8],
        out: u32,
        reply: Replier,
    ) {
        if !self.options.enabled {
            return reply(Reply { errno: libc::ENOTTY, data: Vec::new() });
        }
        let Some(call) = self.calls.take(caller.uid) else {
            return reply(Reply { errno: libc::EBUSY, data: Vec::new() });
        };
        let counts = self.counts.clone();
        let reply: Replier = Box::new(move |r: Reply| {
            drop(call);
            if r.errno != 0 && r.errno != libc::ENOTTY {
                counts.refused();
            }
            reply(r);
        });
        let (request, again) = (supervise::unique(), supervise::is_sent_again());
        let asked = Asked { caller, target, size: data.len(), reply, request, again };
        let command = match decode(cmd, data, out) {
            Ok(command) => command,
            Err(errno) => return asked.failed(errno),
        };
        self.counts.call();
        // Who can't be seen can't own anything.
        let tgid = self.owners.process_of(caller.tid);
        let tgid = match (&command, tgid) {
            (Command::Query(query), tgid) => {
                let answer = self.query(query, &asked, tgid.unwrap_or(0));
                self.crash_point(&asked, "query after");
                return asked.answer(answer.map(|q| q.as_bytes().to_vec()));
            }
            (_, None) => return asked.failed(Errno::PERM),
            (_, Some(tgid)) => tgid,
        };
        match command {
            Command::Query(_) => {}
            Command::Register(reg) => self.register(*reg, asked, tgid),
            Command::Unregister(unreg) => self.unregister(&unreg, asked, tgid),
            Command::Transfer(op) => self.transfer(op, asked, tgid),
            Command::Submit(batch, ops) => self.submit(batch, ops, asked, tgid),
            Command::Locate => {
                let located = self.locate(&asked);
                asked.answer(located.map(|l| l.as_bytes().to_vec()));
            }
            Command::LookupPrefix(prefix, names) => {
                let answer = self.lookup_prefix(prefix, &names, &asked);
                asked
                    .answer(answer.map(|prefix| [prefix.as_bytes(), &data[size_of_val(&prefix)..]].concat()));
            }
        }
    }

    fn lookup_prefix(
        &self,
        mut prefix: abi::Prefix,
        names: &[&[u8]],
        asked: &Asked,
    ) -> Result<abi::Prefix, Errno> {
        let Target::Dir(dir) = asked.target else { return Err(Errno::NOTDIR) };
        let (found, files) = self.fs.prefix(&asked.caller, dir, names).map_err(|e| e.errno())?;
        prefix.found = found as u32;
        prefix.queued = 0;
        if prefix.flags & abi::PREFIX_READAHEAD != 0 {
            prefix.queued = self.readahead.queue(&asked.caller, files) as u32;
        }
        Ok(prefix)
    }

    /// A backing is about to join.
    pub fn backing_joins(&self, backing: &Backing) {
        if let Some(node) = self.numa_nodes.get(backing.slot.index()) {
            node.store(query::numa_node(backing.device), Relaxed);
        }
        if let Ok(host) = &self.host
            && let Err(e) = host.enter(backing.slot)
        {
            tracing::warn!("backing {}: no transfers of the fast path: {e}", backing.path.display());
        }
        if self.options.enabled {
            self.gpus.enter(backing.slot, backing.path.clone());
        }
    }

    /// A backing has left.
    pub fn backing_left(&self, slot: Slot) {
        self.gpus.leave(slot);
    }

    /// The mount has ended.
    pub fn shutdown(&self) {
        // Nobody keeps them for a daemon after this one.
        self.buffers.remove_all(|_| true);
        self.gpus.shutdown();
    }

    /// Dies here if a test asks for it, by the name of the file that an ioctl is made on; once for each.
    fn crash_point(&self, asked: &Asked, point: &str) {
        if cfg!(feature = "fault-points")
            && let Target::File(fh) = asked.target
            && let Ok(path) = self.fs.pin(fh).and_then(|file| file.backing_path())
            && (!asked.again || path.ends_with(b"@deadly@"))
        {
            crate::fs::crash_point(point, &path);
        }
    }

    /// A handle is about to be released: what was bound to it goes.
    pub fn released(&self, fh: u64) {
        if self.gpus.has_workers()
            && let Some(serial) = self.fs.last_open(fh)
        {
            self.gpus.forget(serial);
        }
        self.tokens.closed(fh);
        self.buffers.closed(fh);
    }

    /// Transfers that haven't been answered.
    pub fn in_flight(&self) -> u64 {
        self.deadlines.count()
    }

    /// What there is and what was done.
    pub fn status(&self) -> DirectStatus {
        let (buffers, buffer_bytes) = self.buffers.count();
        DirectStatus {
            on: self.options.enabled,
            host: self.host.as_ref().map_or_else(String::clone, |_| "uring_host".into()),
            buffers,
            buffer_bytes,
            in_flight: self.deadlines.count(),
            fd_socket: self.sent.is_bound(),
            counts: self.counts.read(),
            gpu: self.gpus.status(),
        }
    }
}

/// The NUMA nodes of the backings' drives, by slot, with room for those that join.
fn numa_nodes(fs: &Fs) -> Vec<AtomicI32> {
    let nodes: Vec<_> = (0..MAX_BACKINGS).map(|_| AtomicI32::new(-1)).collect();
    for backing in fs.backings().iter() {
        nodes[backing.slot.index()].store(query::numa_node(backing.device), Relaxed);
    }
    nodes
}
