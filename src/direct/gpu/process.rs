//! One process of a worker: what it has been asked, and a thread that hears its answers.
//!
//! What always holds: everything that was asked is answered: by the process, or with an error when it dies or
//! a deadline has passed, for which it's killed. It's reaped, it alone; if it can't die, by a thread that waits
//! for nothing else.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::GpuError;
use super::job::Job;
use super::probe;
use super::probed::Found;
use super::proto::{Channel, Made, Op, Reply, Request};
use super::worker::{Counters, Start};

/// How long after its deadline an op may still be answered before the process counts as hung: long enough for
/// a transfer that was nearly done.
const GRACE: Duration = Duration::from_secs(2);
/// How long the process may take to end when it's told to.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);

/// Why a process is gone.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    NoSuchGpu(String),
    Died(String),
}

type Register = (SyncSender<Result<Made, GpuError>>, Instant);

#[derive(Default)]
struct Asked {
    jobs: HashMap<u64, Job>,
    buffers: HashMap<u64, Register>,
    /// Set when nothing more will be answered.
    lost: Option<Lost>,
}

struct Line {
    gpu: Uuid,
    channel: Channel,
    asked: Mutex<Asked>,
    counters: Arc<Counters>,
    grace: Duration,
    /// The end is wanted.
    ending: AtomicBool,
    worked: AtomicBool,
}

/// A running process.
pub(super) struct Process {
    line: Arc<Line>,
    pid: u32,
    next: AtomicU64,
}

impl Process {
    /// Starts it. The calling thread has to live as long as it: the kernel kills it when that thread ends.
    pub(super) fn start(
        gpu: Uuid,
        start: &Start,
        found: &Found,
        counters: Arc<Counters>,
    ) -> std::io::Result<Process> {
        let (channel, theirs) = Channel::pair()?;
        let options = &start.options;
        let mut args = vec!["gpu".to_owned(), "--uuid".into(), gpu.to_string()];
        args.extend(["--ring-slots".into(), options.ring_slots.to_string()]);
        args.extend(["--slot-bytes".into(), options.slot_bytes.to_string()]);
        args.extend(["--submitters".into(), options.submitters.to_string()]);
        args.extend(found.hip.then(|| "--hip".to_owned()));
        args.extend(found.has_cufile().then(|| "--cufile".to_owned()));
        let args = args.into_iter().map(Into::into).collect();
        let mut command = start.executable.command(args);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn()?;
        // Our copy of its end.
        drop(command);
        let pid = child.id();
        if let Some(own) = start.lifeline.own() {
            channel.send(&Request::Lifeline, &[own], || true)?;
        }
        let line = Arc::new(Line {
            gpu,
            channel,
            asked: Mutex::default(),
            counters,
            grace: GRACE.min(options.deadline),
            ending: AtomicBool::new(false),
            worked: AtomicBool::new(false),
        });
        let heard = line.clone();
        let spawned =
            std::thread::Builder::new().name("kvfs-gpu-in".into()).spawn(move || heard.listen(child));
        spawned.map(|_| Process { line, pid, next: AtomicU64::new(1) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Why it's gone, if it is.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.line.asked.lock().lost.clone()
    }

    /// Whether it has ever done what it's for.
    pub(super) fn has_worked(&self) -> bool {
        self.line.worked.load(Relaxed)
    }

    /// Whether it has nothing to answer.
    pub(super) fn is_idle(&self) -> bool {
        let asked = self.line.asked.lock();
        asked.jobs.is_empty() && asked.buffers.is_empty()
    }

    /// Says whom to tell about a buffer. Before it's asked for.
    pub(super) fn expect_buffer(&self, id: u64, tell: SyncSender<Result<Made, GpuError>>, deadline: Instant) {
        let mut asked = self.line.asked.lock();
        match &asked.lost {
            None => drop(asked.buffers.insert(id, (tell, deadline))),
            Some(lost) => drop(tell.send(Err(lost.error()))),
        }
    }

    /// Keeps a job until it's answered; what is to be asked. Before it's asked.
    pub(super) fn expect_job(&self, buffer: u64, job: Job) -> Op {
        let op = Op {
            id: self.next.fetch_add(1, Relaxed),
            serial: job.serial,
            buffer,
            direction: job.direction,
            buf_off: job.buf_off,
            file_off: job.file_off,
            len: job.len,
            align: job.align,
        };
        let mut asked = self.line.asked.lock();
        if asked.lost.is_none() {
            asked.jobs.insert(op.id, job);
        } else {
            drop(asked);
            job.fail(libc::EIO);
        }
        op
    }

    /// Sends; if that can't be done, it's as good as dead.
    pub(super) fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
        let wanted = || self.line.asked.lock().lost.is_none();
        match self.line.channel.send(request, fds, wanted) {
            Ok(()) => {}
            // The listener comes to the end as well, after what the process said last: that tells more.
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(e) => self.line.give_up(Lost::Died(format!("it can't be talked to: {e}"))),
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.line.ending.store(true, Relaxed);
        self.line.give_up(Lost::Died("it was ended".into()));
    }
}

impl Lost {
    fn error(&self) -> GpuError {
        match self {
            Lost::NoSuchGpu(_) => GpuError::NoSuchGpu,
            Lost::Died(message) => GpuError::Worker(message.clone()),
        }
    }
}

impl Line {
    /// Hears the process until it's gone, and reaps it.
    fn listen(&self, mut child: Child) {
        let mut looked = Instant::now();
        loop {
            if self.channel.wait(TICK) {
                match self.channel.receive::<Reply>() {
                    Ok(Some((reply, _))) => self.heard(reply),
                    Ok(None) => break,
                    Err(e) => {
                        self.give_up(Lost::Died(format!("it can't be understood: {e}")));
                        break;
                    }
                }
            }
            // Also while it answers other things.
            if looked.elapsed() < TICK {
                continue;
            }
            looked = Instant::now();
            if self.asked.lock().lost.is_some() {
                break;
            }
            if let Some(what) = self.overdue() {
                self.give_up(Lost::Died(format!("{what} took too long")));
                break;
            }
        }
        // It has closed its end, or is to.
        let until = Instant::now() + FAREWELL;
        let waiting = || self.ending.load(Relaxed) || self.asked.lock().lost.is_none();
        let how = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status.to_string(),
                Ok(None) if Instant::now() < until && waiting() => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                _ => break "it was killed".into(),
            }
        };
        // Everybody is answered before it's reaped: it may never die.
        self.give_up(Lost::Died(how));
        probe::end(child);
    }

    /// What should have been answered long ago.
    fn overdue(&self) -> Option<&'static str> {
        let now = Instant::now();
        let asked = self.asked.lock();
        let over = |deadline: Instant| now > deadline + self.grace;
        if asked.jobs.values().any(|job| over(job.deadline)) {
            return Some("a transfer");
        }
        asked.buffers.values().any(|(_, deadline)| over(*deadline)).then_some("a registration")
    }

    fn heard(&self, reply: Reply) {
        match reply {
            Reply::Ready => tracing::debug!("the worker of GPU {} is ready", self.gpu),
            Reply::NoGpu { missing, message } => {
                self.give_up(if missing { Lost::NoSuchGpu(message) } else { Lost::Died(message) });
            }
            Reply::Buffer { id, outcome } => {
                self.worked.fetch_or(outcome.is_ok(), Relaxed);
                let outcome = outcome.map_err(GpuError::Refused);
                let asked = self.asked.lock().buffers.remove(&id);
                match (asked, outcome) {
                    (Some((tell, _)), outcome) => drop(tell.send(outcome)),
                    (None, Err(e)) => tracing::warn!("GPU {}: a buffer can't be shared again: {e}", self.gpu),
                    (None, Ok(_)) => {}
                }
            }
            Reply::Done { id, result, path } => {
                let job = self.asked.lock().jobs.remove(&id);
                self.counters.ops.fetch_add(1, Relaxed);
                self.counters.bytes.fetch_add(u64::try_from(result).unwrap_or(0), Relaxed);
                if let Some(job) = job {
                    job.end(result, path);
                }
            }
            Reply::Note(text) => tracing::warn!("the worker of GPU {}: {text}", self.gpu),
            Reply::Fault(text) => self.give_up(Lost::Died(text)),
        }
    }

    /// Answers everything with an error, and lets nothing more be asked. The first reason counts.
    fn give_up(&self, lost: Lost) {
        let (jobs, buffers, lost) = {
            let mut asked = self.asked.lock();
            let lost = asked.lost.get_or_insert(lost).clone();
            (std::mem::take(&mut asked.jobs), std::mem::take(&mut asked.buffers), lost)
        };
        // The listener, and whoever waits for room to send, see it at once.
        self.channel.shut();
        for (tell, _) in buffers.into_values() {
            let _ = tell.send(Err(lost.error()));
        }
        for job in jobs.into_values() {
            job.fail(libc::EIO);
        }
    }
}
