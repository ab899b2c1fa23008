//! Everything there is, compared: the model, what the mount shows, and what lies on the backings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kvfs::index::{Kind, NodeId};
use proptest::prelude::*;

use crate::harness::{Check, Harness, removed_and_open};
use crate::model::{Body, Ino, ROOT};
use crate::ops::BACKINGS;
use rustix::io::Errno;

/// One path on one backing.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) backing: usize,
    pub(crate) is_dir: bool,
    /// `st_mode` and owner.
    pub(crate) mode: (u32, u32, u32),
    pub(crate) path: PathBuf,
}

/// What lies on the backings, by path. kvfs's own files are left out.
pub(crate) fn raw_tree(backings: &[PathBuf]) -> BTreeMap<String, Vec<Raw>> {
    let mut all = BTreeMap::<String, Vec<Raw>>::new();
    for (backing, root) in backings.iter().enumerate() {
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with(".kvfs-") {
                    continue;
                }
                let (path, meta) = (entry.path(), entry.metadata().unwrap());
                let mode = (meta.permissions().mode(), meta.uid(), meta.gid());
                let below = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                all.entry(below).or_default().push(Raw { backing, is_dir: meta.is_dir(), mode, path });
            }
        }
    }
    all
}

fn on(raw: &[Raw]) -> BTreeSet<usize> {
    raw.iter().map(|r| r.backing).collect()
}

impl Harness {
    /// Compares all three.
    pub(crate) fn verify(&mut self) -> Check {
        self.counts()?;
        let mut raw = raw_tree(&self.disks.dirs);
        let mut on_slot = vec![0; self.disks.dirs.len()];
        let mut called = BTreeMap::new();
        let mut todo = vec![(ROOT, NodeId::ROOT)];
        while let Some((dir, node)) = todo.pop() {
            self.check_listing(dir, node, true, 5)?;
            let children: Vec<(String, Ino)> =
                self.model.entries(dir).iter().map(|(name, ino)| (name.clone(), *ino)).collect();
            for (name, ino) in children {
                let path = self.model.path_of(dir, &name);
                let checked = (|| {
                    let (_, child) = self.look(dir, node, &name)?.expect("in the model");
                    prop_assert_eq!(*called.entry(child).or_insert(ino), ino, "one node for two inodes");
                    let copies = raw.remove(&path).unwrap_or_default();
                    if self.model.inode(ino).is_dir() {
                        todo.push((ino, child));
                        self.check_dir(ino, child, &copies)
                    } else {
                        let backing = self.check_file(dir, &name, ino, child, &copies)?;
                        on_slot[self.slot(backing)] += 1;
                        Ok(())
                    }
                })();
                checked.map_err(|e| TestCaseError::fail(format!("{path}: {e}")))?;
            }
        }
        prop_assert!(raw.is_empty(), "on a backing and not in the mount: {:?}", raw.keys());
        prop_assert_eq!(&self.fs().index_counts().per_backing[..BACKINGS], &on_slot[..]);
        let own = self.fs().lookup(NodeId::ROOT, kvfs::backing::MARKER.as_bytes()).map(|attr| attr.node);
        prop_assert_eq!(own.map_err(|e| e.errno()), Err(Errno::NOENT), "the marker is kvfs's own");
        if self.handles.is_empty() {
            let kept = removed_and_open(self.fs(), self.disks.temp.path());
            prop_assert!(kept.is_empty(), "removed, and still held open: {kept:?}");
        }
        Ok(())
    }

    /// A directory is alike on each backing that has it, and the mount knows which those are.
    fn check_dir(&self, ino: Ino, node: NodeId, copies: &[Raw]) -> Check {
        prop_assert!(!copies.is_empty(), "on no backing");
        prop_assert!(
            copies.iter().all(|c| c.is_dir && c.mode == copies[0].mode),
            "not alike on its backings"
        );
        let known = self.xattr(node, "user.kvfs.backings")?;
        let known = known.lines().map(|line| self.disks.dirs.iter().position(|dir| dir == Path::new(line)));
        prop_assert_eq!(
            known.collect::<Option<BTreeSet<_>>>(),
            Some(on(copies)),
            "backings of the directory"
        );
        self.check_xattrs(ino, node)
    }

    /// A file is on one backing, and what else has its name is a known shadow. Returns the backing.
    fn check_file(&self, dir: Ino, name: &str, ino: Ino, node: NodeId, copies: &[Raw]) -> Check<usize> {
        let backing = self.backing_of(node)?;
        let mut expected: BTreeSet<usize> = self.model.shadows(dir, name).iter().map(|s| s.backing).collect();
        prop_assert!(expected.insert(backing), "the file is its own shadow");
        prop_assert_eq!(on(copies), expected, "backings that have the name");
        prop_assert!(copies.iter().all(|c| !c.is_dir));
        let raw = copies.iter().find(|c| c.backing == backing).expect("it's there").path.as_path();
        match &self.model.inode(ino).body {
            Body::File(data) => {
                prop_assert!(&fs::read(raw).unwrap() == data, "the backing has other bytes");
                prop_assert!(&self.read_whole(node)? == data, "the mount has other bytes");
                if self.model.inode(ino).nlink == 1 {
                    prop_assert_eq!(&self.xattr(node, "user.kvfs.path")?, &raw.to_string_lossy());
                }
            }
            Body::Symlink(target) => {
                let got = self.fs().readlink(node).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(&got, target);
            }
            Body::Fifo | Body::Dir { .. } => {}
        }
        self.check_xattrs(ino, node)?;
        Ok(backing)
    }

    fn check_xattrs(&self, ino: Ino, node: NodeId) -> Check {
        if self.model.inode(ino).kind() == Kind::Symlink {
            return Ok(());
        }
        let listed = self
            .fs()
            .listxattr(&kvfs::fs::Caller::default(), node)
            .map_err(|e| TestCaseError::fail(format!("listxattr: {e}")))?;
        let listed: BTreeSet<&[u8]> =
            listed.split(|b| *b == 0).filter(|name| name.starts_with(b"user.")).collect();
        let xattrs = &self.model.inode(ino).xattrs;
        prop_assert_eq!(listed, xattrs.keys().map(String::as_bytes).collect::<BTreeSet<_>>(), "attributes");
        for (name, value) in xattrs {
            let got = self.fs().getxattr(node, name.as_bytes()).map_err(|e| e.errno());
            prop_assert_eq!(got.as_ref(), Ok(value), "attribute {}", name);
        }
        Ok(())
    }

    fn read_whole(&self, node: NodeId) -> Check<Vec<u8>> {
        let opened = self
            .fs()
            .open(&kvfs::fs::Caller::default(), node, libc::O_RDONLY)
            .map_err(|e| TestCaseError::fail(format!("open: {e}")))?;
        let data = self.read(opened.fh, 0, 1 << 20);
        self.fs().release(opened.fh);
        data
    }
}
