//! `Fs` itself, with what no kernel would send it: names with slashes and zeros, nodes that never were, handles that
//! were closed, in any order. It doesn't panic, it makes nothing outside of its backings, and afterwards the
//! tree that it tells of is the one on the backings.
//!
//! `PROPTEST_CASES` lets it run for longer.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use kvfs::backing::{self, Defaults, MARKER, MinFree, Spec};
use kvfs::fs::{Caller, Fs, Options, RenameMode, SetAttr, Whence};
use kvfs::index::{Kind, NodeId};
use kvfs::io::Engine;
use kvfs::placement::Policies;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::io::Errno;

use super::canary::Canary;

static ENGINE: LazyLock<Arc<dyn Engine>> =
    LazyLock::new(|| kvfs::io::engine(1, &kvfs::supervise::Lifeline::default()).unwrap().0);

/// Which node or handle is meant: one of those that were told, or any number.
type Which = prop::sample::Index;

#[derive(Clone, Debug)]
enum Node {
    Told(Which),
    Any(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Lookup(Node, Vec<u8>),
    Forget(Node),
    Getattr(Node),
    Setattr(Node, SetAttr),
    Readlink(Node),
    Mknod(Node, Vec<u8>, u32, u32),
    Mkdir(Node, Vec<u8>, u32),
    Symlink(Node, Vec<u8>, Vec<u8>),
    Link(Node, Node, Vec<u8>),
    Rename(Node, Vec<u8>, Node, Vec<u8>, RenameMode),
    Unlink(Node, Vec<u8>),
    Rmdir(Node, Vec<u8>),
    Create(Node, Vec<u8>, u32, i32),
    Open(Node, i32),
    Release(Which, u64),
    Handle(Which, u64, i64),
    Readdir(Node, u64),
    SetXattr(Node, Vec<u8>, usize, i32),
    Xattr(Node, Vec<u8>),
}

fn node() -> impl Strategy<Value = Node> {
    let number = prop_oneof![
        any::<u64>(),
        0u64..40,
        (0u64..5, 0u64..1 << 22).prop_map(|(slot, ino)| slot << 48 | ino),
        Just(0xffff << 48 | 1),
        Just(0xfffe << 48 | 1),
    ];
    prop_oneof![9 => any::<Which>().prop_map(Node::Told), 1 => number.prop_map(Node::Any)]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|s: &str| s.as_bytes().to_vec());
    let odd = prop::sample::select(vec![
        "",
        ".",
        "..",
        "../canary",
        "../../canary",
        "canary",
        "/",
        "a/b",
        "a/../../canary/passwd",
        "/etc/passwd",
        "a\0b",
        "\0",
        "a\0/../../canary",
        ".kvfs-backing",
        ".kvfs-",
        ".kvfs-socket",
        ".kvfs-job",
        "link",
        "link/passwd",
    ])
    .prop_map(|s: &str| s.as_bytes().to_vec());
    prop_oneof![6 => few, 3 => odd, 1 => vec(any::<u8>(), 0..300)]
}

fn attribute() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::sample::select(vec![
        "user.a",
        "trusted.a",
        "security.a",
        "system.posix_acl_access",
        "user.kvfs.creator",
        "user.kvfs.path",
        "",
        "user.kvfs.quota",
        "user.kvfs.placement",
        "user.kvfs.backings",
        "btrfs.compression",
        "system.x",
        "user.",
        "a\0b",
    ])
    .prop_map(|s: &str| s.as_bytes().to_vec());
    prop_oneof![3 => few, 1 => vec(any::<u8>(), 0..300)]
}

fn set() -> impl Strategy<Value = SetAttr> {
    let small = prop::option::of(0u32..3);
    let size = prop::option::of(prop_oneof![0u64..10_000, any::<u64>()]);
    (prop::option::of(any::<u32>()), small.clone(), small, size).prop_map(|(mode, uid, gid, size)| SetAttr {
        mode,
        uid,
        gid,
        size,
        ..SetAttr::default()
    })
}

fn op() -> impl Strategy<Value = Op> {
    let mode = || any::<u32>();
    let flags = || {
        prop_oneof![
            Just(libc::O_RDONLY),
            Just(libc::O_RDWR),
            Just(libc::O_RDWR | libc::O_TRUNC),
            any::<i32>().prop_map(|f| f & !libc::O_DIRECT)
        ]
    };
    let how = prop::sample::select(vec![RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
    // Kinds without device nodes, which root could make.
    let kinds =
        prop::sample::select(vec![libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFDIR, 0, 0o170_000]);
    prop_oneof![
        4 => (node(), name()).prop_map(|(n, s)| Op::Lookup(n, s)),
        1 => node().prop_map(Op::Forget),
        1 => node().prop_map(Op::Getattr),
        1 => (node(), set()).prop_map(|(n, s)| Op::Setattr(n, s)),
        1 => node().prop_map(Op::Readlink),
        1 => (node(), name(), kinds, any::<u32>()).prop_map(|(n, s, k, d)| Op::Mknod(n, s, k | 0o644, d)),
        3 => (node(), name(), mode()).prop_map(|(n, s, m)| Op::Mkdir(n, s, m)),
        2 => (node(), name(), name()).prop_map(|(n, s, t)| Op::Symlink(n, s, t)),
        2 => (node(), node(), name()).prop_map(|(n, d, s)| Op::Link(n, d, s)),
        3 => (node(), name(), node(), name(), how).prop_map(|(n, s, d, t, h)| Op::Rename(n, s, d, t, h)),
        2 => (node(), name()).prop_map(|(n, s)| Op::Unlink(n, s)),
        1 => (node(), name()).prop_map(|(n, s)| Op::Rmdir(n, s)),
        4 => (node(), name(), mode(), flags()).prop_map(|(n, s, m, f)| Op::Create(n, s, m, f)),
        2 => (node(), flags()).prop_map(|(n, f)| Op::Open(n, f)),
        1 => (any::<Which>(), any::<u64>()).prop_map(|(w, n)| Op::Release(w, n)),
        2 => (any::<Which>(), any::<u64>(), any::<i64>()).prop_map(|(w, n, at)| Op::Handle(w, n, at)),
        1 => (node(), prop_oneof![Just(0u64), any::<u64>()]).prop_map(|(n, at)| Op::Readdir(n, at)),
        2 => (node(), attribute(), 0usize..70_000, any::<i32>()).prop_map(|(n, a, s, f)| Op::SetXattr(n, a, s, f)),
        1 => (node(), attribute()).prop_map(|(n, a)| Op::Xattr(n, a)),
    ]
}

struct Place {
    root: PathBuf,
    dirs: Vec<PathBuf>,
    point: PathBuf,
    _temp: tempfile::TempDir,
}

fn place() -> Place {
    kvfs::fs::prepare_process();
    let temp = tempfile::Builder::new().prefix("kvfs-test-").tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let dirs: Vec<PathBuf> = (0..2).map(|n| root.join(format!("in/b{n}"))).collect();
    let point = root.join("mnt");
    dirs.iter().chain([&point]).for_each(|dir| std::fs::create_dir_all(dir).unwrap());
    Place { root, dirs, point, _temp: temp }
}

fn filesystem(place: &Place) -> Fs {
    let specs: Vec<Spec> = place.dirs.iter().cloned().map(Spec::from).collect();
    let defaults = Defaults { min_free: MinFree::Bytes(0), ..Defaults::default() };
    let (backings, made) = backing::prepare(&specs, &place.point, defaults).unwrap();
    made.keep();
    let some = 4.try_into().unwrap();
    let options = Options {
        on_close: true,
        exclusive: false,
        shared_ttl: Default::default(),
        policies: Policies::new("hash", Default::default()).unwrap(),
        retention: Default::default(),
        open_dirs: some,
        idle_files: some,
        open_files: 32.try_into().unwrap(),
        survival: Default::default(),
    };
    Fs::new(backings, options, ENGINE.clone(), |_| {}).unwrap()
}

struct Run<'a> {
    fs: &'a Fs,
    nodes: Vec<NodeId>,
    handles: Vec<u64>,
}

impl Run<'_> {
    fn node(&self, node: &Node) -> NodeId {
        match node {
            Node::Told(which) => *which.get(&self.nodes),
            Node::Any(number) => NodeId(*number),
        }
    }

    fn handle(&self, which: &Which, other: u64) -> u64 {
        if self.handles.is_empty() { other } else { *which.get(&self.handles) }
    }

    /// Does it; the errno that came of it. What was told is kept, also after it has gone.
    fn step(&mut self, op: &Op) -> Option<Errno> {
        let fs = self.fs;
        let who = Caller { uid: 0, gid: 0, tid: 0 };
        let mut told = Vec::new();
        let result = match op {
            Op::Lookup(n, name) => fs.lookup_for(0, self.node(n), name).map(|attr| told.push(attr.node)),
            Op::Forget(n) => {
                fs.forget(self.node(n), 1);
                Ok(())
            }
            Op::Getattr(n) => fs.getattr(self.node(n)).map(drop),
            // What would fill the drive is left out.
            Op::Setattr(n, set) => {
                let size = set.size.filter(|size| *size < 1 << 20 || *size > 1 << 62);
                fs.setattr(self.node(n), &SetAttr { size, ..*set }).map(drop)
            }
            Op::Readlink(n) => fs.readlink(self.node(n)).map(drop),
            Op::Mknod(n, name, mode, dev) => {
                fs.mknod(&who, self.node(n), name, *mode, *dev).map(|attr| told.push(attr.node))
            }
            Op::Mkdir(n, name, mode) => {
                fs.mkdir(&who, self.node(n), name, *mode).map(|attr| told.push(attr.node))
            }
            Op::Symlink(n, name, to) => {
                fs.symlink(&who, self.node(n), name, to).map(|attr| told.push(attr.node))
            }
            Op::Link(n, dir, name) => fs.link(self.node(n), self.node(dir), name).map(drop),
            Op::Rename(n, name, dir, to, how) => fs.rename(self.node(n), name, self.node(dir), to, *how),
            Op::Unlink(n, name) => fs.unlink(self.node(n), name),
            Op::Rmdir(n, name) => fs.rmdir(self.node(n), name),
            Op::Create(n, name, mode, flags) => {
                fs.create(&who, self.node(n), name, *mode, *flags).map(|(attr, opened)| {
                    told.push(attr.node);
                    self.handles.push(opened.fh);
                })
            }
            Op::Open(n, flags) => {
                fs.open(&who, self.node(n), *flags).map(|opened| self.handles.push(opened.fh))
            }
            Op::Release(which, other) => {
                fs.release(self.handle(which, *other));
                Ok(())
            }
            Op::Handle(which, other, at) => {
                let fh = self.handle(which, *other);
                let (small, at) = (at.unsigned_abs() % 8192, at.cast_unsigned());
                fs.read(fh, at, 4096, Box::new(|_| {}));
                fs.write(fh, small, kvfs::io::Payload::copied(b"some bytes"), Box::new(|_| {}));
                let _ = (fs.lseek(fh, at, Whence::Data), fs.lseek(fh, at, Whence::Hole));
                let _ = (fs.fallocate(fh, small, 4096, 0), fs.fallocate(fh, at, at, -1));
                let _ = fs.copy_file_range((fh, 0), (fh.wrapping_add(1), small), 4096);
                fs.fsync(fh, true)
            }
            Op::Readdir(n, at) => {
                let mut shown = Vec::new();
                let listed = fs.readdir_for(who.tid, (self.node(n), *at), *at, |entry| {
                    shown.push(entry.name.to_vec());
                    false
                });
                assert!(!shown.iter().any(|name| name.starts_with(b".kvfs-")));
                let _ = fs.readdirplus_for(who.tid, (self.node(n), *at), *at, |_| false);
                let _ = (fs.opendir(self.node(n)), fs.fsyncdir(self.node(n)));
                fs.releasedir(self.node(n), *at);
                listed.map(drop)
            }
            Op::SetXattr(n, name, size, flags) => {
                let set = fs.setxattr(&who, self.node(n), name, &vec![b'x'; *size], *flags);
                let ours = name.starts_with(b"user.kvfs.")
                    && !name.ends_with(b"quota")
                    && !name.ends_with(b"placement");
                assert!(set.is_err() || !ours, "kvfs's own attribute was set");
                set
            }
            Op::Xattr(n, name) => {
                let _ = fs.getxattr(self.node(n), name);
                let _ = fs.removexattr(&who, self.node(n), name);
                fs.listxattr(&who, self.node(n)).map(drop)
            }
        };
        self.nodes.extend(told);
        result.err().map(kvfs::fs::Error::errno)
    }
}

/// All paths below the root as the filesystem tells them.
fn tree(fs: &Fs) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut todo = vec![(NodeId::ROOT, PathBuf::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut listed = Vec::new();
        fs.readdir_for(0, (dir, 0), 0, |e| {
            if e.name != b"." && e.name != b".." {
                listed.push((e.node, e.kind, path.join(std::ffi::OsStr::from_bytes(e.name))));
            }
            false
        })
        .unwrap();
        for (node, kind, path) in listed {
            if kind == Kind::Dir {
                todo.push((node, path.clone()));
            }
            all.insert(path);
        }
    }
    all
}

/// The same of the backings, without kvfs's own names.
fn on_disk(dirs: &[PathBuf]) -> BTreeSet<PathBuf> {
    let is_ours =
        |path: &Path| path.components().any(|part| part.as_os_str().as_bytes().starts_with(b".kvfs-"));
    let below = |dir: &PathBuf| {
        let all = crate::common::lab::everything(dir).into_iter();
        let dir = dir.clone();
        all.map(move |path| path.strip_prefix(&dir).unwrap().to_owned()).filter(move |path| !is_ours(path))
    };
    dirs.iter().flat_map(below).collect()
}

#[test]
fn nothing_that_a_filesystem_is_asked_gets_out_of_it_or_brings_it_down() {
    let place = place();
    let canary = Canary::new(place.root.join("canary"), &["passwd", "a", "b"]);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let beside = || {
        let names = |dir: &str| crate::common::lab::names(&place.root.join(dir));
        (names(""), names("in"), std::fs::read_dir(&place.point).unwrap().count())
    };
    let markers = || place.dirs.iter().map(|dir| std::fs::read(dir.join(MARKER)).ok()).collect::<Vec<_>>();
    drop(filesystem(&place));
    let before = (beside(), markers());
    let tried = TestRunner::new(config).run(&vec(op(), 1..80), |ops| {
        // What an earlier case has left goes, also of one that failed.
        for dir in &place.dirs {
            for entry in
                std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|e| e.file_name() != MARKER)
            {
                let path = entry.path();
                let is_dir = entry.file_type().unwrap().is_dir();
                if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.unwrap();
            }
            std::os::unix::fs::symlink(&canary.root, dir.join("link")).unwrap();
        }
        let fs = filesystem(&place);
        let mut run = Run { fs: &fs, nodes: vec![NodeId::ROOT], handles: Vec::new() };
        for op in &ops {
            let errno = run.step(op);
            // No answer that a client would take for a fault of the machine.
            let fault = [Errno::IO, Errno::MFILE, Errno::NOSYS, Errno::FAULT];
            let is_io = matches!(op, Op::Handle(..));
            prop_assert!(
                is_io || !errno.is_some_and(|errno| fault.contains(&errno)),
                "{:?}: {:?}",
                op,
                errno
            );
        }
        let (told, there) = (tree(&fs), on_disk(&place.dirs));
        let differ: Vec<_> = told.symmetric_difference(&there).collect();
        prop_assert!(differ.is_empty(), "told or there: {:?}", differ);
        for fh in std::mem::take(&mut run.handles) {
            fs.release(fh);
        }
        prop_assert_eq!(fs.handles_open(), 0);
        prop_assert_eq!(&(beside(), markers()), &before);
        Ok(())
    });
    if let Err(e) = tried {
        panic!("{e}");
    }
    canary.is_untouched();
}
