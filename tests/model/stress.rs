//! Eight threads on a few names: the daemon's own locks, without the kernel's in front of them.
//!
//! Afterwards the index, the backings and a new scan must tell the same; nothing may panic, and nobody may
//! wait for ever. Only what the kernel never lets happen is kept apart: two renames across directories at a
//! time (`s_vfs_rename_mutex` in fs/namei.c).

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use kvfs::fs::{Fs, RenameMode};
use kvfs::index::{Kind, NodeId};
use rustix::io::Errno;

use crate::check::{Raw, raw_tree};
use crate::harness::{Disks, caller, list, read, removed_and_open, write};
use crate::ops::BACKINGS;

const THREADS: u64 = 8;
const DIRS: &[&[&str]] = &[&[], &["a"], &["b"], &["a", "b"]];
const NAMES: &[&str] = &["a", "b", "x0.pt", "x1.pt", "x2.pt", "x3.pt"];
const BLOCK: usize = 64;
/// Without any operation done for so long, they wait for each other.
const STUCK: Duration = Duration::from_secs(15);

/// What a name may turn out to be when others change it at the same time.
const RACES: &[Errno] = &[
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTEMPTY,
    Errno::ISDIR,
    Errno::NOTDIR,
    Errno::INVAL,
    Errno::STALE,
    Errno::PERM,
];

struct Shared {
    fs: Fs,
    /// Whether directories are renamed too.
    dirs_move: bool,
    across: Mutex<()>,
    done: AtomicU64,
    doing: Vec<Mutex<String>>,
}

/// xorshift64: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

struct Worker {
    shared: Arc<Shared>,
    number: u64,
    random: Random,
    open: Vec<u64>,
}

/// An answer that nothing explains.
type Wrong = String;

impl Worker {
    fn run(&mut self, operations: u64) -> Result<(), Wrong> {
        for n in 0..operations {
            self.act(n)
                .map_err(|e| format!("thread {}, operation {n}, {}: {e}", self.number, self.doing()))?;
            self.shared.done.fetch_add(1, Relaxed);
        }
        self.say("done".into());
        for fh in std::mem::take(&mut self.open) {
            self.shared.fs.release(fh);
        }
        Ok(())
    }

    fn say(&self, what: String) {
        *self.shared.doing[self.number as usize].lock().unwrap() = what;
    }

    fn doing(&self) -> String {
        self.shared.doing[self.number as usize].lock().unwrap().clone()
    }

    /// Walks to a directory as the kernel does.
    fn walk(&mut self) -> kvfs::fs::Result<(NodeId, &'static [&'static str])> {
        let path = self.random.pick(DIRS);
        let mut at = NodeId::ROOT;
        for part in path {
            at = self.shared.fs.lookup(at, part.as_bytes())?.node;
        }
        Ok((at, path))
    }

    fn act(&mut self, n: u64) -> Result<(), Wrong> {
        let shared = self.shared.clone();
        match self.try_to(&shared.fs, n) {
            Err(Failed::Answer(e)) if RACES.contains(&e.errno()) => Ok(()),
            Err(Failed::Answer(e)) => Err(format!("answered {:?}", e.errno())),
            Err(Failed::Wrong(what)) => Err(what),
            Ok(()) => Ok(()),
        }
    }

    fn try_to(&mut self, fs: &Fs, n: u64) -> Result<(), Failed> {
        let act = self.random.below(21);
        self.say(format!("walking, for act {act}"));
        let (dir, path) = self.walk()?;
        let name = self.random.pick(NAMES);
        self.say(format!("act {act} on {path:?} {name}"));
        let name = name.as_bytes();
        match act {
            0..5 => {
                let flags =
                    libc::O_CREAT | libc::O_RDWR | self.random.pick(&[0, libc::O_EXCL, libc::O_TRUNC]);
                let (_, opened) = fs.create(&caller(n.is_multiple_of(2)), dir, name, 0o644, flags)?;
                self.open.push(opened.fh);
                let put = write(fs, opened.fh, 0, &[self.number as u8 + 1; BLOCK]);
                if !matches!(put, Ok(BLOCK)) {
                    return Err(Failed::Wrong(format!("writing: {put:?}")));
                }
            }
            5..8 => {
                let attr = fs.lookup(dir, name)?;
                let opened = fs.open(&kvfs::fs::Caller::default(), attr.node, libc::O_RDONLY)?;
                self.open.push(opened.fh);
                let got = read(fs, opened.fh, 0, 1000).map_err(|e| Failed::Wrong(format!("reading: {e}")))?;
                if !got.is_empty() && (got.len() != BLOCK || got.iter().any(|b| *b != got[0])) {
                    return Err(Failed::Wrong(format!("read {got:?}")));
                }
            }
            8..11 => fs.unlink(dir, name)?,
            11..15 => self.rename(fs, dir, path, name)?,
            15 => {
                let attr = fs.lookup(dir, name)?;
                let (to, _) = self.walk()?;
                fs.link(attr.node, to, self.random.pick(NAMES).as_bytes())?;
            }
            16..18 => drop(fs.mkdir(&caller(false), dir, self.random.pick(&["a", "b"]).as_bytes(), 0o755)?),
            18 => fs.rmdir(dir, self.random.pick(&["a", "b"]).as_bytes())?,
            19 => {
                let listed = list(fs, dir, 3)?;
                let names: BTreeSet<_> = listed.iter().map(|(name, ..)| name).collect();
                // A name may be removed and made again while it's read; nothing else is there twice.
                if listed.len() > names.len() + NAMES.len() {
                    return Err(Failed::Wrong(format!("listed {listed:?}")));
                }
                fs.readdirplus_for(0, (dir, 0), 0, |_| false)?;
            }
            _ => drop(fs.getattr(fs.lookup(dir, name)?.node)?),
        }
        while self.open.len() > 3 {
            fs.release(self.open.remove(0));
        }
        Ok(())
    }

    fn rename(&mut self, fs: &Fs, dir: NodeId, path: &[&str], name: &[u8]) -> Result<(), Failed> {
        let (to, to_path) = self.walk()?;
        let newname = self.random.pick(NAMES);
        let mode = self.random.pick(&[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ]);
        let shared = self.shared.clone();
        let _across = (dir != to).then(|| shared.across.lock().unwrap());
        let is_dir = |dir, name| fs.lookup(dir, name).is_ok_and(|attr| attr.kind == Kind::Dir);
        if !shared.dirs_move && (is_dir(dir, name) || is_dir(to, newname.as_bytes())) {
            return Ok(());
        }
        self.say(format!(
            "{mode:?} rename of {path:?} {} to {to_path:?} {newname}",
            String::from_utf8_lossy(name)
        ));
        Ok(fs.rename(dir, name, to, newname.as_bytes(), mode)?)
    }
}

enum Failed {
    Answer(kvfs::fs::Error),
    Wrong(Wrong),
}

impl From<kvfs::fs::Error> for Failed {
    fn from(e: kvfs::fs::Error) -> Failed {
        Failed::Answer(e)
    }
}

/// Lets them loose; fails rather than wait for a thread that waits for ever.
fn stress(seed: u64, operations: u64, tight: bool, dirs_move: bool) {
    let disks = Disks::new();
    let shared = Arc::new(Shared {
        fs: disks.mount([0, 1, 2], false, tight),
        dirs_move,
        across: Mutex::new(()),
        done: AtomicU64::new(0),
        doing: (0..THREADS).map(|_| Mutex::default()).collect(),
    });
    let (send, finished) = mpsc::channel();
    for number in 0..THREADS {
        let random = Random((seed * 1000 + number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut worker = Worker { shared: shared.clone(), number, random, open: Vec::new() };
        let send = send.clone();
        std::thread::spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| worker.run(operations)));
            drop(worker);
            let _ = send.send(ended.unwrap_or_else(|_| Err("a thread has panicked".into())));
        });
    }
    let mut running = THREADS;
    while running > 0 {
        let before = shared.done.load(Relaxed);
        match finished.recv_timeout(STUCK) {
            Ok(Ok(())) => running -= 1,
            Ok(Err(what)) => panic!("{what}"),
            Err(_) if shared.done.load(Relaxed) != before => {}
            Err(_) => {
                let doing: Vec<_> = shared.doing.iter().map(|d| d.lock().unwrap().clone()).collect();
                panic!("nothing moves any more: {doing:#?}");
            }
        }
    }
    let shared = Arc::try_unwrap(shared).unwrap_or_else(|_| panic!("a thread is left"));
    settled(&disks, shared.fs);
}

/// All that the index knows, without a look at the disk: path to kind and node.
fn indexed(fs: &Fs) -> BTreeMap<String, (Kind, NodeId)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(String::new(), NodeId::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        for (name, kind, node) in list(fs, dir, 100).unwrap() {
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{path}{name}");
            if kind == Kind::Dir {
                todo.push((format!("{path}/"), node));
            }
            assert!(all.insert(path.clone(), (kind, node)).is_none(), "{path} is there twice");
        }
    }
    all
}

/// The index, the backings and a new scan tell the same, and everything can still be used.
pub(crate) fn settled(disks: &Disks, fs: Fs) {
    let before = indexed(&fs);
    compare(&before, &raw_tree(&disks.dirs), &fs);
    assert_eq!(fs.handles_open(), 0);
    let kept = removed_and_open(&fs, disks.temp.path());
    assert!(kept.is_empty(), "removed, and still held open: {kept:?}");

    let dirs = before.iter().filter(|(_, (kind, _))| *kind == Kind::Dir).map(|(_, (_, node))| *node);
    for dir in dirs.chain([NodeId::ROOT]) {
        still_works(&fs, dir);
    }
    assert_eq!(indexed(&fs), before);
    drop(fs);
    let again = disks.mount([0, 1, 2], false, false);
    let files = |tree: &BTreeMap<String, (Kind, NodeId)>| {
        let shown = |(path, (kind, node)): (&String, &(Kind, NodeId))| {
            (path.clone(), *kind, (*kind != Kind::Dir).then_some(*node))
        };
        tree.iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(files(&indexed(&again)), files(&before), "another tree after the next mount");
}

fn compare(indexed: &BTreeMap<String, (Kind, NodeId)>, raw: &BTreeMap<String, Vec<Raw>>, fs: &Fs) {
    let missing: Vec<_> = indexed.keys().filter(|path| !raw.contains_key(*path)).collect();
    let unknown: Vec<_> = raw.iter().filter(|(path, _)| !indexed.contains_key(*path)).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "in the index alone: {missing:?}\non disk alone: {unknown:?}"
    );
    let mut per_backing = [0; BACKINGS];
    let mut links = BTreeMap::<NodeId, u32>::new();
    for (path, (kind, node)) in indexed {
        let copies = &raw[path];
        let attr = fs.getattr(*node).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(attr.kind, *kind, "{path}");
        if *kind == Kind::Dir {
            let known = String::from_utf8(fs.getxattr(*node, b"user.kvfs.backings").unwrap()).unwrap();
            assert_eq!(known.lines().count(), copies.len(), "{path} is known on {known}");
        } else {
            assert_eq!(copies.len(), 1, "{path} is on several backings");
            let slot = String::from_utf8(fs.getxattr(*node, b"user.kvfs.slot").unwrap()).unwrap();
            assert_eq!(slot, copies[0].backing.to_string(), "{path}");
            per_backing[copies[0].backing] += 1;
            *links.entry(*node).or_default() += 1;
        }
    }
    for (node, names) in links {
        assert_eq!(fs.getattr(node).unwrap().nlink, names, "names of {node:?}");
    }
    let counts = fs.index_counts();
    assert_eq!((counts.shadows, &counts.per_backing[..BACKINGS]), (0, &per_backing[..]));
}

/// Files can be made in the directory on each of the backings, and removed.
fn still_works(fs: &Fs, dir: NodeId) {
    let mut seen = BTreeSet::new();
    for n in 0..200 {
        let name = format!("new{n}.pt");
        let made = fs.create(
            &caller(false),
            dir,
            name.as_bytes(),
            0o600,
            libc::O_CREAT | libc::O_RDWR | libc::O_EXCL,
        );
        let (attr, opened) = made.unwrap_or_else(|e| panic!("creating {name} in {dir:?}: {e}"));
        fs.release(opened.fh);
        seen.insert(fs.getxattr(attr.node, b"user.kvfs.slot").unwrap());
        fs.unlink(dir, name.as_bytes()).unwrap();
        if seen.len() == BACKINGS {
            return;
        }
    }
    panic!("files in {dir:?} came to be on {seen:?} only");
}

/// A few rounds with other numbers each; `KVFS_STRESS_ROUNDS` makes it more.
fn rounds(first: u64) -> std::ops::Range<u64> {
    let rounds = std::env::var("KVFS_STRESS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    first..first + rounds
}

#[test]
fn threads_on_a_few_names() {
    rounds(1000).for_each(|seed| stress(seed, 800, false, false));
}

#[test]
fn threads_with_next_to_nothing_kept_open() {
    rounds(2000).for_each(|seed| stress(seed, 800, true, false));
}

#[test]
fn threads_that_rename_directories() {
    rounds(3000).for_each(|seed| stress(seed, 800, seed % 2 == 0, true));
}
