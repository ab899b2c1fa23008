//! Files that were begun and not closed, written down in their backing's root.
//!
//! What always holds: a file is written down before it's there (by the place it will have), and crossed out
//! when it was closed; each by one pwrite(2), which outlives the daemon, though not the machine. What outlives
//! that is the last checkpoint: everything that was closed before it's on the device, and so is what was
//! written down then. Not mapped memory: a store to it kills the daemon (SIGBUS) when the drive fails.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, Statx, openat, unlinkat};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Its name in the backing's root.
const NAME: &str = ".kvfs-unclosed";
/// Told apart from any other file. The last byte is the layout's version.
const MAGIC: u64 = u64::from_le_bytes(*b"kvfsUNC\x01");
/// Where records begin, and what each takes: a sector, which a drive writes as a whole.
const RECORD: usize = 512;
/// More records than a daemon can have files open.
const MOST: usize = 1 << 24;

/// States of a record.
const FREE: u32 = 0;
const MAKING: u32 = 1;
const OPEN: u32 = 2;
const CLOSING: u32 = 3;

/// A sector.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    /// The boot in which the mount was.
    boot: [u8; 40],
    /// When the last checkpoint began: seconds since 1970, and nanoseconds.
    seconds: i64,
    nanoseconds: u32,
    /// 1 when the mount has ended and all of it is on the device.
    clean: u32,
    /// Of all before it.
    sum: u64,
}

/// The head of a record; a name follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    state: u32,
    dead: u32,
    ino: u64,
    birth: u64,
    /// Who has it open to write: process id and start.
    start: u64,
    pid: u32,
    name_len: u32,
    /// The inode of the directory that it's made in.
    parent: u64,
    /// How the file was when it was perhaps closed: its size, and its mtime in nanoseconds since 1970.
    size: u64,
    changed: i64,
}

/// Which file a record is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that may have been made under this name.
    Named {
        /// The directory's inode number.
        parent: u64,
        /// The name in it.
        name: Vec<u8>,
    },
    /// The one with this inode number.
    Inode {
        /// The number.
        ino: u64,
        /// What tells it from another that gets its number later.
        birth: u64,
    },
}

/// A file that wasn't closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its record's number.
    pub record: u32,
    /// Which file.
    pub which: Which,
    /// A process that had it open to write: its id, and when it started; zeros if it can't be seen.
    pub writer: (u32, u64),
    /// A process died that had it open.
    pub dead: bool,
    /// Its only descriptor may have been closed, when it was like this.
    pub closing: Option<Content>,
}

/// What tells whether a file was written to: its size in bytes, and its mtime in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its size.
    pub size: u64,
    /// Its mtime.
    pub changed: i64,
}

impl From<&Statx> for Content {
    fn from(stat: &Statx) -> Content {
        let time = stat.stx_mtime;
        let changed = time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.into());
        Content { size: stat.stx_size, changed }
    }
}

/// What a mount before this one has left.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// Files that weren't closed.
    pub begun: Vec<Begun>,
    /// Since when what was written may be missing, if the machine went down under the mount; and the boot.
    pub power_lost: Option<(SystemTime, String)>,
    header: Option<Header>,
}

impl Left {
    /// Whether what was closed before may not be on the device yet: the daemon died, the machine didn't.
    pub fn may_be_unsynced(&self) -> bool {
        self.power_lost.is_none() && self.header.is_some_and(|header| header.clean == 0)
    }
}

#[derive(Debug, Default)]
struct Numbers {
    free: Vec<u32>,
    next: u32,
}

/// A backing's list of files that aren't closed.
#[derive(Debug)]
pub struct Unclosed {
    /// Open as long as something is written down: a file system with a file that's open to be written can't be
    /// remounted read-only.
    file: Mutex<Option<Arc<OwnedFd>>>,
    /// The backing's root.
    root: OwnedFd,
    boot: String,
    numbers: Mutex<Numbers>,
    /// To be crossed out when the drive answers.
    later: Mutex<Vec<u32>>,
    /// Something was closed since the last checkpoint.
    touched: AtomicBool,
}

/// The running system.
pub fn boot_id() -> String {
    #[cfg(feature = "fault-points")]
    if let Ok(id) = std::env::var("KVFS_TEST_BOOT_ID") {
        return id;
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn open(root: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(root, NAME, flags, Mode::from_raw_mode(0o600))?)
}

/// What is written down in a backing's root; `None` if nothing ever was. An error of kind `InvalidData` if it
/// can't be understood.
pub fn left(root: BorrowedFd<'_>) -> io::Result<Option<Left>> {
    let file = match open(root, OFlags::empty()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut sector = [0; RECORD];
    let mut left = Left::default();
    if read_at(&file, &mut sector, 0)? == 0 {
        // Made, and the machine went down before the first word was in it.
        return Ok(Some(left));
    }
    let header = Header::read_from_prefix(&sector).map_err(|_| damaged())?.0;
    if header.magic != MAGIC || header.sum != header.checksum() {
        return Err(damaged());
    }
    let boot = String::from_utf8_lossy(&header.boot).trim_end_matches('\0').to_owned();
    if header.clean == 0 && boot != boot_id() {
        let since = Duration::new(u64::try_from(header.seconds).unwrap_or(0), header.nanoseconds);
        left.power_lost = Some((UNIX_EPOCH + since, boot));
    }
    left.header = Some(header);
    for record in 0..MOST as u32 {
        if read_at(&file, &mut sector, offset(record))? == 0 {
            break;
        }
        left.begun
            .extend(Raw::read_from_prefix(&sector).ok().and_then(|(raw, rest)| raw.begun(record, rest)));
    }
    Ok(Some(left))
}

/// Nothing is written down any more.
pub fn remove(root: BorrowedFd<'_>) -> io::Result<()> {
    match unlinkat(root, NAME, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn damaged() -> io::Error {
    let what =
        format!("its {NAME} is damaged; remove it, and look at the files that were being written last");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn offset(record: u32) -> u64 {
    (u64::from(record) + 1) * RECORD as u64
}

fn read_at(file: &OwnedFd, into: &mut [u8], at: u64) -> io::Result<usize> {
    into.fill(0);
    Ok(rustix::io::pread(file, into, at)?)
}

fn write_at(file: &OwnedFd, bytes: &[u8], at: u64) -> io::Result<()> {
    match rustix::io::pwrite(file, bytes, at)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(rustix::io::Errno::NOSPC.into()),
    }
}

impl Header {
    fn checksum(&self) -> u64 {
        xxh3_64(&self.as_bytes()[..size_of::<Header>() - size_of::<u64>()])
    }
}

impl Raw {
    fn begun(&self, record: u32, rest: &[u8]) -> Option<Begun> {
        let which = match self.state {
            MAKING => {
                let name = rest.get(..self.name_len as usize)?.to_vec();
                Which::Named { parent: self.parent, name }
            }
            OPEN | CLOSING => Which::Inode { ino: self.ino, birth: self.birth },
            _ => return None,
        };
        let content = Content { size: self.size, changed: self.changed };
        let closing = (self.state == CLOSING).then_some(content);
        Some(Begun { record, which, writer: (self.pid, self.start), dead: self.dead != 0, closing })
    }
}

impl Unclosed {
    /// Begins the list anew, or goes on with `left`, which a daemon of this mount has left. What was closed
    /// before the mount counts as being on the device if `synced` says so.
    pub fn begin(root: BorrowedFd<'_>, left: &Left, goes_on: bool, synced: bool) -> io::Result<Unclosed> {
        let file = open(root, OFlags::CREATE)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(root, c".", flags, Mode::empty())?;
        let (boot, numbers, later) = (boot_id(), Mutex::default(), Mutex::default());
        let file = Arc::new(file);
        let kept = Mutex::new(Some(file.clone()));
        let list = Unclosed { file: kept, root, boot, numbers, later, touched: AtomicBool::new(!synced) };
        if goes_on && left.header.is_some() {
            let mut numbers = list.numbers.lock();
            numbers.next = left.begun.iter().map(|begun| begun.record + 1).max().unwrap_or(0);
            let used: HashSet<u32> = left.begun.iter().map(|begun| begun.record).collect();
            numbers.free = (0..numbers.next).filter(|record| !used.contains(record)).collect();
            drop(numbers);
            return Ok(list);
        }
        let since = match (left.header, synced) {
            (Some(old), false) => UNIX_EPOCH + Duration::new(old.seconds.max(0) as u64, old.nanoseconds),
            _ => SystemTime::now(),
        };
        rustix::fs::ftruncate(&file, RECORD as u64)?;
        list.write_header(since, false)?;
        rustix::fs::fsync(&list.root)?;
        Ok(list)
    }

    /// Files are known to be this boot's by its name.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    fn file(&self) -> io::Result<Arc<OwnedFd>> {
        let mut file = self.file.lock();
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        Ok(file.insert(Arc::new(open(self.root.as_fd(), OFlags::CREATE)?)).clone())
    }

    /// Nothing is written down now: the next record opens the file again.
    fn rest(&self) {
        let idle = if self.is_idle() { self.file.lock().take() } else { None };
        drop(idle);
    }

    fn write_header(&self, since: SystemTime, clean: bool) -> io::Result<()> {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        let boot = &self.boot.as_bytes()[..self.boot.len().min(header.boot.len())];
        header.boot[..boot.len()].copy_from_slice(boot);
        (header.seconds, header.nanoseconds) = (since.as_secs() as i64, since.subsec_nanos());
        header.clean = clean.into();
        header.sum = header.checksum();
        let mut sector = [0; RECORD];
        sector[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        write_at(&*self.file()?, &sector, 0)?;
        Ok(rustix::fs::fdatasync(&*self.file()?)?)
    }

    fn number(&self) -> u32 {
        let mut numbers = self.numbers.lock();
        numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    fn give_back(&self, record: u32) {
        self.numbers.lock().free.push(record);
    }

    fn enter(&self, raw: Raw, name: &[u8]) -> io::Result<u32> {
        let record = self.number();
        let mut bytes = [0; RECORD];
        bytes[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        bytes[size_of::<Raw>()..][..name.len()].copy_from_slice(name);
        let end = offset(record);
        write_at(&*self.file()?, &bytes[..size_of::<Raw>() + name.len()], end)
            .inspect_err(|_| self.give_back(record))?;
        Ok(record)
    }

    /// A file is about to be made. Its record's number.
    pub fn make(&self, parent: u64, name: &[u8], writer: (u32, u64)) -> io::Result<u32> {
        // No name is longer than 255 bytes.
        let name = &name[..name.len().min(255)];
        let (pid, start) = writer;
        let name_len = name.len() as u32;
        self.enter(Raw { state: MAKING, parent, name_len, pid, start, ..Raw::new_zeroed() }, name)
    }

    /// It was made.
    pub fn made(&self, record: u32, ino: u64, birth: u64) -> io::Result<()> {
        // Not what follows: whose it is, and its name.
        let raw = Raw { state: OPEN, ino, birth, ..Raw::new_zeroed() };
        write_at(&*self.file()?, &raw.as_bytes()[..std::mem::offset_of!(Raw, start)], offset(record))
    }

    /// A file is open to be written. Its record's number.
    pub fn opened(&self, ino: u64, birth: u64, writer: (u32, u64)) -> io::Result<u32> {
        let (pid, start) = writer;
        self.enter(Raw { state: OPEN, ino, birth, pid, start, ..Raw::new_zeroed() }, b"")
    }

    /// A process died that had it open.
    pub fn set_dead(&self, record: u32) -> io::Result<()> {
        write_at(&*self.file()?, &1u32.to_ne_bytes(), offset(record) + std::mem::offset_of!(Raw, dead) as u64)
    }

    /// Its only descriptor is closed, or a copy of that: it's whole if it stays as it is.
    pub fn closing(&self, record: u32, content: Content) -> io::Result<()> {
        let Content { size, changed } = content;
        let raw = Raw { size, changed, ..Raw::new_zeroed() };
        let (at, from) = (offset(record), std::mem::offset_of!(Raw, size));
        write_at(&*self.file()?, &raw.as_bytes()[from..], at + from as u64)?;
        write_at(&*self.file()?, &CLOSING.to_ne_bytes(), at)
    }

    /// It was closed, or isn't there.
    pub fn forget(&self, record: u32) -> io::Result<()> {
        write_at(&*self.file()?, &FREE.to_ne_bytes(), offset(record))?;
        self.give_back(record);
        self.touched.store(true, Relaxed);
        Ok(())
    }

    /// The same of files on a drive that doesn't answer now: at the next checkpoint.
    pub fn forget_later(&self, records: impl IntoIterator<Item = u32>) {
        self.later.lock().extend(records);
    }

    /// Has all that is written down on the device.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&*self.file()?)?)
    }

    /// There was no mount after all: what it had begun goes again, unless a mount before needs it.
    pub fn withdraw(&self) {
        if !self.touched.load(Relaxed) {
            // An empty list does no harm.
            let _ = remove(self.root.as_fd());
        }
    }

    fn is_idle(&self) -> bool {
        let numbers = self.numbers.lock();
        numbers.free.len() == numbers.next as usize
    }

    /// Has everything that was closed until now on the device, and writes that down, if there is anything new.
    /// `ended`: the mount has ended. Then nothing is left behind, unless a file wasn't closed (the connection was
    /// aborted): that's for the next mount.
    pub fn checkpoint(&self, ended: bool) -> io::Result<()> {
        let later = std::mem::take(&mut *self.later.lock());
        later.into_iter().try_for_each(|record| self.forget(record))?;
        let clean = ended && self.is_idle();
        if !self.touched.swap(false, Relaxed) && !clean {
            self.rest();
            return Ok(());
        }
        let since = SystemTime::now();
        let done = rustix::fs::syncfs(self.root.as_fd())
            .map_err(io::Error::from)
            .and_then(|()| self.write_header(since, clean))
            .and_then(|()| if clean { remove(self.root.as_fd()) } else { Ok(()) });
        self.rest();
        done.inspect_err(|_| self.touched.store(true, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn of(left: &Left) -> Vec<Which> {
        left.begun.iter().map(|begun| begun.which.clone()).collect()
    }

    #[test]
    fn what_was_begun_is_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let root = File::open(tmp.path()).unwrap();
        assert!(left(root.as_fd()).unwrap().is_none());
        let list = Unclosed::begin(root.as_fd(), &Left::default(), false, true).unwrap();
        let (a, b) = (list.make(7, b"a", (3, 4)).unwrap(), list.make(7, b"b", (3, 4)).unwrap());
        list.made(b, 12, 99).unwrap();
        let c = list.opened(13, 98, (5, 6)).unwrap();
        list.set_dead(c).unwrap();
        let there = left(root.as_fd()).unwrap().unwrap();
        let inode = |ino, birth| Which::Inode { ino, birth };
        assert_eq!(of(&there), [Which::Named { parent: 7, name: b"a".into() }, inode(12, 99), inode(13, 98)]);
        let begun = &there.begun[1];
        assert_eq!((begun.writer, begun.dead, there.begun[2].dead), ((3, 4), false, true));
        assert_eq!(begun.closing, None);
        let content = Content { size: 1 << 40, changed: -3 };
        list.closing(b, content).unwrap();
        let there = left(root.as_fd()).unwrap().unwrap();
        let begun = &there.begun[1];
        assert_eq!((&begun.which, begun.writer, begun.closing), (&inode(12, 99), (3, 4), Some(content)));
        assert!(there.power_lost.is_none(), "the machine has been up since");

        list.forget(a).unwrap();
        list.forget(b).unwrap();
        let there = left(root.as_fd()).unwrap().unwrap();
        assert_eq!(of(&there), [inode(13, 98)]);
        let again = Unclosed::begin(root.as_fd(), &there, true, false).unwrap();
        assert_eq!(of(&left(root.as_fd()).unwrap().unwrap()), [inode(13, 98)], "it goes on");
        assert!(again.opened(14, 97, (0, 0)).unwrap() != c);
        let anew = Unclosed::begin(root.as_fd(), &there, false, false).unwrap();
        let there = left(root.as_fd()).unwrap().unwrap();
        assert!(there.begun.is_empty() && there.may_be_unsynced());
        let open = anew.opened(15, 96, (0, 0)).unwrap();
        anew.checkpoint(true).unwrap();
        assert_eq!(of(&left(root.as_fd()).unwrap().unwrap()), [inode(15, 96)], "a file wasn't closed");
        anew.forget(open).unwrap();
        anew.checkpoint(true).unwrap();
        assert!(left(root.as_fd()).unwrap().is_none(), "a mount that has ended leaves nothing");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let root = File::open(tmp.path()).unwrap();
        for bad in [&b"hello"[..], &[0; 4096], &[0xff; 512]] {
            std::fs::write(tmp.path().join(NAME), bad).unwrap();
            assert_eq!(left(root.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        std::fs::write(tmp.path().join(NAME), "").unwrap();
        assert!(left(root.as_fd()).unwrap().unwrap().begun.is_empty());
    }
}
