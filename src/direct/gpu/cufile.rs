//! cuFile, and hipFile, which is the same under another prefix: our own table of the few functions that we
//! need.
//!
//! What always holds: a missing library, a missing function or an unknown code is an error, never a panic;
//! nothing is opened where the library is known to hang; its compatibility mode, which quietly does what we
//! can do better, is off. Only whole blocks of 4096 bytes go through it: for the rest it opens the file again
//! by its path, which may be another file by then.

use std::error::Error;
use std::ffi::{c_int, c_void};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use libloading::Library;

use super::device::Address;
use crate::direct::abi::Why;
use crate::direct::engine::Direction;

/// What file offsets, lengths and addresses are multiples of, in bytes (NVIDIA's GPUDirect Storage guide).
pub(super) const ALIGN: u64 = 4096;

/// CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE of `CUFileBoolConfigParameter_t`.
const ALLOW_COMPAT: c_int = 1;
/// CU_FILE_HANDLE_TYPE_OPAQUE_FD
const OPAQUE_FD: c_int = 1;
/// The first of cuFile's own codes (CUFILEOP_BASE_ERR).
const BASE: i64 = 5000;

/// `CUfileError_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawError {
    err: c_int,
    cu_err: c_int,
}

/// `CUfileDescr_t` with a descriptor in its union.
#[repr(C)]
struct Descr {
    kind: c_int,
    fd: Fd,
    ops: *const c_void,
}

#[repr(C)]
union Fd {
    fd: c_int,
    _handle: *mut c_void,
}

type Simple = unsafe extern "C" fn() -> RawError;
type SetBool = unsafe extern "C" fn(c_int, bool) -> RawError;
type Register = unsafe extern "C" fn(*mut *mut c_void, *mut Descr) -> RawError;
type Deregister = unsafe extern "C" fn(*mut c_void);
type BufRegister = unsafe extern "C" fn(*const c_void, usize, c_int) -> RawError;
type BufDeregister = unsafe extern "C" fn(*const c_void) -> RawError;
type Move = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, i64, i64) -> isize;

/// Which library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// NVIDIA's.
    Cufile,
    /// AMD's.
    Hipfile,
}

impl Kind {
    /// What its functions begin with.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Cufile => "cuFile",
            Kind::Hipfile => "hipFile",
        }
    }

    /// Its files. Who only runs programs has the first; the other comes with the headers.
    fn names(self) -> [&'static str; 2] {
        match self {
            Kind::Cufile => ["libcufile.so.0", "libcufile.so"],
            Kind::Hipfile => ["libhipfile.so.0", "libhipfile.so"],
        }
    }
}

/// Why it can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// No library.
    #[error("{0}")]
    NoLibrary(String),
    /// A library that lacks a function.
    #[error("{0} isn't in the library")]
    NoFunction(String),
    /// It would never return.
    #[error("/proc/modules can't be read, and the library is known to hang then")]
    WouldHang,
    /// It says no.
    #[error("{call} failed with {code}")]
    Refused {
        /// The function.
        call: &'static str,
        /// Its code, or the GPU driver's behind it.
        code: i32,
    },
}

impl OpenError {
    /// The same for a client.
    pub(super) fn why(&self) -> Why {
        match self {
            OpenError::NoLibrary(_) | OpenError::NoFunction(_) => Why::NoCufile,
            OpenError::WouldHang => Why::WouldHang,
            OpenError::Refused { code, .. } => why(*code),
        }
    }
}

/// A code of cuFile for a client. What isn't cuFile's own counts as CU_FILE_INTERNAL_ERROR (5030).
pub(super) fn why(code: i32) -> Why {
    Why::Cufile(u32::try_from(code).ok().filter(|c| i64::from(*c) >= BASE).unwrap_or(5030))
}

/// The opened library. It's never closed: the process ends instead.
pub(super) struct Cufile {
    register: Register,
    deregister: Deregister,
    buf_register: BufRegister,
    buf_deregister: BufDeregister,
    read: Move,
    write: Move,
    close: Simple,
}

/// A registered file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileHandle(usize);

impl Cufile {
    /// Loads the library and opens its driver without the compatibility mode.
    pub(super) fn open(kind: Kind) -> Result<Cufile, OpenError> {
        if kind == Kind::Cufile && would_hang() {
            return Err(OpenError::WouldHang);
        }
        let library = load(kind)?;
        let get = |name: &str| symbol::<Simple>(&library, kind, name);
        let open = get("DriverOpen")?;
        // The header's name for the second is the first's; a library may lack it.
        let close = get("DriverClose_v2").or_else(|_| get("DriverClose"))?;
        let cufile = Cufile {
            register: symbol(&library, kind, "HandleRegister")?,
            deregister: symbol(&library, kind, "HandleDeregister")?,
            buf_register: symbol(&library, kind, "BufRegister")?,
            buf_deregister: symbol(&library, kind, "BufDeregister")?,
            read: symbol(&library, kind, "Read")?,
            write: symbol(&library, kind, "Write")?,
            close,
        };
        if let Ok(set) = symbol::<SetBool>(&library, kind, "SetParameterBool") {
            // SAFETY: the signature is cufile.h's. Before the driver is opened, as it asks.
            check("SetParameterBool", unsafe { set(ALLOW_COMPAT, false) })?;
        }
        // The functions are used as long as the process lives.
        std::mem::forget(library);
        // SAFETY: no arguments.
        check("DriverOpen", unsafe { open() })?;
        Ok(cufile)
    }

    /// Registers a file that's open for direct I/O.
    pub(super) fn register(&self, fd: BorrowedFd<'_>) -> Result<FileHandle, OpenError> {
        let mut handle = std::ptr::null_mut();
        let mut descr =
            Descr { kind: OPAQUE_FD, fd: Fd { _handle: std::ptr::null_mut() }, ops: std::ptr::null() };
        descr.fd.fd = fd.as_raw_fd();
        // SAFETY: both pointers are to what the call reads and fills in; the caller keeps the descriptor open.
        check("HandleRegister", unsafe { (self.register)(&mut handle, &mut descr) })?;
        Ok(FileHandle(handle as usize))
    }

    /// Takes a file out again.
    pub(super) fn deregister(&self, file: FileHandle) {
        // SAFETY: the handle came from `register`, and its owner doesn't use it any more.
        unsafe { (self.deregister)(file.0 as *mut c_void) };
    }

    /// Registers GPU memory.
    pub(super) fn register_memory(&self, at: Address, bytes: u64) -> Result<(), OpenError> {
        // SAFETY: the library checks the address itself.
        check("BufRegister", unsafe { (self.buf_register)(at as *const c_void, bytes as usize, 0) })
    }

    /// Takes GPU memory out again; before it's freed, or the kernel module may lock up.
    pub(super) fn deregister_memory(&self, at: Address) -> Result<(), OpenError> {
        // SAFETY: the library checks the address itself.
        check("BufDeregister", unsafe { (self.buf_deregister)(at as *const c_void) })
    }

    /// Moves bytes between a file and GPU memory, `offset` bytes from the registered address `at`. The error is
    /// an errno or a code of cuFile.
    pub(super) fn transfer(
        &self,
        direction: Direction,
        file: FileHandle,
        at: Address,
        offset: u64,
        len: usize,
        file_off: u64,
    ) -> Result<usize, i32> {
        debug_assert!((offset | len as u64 | file_off).is_multiple_of(ALIGN));
        let (file, at) = (file.0 as *mut c_void, at as *mut c_void);
        moved(|| match direction {
            // SAFETY: the library checks handle and address itself; the memory is GPU memory.
            Direction::Read => unsafe { (self.read)(file, at, len, file_off as i64, offset as i64) },
            // SAFETY: likewise.
            Direction::Write => unsafe { (self.write)(file, at, len, file_off as i64, offset as i64) },
        })
    }

    /// Closes the driver. Nothing may be under way.
    pub(super) fn close(&self) {
        // SAFETY: no arguments.
        unsafe { (self.close)() };
    }
}

fn load(kind: Kind) -> Result<Library, OpenError> {
    let mut first = None;
    for name in kind.names() {
        // SAFETY: the vendor's library is made to be loaded like this.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            // What dlerror(3) says is in the source.
            Err(e) => first = first.or(Some(e.source().map_or_else(|| e.to_string(), ToString::to_string))),
        }
    }
    Err(OpenError::NoLibrary(first.unwrap_or_default()))
}

fn symbol<F: Copy>(library: &Library, kind: Kind, name: &str) -> Result<F, OpenError> {
    let name = format!("{}{name}", kind.prefix());
    // SAFETY: `F` is the signature that the header has for this name.
    match unsafe { library.get::<F>(name.as_bytes()) } {
        Ok(function) => Ok(*function),
        Err(_) => Err(OpenError::NoFunction(name)),
    }
}

fn check(call: &'static str, error: RawError) -> Result<(), OpenError> {
    match error {
        RawError { err: 0, .. } => Ok(()),
        // CU_FILE_CUDA_DRIVER_ERROR says no more than the driver's own code does.
        RawError { err: 5011, cu_err } if cu_err != 0 => Err(OpenError::Refused { call, code: cu_err }),
        RawError { err, .. } => Err(OpenError::Refused { call, code: err }),
    }
}

/// What a transfer returned: bytes, or an errno or cuFile's code.
fn moved(call: impl FnOnce() -> isize) -> Result<usize, i32> {
    nix::errno::Errno::clear();
    let result = call();
    decode(result as i64, nix::errno::Errno::last_raw())
}

/// `-1` means errno, which may be a code of cuFile as well; below that it's either of them negated.
fn decode(result: i64, errno: i32) -> Result<usize, i32> {
    let code = match result {
        0.. => return Ok(result as usize),
        -1 => i64::from(errno),
        _ => result.saturating_neg(),
    };
    let known = (1..4096).contains(&code) || (BASE..BASE + 1000).contains(&code);
    Err(if known { code as i32 } else { libc::EIO })
}

/// Whether opening it would never end: releases from 1.16 on read /proc/modules in a loop that only its end
/// ends, which never comes if it can't be opened.
pub(super) fn would_hang() -> bool {
    // For tests with a library that isn't NVIDIA's.
    #[cfg(any(test, feature = "fault-points"))]
    if std::env::var_os("KVFS_FAULT_CUFILE_UNGUARDED").is_some() {
        return false;
    }
    File::open("/proc/modules").and_then(|mut f| f.read(&mut [0; 1])).is_err()
}

/// Prepares this process's environment for the library: no compatibility mode for releases that can't be told
/// by a call, and no log in the current directory. What the operator configured otherwise stays.
///
/// # Safety
/// This process has no other thread yet.
pub(super) unsafe fn prepare_environment() {
    let path = std::env::var_os("CUFILE_ENV_PATH_JSON").unwrap_or_else(|| "/etc/cufile.json".into());
    let config = configuration(&fs::read_to_string(Path::new(&path)).unwrap_or_default());
    // The library reads it by name, from this process alone: a file without a name on any disk will do. It
    // stays open if this program starts again in this process, which then finds it here.
    let file = rustix::fs::memfd_create("cufile.json", rustix::fs::MemfdFlags::empty()).map(File::from);
    if let Ok(mut file) = file
        && file.write_all(config.as_bytes()).is_ok()
    {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        std::mem::forget(file);
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var("CUFILE_ENV_PATH_JSON", path) };
    }
    if std::env::var_os("CUFILE_LOGFILE_PATH").is_none() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var("CUFILE_LOGFILE_PATH", "/dev/null") };
    }
}

/// The operator's configuration with the compatibility mode switched off. It's JSON with `//` comments.
fn configuration(text: &str) -> String {
    let uncommented: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut config =
        serde_json::from_str::<serde_json::Value>(&uncommented).unwrap_or_else(|_| serde_json::json!({}));
    if !config.is_object() {
        config = serde_json::json!({});
    }
    if !config["properties"].is_object() {
        config["properties"] = serde_json::json!({});
    }
    config["properties"]["allow_compat_mode"] = false.into();
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_decoded_however_they_are_told() {
        assert_eq!(decode(0, 0), Ok(0));
        assert_eq!(decode(1 << 24, 5), Ok(1 << 24));
        // By errno, which has been seen to hold a code of cuFile's.
        assert_eq!(decode(-1, libc::EFAULT), Err(libc::EFAULT));
        assert_eq!(decode(-1, 5019), Err(5019));
        assert_eq!(decode(-1, 0), Err(libc::EIO));
        // By the result itself.
        assert_eq!(decode(-22, 0), Err(22));
        assert_eq!(decode(-5022, 0), Err(5022));
        assert_eq!(decode(-5050, 0), Err(5050));
        assert_eq!(decode(-4500, 0), Err(libc::EIO));
        assert_eq!(decode(i64::MIN, 0), Err(libc::EIO));
    }

    #[test]
    fn the_operators_configuration_stays_but_for_the_compatibility_mode() {
        let text = "{\n  // a comment\n  \"logging\": {\"level\": \"INFO\"},\n  \"properties\": {\"allow_compat_mode\": true, \"use_pci_p2pdma\": true}\n}";
        let config: serde_json::Value = serde_json::from_str(&configuration(text)).unwrap();
        assert_eq!(config["properties"]["allow_compat_mode"], false);
        assert_eq!(config["properties"]["use_pci_p2pdma"], true);
        assert_eq!(config["logging"]["level"], "INFO");
        for broken in ["", "{", "[]", "7", "{\"properties\": 3}", "{\"a\": 1}"] {
            let config: serde_json::Value = serde_json::from_str(&configuration(broken)).unwrap();
            assert_eq!(config["properties"]["allow_compat_mode"], false, "{broken}");
        }
    }

    #[test]
    fn the_descriptor_has_the_headers_layout() {
        assert_eq!((size_of::<Descr>(), size_of::<RawError>()), (24, 8));
        assert_eq!(std::mem::offset_of!(Descr, fd), 8);
        assert_eq!(std::mem::offset_of!(Descr, ops), 16);
    }

    #[test]
    fn codes_become_reasons() {
        assert_eq!(why(5027), Why::Cufile(5027));
        assert_eq!(why(999), Why::Cufile(5030));
        assert_eq!(OpenError::WouldHang.why(), Why::WouldHang);
        assert_eq!(OpenError::NoLibrary(String::new()).why(), Why::NoCufile);
    }
}
