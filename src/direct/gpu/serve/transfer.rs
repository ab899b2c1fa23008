//! A submitter: a thread that moves one part after another, with a stream, a slot of the ring and pinned host
//! memory of its own.
//!
//! What always holds: a part is answered when its bytes are where they belong: the stream is waited for. cuFile
//! gets whole blocks only; what is left of a block goes through host memory and the page cache.

use std::ptr::NonNull;
use std::sync::Arc;

use super::disk::{DEPTH, Disk, Request};
use super::queue::Part;
use super::{Ring, Worker};
use crate::direct::abi::Path;
use crate::direct::engine::Direction;
use crate::direct::gpu::cufile::{ALIGN, Cufile, FileHandle};
use crate::direct::gpu::device::{Address, Device, Fault, Stream};

/// Of pinned host memory in one piece, in bytes: large enough for a drive's full rate, small enough that its
/// copy to the GPU is short beside the next read.
const PIECE: usize = 4 << 20;

/// What kept a part from moving.
enum Failure {
    /// An errno or cuFile's code.
    Code(i32),
    Device(Fault),
}

impl From<i32> for Failure {
    fn from(code: i32) -> Failure {
        Failure::Code(code)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Device(fault)
    }
}

/// Host memory of `DEPTH` pieces, kept until the process ends.
#[derive(Clone, Copy)]
struct Host {
    start: NonNull<u8>,
    piece: usize,
}

impl Host {
    fn new(device: &dyn Device, piece: usize) -> Result<Host, Failure> {
        let bytes = piece * DEPTH;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        };
        let start = start.map_err(|e| e.raw_os_error())?;
        let start = NonNull::new(start.cast()).ok_or(libc::ENOMEM)?;
        // Without it copies only take longer; a limit on locked memory may forbid it.
        let _ = device.pin(start.as_ptr(), bytes);
        Ok(Host { start, piece })
    }

    fn piece(&self, number: usize) -> *mut u8 {
        // SAFETY: within the mapping.
        unsafe { self.start.as_ptr().add(self.piece * (number % DEPTH)) }
    }
}

/// One of the threads that move bytes.
pub(super) struct Submitter {
    worker: Arc<Worker>,
    number: usize,
    disk: Disk,
}

/// What a submitter has on the GPU.
struct Lane<'w> {
    device: &'w dyn Device,
    stream: Stream,
    host: Host,
}

impl Submitter {
    pub(super) fn new(worker: Arc<Worker>, number: usize) -> Submitter {
        Submitter { worker, number, disk: Disk::new() }
    }

    /// Moves parts until the process ends.
    pub(super) fn run(mut self) {
        let worker = self.worker.clone();
        let mut lane = None;
        loop {
            let part = worker.queue.next();
            if lane.is_none() {
                // It came before the first op.
                self.disk.hold(worker.lifeline.get());
            }
            let mut move_it = || self.transfer(&mut lane, &*worker.device, &part);
            let (result, path) = match part.direction {
                Direction::Read => move_it(),
                Direction::Write => part.file.writing(part.aligned, move_it),
            };
            match result {
                Ok(moved) => part.end(Ok(moved), path),
                Err(Failure::Code(code)) => part.end(Err(code), path),
                // First of all the daemon has to hear that nothing more can be asked here.
                Err(Failure::Device(fault)) if fault.is_sticky() => worker.lost(fault.to_string()),
                Err(Failure::Device(fault)) => {
                    part.end(Err(libc::EIO), path);
                    worker.note(format!("GPU {}: {fault}", worker.setup.gpu));
                }
            }
        }
    }

    /// Moves a part; says how.
    fn transfer<'w>(
        &mut self,
        lane: &mut Option<Lane<'w>>,
        device: &'w dyn Device,
        part: &Part,
    ) -> (Result<usize, Failure>, Path) {
        let lane = match lane {
            Some(lane) => lane,
            None => match Lane::new(device, self.worker.setup.slot_bytes) {
                Ok(new) => lane.insert(new),
                Err(failure) => return (Err(failure), Path::None),
            },
        };
        if part.aligned
            && let Some((ring, file)) = self.cufile(part)
        {
            let hip = self.worker.setup.hip;
            return match part.buffer.registered {
                Some(cufile) if (part.at - part.buffer.at).is_multiple_of(ALIGN) => {
                    let moved = direct(cufile, file, part).map_err(Failure::Code);
                    (moved, if hip { Path::Hipfile } else { Path::CufileDirect })
                }
                _ => {
                    let moved = self.staged(lane, ring, file, part);
                    (moved, if hip { Path::Hipfile } else { Path::CufileStaged })
                }
            };
        }
        let moved = match part.direction {
            Direction::Read => self.read(lane, part),
            Direction::Write => self.write(lane, part),
        };
        if moved.is_err() {
            // The kernel and the GPU may still be at our memory.
            self.disk.drain();
            let _ = device.sync(lane.stream);
        }
        // The ends of an op that went by cuFile don't make it another path.
        let path = if part.aligned || part.is_alone() || self.cufile(part).is_none() {
            Path::Bounce
        } else {
            Path::None
        };
        (moved, path)
    }

    /// What cuFile needs for a part, if it can have it.
    fn cufile(&self, part: &Part) -> Option<(&'static Ring, FileHandle)> {
        let ring = || self.worker.ring().ok();
        let file = part.file.handle(
            || ring().map(|ring| &ring.cufile),
            |e| self.worker.note(format!("a file goes without cuFile: {e}")),
        )?;
        Some((ring()?, file))
    }

    /// cuFile to and from the ring, and a copy within the GPU.
    fn staged(&self, lane: &Lane<'_>, ring: &Ring, file: FileHandle, part: &Part) -> Result<usize, Failure> {
        let offset = (self.number * self.worker.setup.slot_bytes) as u64;
        let slot: Address = ring.base + offset;
        let by_cufile = || {
            all(part.len, |done| {
                let (len, file_off) = (part.len - done, part.file_off + done as u64);
                ring.cufile.transfer(part.direction, file, ring.base, offset + done as u64, len, file_off)
            })
        };
        match part.direction {
            Direction::Read => {
                let moved = by_cufile()?;
                if moved > 0 {
                    lane.device.within(part.at, slot, moved, lane.stream)?;
                    lane.device.sync(lane.stream)?;
                }
                Ok(moved)
            }
            Direction::Write => {
                lane.device.within(slot, part.at, part.len, lane.stream)?;
                lane.device.sync(lane.stream)?;
                Ok(by_cufile()?)
            }
        }
    }

    /// From the file into host memory, piece by piece; each is copied to the GPU while the next one is read.
    fn read(&mut self, lane: &Lane<'_>, part: &Part) -> Result<usize, Failure> {
        let pieces = lane.pieces(part);
        let mut moved = 0;
        // SAFETY: here and below, a piece of host memory has one user at a time: it's read into again only
        // after the stream with its copy was waited for; and nobody returns from here with a read under way.
        unsafe { self.disk.start(0, &pieces[0]) };
        for (n, piece) in pieces.iter().enumerate() {
            // SAFETY: see above.
            let got = unsafe { self.disk.finish(n % DEPTH, piece) }?;
            // The copy of the piece before, whose memory the next read takes.
            lane.device.sync(lane.stream)?;
            let next = pieces.get(n + 1).filter(|_| got == piece.len);
            if let Some(next) = next {
                // SAFETY: see above.
                unsafe { self.disk.start((n + 1) % DEPTH, next) };
            }
            if got > 0 {
                let to = part.at + (n * lane.host.piece) as u64;
                // SAFETY: see above.
                unsafe { lane.device.to_device(to, piece.memory, got, lane.stream) }?;
            }
            moved += got;
            if next.is_none() {
                break;
            }
        }
        lane.device.sync(lane.stream)?;
        Ok(moved)
    }

    /// From the GPU into host memory, piece by piece; each is written while the next one is copied.
    fn write(&mut self, lane: &Lane<'_>, part: &Part) -> Result<usize, Failure> {
        let pieces = lane.pieces(part);
        let mut moved = 0;
        for (n, piece) in pieces.iter().enumerate() {
            if let Some(before) = n.checked_sub(DEPTH) {
                // SAFETY: it was started with this request.
                moved += unsafe { self.disk.finish(n % DEPTH, &pieces[before]) }?;
            }
            let from = part.at + (n * lane.host.piece) as u64;
            // SAFETY: the write that had this memory was waited for, and the copy is waited for at once.
            unsafe { lane.device.to_host(piece.memory, from, piece.len, lane.stream) }?;
            lane.device.sync(lane.stream)?;
            // SAFETY: the memory is the write's until it was waited for, which is before anyone returns.
            unsafe { self.disk.start(n % DEPTH, piece) };
        }
        for (n, piece) in pieces.iter().enumerate().skip(pieces.len().saturating_sub(DEPTH)) {
            // SAFETY: it was started with this request.
            moved += unsafe { self.disk.finish(n % DEPTH, piece) }?;
        }
        Ok(moved)
    }
}

impl<'w> Lane<'w> {
    fn new(device: &'w dyn Device, slot_bytes: usize) -> Result<Lane<'w>, Failure> {
        device.bind()?;
        let host = Host::new(device, PIECE.min(slot_bytes))?;
        Ok(Lane { device, stream: device.stream()?, host })
    }

    /// A part as transfers between its file and our host memory.
    fn pieces<'p>(&self, part: &'p Part) -> Vec<Request<'p>> {
        let fd = match part.file.direct() {
            Some(direct) if part.aligned => direct,
            _ => part.file.buffered(),
        };
        let piece = |n: usize| {
            let at = n * self.host.piece;
            let len = self.host.piece.min(part.len - at);
            let memory = self.host.piece(n);
            Request { fd, direction: part.direction, memory, len, offset: part.file_off + at as u64 }
        };
        (0..part.len.div_ceil(self.host.piece)).map(piece).collect()
    }
}

/// cuFile straight to and from the buffer.
fn direct(cufile: &Cufile, file: FileHandle, part: &Part) -> Result<usize, i32> {
    let (base, offset) = (part.buffer.at, part.at - part.buffer.at);
    all(part.len, |done| {
        let (offset, len, file_off) = (offset + done as u64, part.len - done, part.file_off + done as u64);
        cufile.transfer(part.direction, file, base, offset, len, file_off)
    })
}

/// Calls for the rest until there is none, or the file ends.
fn all(len: usize, mut rest: impl FnMut(usize) -> Result<usize, i32>) -> Result<usize, i32> {
    let mut done = 0;
    while done < len {
        match rest(done)? {
            0 => break,
            n => done += n,
        }
        // Not whole blocks: that was the file's last.
        if !(done as u64).is_multiple_of(ALIGN) {
            break;
        }
    }
    Ok(done.min(len))
}
