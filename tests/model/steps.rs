//! One step on both sides: the operations that clients ask for.

use kvfs::fs::{RenameMode, SetAttr, SetTime, Time};
use kvfs::index::{Kind, NodeId};
use proptest::prelude::*;
use rustix::io::Errno;

use crate::harness::{Check, Handle, Harness, caller, list, me, same, write};
use crate::model::{Answer, Body, Ino, Model, ROOT};
use crate::ops::{At, Change, Op, Xattr};

const MAX_HANDLES: usize = 8;

/// Bytes that tell where they came from.
pub(crate) fn pattern(len: u16, seed: u8) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add((n % 251) as u8)).collect()
}

impl Harness {
    pub(crate) fn step(&mut self, op: &Op) -> Check {
        match op {
            Op::Create { at, mode, flags, other_user } => self.create(*at, *mode, *flags, *other_user),
            Op::Mknod { at, fifo } => {
                let (kind, body) =
                    if *fifo { (libc::S_IFIFO, Body::Fifo) } else { (libc::S_IFREG, Body::File(Vec::new())) };
                self.make(*at, body, 0o640, false, |fs, dir, name| {
                    fs.mknod(&caller(false), dir, name, kind | 0o640, 0)
                })
            }
            Op::Mkdir { at, mode, other_user } => {
                self.make(*at, Model::dir_in(ROOT), *mode, *other_user, |fs, dir, name| {
                    fs.mkdir(&caller(*other_user), dir, name, u32::from(*mode))
                })
            }
            Op::Symlink { at, target } => {
                let target = format!("no/such/{target}").into_bytes();
                let body = Body::Symlink(target.clone());
                self.make(*at, body, 0o777, false, |fs, dir, name| {
                    fs.symlink(&caller(false), dir, name, &target)
                })
            }
            Op::Open { at, flags } => self.open(*at, *flags),
            Op::Write { handle, offset, len, seed } => self.write(*handle, *offset, &pattern(*len, *seed)),
            Op::Read { handle, offset, len } => self.read_handle(*handle, *offset, *len),
            Op::Copy { from, to, offset, len } => self.copy(*from, *to, *offset, *len),
            Op::Release { handle } => {
                if let Some(handle) = self.handle(*handle) {
                    self.handles.retain(|other| other.fh != handle.fh);
                    self.fs().release(handle.fh);
                }
                Ok(())
            }
            Op::Stat { handle } => match self.handle(*handle) {
                Some(handle) => self.getattr(handle.ino, handle.node),
                None => Ok(()),
            },
            Op::RawWrite { at, offset, len, seed } => self.raw_write(*at, *offset, &pattern(*len, *seed)),
            Op::Lookup { at } => match self.find(*at)? {
                Some((ino, node)) => self.getattr(ino, node),
                None => Ok(()),
            },
            Op::Forget { at } => {
                if let Some((_, node)) = self.find(*at)? {
                    self.fs().forget(node, u64::MAX);
                }
                Ok(())
            }
            Op::Change { at, change } => self.change(*at, *change),
            Op::Xattr { at, name, act } => {
                self.change_xattr(*at, ["user.one", "user.two", "user.three"][usize::from(*name)], *act)
            }
            Op::Unlink { at } => self.remove(*at, false),
            Op::Rmdir { at } => self.remove(*at, true),
            Op::Rename { from, to, mode } => self.rename(*from, *to, *mode),
            Op::Link { from, to } => self.link(*from, *to),
            Op::List { dir, plus, chunk } => match self.walk(dir)? {
                Some((ino, node)) => self.check_listing(ino, node, *plus, *chunk),
                None => Ok(()),
            },
            Op::Place { at, backing, len } => self.place(*at, *backing, *len),
            Op::PlaceTree { at, backings, shared } => self.place_tree(*at, backings, *shared),
            Op::Snatch { at, replace } => self.snatch(*at, *replace),
            Op::Remount { order, exclusive, tight, dups } => self.remount(*order, *exclusive, *tight, dups),
        }
    }

    /// Walks to a name, and looks it up.
    pub(crate) fn find(&mut self, at: At) -> Check<Option<(Ino, NodeId)>> {
        match self.walk(at.dir)? {
            Some((dir, node)) => self.look(dir, node, at.name),
            None => Ok(None),
        }
    }

    fn handle(&self, number: usize) -> Option<Handle> {
        if self.handles.is_empty() { None } else { Some(self.handles[number % self.handles.len()]) }
    }

    fn getattr(&mut self, ino: Ino, node: NodeId) -> Check {
        let attr = self.fs().getattr(node).map_err(|e| TestCaseError::fail(format!("getattr: {e}")))?;
        self.check_attr(ino, &attr)
    }

    fn keep(&mut self, fh: u64, node: NodeId, ino: Ino, flags: i32) {
        let access = flags & libc::O_ACCMODE;
        let (readable, writable) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        self.handles.push(Handle { fh, node, ino, readable, writable });
        if self.handles.len() > MAX_HANDLES {
            let first = self.handles.remove(0);
            self.fs().release(first.fh);
        }
    }

    fn create(&mut self, at: At, mode: u16, flags: i32, other_user: bool) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        let there = self.look(dir, node, at.name)?.map(|(ino, _)| ino);
        let excl = flags & libc::O_EXCL != 0;
        let want: Answer<Ino> = match there.map(|ino| (ino, self.model.inode(ino).kind())) {
            None => Ok(ROOT),
            Some(_) if excl => Err(&[Errno::EXIST]),
            Some((_, Kind::Dir)) => Err(&[Errno::ISDIR]),
            Some((ino, Kind::File)) => Ok(ino),
            // The kernel follows a link itself, and opens a pipe itself.
            Some(_) => Err(&[Errno::NXIO]),
        };
        let who = caller(other_user);
        let got = self.fs().create(&who, node, at.name.as_bytes(), u32::from(mode), flags);
        let Some(((attr, opened), _)) = same(got, want)? else { return Ok(()) };
        let ino = match there {
            Some(ino) => {
                if flags & libc::O_TRUNC != 0 {
                    self.model.truncate(ino, 0);
                    return self.kept(opened.fh, attr.node, ino, flags);
                }
                ino
            }
            None => {
                let made = self.model.add(dir, at.name, Body::File(Vec::new()), mode, (who.uid, who.gid));
                made.map_err(|e| TestCaseError::fail(format!("{e:?}")))?
            }
        };
        self.check_attr(ino, &attr)?;
        self.kept(opened.fh, attr.node, ino, flags)
    }

    /// Keeps the handle, and asks for the attributes.
    fn kept(&mut self, fh: u64, node: NodeId, ino: Ino, flags: i32) -> Check {
        self.keep(fh, node, ino, flags);
        self.getattr(ino, node)
    }

    fn make(
        &mut self,
        at: At,
        body: Body,
        mode: u16,
        other_user: bool,
        make: impl Fn(&kvfs::fs::Fs, NodeId, &[u8]) -> kvfs::fs::Result<kvfs::fs::Attr>,
    ) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        self.look(dir, node, at.name)?;
        let who = caller(other_user);
        let got = make(self.fs(), node, at.name.as_bytes());
        let want = self.model.add(dir, at.name, body, mode, (who.uid, who.gid));
        if let Some((attr, ino)) = same(got, want)? {
            self.check_attr(ino, &attr)?;
        }
        Ok(())
    }

    fn open(&mut self, at: At, flags: i32) -> Check {
        let Some((ino, node)) = self.find(at)? else { return Ok(()) };
        let want: Answer = match self.model.inode(ino).kind() {
            Kind::File => Ok(()),
            Kind::Dir => Err(&[Errno::ISDIR]),
            _ => Err(&[Errno::NXIO]),
        };
        if let Some((opened, ())) = same(self.fs().open(&kvfs::fs::Caller::default(), node, flags), want)? {
            if flags & libc::O_TRUNC != 0 {
                self.model.truncate(ino, 0);
            }
            self.kept(opened.fh, node, ino, flags)?;
        }
        Ok(())
    }

    fn write(&mut self, handle: usize, offset: u16, data: &[u8]) -> Check {
        let Some(handle) = self.handle(handle).filter(|h| h.writable) else { return Ok(()) };
        let put = write(self.fs(), handle.fh, offset.into(), data);
        prop_assert_eq!(put.map_err(|e| e.to_string()), Ok(data.len()));
        self.model.write(handle.ino, offset.into(), data);
        self.getattr(handle.ino, handle.node)
    }

    fn read_handle(&mut self, handle: usize, offset: u16, len: u16) -> Check {
        let Some(handle) = self.handle(handle).filter(|h| h.readable) else { return Ok(()) };
        let got = self.read(handle.fh, offset.into(), len.into())?;
        let data = self.model.inode(handle.ino).data().expect("only files are open");
        let end = data.len().min(usize::from(offset) + usize::from(len));
        let want = data.get(usize::from(offset)..end).unwrap_or(&[]);
        prop_assert!(got == want, "read {} bytes of {} at {offset}, or others", got.len(), want.len());
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, offset: u16, len: u16) -> Check {
        let (Some(from), Some(to)) = (self.handle(from), self.handle(to)) else { return Ok(()) };
        if !from.readable || !to.writable || from.ino == to.ino {
            return Ok(());
        }
        let data = self.model.inode(from.ino).data().expect("only files are open").clone();
        match self.fs().copy_file_range((from.fh, 0), (to.fh, offset.into()), len.into()) {
            Ok(copied) => {
                prop_assert!(copied <= data.len().min(len.into()));
                self.model.write(to.ino, offset.into(), &data[..copied]);
                self.getattr(to.ino, to.node)
            }
            Err(e) => {
                prop_assert_eq!(e.errno(), Errno::XDEV);
                Ok(())
            }
        }
    }

    fn raw_write(&mut self, at: At, offset: u16, data: &[u8]) -> Check {
        use std::os::unix::fs::FileExt;
        let Some((ino, node)) = self.find(at)? else { return Ok(()) };
        if self.model.inode(ino).kind() != Kind::File {
            return Ok(());
        }
        let path = self.xattr(node, "user.kvfs.path")?;
        let file = std::fs::File::options().write(true).open(&path);
        let file = file.map_err(|e| TestCaseError::fail(format!("{path}: {e}")))?;
        file.write_all_at(data, offset.into()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        self.model.write(ino, offset.into(), data);
        self.getattr(ino, node)
    }

    fn change(&mut self, at: At, change: Change) -> Check {
        let Some((ino, node)) = self.find(at)? else { return Ok(()) };
        let kind = self.model.inode(ino).kind();
        let set = match change {
            // Not on a symbolic link; the setgid bit goes down in directories only.
            Change::Mode(mode) if kind != Kind::Symlink && (kind == Kind::Dir || mode & 0o2000 == 0) => {
                self.model.inode_mut(ino).perm = mode;
                SetAttr { mode: Some(mode.into()), ..SetAttr::default() }
            }
            Change::Owner(uid, gid) if me().0 == 0 => {
                self.model.inode_mut(ino).owner = (uid, gid);
                SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }
            }
            Change::Size(size) if matches!(kind, Kind::File | Kind::Dir) => {
                self.model.truncate(ino, size.into());
                SetAttr { size: Some(size.into()), ..SetAttr::default() }
            }
            Change::Mtime(secs) => {
                self.model.inode_mut(ino).mtime = Some(secs);
                let time = SetTime::To(Time { secs, nanos: 0 });
                SetAttr { mtime: Some(time), ..SetAttr::default() }
            }
            _ => return Ok(()),
        };
        let of_dir = kind == Kind::Dir && set.size.is_some();
        let want: Answer = if of_dir { Err(&[Errno::ISDIR]) } else { Ok(()) };
        if let Some((attr, ())) = same(self.fs().setattr(node, &set), want)? {
            self.check_attr(ino, &attr)?;
        }
        Ok(())
    }

    fn change_xattr(&mut self, at: At, name: &str, act: Xattr) -> Check {
        let Some((ino, node)) = self.find(at)? else { return Ok(()) };
        let inode = self.model.inode_mut(ino);
        let takes = matches!(inode.kind(), Kind::File | Kind::Dir);
        let there = inode.xattrs.get(name).cloned();
        let fs = self.fs();
        let missing: &[Errno] = &[Errno::NODATA];
        // xattr_permission in fs/xattr.c: `user.` on files and directories alone.
        let refused: &[Errno] = &[Errno::PERM, Errno::NODATA];
        match act {
            Xattr::Get => {
                let got = fs.getxattr(node, name.as_bytes());
                if let Some((got, want)) = same(got, there.ok_or(missing))? {
                    prop_assert_eq!(got, want);
                }
            }
            Xattr::Set(value, flags) => {
                let want: Answer = match there {
                    _ if !takes => Err(refused),
                    Some(_) if flags == libc::XATTR_CREATE => Err(&[Errno::EXIST]),
                    None if flags == libc::XATTR_REPLACE => Err(missing),
                    _ => Ok(()),
                };
                let value = vec![value; usize::from(value)];
                if same(fs.setxattr(&caller(false), node, name.as_bytes(), &value, flags), want)?.is_some() {
                    self.model.inode_mut(ino).xattrs.insert(name.into(), value);
                }
            }
            Xattr::Remove => {
                let want = if takes { there.ok_or(missing) } else { Err(refused) };
                if same(fs.removexattr(&caller(false), node, name.as_bytes()), want)?.is_some() {
                    self.model.inode_mut(ino).xattrs.remove(name);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, at: At, is_dir: bool) -> Check {
        let Some((dir, node)) = self.walk(at.dir)? else { return Ok(()) };
        let victim = self.look(dir, node, at.name)?;
        let name = at.name.as_bytes();
        let (got, want) = if is_dir {
            (self.fs().rmdir(node, name), self.model.rmdir(dir, at.name))
        } else {
            (self.fs().unlink(node, name), self.model.unlink(dir, at.name))
        };
        if same(got, want)?.is_some()
            && is_dir
            && let Some((_, gone)) = victim
        {
            let left = self.fs().getattr(gone).map(|attr| attr.nlink);
            prop_assert_eq!(left.map_err(|e| e.errno()), Ok(0), "whoever is in a removed directory may ask");
        }
        self.indexed((dir, node))?;
        self.look(dir, node, at.name)?;
        Ok(())
    }

    fn rename(&mut self, from: At, to: At, mode: RenameMode) -> Check {
        let (Some(old), Some(new)) = (self.walk(from.dir)?, self.walk(to.dir)?) else { return Ok(()) };
        let source = self.look(old.0, old.1, from.name)?;
        let target = self.look(new.0, new.1, to.name)?;
        if mode == RenameMode::Exchange && source.is_some() && source == target {
            // Two names of one file: the kernel doesn't ask (vfs_rename in fs/namei.c).
            return Ok(());
        }
        let got = self.fs().rename(old.1, from.name.as_bytes(), new.1, to.name.as_bytes(), mode);
        same(got, self.model.rename((old.0, from.name), (new.0, to.name), mode))?;
        self.indexed(old)?;
        self.indexed(new)?;
        self.look(old.0, old.1, from.name)?;
        self.look(new.0, new.1, to.name)?;
        Ok(())
    }

    fn link(&mut self, from: At, to: At) -> Check {
        let Some((ino, node)) = self.find(from)? else { return Ok(()) };
        let Some((dir, parent)) = self.walk(to.dir)? else { return Ok(()) };
        self.look(dir, parent, to.name)?;
        let got = self.fs().link(node, parent, to.name.as_bytes());
        if let Some((attr, ())) = same(got, self.model.link(ino, dir, to.name))? {
            self.check_attr(ino, &attr)?;
        }
        Ok(())
    }

    /// What the index has of a directory, before a lookup could set it right.
    fn indexed(&mut self, (dir, node): (Ino, NodeId)) -> Check {
        self.counts()?;
        self.check_listing(dir, node, false, 100)
    }

    /// A listing, plain or with attributes, against the model.
    pub(crate) fn check_listing(&mut self, dir: Ino, node: NodeId, plus: bool, chunk: usize) -> Check {
        let mut want: Vec<(String, Kind)> = self
            .model
            .entries(dir)
            .iter()
            .map(|(name, ino)| (name.clone(), self.model.inode(*ino).kind()))
            .collect();
        want.extend([(".".into(), Kind::Dir), ("..".into(), Kind::Dir)]);
        let listed =
            list(self.fs(), node, chunk).map_err(|e| TestCaseError::fail(format!("readdir: {e}")))?;
        let mut got: Vec<_> = listed.iter().map(|(name, kind, _)| (name.clone(), *kind)).collect();
        got.sort_by(|a, b| a.0.cmp(&b.0));
        want.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(got, want);
        if plus {
            let (mut entries, mut next) = (Vec::new(), 0);
            loop {
                let before = entries.len();
                let done = self.fs().readdirplus_for(0, (node, 0), next, |e| {
                    next = e.next;
                    entries.push(e.clone());
                    false
                });
                done.map_err(|e| TestCaseError::fail(format!("readdirplus: {e}")))?;
                if entries.len() == before {
                    break;
                }
            }
            prop_assert_eq!(entries.len(), listed.len());
            for (entry, (name, kind, node)) in entries.iter().zip(&listed) {
                let attr = &entry.attr;
                prop_assert_eq!((&entry.name[..], attr.kind, attr.node), (name.as_bytes(), *kind, *node));
                match (entry.known, self.model.child(dir, name)) {
                    (true, Some(ino)) => self.check_attr(ino, attr)?,
                    (false, None) => {}
                    (_, ino) => prop_assert!(false, "{name}: listed with {attr:?}, expected {ino:?}"),
                }
            }
        }
        Ok(())
    }
}
