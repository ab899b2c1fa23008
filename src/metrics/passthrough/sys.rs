//! bpf(2): the three of its commands that are needed, and the memory that a program and this process share.
//!
//! What always holds: a descriptor that the kernel has given is owned from then on and closed at an exec; the table's
//! memory is there as long as [`Table`] is, also when the descriptors are closed and bpf(2) is forbidden.
//!
//! Numbers and structures are those of `include/uapi/linux/bpf.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const MAP_CREATE: i64 = 0;
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_TRACING: u32 = 26;

/// What the verifier may say: it keeps the end of a longer one.
const LOG_BYTES: u32 = 1 << 16;

/// Where in a function a program runs (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// As it's called.
    Called = 24,
    /// As it returns.
    Returned = 25,
}

#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ProgAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Why a program wasn't loaded.
pub(super) struct NotLoaded {
    pub(super) error: io::Error,
    /// The last thing that the verifier said about the program; empty if it said nothing.
    pub(super) verdict: String,
}

/// Loads a program that is to run when the function with this number in the kernel's BTF is called or returns.
/// `name`, of at most 15 letters, is what `bpftool prog` shows.
pub(super) fn load(code: &[u64], name: &str, when: When, function: u32) -> Result<OwnedFd, NotLoaded> {
    let attempt = |log: &mut [u8]| {
        let mut prog_name = [0; 16];
        for (to, from) in prog_name[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let attr = ProgAttr {
            prog_type: PROG_TYPE_TRACING,
            // A program has a few dozen.
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            // What the kernel's own structures may be read by. It's the licence of the program alone.
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kern_version: 0,
            prog_flags: 0,
            prog_name,
            prog_ifindex: 0,
            expected_attach_type: when as u32,
            prog_btf_fd: 0,
            func_info_rec_size: 0,
            func_info: 0,
            func_info_cnt: 0,
            line_info_rec_size: 0,
            line_info: 0,
            line_info_cnt: 0,
            attach_btf_id: function,
        };
        // SAFETY: the structure is what the command takes, and code, licence and log outlive the call.
        unsafe { bpf(PROG_LOAD, &attr) }
    };
    attempt(&mut []).or_else(|error| {
        // Once more, for what it has to say: it costs time that only an error is worth.
        let mut log = vec![0; LOG_BYTES as usize];
        attempt(&mut log).map_err(|_| NotLoaded { error, verdict: verdict(&log) })
    })
}

/// Has a program run from now on, until what is returned is closed.
pub(super) fn attach(program: &OwnedFd, when: When) -> io::Result<OwnedFd> {
    let attr =
        LinkAttr { prog_fd: number(program.as_raw_fd()), target_fd: 0, attach_type: when as u32, flags: 0 };
    // SAFETY: the structure is what the command takes; there's no pointer in it.
    unsafe { bpf(LINK_CREATE, &attr) }
}

/// The last line that isn't about the verifier's own work.
fn verdict(log: &[u8]) -> String {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let about_itself =
        |line: &&str| !line.starts_with("processed ") && !line.starts_with("verification time ");
    text.lines().map(str::trim).filter(|line| !line.is_empty()).rfind(about_itself).unwrap_or_default().into()
}

fn number(fd: RawFd) -> u32 {
    // One that is owned is never negative.
    fd.cast_unsigned()
}

/// # Safety
/// `attr` has to be what the command takes, and what it points to has to outlive the call. The command has to be one
/// that returns a new descriptor.
unsafe fn bpf<T>(command: i64, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the structure is borrowed for the whole call, with its own length; the caller vouches for the rest.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it for this call; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Memory that programs change and this process reads, all zero at first.
pub(super) struct Table {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it is atomic.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// A table of `len` bytes; and the map that programs know it by.
    pub(super) fn new(len: usize) -> io::Result<(Table, OwnedFd)> {
        let value_size = u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let attr = MapAttr {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            map_flags: MMAPABLE,
        };
        // SAFETY: the structure is what the command takes; there's no pointer in it.
        let map = unsafe { bpf(MAP_CREATE, &attr) }?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice; the map can't shrink.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, map.as_fd(), 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok((Table { start, len }, map))
    }

    /// The number of 32 bits at this offset.
    pub(super) fn u32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: inside of the mapping and aligned (asserted), and it lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The number of 64 bits at this offset.
    pub(super) fn u64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: inside of the mapping and aligned (asserted), and it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the mapping is this table's alone, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_what_was_said_last_about_the_program() {
        let log =
            b"0: (79) r6 = *(u64 *)(r1 +0)\ninvalid bpf_context access off=0 size=8\nprocessed 1 insns\n\0\0";
        assert_eq!(verdict(log), "invalid bpf_context access off=0 size=8");
        assert_eq!(verdict(&[0; 8]), "");
    }

    #[test]
    fn what_the_kernel_is_handed_is_laid_out_as_it_reads_it() {
        // offsetof(union bpf_attr, attach_btf_id), and what is before it.
        assert_eq!((std::mem::offset_of!(ProgAttr, attach_btf_id), size_of::<ProgAttr>()), (108, 112));
        assert_eq!((size_of::<MapAttr>(), size_of::<LinkAttr>()), (20, 16));
    }
}
