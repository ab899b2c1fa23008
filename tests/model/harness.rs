//! Three backings, a filesystem on them, and the model beside it: mounting, walking and comparing attributes.
//!
//! Names are looked up before anything is done to them, as the kernel does.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use kvfs::backing::{self, Defaults, MARKER, MinFree, Spec};
use kvfs::fs::{Attr, Caller, Fs, OpenDir, Options, prepare_process};
use kvfs::index::{Kind, Node, NodeId, PackedIno, Slot};
use kvfs::io::Engine;
use kvfs::placement::Policies;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::model::{Answer, Body, Ino, Model, ROOT};
use crate::ops::{BACKINGS, Op};
use rustix::io::Errno;

/// What a comparison says.
pub(crate) type Check<T = ()> = Result<T, TestCaseError>;

static ENGINE: LazyLock<Arc<dyn Engine>> =
    LazyLock::new(|| kvfs::io::engine(1, &kvfs::supervise::Lifeline::default()).unwrap().0);

/// The backings' directories, with identities that are always the same: so a name always hashes alike.
pub(crate) struct Disks {
    pub(crate) dirs: Vec<PathBuf>,
    mount_point: PathBuf,
    pub(crate) temp: TempDir,
}

impl Disks {
    pub(crate) fn new() -> Disks {
        prepare_process();
        let temp = tempfile::Builder::new().prefix("kvfs-model-").tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let dirs: Vec<PathBuf> = (0..BACKINGS).map(|n| root.join(format!("backing{n}"))).collect();
        for (n, dir) in dirs.iter().enumerate() {
            fs::create_dir(dir).unwrap();
            fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
            let id = format!("kvfs backing v1\nid=6f1d2c3b-0000-4000-8000-00000000000{n}\n");
            fs::write(dir.join(MARKER), id).unwrap();
        }
        let mount_point = root.join("mnt");
        fs::create_dir(&mount_point).unwrap();
        Disks { dirs, mount_point, temp }
    }

    /// A filesystem on the backings in this order; `tight` keeps next to nothing open.
    pub(crate) fn mount(&self, order: [usize; BACKINGS], exclusive: bool, tight: bool) -> Fs {
        let specs: Vec<Spec> = order.iter().map(|n| Spec::from(self.dirs[*n].clone())).collect();
        let defaults = Defaults { min_free: MinFree::Bytes(0), ..Defaults::default() };
        let (backings, made) = backing::prepare(&specs, &self.mount_point, defaults).unwrap();
        made.keep();
        let keep = if tight { 1 } else { 64 }.try_into().unwrap();
        let options = Options {
            on_close: true,
            exclusive,
            shared_ttl: Default::default(),
            survival: Default::default(),
            policies: Policies::new("hash", Default::default()).unwrap(),
            retention: Default::default(),
            open_dirs: keep,
            idle_files: keep,
            open_files: std::num::NonZeroUsize::new(1 << 16).unwrap(),
        };
        Fs::new(backings, options, ENGINE.clone(), |_| {}).unwrap()
    }
}

/// An open file.
#[derive(Clone, Copy)]
pub(crate) struct Handle {
    pub(crate) fh: u64,
    pub(crate) node: NodeId,
    pub(crate) ino: Ino,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

pub(crate) struct Harness {
    pub(crate) disks: Disks,
    mounted: Option<Fs>,
    pub(crate) order: [usize; BACKINGS],
    pub(crate) model: Model,
    pub(crate) handles: Vec<Handle>,
    /// What each inode was called when it was seen first: node and generation.
    nodes: HashMap<Ino, (NodeId, u64)>,
}

/// Runs the steps, and remounts at the end.
pub(crate) fn run(steps: &[Op]) -> Check {
    let mut harness = Harness::new();
    for (n, step) in steps.iter().enumerate() {
        let done = harness.step(step).and_then(|()| harness.counts());
        done.map_err(|e| TestCaseError::fail(format!("step {n}, {step:?}: {e}")))?;
    }
    let at_end = |e| TestCaseError::fail(format!("at the end: {e}"));
    harness.release_all();
    harness.verify().map_err(at_end)?;
    harness.remount([2, 0, 1], false, false, &[]).map_err(at_end)
}

/// Whoever runs this, and whether they may give files away.
pub(crate) fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

pub(crate) fn caller(other_user: bool) -> Caller {
    let (uid, gid) = if other_user && me().0 == 0 { (1000, 1001) } else { me() };
    Caller { uid, gid, tid: 0 }
}

/// Compares the two sides' answers.
pub(crate) fn same<T, U>(got: kvfs::fs::Result<T>, want: Answer<U>) -> Check<Option<(T, U)>> {
    match (got, want) {
        (Ok(got), Ok(want)) => Ok(Some((got, want))),
        (Err(got), Err(want)) => {
            prop_assert!(
                want.contains(&got.errno()),
                "answered {:?}, expected one of {:?}",
                got.errno(),
                want
            );
            Ok(None)
        }
        (Ok(_), Err(want)) => Err(TestCaseError::fail(format!("succeeded, expected one of {want:?}"))),
        (Err(got), Ok(_)) => {
            Err(TestCaseError::fail(format!("answered {:?}, expected success", got.errno())))
        }
    }
}

impl Harness {
    pub(crate) fn new() -> Harness {
        let disks = Disks::new();
        let mounted = Some(disks.mount([0, 1, 2], false, false));
        let model = Model::new(0o755, me());
        Harness { disks, mounted, order: [0, 1, 2], model, handles: Vec::new(), nodes: HashMap::new() }
    }

    pub(crate) fn fs(&self) -> &Fs {
        self.mounted.as_ref().expect("mounted")
    }

    /// Ends the mount: handles and all.
    pub(crate) fn unmount(&mut self) {
        let handles = std::mem::take(&mut self.handles);
        let Some(mounted) = self.mounted.take() else { return };
        // As the kernel does.
        handles.iter().for_each(|handle| mounted.release(handle.fh));
    }

    pub(crate) fn mount(&mut self, order: [usize; BACKINGS], exclusive: bool, tight: bool) -> Check {
        let mounted = self.disks.mount(order, exclusive, tight);
        prop_assert!(mounted.scan_report().unreadable() == 0, "{:?}", mounted.scan_report());
        // Directories may be called otherwise now; files only if their backing's place has changed.
        let same_order = order == self.order;
        self.nodes.retain(|_, (node, _)| same_order && matches!(node.node(), Some(Node::File(..))));
        self.mounted = Some(mounted);
        self.order = order;
        Ok(())
    }

    /// Where in the order of the mount a backing is.
    pub(crate) fn slot(&self, backing: usize) -> usize {
        self.order.iter().position(|n| *n == backing).expect("one of the backings")
    }

    pub(crate) fn raw(&self, backing: usize, path: &str) -> PathBuf {
        self.disks.dirs[backing].join(path)
    }

    /// Looks a name up on both sides.
    pub(crate) fn look(&mut self, dir: Ino, node: NodeId, name: &str) -> Check<Option<(Ino, NodeId)>> {
        let got = self.fs().lookup(node, name.as_bytes());
        match (got, self.model.child(dir, name)) {
            (Ok(attr), Some(ino)) => {
                self.check_attr(ino, &attr)?;
                Ok(Some((ino, attr.node)))
            }
            (Err(e), None) if e.errno() == Errno::NOENT => Ok(None),
            (Ok(attr), None) => Err(TestCaseError::fail(format!(
                "looking up {name}: found {:?}, expected nothing",
                attr.node
            ))),
            (Err(e), want) => Err(TestCaseError::fail(format!("looking up {name}: {e}, expected {want:?}"))),
        }
    }

    /// Walks to a directory. `None` where there is none on either side.
    pub(crate) fn walk(&mut self, path: &[&str]) -> Check<Option<(Ino, NodeId)>> {
        let mut at = (ROOT, NodeId::ROOT);
        for part in path {
            let Some(next) = self.look(at.0, at.1, part)? else { return Ok(None) };
            if !self.model.inode(next.0).is_dir() {
                let inside = self.fs().lookup(next.1, b"x").map(|attr| attr.node);
                prop_assert_eq!(inside.map_err(|e| e.errno()), Err(Errno::NOTDIR));
                return Ok(None);
            }
            at = next;
        }
        Ok(Some(at))
    }

    /// Compares attributes, and the node with what it was.
    pub(crate) fn check_attr(&mut self, ino: Ino, attr: &Attr) -> Check {
        let inode = self.model.inode(ino);
        prop_assert_eq!(attr.kind, inode.kind());
        prop_assert_eq!(attr.perm, inode.perm, "permissions {:o}, expected {:o}", attr.perm, inode.perm);
        prop_assert_eq!((attr.uid, attr.gid), inode.owner, "owner");
        prop_assert_eq!(attr.nlink, self.model.nlink(ino), "number of links");
        match &inode.body {
            Body::File(data) => prop_assert_eq!(attr.size, data.len() as u64, "size"),
            Body::Symlink(target) => prop_assert_eq!(attr.size, target.len() as u64, "size"),
            Body::Fifo | Body::Dir { .. } => {}
        }
        if let Some(mtime) = inode.mtime {
            prop_assert_eq!(attr.mtime.secs, mtime, "time of the last change");
        }
        let seen = *self.nodes.entry(ino).or_insert((attr.node, attr.generation));
        prop_assert_eq!((attr.node, attr.generation), seen, "the node has changed");
        Ok(())
    }

    /// What the index counts, against the model.
    pub(crate) fn counts(&self) -> Check {
        let names = self.model.names();
        let dirs = names.iter().filter(|(.., ino)| self.model.inode(*ino).is_dir()).count();
        let counts = self.fs().index_counts();
        prop_assert_eq!(counts.files as usize, names.len() - dirs, "names of files in the index");
        prop_assert_eq!(counts.dirs as usize, dirs + 1, "directories in the index");
        prop_assert_eq!(counts.shadows, self.model.shadow_count(), "shadows in the index");
        prop_assert_eq!(counts.per_backing.iter().sum::<u64>(), counts.files, "files on the backings");
        prop_assert_eq!(self.fs().handles_open(), self.handles.len(), "open handles");
        Ok(())
    }

    pub(crate) fn release_all(&mut self) {
        for handle in std::mem::take(&mut self.handles) {
            self.fs().release(handle.fh);
        }
    }

    /// The backing that has the file, as the mount tells it.
    pub(crate) fn backing_of(&self, node: NodeId) -> Check<usize> {
        let slot = self.xattr(node, "user.kvfs.slot")?;
        Ok(self.order[slot.parse::<usize>().map_err(|e| TestCaseError::fail(e.to_string()))?])
    }

    /// One of kvfs's own attributes.
    pub(crate) fn xattr(&self, node: NodeId, name: &str) -> Check<String> {
        let value = self.fs().getxattr(node, name.as_bytes());
        value
            .map(|value| String::from_utf8_lossy(&value).into_owned())
            .map_err(|e| TestCaseError::fail(format!("{name}: {e}")))
    }

    /// Reads through an open handle.
    pub(crate) fn read(&self, fh: u64, offset: u64, len: u32) -> Check<Vec<u8>> {
        read(self.fs(), fh, offset, len).map_err(|e| TestCaseError::fail(format!("reading: {e}")))
    }
}

pub(crate) fn read(fs: &Fs, fh: u64, offset: u64, len: u32) -> std::io::Result<Vec<u8>> {
    let (send, receive) = std::sync::mpsc::channel();
    fs.read(fh, offset, len, Box::new(move |done| drop(send.send(done.map(<[u8]>::to_vec)))));
    receive.recv_timeout(Duration::from_secs(30)).expect("the engine answers")
}

pub(crate) fn write(fs: &Fs, fh: u64, offset: u64, data: &[u8]) -> std::io::Result<usize> {
    let (send, receive) = std::sync::mpsc::channel();
    fs.write(fh, offset, kvfs::io::Payload::copied(data), Box::new(move |done| drop(send.send(done))));
    receive.recv_timeout(Duration::from_secs(30)).expect("the engine answers")
}

/// The entries of a directory, in portions of `chunk`: name, kind, node.
pub(crate) fn list(fs: &Fs, dir: NodeId, chunk: usize) -> kvfs::fs::Result<Vec<(String, Kind, NodeId)>> {
    let (mut all, mut next) = (Vec::new(), 0);
    loop {
        let mut portion = Vec::new();
        // As by a handle whose listing the kernel keeps.
        fs.readdir_for(0, (dir, OpenDir::Dropped.code()), next, |e| {
            if portion.len() == chunk {
                return true;
            }
            portion.push((String::from_utf8_lossy(e.name).into_owned(), e.kind, e.node));
            next = e.next;
            false
        })?;
        if portion.is_empty() {
            return Ok(all);
        }
        all.append(&mut portion);
    }
}

/// What stays open in this process though it's removed, below `dir`. By the number of links: a path says
/// "(deleted)" of a file too that has another name left. A removed file may be held until the kernel forgets
/// its node, which is done here for all of them.
pub(crate) fn removed_and_open(fs: &Fs, dir: &Path) -> Vec<(PathBuf, fs::FileType)> {
    let started = Instant::now();
    loop {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let left: Vec<_> = open
            .filter_map(|fd| {
                let path = fs::read_link(fd.path()).ok().filter(|path| path.starts_with(dir))?;
                let meta = fs::metadata(fd.path()).ok()?;
                (meta.nlink() == 0).then_some((path, meta))
            })
            .collect();
        for ((_, meta), slot) in left.iter().flat_map(|l| (0..BACKINGS as u8).map(move |slot| (l, slot))) {
            if let Some(ino) = PackedIno::plain(meta.ino()) {
                fs.forget(NodeId::file(Slot(slot), ino), u64::MAX);
            }
        }
        // An engine lets go of a file a moment after it has answered.
        if left.is_empty() || started.elapsed() > Duration::from_secs(2) {
            return left.into_iter().map(|(path, meta)| (path, meta.file_type())).collect();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
