//! Reads and writes of a backing file for one submitter, two at a time: while one is on its way, the other's
//! bytes are copied to or from the GPU.
//!
//! What always holds: `finish` returns when the kernel is done with the memory, and not before; it returns all
//! that was asked for up to the end of the file, or an error. Where io_uring isn't to be had (a container's
//! filter refuses it), `start` does all the work.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use crate::direct::engine::Direction;
use crate::supervise::Lifeline;

/// How many can be under way.
pub(super) const DEPTH: usize = 2;

/// A transfer between a file and host memory.
#[derive(Clone, Copy)]
pub(super) struct Request<'f> {
    pub(super) fd: BorrowedFd<'f>,
    pub(super) direction: Direction,
    pub(super) memory: *mut u8,
    pub(super) len: usize,
    pub(super) offset: u64,
}

/// What moves them.
pub(super) struct Disk {
    ring: Option<IoUring>,
    under_way: [bool; DEPTH],
    /// The kernel's first answer.
    answers: [Option<i32>; DEPTH],
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk { ring: IoUring::new(DEPTH as u32).ok(), under_way: [false; DEPTH], answers: [None; DEPTH] }
    }

    /// Has its end be seen by a daemon after this process's.
    pub(super) fn hold(&self, lifeline: Option<&Lifeline>) {
        if let (Some(ring), Some(lifeline)) = (&self.ring, lifeline) {
            lifeline.hold_by(&ring.submitter());
        }
    }

    /// Starts a transfer under a number, under which none is under way.
    ///
    /// # Safety
    /// The memory is valid for the length and nobody else's, and the descriptor open, until `finish` or
    /// `drain` has returned.
    pub(super) unsafe fn start(&mut self, number: usize, request: &Request<'_>) {
        debug_assert!(!self.under_way[number]);
        self.under_way[number] = true;
        self.answers[number] = None;
        let Some(ring) = &mut self.ring else {
            // SAFETY: the caller's promise.
            self.answers[number] = Some(unsafe { once(request) });
            return;
        };
        let fd = types::Fd(request.fd.as_raw_fd());
        let len = u32::try_from(request.len).unwrap_or(u32::MAX);
        let entry = match request.direction {
            Direction::Read => opcode::Read::new(fd, request.memory, len).offset(request.offset).build(),
            Direction::Write => opcode::Write::new(fd, request.memory, len).offset(request.offset).build(),
        };
        // SAFETY: the caller's promise. There is always room: no more than the ring holds are under way.
        let pushed = unsafe { ring.submission().push(&entry.user_data(number as u64)) };
        let submitted = pushed.is_ok()
            && loop {
                match ring.submit() {
                    Ok(_) => break true,
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                    Err(_) => break false,
                }
            };
        if !submitted {
            self.answers[number] = Some(-libc::EIO);
        }
    }

    /// Waits for the transfer that was started with this request: its bytes, or an errno. No bytes if there
    /// is none under way.
    ///
    /// # Safety
    /// As for `start`.
    pub(super) unsafe fn finish(&mut self, number: usize, request: &Request<'_>) -> Result<usize, i32> {
        if !self.under_way[number] {
            return Ok(0);
        }
        let mut moved = 0;
        let mut result = self.answer(number);
        loop {
            match result {
                // The end of the file.
                0 => return Ok(moved),
                n @ 1.. => moved += n as usize,
                code if matches!(-code, libc::EINTR | libc::EAGAIN) => {}
                // A direct read goes on after its last whole block only at the end of the file.
                code if -code == libc::EINVAL && moved > 0 && request.direction == Direction::Read => {
                    return Ok(moved);
                }
                code => return Err(-code),
            }
            if moved >= request.len {
                return Ok(moved);
            }
            let rest = Request {
                // SAFETY: less than the length.
                memory: unsafe { request.memory.add(moved) },
                len: request.len - moved,
                offset: request.offset + moved as u64,
                ..*request
            };
            // SAFETY: the caller's promise.
            result = unsafe { once(&rest) };
        }
    }

    /// Waits for whatever is under way.
    pub(super) fn drain(&mut self) {
        for number in 0..DEPTH {
            if self.under_way[number] {
                self.answer(number);
            }
        }
    }

    /// The kernel's first answer to a transfer that's under way.
    fn answer(&mut self, number: usize) -> i32 {
        loop {
            if let Some(result) = self.answers[number].take() {
                self.under_way[number] = false;
                return result;
            }
            let Some(ring) = &mut self.ring else { return -libc::EIO };
            // The kernel still has the memory, so there is no way out of here but its answer.
            let _ = ring.submit_and_wait(1);
            for answer in ring.completion() {
                if let Some(first) = self.answers.get_mut(answer.user_data() as usize) {
                    *first = Some(answer.result());
                }
            }
        }
    }
}

/// One read or write: bytes or `-errno`.
///
/// # Safety
/// The memory is valid for the length and nobody else's.
unsafe fn once(request: &Request<'_>) -> i32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(request.memory, request.len) };
    let result = match request.direction {
        Direction::Read => rustix::io::pread(request.fd, bytes, request.offset),
        Direction::Write => rustix::io::pwrite(request.fd, bytes, request.offset),
    };
    result.map_or_else(|e: Errno| -e.raw_os_error(), |n| n as i32)
}
