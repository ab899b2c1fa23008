//! What the random sequences are made of: operations on a few names in a few directories, so that they meet.

use std::fmt;

use kvfs::fs::RenameMode;
use proptest::collection::vec;
use proptest::prelude::*;

/// Directories by their path. Most are missing at any time; every part of a path is one of `NAMES`.
const DIRS: &[&[&str]] = &[&[], &["a"], &["b"], &["a", "b"], &["b", "c"], &["a", "b", "c"]];
/// Of directories and files alike. With the identities in `harness` they hash to all three backings.
const NAMES: &[&str] = &["a", "b", "c", "k0.pt", "k1.pt", "k2.pt", "k3.pt"];
/// How many backings there are.
pub(crate) const BACKINGS: usize = 3;

/// A place in the tree, which may be there or not.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct At {
    pub(crate) dir: &'static [&'static str],
    pub(crate) name: &'static str,
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dir.iter().try_for_each(|part| write!(f, "{part}/"))?;
        f.write_str(self.name)
    }
}

/// What to change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Mode(u16),
    Owner(u32, u32),
    Size(u16),
    Mtime(i64),
}

/// An extended attribute: which of three, and what to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Xattr {
    Set(u8, i32),
    Get,
    Remove,
}

/// A second copy of a name, put there while nothing is mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dup {
    pub(crate) at: At,
    pub(crate) backing: usize,
    pub(crate) newer: bool,
}

/// One step. Numbers of handles count among those that are open.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        at: At,
        mode: u16,
        flags: i32,
        other_user: bool,
    },
    Mknod {
        at: At,
        fifo: bool,
    },
    Mkdir {
        at: At,
        mode: u16,
        other_user: bool,
    },
    Symlink {
        at: At,
        target: u8,
    },
    Open {
        at: At,
        flags: i32,
    },
    Write {
        handle: usize,
        offset: u16,
        len: u16,
        seed: u8,
    },
    Read {
        handle: usize,
        offset: u16,
        len: u16,
    },
    Copy {
        from: usize,
        to: usize,
        offset: u16,
        len: u16,
    },
    Release {
        handle: usize,
    },
    Stat {
        handle: usize,
    },
    /// Straight to the backing file, as the kernel writes in passthrough mode.
    RawWrite {
        at: At,
        offset: u16,
        len: u16,
        seed: u8,
    },
    Lookup {
        at: At,
    },
    Forget {
        at: At,
    },
    Change {
        at: At,
        change: Change,
    },
    Xattr {
        at: At,
        name: u8,
        act: Xattr,
    },
    Unlink {
        at: At,
    },
    Rmdir {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        mode: RenameMode,
    },
    Link {
        from: At,
        to: At,
    },
    List {
        dir: &'static [&'static str],
        plus: bool,
        chunk: usize,
    },
    /// A file appears on a backing.
    Place {
        at: At,
        backing: usize,
        len: u16,
    },
    /// A directory appears on some backings, with files, one of them on all these backings.
    PlaceTree {
        at: At,
        backings: Vec<usize>,
        shared: bool,
    },
    /// A file disappears from its backing, or another takes its place.
    Snatch {
        at: At,
        replace: bool,
    },
    /// The end of this mount, and the next one.
    Remount {
        order: [usize; BACKINGS],
        exclusive: bool,
        tight: bool,
        dups: Vec<Dup>,
    },
}

fn dir() -> impl Strategy<Value = &'static [&'static str]> {
    prop_oneof![3 => Just(DIRS[0]), 3 => Just(DIRS[1]), 2 => Just(DIRS[2]), 3 => (3..DIRS.len()).prop_map(|n| DIRS[n])]
}

fn at() -> impl Strategy<Value = At> {
    (dir(), 0..NAMES.len()).prop_map(|(dir, name)| At { dir, name: NAMES[name] })
}

/// A place for a directory, such that `DIRS` come to be.
fn dir_at() -> impl Strategy<Value = At> {
    let listed = (1..DIRS.len()).prop_map(|n| {
        let (name, dir) = DIRS[n].split_last().expect("only the root is empty");
        At { dir, name }
    });
    prop_oneof![4 => listed, 1 => at()]
}

fn rename_mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![4 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 2 => Just(RenameMode::Exchange)]
}

fn mode() -> impl Strategy<Value = u16> {
    prop::sample::select(&[0o644u16, 0o600, 0o666, 0o700, 0o755][..])
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        mode().prop_map(Change::Mode),
        Just(Change::Mode(0o2755)),
        (0..3u32, 0..3u32).prop_map(|(uid, gid)| Change::Owner(uid * 1000, gid * 1000)),
        (0..9000u16).prop_map(Change::Size),
        (1..1_000_000i64).prop_map(Change::Mtime),
    ]
}

fn xattr() -> impl Strategy<Value = Xattr> {
    let flags = prop::sample::select(&[0, libc::XATTR_CREATE, libc::XATTR_REPLACE][..]);
    prop_oneof![3 => (any::<u8>(), flags).prop_map(|(v, f)| Xattr::Set(v, f)), 1 => Just(Xattr::Get), 1 => Just(Xattr::Remove)]
}

fn remount() -> impl Strategy<Value = Op> {
    let dup = (at(), 0..BACKINGS, any::<bool>()).prop_map(|(at, backing, newer)| Dup { at, backing, newer });
    let order = prop_oneof![Just([0, 1, 2]), Just([0, 1, 2]).prop_shuffle()];
    (order, prop::bool::weighted(0.2), any::<bool>(), vec(dup, 0..6))
        .prop_map(|(order, exclusive, tight, dups)| Op::Remount { order, exclusive, tight, dups })
}

fn create() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(&[0, libc::O_EXCL, libc::O_TRUNC, libc::O_EXCL | libc::O_TRUNC][..]);
    (at(), mode(), flags, any::<bool>()).prop_map(|(at, mode, flags, other_user)| Op::Create {
        at,
        mode,
        flags: flags | libc::O_CREAT | libc::O_RDWR,
        other_user,
    })
}

fn open() -> impl Strategy<Value = Op> {
    let flags = [
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDWR | libc::O_TRUNC,
        libc::O_RDWR | libc::O_DIRECT,
    ];
    (at(), prop::sample::select(flags.to_vec())).prop_map(|(at, flags)| Op::Open { at, flags })
}

fn op() -> impl Strategy<Value = Op> {
    let (handle, offset, len) = (|| 0..8usize, || 0..9000u16, || 0..5000u16);
    prop_oneof![
        12 => create(),
        1 => (at(), any::<bool>()).prop_map(|(at, fifo)| Op::Mknod { at, fifo }),
        8 => (dir_at(), mode(), any::<bool>()).prop_map(|(at, mode, other_user)| Op::Mkdir { at, mode, other_user }),
        1 => (at(), any::<u8>()).prop_map(|(at, target)| Op::Symlink { at, target }),
        3 => open(),
        5 => (handle(), offset(), len(), any::<u8>())
            .prop_map(|(handle, offset, len, seed)| Op::Write { handle, offset, len, seed }),
        3 => (handle(), offset(), len()).prop_map(|(handle, offset, len)| Op::Read { handle, offset, len }),
        1 => (handle(), handle(), offset(), len()).prop_map(|(from, to, offset, len)| Op::Copy { from, to, offset, len }),
        3 => handle().prop_map(|handle| Op::Release { handle }),
        1 => handle().prop_map(|handle| Op::Stat { handle }),
        2 => (at(), offset(), len(), any::<u8>()).prop_map(|(at, offset, len, seed)| Op::RawWrite { at, offset, len, seed }),
        2 => at().prop_map(|at| Op::Lookup { at }),
        1 => at().prop_map(|at| Op::Forget { at }),
        4 => (at(), change()).prop_map(|(at, change)| Op::Change { at, change }),
        3 => (at(), 0..3u8, xattr()).prop_map(|(at, name, act)| Op::Xattr { at, name, act }),
        5 => at().prop_map(|at| Op::Unlink { at }),
        3 => dir_at().prop_map(|at| Op::Rmdir { at }),
        10 => (at(), at(), rename_mode()).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        4 => (dir_at(), dir_at(), rename_mode()).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        4 => (at(), at()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => (dir(), any::<bool>(), 1..5usize).prop_map(|(dir, plus, chunk)| Op::List { dir, plus, chunk }),
        4 => (at(), 0..BACKINGS, len()).prop_map(|(at, backing, len)| Op::Place { at, backing, len }),
        1 => (dir_at(), vec(0..BACKINGS, 1..3), any::<bool>())
            .prop_map(|(at, backings, shared)| Op::PlaceTree { at, backings, shared }),
        2 => (at(), any::<bool>()).prop_map(|(at, replace)| Op::Snatch { at, replace }),
        2 => remount(),
    ]
}

/// A whole life.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Op>> {
    vec(op(), 1..120)
}
