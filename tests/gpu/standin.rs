//! The stand-ins for the GPU's libraries, and a client that uses them as one would use a GPU. They prove the
//! protocol and the bookkeeping, and nothing about a GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;

/// The UUID of the first GPU.
pub(crate) const UUID: [u8; 16] = [0xa0; 16];

/// The libraries and their source.
const LIBRARIES: [(&str, &str); 4] = [
    ("libcuda.so.1", "libcuda.c"),
    ("libcufile.so.0", "libcufile.c"),
    ("libamdhip64.so", "libamdhip64.c"),
    ("libhipfile.so.0", "libhipfile.c"),
];

/// Where the libraries are; compiled once for each version of their source.
pub(crate) fn libraries() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/standin");
    let read = |name: &str| fs::read(source.join(name)).expect("the stand-ins' source");
    let names = LIBRARIES.map(|(_, source)| source);
    let all = [&["standin.h"], &names[..]].concat();
    let hash = xxhash_rust::xxh3::xxh3_64(&all.into_iter().flat_map(read).collect::<Vec<_>>());
    let program = std::env::current_exe().expect("this program");
    let place = program.with_file_name(format!("standin-{hash:016x}"));
    if place.exists() {
        return place;
    }
    let fresh = tempfile::tempdir_in(place.parent().expect("a folder")).expect("a folder for the stand-ins");
    for (name, source_name) in LIBRARIES {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(fresh.path().join(name));
        let status = gcc.arg(source.join(source_name)).arg("-ldl").status().expect("gcc is installed");
        assert!(status.success(), "the stand-ins don't compile");
    }
    // Another test may have been first.
    let fresh = fresh.keep();
    if fs::rename(&fresh, &place).is_err() {
        let _ = fs::remove_dir_all(fresh);
    }
    place
}

/// How often a function was called, by the log of the stand-ins.
pub(crate) fn count(calls: &str, name: &str) -> usize {
    calls.lines().filter(|line| line.split(' ').nth(1) == Some(name)).count()
}

/// What was used as the libraries forbid.
pub(crate) fn misuse(calls: &str) -> Vec<&str> {
    calls.lines().filter(|line| line.contains("MISUSE") || line.contains("TWICE")).collect()
}

/// A `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handle([u8; 64]);

/// Calls a function of the stand-in, which must succeed.
macro_rules! call {
    ($library:expr, $name:literal: fn($($arg:ident: $type:ty),*)) => {{
        // SAFETY: it's libcuda.c's signature, and pointers are to what lives through the call.
        let code = unsafe {
            $library.get::<unsafe extern "C" fn($($type),*) -> i32>($name).expect("a function")($($arg),*)
        };
        assert_eq!(code, 0, "{}", String::from_utf8_lossy($name));
    }};
}

/// GPU memory of this process, or that of another in its reach.
pub(crate) struct Client {
    library: Library,
    at: u64,
    pub(crate) len: usize,
}

impl Client {
    /// New memory with these bytes in it.
    pub(crate) fn new(content: &[u8]) -> Client {
        let mut client = Client::bare(content.len());
        let (at, len) = (&raw mut client.at, client.len);
        call!(client.library, b"cuMemAlloc_v2": fn(at: *mut u64, len: usize));
        client.put(content);
        client
    }

    /// Another process's, by its handle.
    pub(crate) fn of_handle(handle: [u8; 64], len: usize) -> Client {
        let mut client = Client::bare(len);
        let (at, handle, flags) = (&raw mut client.at, Handle(handle), 1);
        call!(client.library, b"cuIpcOpenMemHandle_v2": fn(at: *mut u64, handle: Handle, flags: u32));
        client
    }

    fn bare(len: usize) -> Client {
        // SAFETY: our own library.
        let library = unsafe { Library::new(libraries().join("libcuda.so.1")) }.expect("the stand-in");
        let context = 1;
        call!(library, b"cuCtxSetCurrent": fn(context: usize));
        Client { library, at: 0, len }
    }

    pub(crate) fn handle(&self) -> [u8; 64] {
        let mut handle = [0; 64];
        let (to, at) = (&raw mut handle, self.at);
        call!(self.library, b"cuIpcGetMemHandle": fn(to: *mut [u8; 64], at: u64));
        handle
    }

    pub(crate) fn put(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        let (at, from, len) = (self.at, bytes.as_ptr(), bytes.len());
        call!(self.library, b"cuMemcpyHtoD_v2": fn(at: u64, from: *const u8, len: usize));
    }

    pub(crate) fn get(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        let (to, at, len) = (bytes.as_mut_ptr(), self.at, self.len);
        call!(self.library, b"cuMemcpyDtoH_v2": fn(to: *mut u8, at: u64, len: usize));
        bytes
    }
}
