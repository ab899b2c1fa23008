//! Who uses the fast path: processes, known by their pidfds.
//!
//! What always holds: an owner stands for one process and never for another that got its number later; when
//! the process has ended, what is left of it is told once.

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::handed::Handed;
use crate::shares::{Share, Shares};

/// A process that uses the fast path.
pub(crate) struct Owner {
    /// Its id in the daemon's pid namespace.
    pub(crate) tgid: u32,
    /// The user it acted for when it came first.
    pub(crate) uid: u32,
    pidfd: OwnedFd,
    incarnation: OnceLock<u64>,
    _share: Share,
}

/// `PID_FS_MAGIC` (include/uapi/linux/magic.h).
const PIDFS_MAGIC: u64 = 0x5049_4446;

impl Owner {
    fn open(tgid: u32, uid: u32, share: Share) -> Result<Owner, Errno> {
        let pid = i32::try_from(tgid).ok().and_then(Pid::from_raw).ok_or(Errno::PERM)?;
        let (pidfd, incarnation) = (pidfd_open(pid, PidfdFlags::empty())?, OnceLock::new());
        Ok(Owner { tgid, uid, pidfd, incarnation, _share: share })
    }

    /// A number that no other process has had since the system's start: that of its pidfd's inode. 0 where the
    /// kernel has none (before 6.9, or without CONFIG_FS_PID).
    pub(super) fn incarnation(&self) -> u64 {
        *self.incarnation.get_or_init(|| {
            let is_numbered =
                rustix::fs::fstatfs(&self.pidfd).is_ok_and(|fs| fs.f_type as u64 == PIDFS_MAGIC);
            if is_numbered { rustix::fs::fstat(&self.pidfd).map_or(0, |stat| stat.st_ino) } else { 0 }
        })
    }

    /// Readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it's still there: until then nobody else has its number.
    fn is_alive(&self) -> bool {
        // SAFETY: a signal of 0 is none; the kernel only looks.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                std::os::fd::AsRawFd::as_raw_fd(&self.pidfd),
                0,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        sent == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
    }

    /// A copy of one of its descriptors. `EPERM` where the daemon may not look into the process, `EBADF` if
    /// it has no such descriptor.
    pub(super) fn descriptor(&self, number: i32) -> Result<Handed, Errno> {
        Handed::room(self.uid)?;
        let fd = pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?;
        Ok(Handed::new(fd, self.uid))
    }
}

/// Told the owner that has ended.
type Ended = Box<dyn Fn(&Arc<Owner>) + Send + Sync>;

/// All that use the fast path of a mount.
pub(crate) struct Owners {
    by_tgid: Mutex<HashMap<u32, Arc<Owner>>>,
    /// Processes of threads seen lately.
    threads: Mutex<LruCache<u32, u32>>,
    deaths: OwnedFd,
    ended: Ended,
    shares: Arc<Shares>,
}

/// How many descriptors one kind of thing may take of those that this process can have, `most` at most.
pub(super) fn share_of_descriptors(most: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit / 32).unwrap_or(most).clamp(16, most)
}

/// Processes that may use the fast path at a time; each has an open descriptor.
const PROCESSES: usize = 16384;

const REMEMBERED_THREADS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

impl Owners {
    /// Starts watching; `ended` is told of every owner that has ended.
    pub(crate) fn start(ended: impl Fn(&Arc<Owner>) + Send + Sync + 'static) -> std::io::Result<Arc<Owners>> {
        let owners = Arc::new(Owners {
            by_tgid: Mutex::default(),
            threads: Mutex::new(LruCache::new(REMEMBERED_THREADS)),
            deaths: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ended: Box::new(ended),
            shares: Shares::new("processes that use the fast path", share_of_descriptors(PROCESSES)),
        });
        let watched = Arc::downgrade(&owners);
        let deaths = owners.deaths.try_clone()?;
        std::thread::Builder::new().name("kvfs-owners".into()).spawn(move || watch(&deaths, &watched))?;
        Ok(owners)
    }

    /// The process that a thread belongs to now; `None` when it can't be seen from here.
    pub(crate) fn process_of(&self, tid: u32) -> Option<u32> {
        if tid == 0 {
            return None;
        }
        let known = self.threads.lock().get(&tid).copied();
        // Most callers have one thread, whose number is the process's.
        if let Some(tgid) = known.or(Some(tid))
            && is_thread_of(tid, tgid)
        {
            return Some(tgid);
        }
        let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
        let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())?;
        self.threads.lock().put(tid, tgid);
        Some(tgid)
    }

    /// The owner that a process is already.
    pub(crate) fn find(&self, tgid: u32) -> Option<Arc<Owner>> {
        let owner = self.by_tgid.lock().get(&tgid).cloned()?;
        owner.is_alive().then_some(owner)
    }

    /// The owner that a process is, or becomes. `EDQUOT` where its user has as many as are left.
    pub(crate) fn enter(&self, tgid: u32, uid: u32) -> Result<Arc<Owner>, Errno> {
        if let Some(owner) = self.find(tgid) {
            return Ok(owner);
        }
        let share = self.shares.take(uid).ok_or(Errno::DQUOT)?;
        self.add(Owner::open(tgid, uid, share)?)
    }

    /// The owner that a process was to a daemon before, whatever its user has by now. `None` if it has ended.
    pub(super) fn enter_again(&self, tgid: u32, uid: u32, incarnation: u64) -> Option<Arc<Owner>> {
        if let Some(owner) = self.find(tgid) {
            return Some(owner).filter(|owner| owner.incarnation() == incarnation);
        }
        let owner = Owner::open(tgid, uid, self.shares.taken(uid)).ok()?;
        if incarnation == 0 || owner.incarnation() != incarnation {
            return None;
        }
        self.add(owner).ok()
    }

    fn add(&self, owner: Owner) -> Result<Arc<Owner>, Errno> {
        let (tgid, owner) = (owner.tgid, Arc::new(owner));
        let mut by_tgid = self.by_tgid.lock();
        match by_tgid.get(&tgid) {
            Some(there) if there.is_alive() => Ok(there.clone()),
            _ => {
                epoll::add(
                    &self.deaths,
                    owner.pidfd(),
                    epoll::EventData::new_u64(tgid.into()),
                    epoll::EventFlags::IN,
                )?;
                let late = by_tgid.insert(tgid, owner.clone());
                drop(by_tgid);
                if let Some(late) = late {
                    (self.ended)(&late);
                }
                Ok(owner)
            }
        }
    }

    fn bury(&self, tgid: u32) {
        let mut by_tgid = self.by_tgid.lock();
        // The number may be another process's by now, whose predecessor was told of when that one came.
        if by_tgid.get(&tgid).is_some_and(|owner| !has_ended(owner)) {
            return;
        }
        let Some(owner) = by_tgid.remove(&tgid) else { return };
        drop(by_tgid);
        (self.ended)(&owner);
        // Others may still hold it; the kernel must not tell of it again.
        let _ = epoll::delete(&self.deaths, owner.pidfd());
    }
}

fn has_ended(owner: &Owner) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&owner.pidfd, PollFlags::IN)], Some(&now)) != Ok(0)
}

/// Whether the thread belongs to the process.
fn is_thread_of(tid: u32, tgid: u32) -> bool {
    // SAFETY: a signal of 0 is none; the kernel only looks.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, 0) };
    // EPERM: it's there, and another user's.
    sent == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

fn watch(deaths: &OwnedFd, owners: &Weak<Owners>) {
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(deaths, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return tracing::error!("the ends of processes can't be seen: {e}"),
        }
        let Some(owners) = owners.upgrade() else { return };
        for event in &events {
            owners.bury(event.data.u64() as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn threads_are_known_by_their_process() {
        let owners = Owners::start(|_| {}).unwrap();
        let me = std::process::id();
        assert_eq!(owners.process_of(me), Some(me));
        let tid = || rustix::thread::gettid().as_raw_pid() as u32;
        let seen = std::thread::scope(|s| {
            s.spawn(|| [owners.process_of(tid()), owners.process_of(tid())]).join().unwrap()
        });
        assert_eq!(seen, [Some(me), Some(me)]);
        assert_eq!(owners.process_of(0), None);
        assert_eq!(owners.process_of(u32::MAX >> 1), None);
    }

    #[test]
    fn the_end_of_a_process_is_told_once() {
        let (told, ended) = mpsc::channel();
        let owners = Owners::start(move |owner| told.send(owner.tgid).unwrap()).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let owner = owners.enter(child.id(), 0).unwrap();
        assert!(Arc::ptr_eq(&owner, &owners.enter(child.id(), 0).unwrap()));
        assert!(ended.try_recv().is_err());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(ended.recv().unwrap(), owner.tgid);
        assert!(owners.find(owner.tgid).is_none());
        assert!(owners.enter(owner.tgid, 0).is_err());
        assert!(ended.try_recv().is_err());
    }
}
