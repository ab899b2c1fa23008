//! Reads all backings into the index when the mount starts.
//!
//! What always holds: names, types and inode numbers come from getdents64 alone; a `stat` is made only for
//! a path that is on several backings (whose ctime decides), where the file system tells no type, and where a
//! [`Sieve`](super::Sieve) asks (after the machine went down: of what was new then). One
//! thread per backing reads, the caller's thread builds the tree meanwhile. What can't be read is reported
//! and skipped, never fatal. Nothing outside the backing is followed: no symbolic link, no other mount.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, openat2, statx};

use super::join::Joined;
use super::load::{Loader, Taken};
use super::names::{Block, NameRef};
use super::report::{Problem, Progress, Report};
use super::source::Source;
use super::{AddError, DirId, EntryId, FileRef, Index, Kind, Slot, SlotSet, What};
use crate::supervise::State;

/// Nested deeper than this is reported and skipped: each level costs an open directory while it's read.
pub const MAX_DEPTH: usize = 1000;
/// Room for about 1600 names of 75 bytes in one getdents64 call.
const DENTS_BUFFER: usize = 256 << 10;
/// How paths are walked.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Reads all backings into a new index. With a state directories have the numbers that it knows them by.
pub fn scan(
    sources: &[Source<'_>],
    state: Option<Arc<State>>,
    mut progress: impl FnMut(Progress),
) -> Result<(Index, Report), AddError> {
    let mut index = Index::of(sources.iter().map(|source| source.slot).collect());
    if let Some(state) = state {
        index.keep_in(state);
    }
    let newest = |slot: Slot, path: &[u8]| {
        let source = sources.iter().find(|source| source.slot == slot)?;
        // Beneath: what was a directory may be a symbolic link by now.
        let file = openat2(
            source.root,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        );
        let stat = statx(file.ok()?, c"", AtFlags::EMPTY_PATH, StatxFlags::CTIME).ok()?;
        Some((stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec))
    };
    let started = Instant::now();
    let mut report = Report::default();
    let mut told = started;
    let hashing = index.hashing;
    let mut loader = Loader::new();
    // Batches go round: new memory for each would cost more than filling them.
    let used = &Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel::<Batch>(32);
        for (n, source) in sources.iter().enumerate() {
            let send = send.clone();
            let hand_over = move |batch| {
                // The receiver is gone only when the scan has failed as a whole.
                let _ = send.send(batch);
                used.lock().pop()
            };
            let hash = move |name: &[u8]| hashing.of_name(name);
            scope.spawn(move || Reader::new(n, source, hash, hand_over).read());
        }
        drop(send);
        // Each reader numbers the directories it meets; here is what the index calls them.
        let mut dirs = vec![vec![DirId::ROOT]; sources.len()];
        for mut batch in receive {
            let n = batch.source;
            Merge { index: &mut index, source: &sources[n], dirs: &mut dirs[n] }.batch(
                &mut batch,
                Files::Load(&mut loader),
                &mut report,
            )?;
            used.lock().push(batch);
            if told.elapsed() > Duration::from_millis(200) {
                told = Instant::now();
                progress(Progress { names: report.names, elapsed: started.elapsed() });
            }
        }
        Ok(())
    })?;
    for Taken { entry, by } in loader.finish(&mut index) {
        let What::File(file) = index.what(entry) else { continue };
        Loader::discard(&mut index, entry);
        duplicate(&mut index, file, by, Some(&newest), &mut report);
    }
    give_back();
    index.is_found();
    report.elapsed = started.elapsed();
    progress(Progress { names: report.names, elapsed: report.elapsed });
    Ok((index, report))
}

/// Gives back what the scan needed for itself, some 8 bytes a name: freed a little here and there, the allocator
/// would keep it.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and touches nothing but memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Names as a reader met them: as many as a block has room for. Waking the other thread costs more than a cache
/// miss: 1024 at a time took twice as long.
#[derive(Default)]
pub(super) struct Batch {
    source: usize,
    names: Block,
    entries: Vec<Met>,
    /// Directories, by the reader's number, that turned out to be no part of the backing.
    foreign: Vec<u32>,
    problems: Vec<Problem>,
    leftovers: Vec<(Slot, Vec<u8>)>,
}

struct Met {
    /// The directory, by the reader's number.
    dir: u32,
    name: NameRef,
    kind: Kind,
    ino: u64,
    /// The name's hash.
    hash: u64,
}

/// The ctime of a path on a backing, which decides between two copies.
type Newest<'a> = &'a dyn Fn(Slot, &[u8]) -> Option<(i64, u32)>;

/// What is done with files.
pub(super) enum Files<'a> {
    /// They are loaded, to be entered when all are there.
    Load(&'a mut Loader),
    /// They are entered at once, while others use the index.
    Enter(&'a mut Joined),
}

/// Makes what one backing's reader met part of the index.
pub(super) struct Merge<'a> {
    pub(super) index: &'a mut Index,
    pub(super) source: &'a Source<'a>,
    /// Each reader numbers the directories it meets; here is what the index calls them.
    pub(super) dirs: &'a mut Vec<DirId>,
}

impl Merge<'_> {
    pub(super) fn batch(
        &mut self,
        batch: &mut Batch,
        mut files: Files<'_>,
        report: &mut Report,
    ) -> Result<(), AddError> {
        report.names += batch.entries.len() as u64;
        match &mut files {
            Files::Load(loader) => self.load(batch, loader, report)?,
            Files::Enter(joined) => self.enter(batch, joined, report)?,
        }
        for number in batch.foreign.drain(..) {
            self.leave_out(self.dirs[number as usize]);
        }
        batch.problems.drain(..).for_each(|problem| report.add(problem));
        report.leftovers.append(&mut batch.leftovers);
        Ok(())
    }

    /// Loads what a batch has; its names stay where the reader wrote them.
    fn load(&mut self, batch: &mut Batch, loader: &mut Loader, report: &mut Report) -> Result<(), AddError> {
        let adopted = self.index.names.adopt(&mut batch.names);
        for met in &batch.entries {
            let dir = self.dirs[met.dir as usize];
            let name = match adopted {
                Some(block) => block.within(met.name),
                None => self.index.names.add(batch.names.get(met.name)).ok_or(AddError::Full)?,
            };
            if met.kind == Kind::Dir {
                let bytes = self.index.names.get(name).to_vec();
                self.index.names.remove(name);
                let id = self.dir(dir, &bytes, report)?;
                self.dirs.push(id);
                continue;
            }
            let file = self.file(met);
            loader.add(self.index, dir, name, met.hash, file)?;
        }
        loader.pause(self.index);
        Ok(())
    }

    /// Enters what a batch has, while others use the index.
    fn enter(&mut self, batch: &Batch, joined: &mut Joined, report: &mut Report) -> Result<(), AddError> {
        for met in &batch.entries {
            let (dir, name) = (self.dirs[met.dir as usize], batch.names.get(met.name));
            if met.kind == Kind::Dir {
                let id = self.enter_dir(dir, name, joined, report)?;
                self.dirs.push(id);
                continue;
            }
            let file = self.file(met);
            match self.index.add_file(dir, name, file) {
                Ok(Ok(_)) => joined.appeared(dir, name),
                Ok(Err(entry)) => joined.taken.push((entry, file)),
                // Removed while this was read.
                Err(AddError::DirGone) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn file(&mut self, met: &Met) -> FileRef {
        let ino = self.index.pack_ino(met.ino);
        FileRef { slot: self.source.slot, ino, kind: met.kind, reason: self.source.reason }
    }

    /// A directory isn't part of the backing after all.
    fn leave_out(&mut self, dir: DirId) {
        let slots = self.index.slots(dir).unwrap_or_default().without(self.source.slot);
        self.index.set_slots(dir, slots);
        let place = self.index.dir_place(dir).map(|(parent, name)| (parent, name.to_vec()));
        if slots.is_empty()
            && let Some((parent, name)) = place
            && let Some((entry, _)) = self.index.find(parent, &name)
        {
            self.index.remove(entry);
        }
    }

    /// The same while others use the index: a file of that name stays, for somebody may be at it.
    fn enter_dir(
        &mut self,
        dir: DirId,
        name: &[u8],
        joined: &mut Joined,
        report: &mut Report,
    ) -> Result<DirId, AddError> {
        let here = SlotSet::one(self.source.slot);
        match self.index.add_dir(dir, name, here) {
            Ok(Ok(new)) => {
                joined.appeared(dir, name);
                Ok(new)
            }
            Ok(Err(taken)) => match self.index.what(taken) {
                What::Dir(there) => {
                    let slots = self.index.slots(there).unwrap_or_default();
                    self.index.set_slots(there, slots.union(here));
                    Ok(there)
                }
                What::File(_) => {
                    let what = "a file of the same name on another backing hides this directory".into();
                    let path = self.index.path_of(dir, name);
                    report.add(Problem { slot: self.source.slot, path, what, is_hidden: true });
                    Ok(DirId::NONE)
                }
            },
            Err(AddError::DirGone) => Ok(DirId::NONE),
            Err(e) => Err(e),
        }
    }

    /// A directory of one backing becomes part of the merged one, and wins over a file of that name.
    fn dir(&mut self, dir: DirId, name: &[u8], report: &mut Report) -> Result<DirId, AddError> {
        let here = SlotSet::one(self.source.slot);
        let taken = match self.index.add_dir(dir, name, here)? {
            Ok(new) => return Ok(new),
            Err(taken) => taken,
        };
        match self.index.what(taken) {
            What::Dir(there) => {
                let slots = self.index.slots(there).unwrap_or_default();
                self.index.set_slots(there, slots.union(here));
                Ok(there)
            }
            What::File(file) => {
                report.add(hidden_by_dir(self.index, file.slot, dir, name));
                self.index.remove(taken);
                self.index.add_dir(dir, name, here)?.map_err(|_| AddError::Full)
            }
        }
    }
}

/// The same path on a second backing: the newest ctime is the file, the others are its shadows. Without
/// `newest` what is in the index stays the file.
pub(super) fn duplicate(
    index: &mut Index,
    file: FileRef,
    taken: EntryId,
    newest: Option<Newest<'_>>,
    report: &mut Report,
) {
    let (dir, name) = index.place(taken);
    let there = match index.what(taken) {
        What::File(there) if there.slot == file.slot => return,
        What::File(there) => there,
        What::Dir(_) => return report.add(hidden_by_dir(index, file.slot, dir, name)),
    };
    let newer = newest.is_some_and(|ctime| {
        let path = index.path_of(dir, name);
        let (old, new) = (ctime(there.slot, &path), ctime(file.slot, &path));
        // Equal times leave the lower slot, whatever order the readers came in.
        new > old || (new == old && file.slot < there.slot)
    });
    let shadows = index.shadows(taken);
    if newer {
        index.retarget(taken, file);
        index.set_shadows(taken, shadows.without(file.slot).with(there.slot));
    } else {
        index.set_shadows(taken, shadows.with(file.slot));
    }
}

fn hidden_by_dir(index: &Index, slot: Slot, dir: DirId, name: &[u8]) -> Problem {
    let what = "a directory of the same name on another backing hides this file".into();
    Problem { slot, path: index.path_of(dir, name), what, is_hidden: true }
}

/// Reads one backing.
pub(super) struct Reader<'a, H: Fn(&[u8]) -> u64, F: FnMut(Batch) -> Option<Batch>> {
    source: &'a Source<'a>,
    hash: H,
    /// Takes a full batch, and may give an old one to fill.
    send: F,
    batch: Batch,
    next_dir: u32,
    /// The names down to the directory being read, for reports.
    path: Vec<u8>,
}

impl<'a, H: Fn(&[u8]) -> u64, F: FnMut(Batch) -> Option<Batch>> Reader<'a, H, F> {
    pub(super) fn new(number: usize, source: &'a Source<'a>, hash: H, send: F) -> Self {
        Reader { source, hash, send, batch: Batch::new(number), next_dir: 1, path: Vec::new() }
    }

    pub(super) fn read(mut self) {
        let mut buffer = Vec::with_capacity(DENTS_BUFFER);
        self.read_tree(&mut buffer);
        self.hand_over();
    }

    /// Depth first, without recursion: a level holds its directory and the subdirectories still to read.
    fn read_tree(&mut self, buffer: &mut Vec<u8>) {
        struct Level {
            dir: OwnedFd,
            todo: Vec<(u32, Vec<u8>)>,
            path_len: usize,
        }
        let Some(root) = self.open(self.source.root, b".", 0) else { return };
        let todo = self.read_dir(&root, 0, buffer);
        let mut levels = vec![Level { dir: root, todo, path_len: 0 }];
        while let Some(level) = levels.last_mut() {
            let Some((number, name)) = level.todo.pop() else {
                levels.pop();
                continue;
            };
            self.path.truncate(level.path_len);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let Some(dir) = self.open(level.dir.as_fd(), &name, number) else { continue };
            if levels.len() >= MAX_DEPTH {
                self.report(format!("nested deeper than {MAX_DEPTH} directories, not read"));
                continue;
            }
            let todo = self.read_dir(&dir, number, buffer);
            levels.push(Level { dir, todo, path_len: self.path.len() });
        }
    }

    fn open(&mut self, at: BorrowedFd<'_>, name: &[u8], number: u32) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(at, name, flags, Mode::empty(), BENEATH) {
            Ok(dir) => Some(dir),
            Err(rustix::io::Errno::XDEV) => {
                self.report("another file system is mounted here; it's not part of the backing".into());
                self.batch.foreign.push(number);
                None
            }
            Err(e) => {
                self.report(format!("can't open this directory: {e}"));
                None
            }
        }
    }

    /// Reads one directory; returns its subdirectories with the numbers they got.
    fn read_dir(&mut self, dir: &OwnedFd, number: u32, buffer: &mut Vec<u8>) -> Vec<(u32, Vec<u8>)> {
        let mut subdirs = Vec::new();
        let sieve = self.source.sieve.map(|sieve| (sieve, sieve.enter(dir)));
        buffer.clear();
        let room: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
        let mut dents = RawDir::new(dir, room);
        while let Some(entry) = dents.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    self.report(format!("can't read this directory to its end: {e}"));
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if (self.source.is_reserved)(name) {
                if (self.source.is_leftover)(name) {
                    self.batch.leftovers.push((self.source.slot, self.path_of(name)));
                }
                continue;
            }
            let Some((kind, ino)) = identify(dir, name, entry.file_type(), entry.ino()) else {
                continue; // gone already
            };
            if let Some((sieve, passed)) = sieve
                && passed.ask
                && kind == Kind::File
                && sieve.keeps_out(dir, passed, name, ino)
            {
                continue;
            }
            if kind == Kind::Dir {
                subdirs.push((self.next_dir, name.to_vec()));
                self.next_dir += 1;
            }
            let Some(at) = self.keep(name) else { continue };
            let hash = (self.hash)(name);
            self.batch.entries.push(Met { dir: number, name: at, kind, ino, hash });
        }
        subdirs
    }

    /// Keeps a name, in the next batch if this one is full. `None` for one longer than any directory's.
    fn keep(&mut self, name: &[u8]) -> Option<NameRef> {
        if name.len() > 255 {
            return None;
        }
        self.batch.names.add(name).or_else(|| {
            self.hand_over();
            self.batch.names.add(name)
        })
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, name].join(&b'/') }
    }

    fn report(&mut self, what: String) {
        let (slot, path) = (self.source.slot, self.path.clone());
        self.batch.problems.push(Problem { slot, path, what, is_hidden: false });
    }

    fn hand_over(&mut self) {
        let source = self.batch.source;
        let full = std::mem::replace(&mut self.batch, Batch { source, ..Batch::default() });
        self.batch = match (self.send)(full) {
            Some(old) => old.emptied(source),
            None => Batch::new(source),
        };
    }
}

impl Batch {
    fn new(source: usize) -> Batch {
        Batch { source, names: Block::new(), ..Batch::default() }
    }

    /// Names that aren't directories, and what could not be read.
    pub(super) fn files(&self) -> u64 {
        let files = self.entries.iter().filter(|met| met.kind != Kind::Dir).count();
        (files + self.problems.len()) as u64
    }

    /// The same memory, for another source.
    fn emptied(mut self, source: usize) -> Batch {
        self.names.reuse();
        self.entries.clear();
        Batch { source, foreign: Vec::new(), problems: Vec::new(), leftovers: Vec::new(), ..self }
    }
}

/// The type and inode number: from the directory, or by a stat where it doesn't tell the type.
pub(crate) fn identify(dir: &OwnedFd, name: &[u8], file_type: FileType, ino: u64) -> Option<(Kind, u64)> {
    let kind = match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => {
            let stat =
                statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE | StatxFlags::INO).ok()?;
            return Some((Kind::from_mode(u32::from(stat.stx_mode)), stat.stx_ino));
        }
    };
    Some((kind, ino))
}
