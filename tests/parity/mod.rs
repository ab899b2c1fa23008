//! The frame of the parity tests. A case is a script that works in one directory and notes what
//! it sees; the frame runs it on both sides and compares the notes line by line, then the trees.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::common::{FsKind, Lab, Mount, Passthrough, R, ranked, sys, tree};

mod access;
mod attr;
mod cloning;
mod data;
mod dirs;
mod fallocate;
mod links;
mod locks;
mod mmap;
mod names;
mod nodes;
mod open;
mod orphans;
mod readdir;
mod rename;
mod setid;
mod sparse;
mod statfs;
mod sync;
mod times;
mod truncate;
mod xattr;

/// One script and its name.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Side),
}

struct Note {
    label: String,
    value: String,
    allowed: Option<(String, &'static str)>,
}

/// The directory a script works in, and what it noted there.
pub(crate) struct Side {
    pub(crate) root: PathBuf,
    pub(crate) fs: FsKind,
    notes: Vec<Note>,
}

impl Side {
    fn new(root: PathBuf, fs: FsKind) -> Side {
        Side { root, fs, notes: Vec::new() }
    }

    pub(crate) fn p(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Two names that live on different backings of the mount.
    pub(crate) fn two(&self) -> (PathBuf, PathBuf) {
        (self.p(ranked(0, 1)), self.p(ranked(1, 2)))
    }

    /// Notes a value that has to be the same on both sides.
    pub(crate) fn note(&mut self, label: impl Into<String>, value: impl Debug) {
        self.notes.push(Note { label: label.into(), value: format!("{value:?}"), allowed: None });
    }

    /// Notes a value that the mount may also answer with `mount_may`, and why.
    pub(crate) fn note_or(
        &mut self,
        label: impl Into<String>,
        value: impl Debug,
        mount_may: impl Debug,
        why: &'static str,
    ) {
        let allowed = Some((format!("{mount_may:?}"), why));
        self.notes.push(Note { label: label.into(), value: format!("{value:?}"), allowed });
    }

    /// Notes whether a descriptor was given, and hands it on.
    pub(crate) fn fd(&mut self, label: impl Into<String>, fd: R<OwnedFd>) -> Option<OwnedFd> {
        self.note(label, fd.as_ref().map(|_| "open"));
        fd.ok()
    }

    /// Notes the visible state of a name.
    pub(crate) fn look(&mut self, label: impl Into<String>, name: impl AsRef<Path>) {
        let line = tree::line(&self.p(name));
        self.note(label, line);
    }

    /// A file with this content, made for the script to work on.
    pub(crate) fn file(&self, name: impl AsRef<Path>, data: &[u8]) -> PathBuf {
        let path = self.p(name);
        std::fs::write(&path, data).unwrap_or_else(|e| panic!("prepare {}: {e}", path.display()));
        path
    }

    /// A directory, made for the script to work in.
    pub(crate) fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.p(name);
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("prepare {}: {e}", path.display()));
        path
    }
}

/// Declares the cases of a module and one test for each file system and mode.
macro_rules! parity {
    ($($case:ident),* $(,)?) => {
        const CASES: &[$crate::ops::Case] =
            &[$($crate::ops::Case { name: stringify!($case), run: $case }),*];
        $crate::ops::parity! { @tests
            ext4_auto Ext4 Auto, ext4_off Ext4 Off,
            xfs_auto Xfs Auto, xfs_off Xfs Off,
            tmpfs_auto Tmpfs Auto, tmpfs_off Tmpfs Off
        }
        /// The scripts themselves give the same notes twice.
        #[test]
        fn repeatable() {
            $crate::ops::raw_against_raw(CASES);
        }
    };
    (@tests $($name:ident $fs:ident $mode:ident),*) => {$(
        #[test]
        fn $name() {
            $crate::ops::compare($crate::common::FsKind::$fs, $crate::common::Passthrough::$mode, CASES);
        }
    )*};
}
pub(crate) use parity;

/// Runs every case on a mount over two volumes and on a raw directory of the first of them.
pub(crate) fn compare(fs: FsKind, mode: Passthrough, cases: &[Case]) {
    sys::umask(0o022);
    let lab = Lab::new();
    let volumes = [lab.volume(fs, 512), lab.volume(fs, 512)];
    let backings: Vec<PathBuf> = volumes.iter().map(|v| v.join("kv")).collect();
    let raw = volumes[0].join("raw");
    std::fs::create_dir(&raw).unwrap();
    let mount = lab.mount(&backings).passthrough(mode).start();
    let on = mount.status()["passthrough"]["on"].as_bool();
    assert_eq!(
        on,
        Some(mode == Passthrough::Auto),
        "passthrough as asked: {:#}",
        mount.status()["passthrough"]
    );

    let mut faults = Vec::new();
    for case in cases {
        let before = mount.ops();
        let (here, there) = (mount.path(case.name), raw.join(case.name));
        let (got, want) = (run(case, &here, fs), run(case, &there, fs));
        if mount.ops() == before {
            faults.push(format!("{}: not one operation reached the daemon", case.name));
        }
        faults.extend(differences(case, &got, &want));
        faults.extend(on_backings(case, &mount));
    }
    assert!(faults.is_empty(), "{} differences from a raw {fs:?}:\n{}", faults.len(), faults.join("\n"));
}

/// Two raw directories: whatever differs here is a script's own fault, not kvfs's.
pub(crate) fn raw_against_raw(cases: &[Case]) {
    sys::umask(0o022);
    let lab = Lab::new();
    let mut faults = Vec::new();
    for fs in [FsKind::Ext4, FsKind::Xfs, FsKind::Tmpfs] {
        let volume = lab.volume(fs, 512);
        for case in cases {
            let (a, b) = (volume.join(format!("{}-1", case.name)), volume.join(format!("{}-2", case.name)));
            let (a, b) = (run(case, &a, fs), run(case, &b, fs));
            faults.extend(differences(case, &a, &b).into_iter().map(|d| format!("{fs:?}: {d}")));
        }
    }
    assert!(faults.is_empty(), "the scripts are not repeatable:\n{}", faults.join("\n"));
}

/// One run: the notes, and the tree that is left.
struct Run {
    notes: Vec<Note>,
    tree: std::collections::BTreeMap<PathBuf, String>,
}

fn run(case: &Case, root: &Path, fs: FsKind) -> Run {
    std::fs::create_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut side = Side::new(root.to_path_buf(), fs);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut side))) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        side.note("the script panicked", text);
    }
    Run { tree: tree::snapshot(root), notes: side.notes }
}

fn differences(case: &Case, got: &Run, want: &Run) -> Vec<String> {
    let mut out = Vec::new();
    for i in 0..got.notes.len().max(want.notes.len()) {
        match (got.notes.get(i), want.notes.get(i)) {
            (Some(g), Some(w)) if g.label == w.label => {
                let allowed = g.allowed.as_ref().is_some_and(|(may, _)| *may == g.value);
                if g.value != w.value && !allowed {
                    out.push(format!("{}: {}:\n  kvfs {}\n  raw  {}", case.name, g.label, g.value, w.value));
                }
                if g.label == "the script panicked" {
                    out.push(format!("{}: panicked on both sides: {}", case.name, g.value));
                }
            }
            (g, w) => {
                let text =
                    |n: Option<&Note>| n.map_or("(nothing)".into(), |n| format!("{} = {}", n.label, n.value));
                out.push(format!("{}: the scripts part ways: kvfs {}, raw {}", case.name, text(g), text(w)));
                break;
            }
        }
    }
    for name in got.tree.keys().chain(want.tree.keys().filter(|k| !got.tree.contains_key(*k))) {
        let (g, w) = (got.tree.get(name), want.tree.get(name));
        if g != w {
            out.push(format!("{}: left behind {name:?}:\n  kvfs {g:?}\n  raw  {w:?}", case.name));
        }
    }
    out
}

/// What is left in the mount must be a plain file of the same name and state on exactly one backing.
fn on_backings(case: &Case, mount: &Mount) -> Vec<String> {
    let mut out = Vec::new();
    let (mut seen, base) = (0, Path::new(case.name));
    let tree = tree::snapshot(&mount.path(base));
    for (name, state) in &tree {
        let holders = mount.holders(base.join(name));
        let is_dir = state.contains("type=40000 ");
        if holders.is_empty() || (!is_dir && holders.len() > 1) {
            out.push(format!("{}: {name:?} is on backings {holders:?}", case.name));
            continue;
        }
        for i in holders {
            let plain = tree::line(&mount.backings()[i].join(base).join(name));
            if !state.ends_with(&plain) {
                out.push(format!("{}: {name:?}:\n  kvfs {state}\n  backing {i} {plain}", case.name));
            }
        }
        seen += 1;
    }
    let below: usize =
        mount.backings().iter().map(|b| b.join(base)).filter(|b| b.exists()).map(|b| files(&b)).sum();
    let files_seen = tree.values().filter(|s| !s.contains("type=40000 ")).count();
    if below != files_seen {
        out.push(format!(
            "{}: {below} files on the backings, {files_seen} of {seen} names in the mount",
            case.name
        ));
    }
    out
}

fn files(dir: &Path) -> usize {
    tree::snapshot(dir).values().filter(|s| !s.contains("type=40000 ")).count()
}

/// The frame itself: a difference in a note, in a script's course or in the tree is found.
#[test]
fn differences_are_found() {
    fn one(_: &mut Side) {}
    let case = Case { name: "frame", run: one };
    let note = |label: &str, value: &str| Note { label: label.into(), value: value.into(), allowed: None };
    let run = |notes: Vec<Note>, names: &[&str]| Run {
        notes,
        tree: names.iter().map(|n| (PathBuf::from(n), String::from("state"))).collect(),
    };
    let base = || run(vec![note("a", "1")], &["x"]);
    assert_eq!(differences(&case, &base(), &base()).len(), 0);
    assert_eq!(differences(&case, &run(vec![note("a", "2")], &["x"]), &base()).len(), 1);
    assert_eq!(differences(&case, &run(vec![], &["x"]), &base()).len(), 1);
    assert_eq!(differences(&case, &run(vec![note("a", "1")], &["x", "y"]), &base()).len(), 1);
    assert_eq!(differences(&case, &run(vec![note("a", "1")], &[]), &base()).len(), 1);
}
