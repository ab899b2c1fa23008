//! How a backing's drive is: whether it answers, and if not, what's wrong and since when.
//!
//! What always holds: health is what the drive shows, never what an operator has set (that's its [`State`]); a
//! drive that's *out* is asked for nothing by anybody but the watcher, so it can keep nobody waiting. What a
//! request met is a suspicion; only the watcher judges.
//!
//! [`State`]: super::State

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// How a drive is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    #[default]
    Well,
    /// Its file system takes no changes: it was remounted so, or has found a fault and protects itself.
    ReadOnly,
    /// It answers with an error.
    Failed(Errno),
    /// It doesn't answer at all.
    Hung,
    /// It was unmounted.
    Gone,
    /// It wasn't there when the mount started.
    Absent,
}

impl Health {
    /// Its name: `well`, `read-only`, `failed`, `hung`, `gone`, `absent`.
    pub fn name(self) -> &'static str {
        match self {
            Health::Well => "well",
            Health::ReadOnly => "read-only",
            Health::Failed(_) => "failed",
            Health::Hung => "hung",
            Health::Gone => "gone",
            Health::Absent => "absent",
        }
    }

    /// Whether nothing is asked of it: its files give EIO.
    pub fn is_out(self) -> bool {
        !matches!(self, Health::Well | Health::ReadOnly)
    }

    /// Whether nothing of it stays open, so that it can be unmounted and repaired.
    pub fn is_let_go(self) -> bool {
        matches!(self, Health::Failed(_) | Health::Gone | Health::Absent)
    }

    /// What an operator is to do, in one sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Health::Well => "",
            Health::ReadOnly => {
                "look into the kernel's log for why, and remount it read-write; or unmount it (umount -l), repair it and mount it again"
            }
            Health::Failed(_) => {
                "look into the kernel's log, unmount it, repair it and mount it again at the same place; or take it out (kvfs backing remove --force)"
            }
            Health::Hung => "look into the kernel's log; it's used again as soon as it answers",
            Health::Gone => "mount it again at the same place; or take it out (kvfs backing remove --force)",
            Health::Absent => "mount it at its place; or take it out (kvfs backing remove --force)",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Well => f.write_str("it answers"),
            Health::ReadOnly => f.write_str("its file system is read-only"),
            Health::Failed(errno) => write!(f, "it fails: {}", std::io::Error::from(*errno)),
            Health::Hung => f.write_str("it doesn't answer"),
            Health::Gone => f.write_str("it was unmounted"),
            Health::Absent => f.write_str("it's missing since the start"),
        }
    }
}

/// Whether an error tells of a fault of the drive, and not of what was asked.
pub fn is_fault(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::IO
            | Errno::NXIO
            | Errno::NODEV
            | Errno::ROFS
            | Errno::UCLEAN
            | Errno::BADMSG
            | Errno::SHUTDOWN
            | Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::NOLINK
            | Errno::REMOTEIO
    )
}

/// Calls whoever watches the drives.
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    /// One that nobody has rung.
    pub fn new() -> std::io::Result<Alarm> {
        Ok(Alarm(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// There's something to look at.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// It was heard.
    pub fn heard(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A drive's health, with what else is known of it.
#[derive(Clone, Debug)]
pub struct Condition {
    /// How it is.
    pub health: Health,
    /// Since when.
    pub since: SystemTime,
    /// Why the last try to take it in again has failed.
    pub hindrance: Option<String>,
}

/// A health that changes while others look.
#[derive(Debug)]
pub struct HealthCell {
    out: AtomicBool,
    takes_changes: AtomicBool,
    now: Mutex<Condition>,
    /// Reasons to look at it, and how many of them the watcher has looked into.
    suspicions: AtomicU64,
    /// Whether one of them was an error.
    faulty: AtomicBool,
    /// Whether one of them asks for more than a glance.
    grave: AtomicBool,
    judged: Mutex<u64>,
    judges: Condvar,
}

impl Default for HealthCell {
    fn default() -> HealthCell {
        HealthCell::new(Health::Well)
    }
}

impl HealthCell {
    /// A drive that is like this from now on.
    pub fn new(health: Health) -> HealthCell {
        HealthCell {
            out: AtomicBool::new(health.is_out()),
            takes_changes: AtomicBool::new(health == Health::Well),
            now: Mutex::new(Condition { health, since: SystemTime::now(), hindrance: None }),
            suspicions: AtomicU64::new(0),
            faulty: AtomicBool::new(false),
            grave: AtomicBool::new(false),
            judged: Mutex::new(0),
            judges: Condvar::new(),
        }
    }

    /// Whether nothing is to be asked of it.
    pub fn is_out(&self) -> bool {
        self.out.load(Acquire)
    }

    /// Whether it can take changes.
    pub fn takes_changes(&self) -> bool {
        self.takes_changes.load(Acquire)
    }

    /// All that is known.
    pub fn condition(&self) -> Condition {
        self.now.lock().clone()
    }

    /// How it is.
    pub fn get(&self) -> Health {
        self.now.lock().health
    }

    /// It's like this from now on: whether that's a change.
    pub fn set(&self, health: Health) -> bool {
        let mut now = self.now.lock();
        if now.health == health {
            return false;
        }
        *now = Condition { health, since: SystemTime::now(), hindrance: None };
        // Who sees that it takes no changes sees also whether it's out.
        self.out.store(health.is_out(), SeqCst);
        self.takes_changes.store(health == Health::Well, SeqCst);
        true
    }

    /// Why it couldn't be taken in again: whether that's news.
    pub fn set_hindrance(&self, why: String) -> bool {
        let mut now = self.now.lock();
        let is_new = now.hindrance.as_ref() != Some(&why);
        now.hindrance = Some(why);
        is_new
    }

    /// There's a reason to look at it.
    pub fn suspect(&self) {
        self.suspicions.fetch_add(1, SeqCst);
    }

    /// There's a reason to look at it thoroughly.
    pub fn suspect_gravely(&self) {
        self.grave.store(true, SeqCst);
        self.suspect();
    }

    /// A request met an error.
    pub fn has_erred(&self) {
        self.faulty.store(true, SeqCst);
        self.suspect_gravely();
    }

    /// Whether it's to be looked at thoroughly, since the last question.
    pub fn take_grave(&self) -> bool {
        self.grave.swap(false, SeqCst)
    }

    /// Whether a request met an error since the last question.
    pub fn take_fault(&self) -> bool {
        self.faulty.swap(false, SeqCst)
    }

    /// How many reasons there were.
    pub fn suspicions(&self) -> u64 {
        self.suspicions.load(SeqCst)
    }

    /// The watcher has looked into so many.
    pub fn judge(&self, suspicions: u64) {
        let mut judged = self.judged.lock();
        *judged = suspicions.max(*judged);
        self.judges.notify_all();
    }

    /// How many reasons the watcher has looked into.
    pub fn judged(&self) -> u64 {
        *self.judged.lock()
    }

    /// Whether the watcher has yet to look into something.
    pub fn is_suspected(&self) -> bool {
        self.judged() < self.suspicions()
    }

    /// Waits until all that was met before has been looked into, but not for long.
    pub fn settle(&self, patience: Duration) {
        let (met, until) = (self.suspicions(), Instant::now() + patience);
        let mut judged = self.judged.lock();
        while *judged < met && !self.judges.wait_until(&mut judged, until).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let cell = HealthCell::default();
        assert!(!cell.is_out() && cell.takes_changes());
        assert!(!cell.set(Health::Well));
        assert!(cell.set(Health::Failed(Errno::IO)));
        assert!(!cell.set(Health::Failed(Errno::IO)));
        assert!(cell.is_out() && !cell.takes_changes());
        assert!(cell.set_hindrance("no".into()) && !cell.set_hindrance("no".into()));
        assert!(cell.set(Health::ReadOnly));
        assert!(!cell.is_out() && !cell.takes_changes() && cell.condition().hindrance.is_none());
    }

    #[test]
    fn what_was_met_is_looked_into_once() {
        let cell = HealthCell::default();
        cell.settle(Duration::from_secs(60));
        cell.suspect();
        assert!(cell.is_suspected());
        cell.settle(Duration::ZERO);
        cell.judge(cell.suspicions());
        cell.settle(Duration::from_secs(60));
        assert!(!cell.is_suspected());
    }
}
