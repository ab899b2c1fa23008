//! What happens on the backings behind the mount's back, and between two mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::time::{Duration, Instant};

use kvfs::index::Kind;
use proptest::prelude::*;

use crate::harness::{Check, Harness, me};
use crate::model::{Body, Ino, Model, ROOT};
use crate::ops::{At, BACKINGS, Dup};
use crate::steps::pattern;

const MODE: u16 = 0o644;

/// When the inode was changed last.
fn ctime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.ctime(), meta.ctime_nsec())
}

/// Gives `path` a newer ctime than `other` has, and changes nothing.
fn make_newer(path: &Path, other: &Path) {
    let started = Instant::now();
    while ctime(path) <= ctime(other) {
        assert!(started.elapsed() < Duration::from_secs(5), "the clock stands still");
        lchown(path, None, None).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Writes a new file, whole under its name at once.
fn put_file(path: &Path, data: &[u8]) {
    let temp = path.with_file_name(".kvfs-test-temp");
    fs::write(&temp, data).unwrap();
    fs::set_permissions(&temp, PermissionsExt::from_mode(MODE.into())).unwrap();
    fs::rename(&temp, path).unwrap();
}

impl Harness {
    /// Makes a directory of the tree on a backing, as like the others as somebody careful would.
    fn raw_dir(&mut self, backing: usize, dir: Ino) {
        self.model.inode_mut(dir).mtime = None;
        let path = self.raw(backing, &self.model.path(dir));
        if dir == ROOT || path.exists() {
            return;
        }
        self.raw_dir(backing, self.model.parent(dir));
        fs::create_dir(&path).unwrap();
        let inode = self.model.inode(dir);
        lchown(&path, Some(inode.owner.0), Some(inode.owner.1)).unwrap();
        for (name, value) in &inode.xattrs {
            rustix::fs::setxattr(&path, name.as_str(), value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        // No CAP_FSETID here: a setgid bit needs the group.
        let group = rustix::process::getegid().as_raw() == inode.owner.1;
        let perm = if group { inode.perm } else { inode.perm & 0o1777 };
        fs::set_permissions(&path, PermissionsExt::from_mode(perm.into())).unwrap();
    }

    /// Whether `raw_dir` can do it.
    fn can_copy(&self, dir: Ino) -> bool {
        let mut at = dir;
        while at != ROOT {
            if self.model.inode(at).perm & 0o2000 != 0 {
                return false;
            }
            at = self.model.parent(at);
        }
        true
    }

    pub(crate) fn place(&mut self, at: At, backing: usize, len: u16) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        if self.fs().exclusive() || self.model.child(dir, at.name).is_some() || !self.can_copy(dir) {
            return Ok(());
        }
        self.raw_dir(backing, dir);
        let data = pattern(len, 3);
        put_file(&self.raw(backing, &self.model.path_of(dir, at.name)), &data);
        let added = self.model.add(dir, at.name, Body::File(data), MODE, me());
        prop_assert!(added.is_ok());
        let Some((_, node)) = self.look(dir, node, at.name)? else { return Ok(()) };
        prop_assert_eq!(self.backing_of(node)?, backing);
        Ok(())
    }

    pub(crate) fn place_tree(&mut self, at: At, backings: &[usize], shared: bool) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        if self.fs().exclusive() || self.model.child(dir, at.name).is_some() || !self.can_copy(dir) {
            return Ok(());
        }
        let mut on: Vec<usize> = backings.to_vec();
        on.dedup();
        let top = self.model.new_inode(dir, Model::dir_in(dir), 0o755, me());
        self.model.attach(dir, at.name, top);
        let mut last: Option<(usize, Ino)> = None;
        for backing in on {
            self.raw_dir(backing, top);
            let path = self.raw(backing, &self.model.path(top));
            let own = format!("k{backing}.pt");
            put_file(&path.join(&own), &pattern(100, backing as u8));
            let body = Body::File(pattern(100, backing as u8));
            let ino = self.model.new_inode(top, body, MODE, me());
            self.model.attach(top, &own, ino);
            if shared {
                // The copy that came last is the file.
                put_file(&path.join("c"), &pattern(50, backing as u8));
                let body = Body::File(pattern(50, backing as u8));
                let ino = self.model.new_inode(top, body, MODE, me());
                if let Some((older_on, older)) = last {
                    make_newer(&path.join("c"), &self.raw(older_on, &self.model.path_of(top, "c")));
                    self.model.detach(top, "c");
                    self.model.add_shadow(top, "c", older_on, older);
                }
                self.model.attach(top, "c", ino);
                last = Some((backing, ino));
            }
        }
        if let Some((_, node)) = self.look(dir, node, at.name)? {
            self.check_listing(top, node, true, 3)?;
        }
        Ok(())
    }

    pub(crate) fn snatch(&mut self, at: At, replace: bool) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        let Some((ino, file)) = self.look(dir, node, at.name)? else { return Ok(()) };
        let lone = self.model.shadows(dir, at.name).is_empty();
        if self.fs().exclusive() || self.model.inode(ino).kind() != Kind::File || !lone {
            return Ok(());
        }
        let path = self.raw(self.backing_of(file)?, &self.model.path_of(dir, at.name));
        self.model.detach(dir, at.name);
        if replace {
            put_file(&path, b"another file");
            let added = self.model.add(dir, at.name, Body::File(b"another file".to_vec()), MODE, me());
            prop_assert!(added.is_ok());
        } else {
            fs::remove_file(&path).unwrap();
        }
        self.look(dir, node, at.name)?;
        Ok(())
    }

    /// Compares everything, unmounts, makes copies, mounts again and compares everything again.
    pub(crate) fn remount(
        &mut self,
        order: [usize; BACKINGS],
        exclusive: bool,
        tight: bool,
        dups: &[Dup],
    ) -> Check {
        self.verify()?;
        let mut copies = Vec::new();
        for dup in dups {
            if let Some((dir, _)) = self.walk(dup.at.dir)?
                && let Some((ino, node)) = self.find(dup.at)?
                && !self.model.inode(ino).is_dir()
                && self.can_copy(dir)
                // A write through another name would make the shadow the newest again.
                && !(dup.newer && self.model.inode(ino).nlink > 1)
            {
                copies.push((dir, dup, self.backing_of(node)?));
            }
        }
        self.unmount();
        let mut done = Vec::new();
        for (dir, dup, real) in copies {
            let taken = real == dup.backing
                || self.model.shadows(dir, dup.at.name).iter().any(|s| s.backing == dup.backing);
            // One copy of a name at a time: the next would have to be newer or older than that one.
            if !taken && !done.contains(&(dir, dup.at.name)) {
                done.push((dir, dup.at.name));
                self.duplicate(dir, dup, real);
            }
        }
        self.mount(order, exclusive, tight)?;
        self.verify()
    }

    fn duplicate(&mut self, dir: Ino, dup: &Dup, real: usize) {
        self.raw_dir(dup.backing, dir);
        let path = self.model.path_of(dir, dup.at.name);
        let (old, new) = (self.raw(real, &path), self.raw(dup.backing, &path));
        let data = pattern(77, dup.backing as u8);
        put_file(&new, &data);
        let ino = self.model.new_inode(dir, Body::File(data), MODE, me());
        if dup.newer {
            make_newer(&new, &old);
            let hidden = self.model.detach(dir, dup.at.name);
            self.model.add_shadow(dir, dup.at.name, real, hidden);
            self.model.attach(dir, dup.at.name, ino);
        } else {
            make_newer(&old, &new);
            self.model.add_shadow(dir, dup.at.name, dup.backing, ino);
        }
    }
}
