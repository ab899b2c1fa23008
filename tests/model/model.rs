//! The reference: a POSIX tree in memory, with what each operation answers.
//!
//! Errors are lists: where several apply, the kernel would have refused earlier, and which one the filesystem
//! finds first is its own business. Shadows are kept beside the tree, as links that no name leads to.

use std::collections::BTreeMap;

use kvfs::fs::RenameMode;
use kvfs::index::Kind;
use rustix::io::Errno;

pub(crate) type Ino = usize;
pub(crate) const ROOT: Ino = 0;

/// What an operation answers; any one of the errors will do.
pub(crate) type Answer<T = ()> = Result<T, &'static [Errno]>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    File(Vec<u8>),
    Fifo,
    Symlink(Vec<u8>),
    Dir { parent: Ino, entries: BTreeMap<String, Ino> },
}

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) body: Body,
    pub(crate) perm: u16,
    pub(crate) owner: (u32, u32),
    /// Links of anything but a directory, shadows included.
    pub(crate) nlink: u32,
    /// Known only where it was set and nothing changed since.
    pub(crate) mtime: Option<i64>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// A copy of a name that is not the file.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    /// The directory it's in, whatever the order of the backings.
    pub(crate) backing: usize,
    ino: Ino,
}

pub(crate) struct Model {
    inodes: Vec<Inode>,
    shadows: BTreeMap<(Ino, String), Vec<Shadow>>,
}

impl Inode {
    pub(crate) fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Fifo => Kind::Fifo,
            Body::Symlink(_) => Kind::Symlink,
            Body::Dir { .. } => Kind::Dir,
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }

    pub(crate) fn data(&self) -> Option<&Vec<u8>> {
        if let Body::File(data) = &self.body { Some(data) } else { None }
    }
}

impl Model {
    pub(crate) fn new(perm: u16, owner: (u32, u32)) -> Model {
        let body = Body::Dir { parent: ROOT, entries: BTreeMap::new() };
        let root = Inode { body, perm, owner, nlink: 0, mtime: None, xattrs: BTreeMap::new() };
        Model { inodes: vec![root], shadows: BTreeMap::new() }
    }

    // ---- looking ----

    pub(crate) fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino]
    }

    pub(crate) fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        &mut self.inodes[ino]
    }

    pub(crate) fn entries(&self, dir: Ino) -> &BTreeMap<String, Ino> {
        match &self.inodes[dir].body {
            Body::Dir { entries, .. } => entries,
            other => panic!("not a directory: {other:?}"),
        }
    }

    pub(crate) fn child(&self, dir: Ino, name: &str) -> Option<Ino> {
        self.entries(dir).get(name).copied()
    }

    pub(crate) fn parent(&self, dir: Ino) -> Ino {
        match self.inodes[dir].body {
            Body::Dir { parent, .. } => parent,
            _ => panic!("not a directory"),
        }
    }

    pub(crate) fn nlink(&self, ino: Ino) -> u32 {
        let inode = self.inode(ino);
        if !inode.is_dir() {
            return inode.nlink;
        }
        2 + self.entries(ino).values().filter(|child| self.inode(**child).is_dir()).count() as u32
    }

    /// The path of a directory below the root; empty for the root.
    pub(crate) fn path(&self, dir: Ino) -> String {
        let mut parts = Vec::new();
        let mut at = dir;
        while at != ROOT {
            let parent = self.parent(at);
            let (name, _) = self.entries(parent).iter().find(|(_, ino)| **ino == at).expect("has a name");
            parts.push(name.clone());
            at = parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// The path of a name.
    pub(crate) fn path_of(&self, dir: Ino, name: &str) -> String {
        let path = self.path(dir);
        if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
    }

    /// All names: directory, name, inode.
    pub(crate) fn names(&self) -> Vec<(Ino, String, Ino)> {
        let mut all = Vec::new();
        let mut todo = vec![ROOT];
        while let Some(dir) = todo.pop() {
            for (name, ino) in self.entries(dir) {
                all.push((dir, name.clone(), *ino));
                if self.inode(*ino).is_dir() {
                    todo.push(*ino);
                }
            }
        }
        all
    }

    pub(crate) fn shadows(&self, dir: Ino, name: &str) -> &[Shadow] {
        self.shadows.get(&(dir, name.to_owned())).map_or(&[], |list| list)
    }

    pub(crate) fn shadow_count(&self) -> u64 {
        self.shadows.values().map(|list| list.len() as u64).sum()
    }

    fn is_within(&self, dir: Ino, ancestor: Ino) -> bool {
        let mut at = dir;
        while at != ancestor {
            if at == ROOT {
                return false;
            }
            at = self.parent(at);
        }
        true
    }

    // ---- changing ----

    /// A new inode for `dir`: the group and the setgid bit go down from a setgid directory.
    pub(crate) fn new_inode(&mut self, dir: Ino, body: Body, perm: u16, owner: (u32, u32)) -> Ino {
        let above = &self.inodes[dir];
        let setgid = above.perm & 0o2000;
        let owner = if setgid != 0 { (owner.0, above.owner.1) } else { owner };
        let perm = if matches!(body, Body::Dir { .. }) { perm | setgid } else { perm };
        self.inodes.push(Inode { body, perm, owner, nlink: 0, mtime: None, xattrs: BTreeMap::new() });
        self.inodes.len() - 1
    }

    /// An empty directory's body.
    pub(crate) fn dir_in(parent: Ino) -> Body {
        Body::Dir { parent, entries: BTreeMap::new() }
    }

    pub(crate) fn attach(&mut self, dir: Ino, name: &str, ino: Ino) {
        if let Body::Dir { entries, .. } = &mut self.inodes[dir].body {
            assert!(entries.insert(name.to_owned(), ino).is_none(), "{name} is taken");
        }
        self.inodes[dir].mtime = None;
        match &mut self.inodes[ino].body {
            Body::Dir { parent, .. } => *parent = dir,
            _ => self.inodes[ino].nlink += 1,
        }
    }

    pub(crate) fn detach(&mut self, dir: Ino, name: &str) -> Ino {
        let Body::Dir { entries, .. } = &mut self.inodes[dir].body else { panic!("not a directory") };
        let ino = entries.remove(name).expect("has the name");
        self.inodes[dir].mtime = None;
        if !self.inodes[ino].is_dir() {
            self.inodes[ino].nlink -= 1;
        }
        ino
    }

    /// `backing` has an older copy of the name too.
    pub(crate) fn add_shadow(&mut self, dir: Ino, name: &str, backing: usize, ino: Ino) {
        self.inodes[ino].nlink += 1;
        self.shadows.entry((dir, name.to_owned())).or_default().push(Shadow { backing, ino });
    }

    fn drop_shadows(&mut self, dir: Ino, name: &str) {
        for shadow in self.shadows.remove(&(dir, name.to_owned())).unwrap_or_default() {
            self.inodes[shadow.ino].nlink -= 1;
        }
    }

    pub(crate) fn add(
        &mut self,
        dir: Ino,
        name: &str,
        body: Body,
        perm: u16,
        owner: (u32, u32),
    ) -> Answer<Ino> {
        if self.child(dir, name).is_some() {
            return Err(&[Errno::EXIST]);
        }
        let ino = self.new_inode(dir, body, perm, owner);
        self.attach(dir, name, ino);
        Ok(ino)
    }

    pub(crate) fn unlink(&mut self, dir: Ino, name: &str) -> Answer {
        let ino = self.child(dir, name).ok_or(&[Errno::NOENT][..])?;
        if self.inode(ino).is_dir() {
            return Err(&[Errno::ISDIR]);
        }
        self.drop_shadows(dir, name);
        self.detach(dir, name);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, dir: Ino, name: &str) -> Answer {
        let ino = self.child(dir, name).ok_or(&[Errno::NOENT][..])?;
        if !self.inode(ino).is_dir() {
            return Err(&[Errno::NOTDIR]);
        }
        if !self.entries(ino).is_empty() {
            return Err(&[Errno::NOTEMPTY]);
        }
        self.detach(dir, name);
        Ok(())
    }

    pub(crate) fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> Answer {
        if self.inode(ino).is_dir() {
            return Err(&[Errno::PERM, Errno::EXIST]);
        }
        if self.child(dir, name).is_some() {
            return Err(&[Errno::EXIST]);
        }
        self.attach(dir, name, ino);
        Ok(())
    }

    /// renameat2(2), refusing in the order of `do_renameat2` and `vfs_rename` in fs/namei.c.
    pub(crate) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Answer {
        let source = self.child(from.0, from.1).ok_or(&[Errno::NOENT][..])?;
        let target = self.child(to.0, to.1);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(&[Errno::EXIST]),
            (RenameMode::Exchange, None) => return Err(&[Errno::NOENT]),
            _ => {}
        }
        if self.inode(source).is_dir() && self.is_within(to.0, source) {
            return Err(&[Errno::INVAL, Errno::NOTDIR, Errno::NOTEMPTY]);
        }
        if let Some(target) = target
            && self.inode(target).is_dir()
            && self.is_within(from.0, target)
        {
            let exchange = mode == RenameMode::Exchange;
            return Err(if exchange { &[Errno::INVAL] } else { &[Errno::NOTEMPTY, Errno::ISDIR] });
        }
        if target == Some(source) {
            return Ok(());
        }
        if mode == RenameMode::Exchange {
            self.drop_shadows(from.0, from.1);
            self.drop_shadows(to.0, to.1);
            let (one, other) = (self.detach(from.0, from.1), self.detach(to.0, to.1));
            self.attach(from.0, from.1, other);
            self.attach(to.0, to.1, one);
            return Ok(());
        }
        match target.map(|target| (self.inode(source).is_dir(), self.inode(target).is_dir(), target)) {
            Some((true, false, _)) => return Err(&[Errno::NOTDIR]),
            Some((false, true, _)) => return Err(&[Errno::ISDIR]),
            Some((true, true, target)) if !self.entries(target).is_empty() => return Err(&[Errno::NOTEMPTY]),
            Some(_) => {
                self.drop_shadows(to.0, to.1);
                self.detach(to.0, to.1);
            }
            None => {}
        }
        self.drop_shadows(from.0, from.1);
        self.detach(from.0, from.1);
        self.attach(to.0, to.1, source);
        Ok(())
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: usize, bytes: &[u8]) {
        let Body::File(data) = &mut self.inodes[ino].body else { panic!("not a file") };
        if !bytes.is_empty() {
            data.resize(data.len().max(offset + bytes.len()), 0);
            data[offset..offset + bytes.len()].copy_from_slice(bytes);
            self.inodes[ino].mtime = None;
        }
    }

    pub(crate) fn truncate(&mut self, ino: Ino, size: usize) {
        if let Body::File(data) = &mut self.inodes[ino].body {
            data.resize(size, 0);
            self.inodes[ino].mtime = None;
        }
    }
}
