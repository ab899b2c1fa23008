//! Random calls with random bytes for names and attributes, in the mount and beside it in a plain directory of the
//! same file system: the answers are the same, but for what kvfs says that it doesn't carry.
//!
//! `PROPTEST_CASES` lets it run for longer.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::canary::Canary;
use crate::common::{Errno, FsKind, Lab, Passthrough, R, sys};

#[path = "../direct/raw.rs"]
#[allow(dead_code)]
pub(super) mod calls;

/// A call on names of one directory.
#[derive(Clone, Debug)]
enum Call {
    Create(Vec<u8>, i32),
    Mkdir(Vec<u8>),
    Mknod(Vec<u8>, u32),
    Symlink(Vec<u8>, Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
    Rename(Vec<u8>, Vec<u8>, u32),
    Unlink(Vec<u8>),
    Rmdir(Vec<u8>),
    Stat(Vec<u8>),
    Truncate(Vec<u8>, i64),
    SetXattr(Vec<u8>, Vec<u8>, usize, i32),
    GetXattr(Vec<u8>, Vec<u8>, usize),
    RemoveXattr(Vec<u8>, Vec<u8>),
}

/// Names that meet, and names that are anything but good.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|s: &str| s.as_bytes().to_vec());
    let odd = prop::sample::select(vec![
        "",
        ".",
        "..",
        "...",
        "../canary",
        "a/../../canary",
        "/etc/passwd",
        "a/b",
        "./a",
        "a/",
        "a/.",
        ".kvfs",
        ".kvfs\n",
        "\u{7f}",
        "\u{202e}txt",
        "a\\b",
        "-rf",
        "*",
        "~",
    ])
    .prop_map(|s: &str| s.as_bytes().to_vec());
    let any = vec(1u8..=255, 1..300);
    let long =
        (250usize..260, 1u8..=255).prop_map(|(len, byte)| vec![if byte == b'/' { b'x' } else { byte }; len]);
    prop_oneof![8 => few, 2 => odd, 1 => any, 1 => long]
}

fn attribute() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::sample::select(vec!["user.a", "user.b", "trusted.a", "security.a"]);
    let few = few.prop_map(|s: &str| s.as_bytes().to_vec());
    let odd = prop::sample::select(vec!["", "user", "user.", "a", "trusted.", "nothing.a", "security."]);
    let odd = odd.prop_map(|s: &str| s.as_bytes().to_vec());
    let any = vec(1u8..=255, 1..300).prop_map(|rest| [b"user.".to_vec(), rest].concat());
    prop_oneof![6 => few, 2 => odd, 1 => any]
}

fn call() -> impl Strategy<Value = Call> {
    let size = prop_oneof![4 => 0usize..64, 1 => 65530usize..65542];
    let kinds = [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFDIR, libc::S_IFLNK, 0o170_000];
    let flags =
        [libc::O_CREAT, libc::O_CREAT | libc::O_EXCL, libc::O_TRUNC, libc::O_CREAT | libc::O_TRUNC, 0];
    prop_oneof![
        4 => (name(), prop::sample::select(flags.to_vec())).prop_map(|(n, f)| Call::Create(n, f)),
        2 => name().prop_map(Call::Mkdir),
        1 => (name(), prop::sample::select(kinds.to_vec())).prop_map(|(n, k)| Call::Mknod(n, k)),
        1 => (name(), name()).prop_map(|(n, t)| Call::Symlink(n, t)),
        2 => (name(), name()).prop_map(|(n, t)| Call::Link(n, t)),
        3 => (name(), name(), 0u32..4).prop_map(|(n, t, f)| Call::Rename(n, t, f)),
        2 => name().prop_map(Call::Unlink),
        1 => name().prop_map(Call::Rmdir),
        2 => name().prop_map(Call::Stat),
        1 => (name(), -2i64..5000).prop_map(|(n, s)| Call::Truncate(n, s)),
        3 => (name(), attribute(), size, 0i32..5).prop_map(|(n, a, s, f)| Call::SetXattr(n, a, s, f)),
        2 => (name(), attribute(), 0usize..80).prop_map(|(n, a, r)| Call::GetXattr(n, a, r)),
        1 => (name(), attribute()).prop_map(|(n, a)| Call::RemoveXattr(n, a)),
    ]
}

/// The numbers that a call gives; none of them depends on the directory.
type Said = R<Vec<i64>>;

/// A call of the C library's.
macro_rules! call {
    ($call:expr) => {{
        // SAFETY: strings that end with a zero, and buffers with their lengths, all of which outlive the call.
        Errno::result(unsafe { $call } as i64).map(|n| vec![n])
    }};
}

fn c(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap()
}

impl Call {
    /// A path that leaves the directory isn't to be tried with what changes things: both sides would.
    fn stays(&self) -> bool {
        let is_name = |name: &[u8]| !name.contains(&b'/') && name != b"..";
        match self {
            Call::Symlink(name, to) => is_name(name) && is_name(to),
            Call::Link(a, b) | Call::Rename(a, b, _) => is_name(a) && is_name(b),
            Call::Create(n, _) | Call::Mkdir(n) | Call::Mknod(n, _) | Call::Unlink(n) | Call::Rmdir(n) => {
                is_name(n)
            }
            Call::Stat(n) | Call::GetXattr(n, ..) => {
                !n.windows(2).any(|two| two == b"..") && !n.starts_with(b"/")
            }
            Call::Truncate(n, _) | Call::SetXattr(n, ..) | Call::RemoveXattr(n, _) => is_name(n),
        }
    }

    fn make(&self, dir: &OwnedFd) -> Said {
        let at = dir.as_raw_fd();
        // Attributes have no call relative to a directory.
        let path = |name: &[u8]| c(&[format!("/proc/self/fd/{at}/").as_bytes(), name].concat());
        match self {
            Call::Create(name, flags) => {
                let flags = flags | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
                let fd = call!(libc::openat(at, c(name).as_ptr(), flags, 0o640))?[0];
                call!(libc::close(fd as i32))
            }
            Call::Mkdir(name) => call!(libc::mkdirat(at, c(name).as_ptr(), 0o750)),
            Call::Mknod(name, kind) => call!(libc::mknodat(at, c(name).as_ptr(), kind | 0o640, 0)),
            Call::Symlink(name, to) => call!(libc::symlinkat(c(to).as_ptr(), at, c(name).as_ptr())),
            Call::Link(from, to) => call!(libc::linkat(at, c(from).as_ptr(), at, c(to).as_ptr(), 0)),
            Call::Rename(from, to, flags) => {
                call!(libc::renameat2(at, c(from).as_ptr(), at, c(to).as_ptr(), *flags))
            }
            Call::Unlink(name) => call!(libc::unlinkat(at, c(name).as_ptr(), 0)),
            Call::Rmdir(name) => call!(libc::unlinkat(at, c(name).as_ptr(), libc::AT_REMOVEDIR)),
            Call::Stat(name) => {
                let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                call!(libc::fstatat(at, c(name).as_ptr(), stat.as_mut_ptr(), flags))?;
                // SAFETY: the call has filled it.
                let stat = unsafe { stat.assume_init() };
                let size = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { stat.st_size };
                Ok(vec![stat.st_mode.into(), size, stat.st_nlink as i64])
            }
            Call::Truncate(name, size) => call!(libc::truncate(path(name).as_ptr(), *size)),
            Call::SetXattr(name, attribute, size, flags) => {
                let (path, attribute, value) = (path(name), c(attribute), vec![7u8; *size]);
                let value = value.as_ptr().cast();
                call!(libc::lsetxattr(path.as_ptr(), attribute.as_ptr(), value, *size, *flags))
            }
            Call::GetXattr(name, attribute, room) => {
                let (path, attribute, mut value) = (path(name), c(attribute), vec![0u8; *room]);
                let value = value.as_mut_ptr().cast();
                call!(libc::lgetxattr(path.as_ptr(), attribute.as_ptr(), value, *room))
            }
            Call::RemoveXattr(name, attribute) => {
                call!(libc::lremovexattr(path(name).as_ptr(), c(attribute).as_ptr()))
            }
        }
    }

    /// Where kvfs says something else, and why that's so.
    fn may_differ(&self, here: &Said, there: &Said) -> bool {
        match self {
            // A plain file system has room for so much beside an inode, and kvfs's own record is there too.
            Call::SetXattr(_, _, 65530.., _) => here.is_err() && there.is_err(),
            _ => false,
        }
    }
}

fn all(dir: &OwnedFd) -> Vec<(String, i64, Vec<String>)> {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut all: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let stat = sys::lstat(entry.path()).unwrap();
            let attributes = sys::listxattr(entry.path()).unwrap_or_default();
            (format!("{:?}", entry.file_name()), stat.st_mode.into(), attributes)
        })
        .collect();
    all.sort();
    all
}

#[track_caller]
fn in_step(mode: Passthrough, cases: u32) {
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Ext4, 256);
    let backings: Vec<_> = (0..2).map(|n| volume.join(format!("b{n}"))).collect();
    let canary = Canary::new(lab.path("canary"), &["passwd"]);
    let mount = lab.mount(&backings).passthrough(mode).start();
    let ops = mount.ops();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let round = std::cell::Cell::new(0);
    let tried = TestRunner::new(config).run(&vec(call(), 1..60), |steps| {
        round.set(round.get() + 1);
        let place = |root: &std::path::Path| {
            let path = root.join(format!("round{}", round.get()));
            std::fs::create_dir_all(&path).unwrap();
            sys::open(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap()
        };
        let (here, there) = (place(mount.point()), place(&volume.join("plain")));
        for step in steps.iter().filter(|step| step.stays()) {
            let (ours, plain) = (step.make(&here), step.make(&there));
            if ours != plain && !step.may_differ(&ours, &plain) {
                return Err(TestCaseError::fail(format!("{step:?}: {ours:?}, plain {plain:?}")));
            }
        }
        let (ours, plain) = (all(&here), all(&there));
        prop_assert_eq!(ours, plain);
        let _ = std::fs::remove_dir_all(mount.path(format!("round{}", round.get())));
        let _ = std::fs::remove_dir_all(volume.join(format!("plain/round{}", round.get())));
        Ok(())
    });
    if let Err(e) = tried {
        panic!("{e}\n{}", mount.story());
    }
    assert!(mount.ops() > ops + u64::from(cases), "the daemon was asked");
    drop(mount);
    canary.is_untouched();
}

#[test]
fn random_calls_are_answered_as_by_a_plain_directory() {
    in_step(Passthrough::Auto, 150);
}

#[test]
fn random_calls_are_answered_as_by_a_plain_directory_without_passthrough() {
    in_step(Passthrough::Off, 150);
}
