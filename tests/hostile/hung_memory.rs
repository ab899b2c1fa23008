//! A process whose memory is locked, because a file system hangs that it unmaps a file of: whoever asks the kernel for its
//! command line waits with it. It is served all the same, and nobody else waits.

use std::fs;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Instant;

use crate::common::process::Process;
use crate::common::{FsKind, Lab, Passthrough, ns, pattern, sys};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Maps something else over a page of a file that was written to; returns when it's written back.
fn map_over(dirty: usize) {
    let anew = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    // SAFETY: the page is a mapping of this process that nothing refers to.
    unsafe { libc::mmap(dirty as *mut libc::c_void, PAGE, libc::PROT_READ, anew, -1, 0) };
}

#[test]
fn a_client_in_it_is_served_and_room_is_made() {
    let lab = Lab::new();
    let hanging = lab.mount(&lab.dirs(1)).passthrough(Passthrough::Off).start();
    let (path, daemon) = (hanging.path("mapped"), hanging.pid());
    let volume = lab.volume(FsKind::Tmpfs, 16);
    let backing = volume.join("kv");
    fs::create_dir(&backing).unwrap();
    (0..12).for_each(|n| fs::write(backing.join(format!("old{n}")), vec![1; MIB]).unwrap());
    let mount = lab.mount(&[backing]).at(lab.dir("other")).arg("--evict=lru").arg("--min-free=1M").start();
    let new: Vec<_> = (0..8).map(|n| mount.path(format!("new{n}"))).collect();
    let mut client = Process::start(move |say| {
        let file = sys::create(&path).unwrap();
        sys::ftruncate(&file, PAGE as i64).unwrap();
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        // SAFETY: it's there and writable.
        unsafe { page.cast::<u8>().write(1) };
        let data = pattern(1, MIB);
        sys::signal(&sys::pidfd(daemon).unwrap(), libc::SIGSTOP).unwrap();
        let stat = format!("/proc/{daemon}/stat");
        while !fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::yield_now();
        }
        let (at, (tell, told)) = (page as usize, std::sync::mpsc::channel());
        std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            map_over(at);
        });
        let syscall = format!("/proc/self/task/{}/syscall", told.recv().unwrap());
        while !fs::read_to_string(&syscall).unwrap().starts_with(&format!("{} ", libc::SYS_mmap)) {
            std::thread::yield_now();
        }
        say(&std::process::id().to_string());
        // From here on nothing is mapped, and no memory is asked for that would have to be.
        for path in &new {
            fs::write(path, &data).unwrap();
        }
        say("served");
    });
    // The proof that it hangs: who asks for its command line doesn't come back.
    let cmdline = format!("/proc/{}/cmdline", client.hear());
    let asks = std::thread::spawn(move || fs::read(cmdline));
    assert_eq!(client.hear(), "served");
    assert!(!asks.is_finished(), "it doesn't hang");
    let deadline = Instant::now() + ns::HANG;
    assert_eq!(mount.status()["retention"]["refused"], 0);
    hanging.signal(libc::SIGCONT);
    while !asks.is_finished() {
        assert!(Instant::now() < deadline, "it goes on hanging");
        std::thread::yield_now();
    }
    client.finish();
}
