//! Torn files: those that were being written when the daemon or the machine went down.
//!
//! What always holds: they are removed while their backing is read, before anybody can find one; but those of a
//! daemon that was killed and has a successor, whose clients go on writing them: these stay hidden. After a power
//! loss files are suspected that were made or changed after the last checkpoint: they are looked for in
//! directories that changed since then. Only what was made through kvfs is removed, and nothing that was
//! fsynced and closed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxTimestamp, openat, unlinkat};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::hiding::{SYNCED, UNSYNCED, unsynced};
use super::open::birth_from;
use super::publish::Publishing;
use super::xattr::get_path;
use super::{Fs, NodeId, proc_path};
use crate::backing::Backing;
use crate::backing::unclosed::{self, Begun, Content, Left, Unclosed, Which};
use crate::index::{Index, Passed, Sieve, Slot};

/// Between two checkpoints of a backing where something is closed.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the last ones are waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// File systems' clocks are behind by a tick.
const TICK: Duration = Duration::from_secs(1);

/// Whose clients go on writing what isn't closed.
#[derive(Clone, Debug)]
pub(super) enum Lives {
    /// Nobody's.
    None,
    /// Everybody's: a daemon of this mount died.
    All,
    /// Those of the files with these inode numbers: the drive was out.
    These(HashSet<u64>),
}

/// What there is to do about a backing's torn files while it's read.
#[derive(Debug)]
pub(super) struct Torn {
    slot: Slot,
    left: Left,
    lives: Lives,
    by_ino: HashMap<u64, Vec<Begun>>,
    by_name: HashMap<(u64, Vec<u8>), Begun>,
    /// Since when files are suspected, and the boot that they were made in.
    power_lost: Option<(SystemTime, String)>,
    /// Those that stay, hidden, by record.
    stay: Mutex<HashMap<u32, Stay>>,
    dropped: AtomicU64,
}

/// A file that stays.
#[derive(Debug)]
struct Stay {
    begun: Begun,
    ino: u64,
    birth: u64,
}

impl Torn {
    /// Of a backing; `None` where nothing is kept.
    pub(super) fn on(backing: &Backing, lives: Lives) -> Option<Torn> {
        if backing.shared || !backing.state().takes_changes() || !backing.health.takes_changes() {
            return None;
        }
        let path = backing.path.display();
        let mut left = match unclosed::left(backing.root()) {
            Ok(left) => left.unwrap_or_default(),
            Err(e) => {
                tracing::warn!("backing {path}: {e}: files that weren't closed can't be told from others");
                Left::default()
            }
        };
        if has_no_attributes(backing) && left.power_lost.is_some() {
            tracing::warn!(
                "backing {path}: without extended attributes torn files aren't found after a power loss"
            );
            // Nor can those be told that were acknowledged.
            left = Left::default();
        }
        let (mut by_ino, mut by_name) = (HashMap::<u64, Vec<Begun>>::new(), HashMap::new());
        for begun in left.begun.clone() {
            match begun.which.clone() {
                Which::Inode { ino, .. } => by_ino.entry(ino).or_default().push(begun),
                Which::Named { parent, name } => drop(by_name.insert((parent, name), begun)),
            }
        }
        let power_lost = left.power_lost.clone().map(|(since, boot)| {
            tracing::warn!(
                "backing {path}: the machine went down while it was mounted; looking for torn files"
            );
            (since - TICK, boot)
        });
        let (stay, dropped) = Default::default();
        Some(Torn { slot: backing.slot, left, lives, by_ino, by_name, power_lost, stay, dropped })
    }

    /// What decides while the backing is read, if there is anything to decide.
    pub(super) fn sieve(&self) -> Option<&dyn Sieve> {
        let any = !self.left.begun.is_empty() || self.power_lost.is_some();
        any.then_some(self as &dyn Sieve)
    }

    /// The records of a file.
    fn records(&self, parent: u64, name: &[u8], ino: u64, birth: u64) -> Vec<Begun> {
        let is_it = |begun: &&Begun| begun.which == Which::Inode { ino, birth };
        let by_ino = self.by_ino.get(&ino).into_iter().flatten().filter(is_it);
        by_ino.chain(self.by_name.get(&(parent, name.to_vec()))).cloned().collect()
    }

    /// Whether the file was written to after the last checkpoint before the machine went down, and isn't known to
    /// be whole.
    fn is_suspect(&self, stat: &Statx, attribute: Option<&[u8]>) -> bool {
        let Some((since, boot)) = &self.power_lost else { return false };
        let (made, changed) = (time(stat.stx_btime), time(stat.stx_mtime));
        match attribute {
            Some(value) => {
                value == unsynced(boot, birth_from(stat)).as_bytes() && (made >= *since || changed >= *since)
            }
            // Made a moment before: neither the attribute nor any data got to the device. What came since the
            // machine was started again is somebody else's.
            None => stat.stx_size == 0 && made >= *since && made < started(),
        }
    }

    /// Whether the daemon only didn't come to cross the file out: its descriptor was closed, and nobody has written
    /// to it since. After a power loss that says nothing.
    fn is_closed(&self, records: &[Begun], stat: &Statx) -> bool {
        let content = Some(Content::from(stat));
        self.power_lost.is_none() && records.iter().all(|begun| !begun.dead && begun.closing == content)
    }

    fn look(&self, dir: &OwnedFd, passed: Passed, name: &[u8], ino: u64) -> Result<bool, Errno> {
        let known = self.by_ino.contains_key(&ino) || self.by_name.contains_key(&(passed.ino, name.to_vec()));
        if !known && !passed.recent {
            return Ok(false);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::empty())?;
        let stat = stat_fd(&fd)?;
        let birth = birth_from(&stat);
        let records = self.records(passed.ino, name, ino, birth);
        let stay = |begun: Begun| (begun.record, Stay { begun, ino, birth });
        let lives = match &self.lives {
            Lives::None => false,
            Lives::All => true,
            Lives::These(inos) => inos.contains(&ino),
        };
        if lives {
            self.stay.lock().extend(records.into_iter().map(stay));
            return Ok(false);
        }
        let attribute = get_path(&proc_path(&fd), UNSYNCED.as_bytes()).ok();
        let is_torn = match records.is_empty() {
            true => self.is_suspect(&stat, attribute.as_deref()),
            // Or it was acknowledged, and another descriptor left open.
            false => attribute.as_deref() != Some(SYNCED) && !self.is_closed(&records, &stat),
        };
        if !is_torn {
            return Ok(false);
        }
        let text = String::from_utf8_lossy(name);
        if let Err(e) = unlinkat(dir, name, AtFlags::empty()) {
            tracing::warn!("backing {}: {text} was never closed and can't be removed: {e}", self.slot.0);
            self.stay.lock().extend(records.into_iter().map(stay));
            return Ok(false);
        }
        tracing::info!("backing {}: removed {text}, which was never closed", self.slot.0);
        self.dropped.fetch_add(1, Relaxed);
        Ok(true)
    }

    /// Once the backing is read. What stays is hidden, and where that's the mount's way the list of what isn't
    /// closed begins.
    pub(super) fn end(
        self,
        backing: &Backing,
        index: &RwLock<Index>,
        publish: &Publishing,
    ) -> io::Result<()> {
        let Torn { left, stay, dropped, lives, .. } = self;
        let goes_on = !matches!(lives, Lives::None);
        let (stay, dropped) = (stay.into_inner(), dropped.into_inner());
        publish.dropped_at_start.fetch_add(dropped, Relaxed);
        if dropped > 0 {
            // None comes back when they are no longer written down.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::syncfs(openat(backing.root(), c".", flags, Mode::empty())?)?;
        }
        if !publish.is_on() {
            return unclosed::remove(backing.root());
        }
        let list = Unclosed::begin(backing.root(), &left, goes_on, dropped > 0 || !left.may_be_unsynced())?;
        let keeps =
            |begun: &Begun| matches!(begun.which, Which::Inode { .. }) && stay.contains_key(&begun.record);
        if goes_on {
            left.begun
                .iter()
                .filter(|begun| !keeps(begun))
                .try_for_each(|begun| list.forget(begun.record))?;
        }
        for Stay { begun, ino, birth } in stay.into_values() {
            let record = match begun.which {
                Which::Inode { .. } if goes_on => begun.record,
                _ => list.opened(ino, birth, begun.writer)?,
            };
            let node = NodeId::file(self.slot, index.write().pack_ino(ino));
            publish.hide(node, 0, Some(record), Some(begun.writer));
            publish.with(node, |hidden| hidden.dead |= begun.dead);
        }
        backing.keep_unclosed(list);
        Ok(())
    }
}

impl Sieve for Torn {
    fn enter(&self, dir: &OwnedFd) -> Passed {
        let Ok(stat) = stat_fd(dir) else { return Passed::default() };
        let since = self.power_lost.as_ref().map(|(since, _)| *since);
        let recent = since.is_some_and(|since| time(stat.stx_mtime) >= since);
        let ask = recent || !self.left.begun.is_empty();
        Passed { ino: stat.stx_ino, ask, recent }
    }

    fn keeps_out(&self, dir: &OwnedFd, passed: Passed, name: &[u8], ino: u64) -> bool {
        // What can't be looked at is as any other file on a failing drive.
        self.look(dir, passed, name, ino).unwrap_or(false)
    }
}

fn time(t: StatxTimestamp) -> SystemTime {
    let since =
        Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), 0) + Duration::from_nanos(t.tv_nsec.into());
    UNIX_EPOCH + since
}

/// When this system was started.
fn started() -> SystemTime {
    #[cfg(feature = "fault-points")]
    if std::env::var_os("KVFS_TEST_BOOT_ID").is_some() {
        return SystemTime::now();
    }
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    SystemTime::now() - Duration::new(up.tv_sec.max(0) as u64, up.tv_nsec.max(0) as u32)
}

fn is_read_only(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ReadOnlyFilesystem
}

fn has_no_attributes(backing: &Backing) -> bool {
    let path = format!("/proc/self/fd/{}", backing.root().as_raw_fd());
    get_path(&path, UNSYNCED.as_bytes()) == Err(Errno::OPNOTSUPP)
}

/// The threads that make checkpoints, one for each backing: a drive that hangs keeps no other's back.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    running: Mutex<Running>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Running {
    started: bool,
    stopped: bool,
    threads: usize,
}

impl Checkpoints {
    fn serve(&self, backing: &Weak<Backing>) {
        loop {
            let stopped = {
                let mut running = self.running.lock();
                if !running.stopped {
                    self.changed.wait_for(&mut running, INTERVAL);
                }
                running.stopped
            };
            let Some(backing) = backing.upgrade() else { break };
            if backing.health.is_out() && !stopped {
                continue;
            }
            let made = backing.unclosed().map_or(Ok(()), |list| list.checkpoint(stopped));
            // What is read-only has nothing to write down.
            if let Err(e) = made.or_else(|e| if is_read_only(&e) { Ok(()) } else { Err(e) }) {
                tracing::warn!("backing {}: no checkpoint: {e}", backing.path.display());
            }
            if stopped {
                break;
            }
        }
        self.running.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Makes checkpoints of a backing, if they are made at all.
    pub(super) fn of(self: &Arc<Self>, backing: &Arc<Backing>) {
        {
            let mut running = self.running.lock();
            if !running.started || running.stopped || backing.unclosed().is_none() {
                return;
            }
            running.threads += 1;
        }
        let (shared, of) = (self.clone(), Arc::downgrade(backing));
        let spawned =
            std::thread::Builder::new().name("kvfs-checkpoint".into()).spawn(move || shared.serve(&of));
        if let Err(e) = spawned {
            self.running.lock().threads -= 1;
            tracing::warn!("backing {}: no checkpoints: {e}", backing.path.display());
        }
    }
}

impl Fs {
    /// Makes checkpoints from now on, where files are hidden until they're closed.
    pub fn start_checkpoints(&self) {
        self.checkpoints.running.lock().started = true;
        self.backings().iter().for_each(|backing| self.checkpoints.of(backing));
    }

    /// The mount couldn't be made: nothing of it stays on the backings.
    pub fn withdraw(&self) {
        self.backings().iter().filter_map(|backing| backing.unclosed()).for_each(Unclosed::withdraw);
    }

    /// The mount has ended: has everything on the devices, and says so on each, but doesn't wait for ever.
    pub fn end_checkpoints(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut running = self.checkpoints.running.lock();
        running.stopped = true;
        self.checkpoints.changed.notify_all();
        while running.threads > 0 {
            if self.checkpoints.changed.wait_until(&mut running, deadline).timed_out() {
                tracing::warn!("{} backings don't answer: their last checkpoint isn't made", running.threads);
                return;
            }
        }
    }
}
