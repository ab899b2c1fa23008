//! Watching the drives: which of them answer, what is done about those that don't, and taking them in again.
//!
//! What always holds: the watcher itself asks no drive; whoever does is a thread for that one question, so a drive
//! that hangs costs one thread. A change is one line in the log, whatever requests met. A drive that failed or was
//! unmounted is let go of, and taken in again when what is at its path works and has its identity.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::jobs::Context;
use crate::backing::{Backing, Condition, Health, SavedJob, State, mountinfo, remember_members};
use crate::index::Slot;

/// How often a drive is asked when nothing is suspected.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a drive that doesn't come back is left alone at most, if nobody asks for it and nothing is mounted.
const REST: Duration = Duration::from_secs(60);
/// A drive that requests meet errors of, and that answers all the same, is told of that often.
const TELL: Duration = Duration::from_secs(60);
/// A question that has something synced may take so many times longer: a busy drive has much to write first.
const SYNC: u32 = 6;
/// How long an order may take to be answered.
const PATIENCE: Duration = Duration::from_secs(8);

/// A question that a thread has put to a drive.
struct Question {
    since: Instant,
    /// How many errors requests had met by then.
    suspicions: u64,
    /// Whether it may take as long as a busy drive needs to sync something.
    is_grave: bool,
    answer: Arc<Mutex<Option<Answer>>>,
}

/// What came of it.
enum Answer {
    /// How a drive is.
    Is(Health),
    /// One that was away is used again.
    Back(String),
    /// Or isn't, because of this.
    Away(String),
    /// It stands in for itself.
    LetGo,
}

/// What the watcher knows of a backing.
#[derive(Default)]
struct Record {
    question: Option<Question>,
    next: Option<Instant>,
    /// Tries to take it in again that came to nothing.
    tries: u32,
    /// When it was last said that it answers though requests met errors.
    told: Option<Instant>,
}

/// The watcher, and the way to it.
pub struct Drives {
    context: Arc<Context>,
    /// A drive that takes longer to answer hangs.
    deadline: Duration,
    records: Mutex<HashMap<Slot, Record>>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Drives {
    /// Begins to watch.
    pub fn start(context: Arc<Context>, deadline: Duration) -> io::Result<Arc<Drives>> {
        let (records, changed, stop) = Default::default();
        let drives = Arc::new(Drives { context, deadline, records, changed, stop });
        let mounts = File::open("/proc/self/mountinfo")?;
        let watcher = drives.clone();
        std::thread::Builder::new().name("kvfs-drives".into()).spawn(move || watcher.watch(&mounts))?;
        for backing in drives.context.fs.backings().iter().filter(|b| b.health.is_out()) {
            tell(backing, Health::Absent);
        }
        Ok(drives)
    }

    /// Watches no longer.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.context.fs.alarm.ring();
    }

    /// Looks at once whether a drive that isn't well can be used again: what there is to say, or why not.
    pub(super) fn take_in(&self, backing: &Backing) -> Result<String, String> {
        let (slot, path) = (backing.slot, backing.path.display());
        let until = Instant::now() + PATIENCE;
        let mut records = self.records.lock();
        // What is under way may have begun before the drive was put right: one whole question is needed.
        let mut asked = None;
        loop {
            let now = self.context.fs.backings().get(slot).cloned();
            let now = now.ok_or_else(|| format!("backing {path} was removed"))?;
            let Condition { health, hindrance, .. } = now.health.condition();
            if health == Health::Well {
                return Ok(format!("{path} is used again"));
            }
            // One that's about to be let go of is asked after that.
            let is_idle = records.entry(slot).or_default().question.is_none();
            let is_settled = is_idle && health.is_let_go() == now.is_stand_in;
            match asked {
                Some(suspicions) if is_settled && now.health.judged() >= suspicions => {
                    let why = hindrance.unwrap_or_else(|| health.advice().into());
                    return Err(format!("backing {path} can't be used again ({health}): {why}"));
                }
                None if is_settled => {
                    now.health.suspect();
                    asked = Some(now.health.suspicions());
                    self.context.fs.alarm.ring();
                }
                _ => {}
            }
            if self.changed.wait_until(&mut records, until).timed_out() {
                return Err(format!(
                    "backing {path} is being looked at; `kvfs status` says what comes of it"
                ));
            }
        }
    }

    fn watch(self: &Arc<Drives>, mounts: &File) {
        // What was unmounted before anybody looked.
        self.mounts_changed();
        while !self.stop.load(Relaxed) {
            let wait = self.look();
            let fs = &self.context.fs;
            let mut fds = [
                PollFd::new(&fs.alarm, PollFlags::IN),
                // The kernel tells of every change once.
                PollFd::new(mounts, PollFlags::PRI),
            ];
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
            let _ = poll(&mut fds, Some(&wait));
            if !fds[0].revents().is_empty() {
                fs.alarm.heard();
            }
            if !fds[1].revents().is_empty() {
                self.mounts_changed();
            }
        }
    }

    /// Something was mounted or unmounted.
    fn mounts_changed(&self) {
        let Ok(mounts) = mountinfo::mounts() else { return };
        for backing in self.context.fs.backings().iter() {
            let is_there = backing.mount_id.is_none_or(|id| mounts.iter().any(|mount| mount.id == id));
            if !is_there && !backing.is_stand_in && !backing.health.get().is_let_go() {
                become_of(backing, Health::Gone);
            }
            if let Some(record) = self.records.lock().get_mut(&backing.slot)
                && backing.health.get().is_let_go()
            {
                record.next = None;
            }
        }
    }

    /// Hears answers and puts questions: how long there's nothing to do.
    fn look(self: &Arc<Drives>) -> Duration {
        let backings = self.context.fs.backings();
        let mut records = self.records.lock();
        records.retain(|slot, _| backings.get(*slot).is_some());
        let mut wait = INTERVAL;
        for backing in backings.iter() {
            let record = records.entry(backing.slot).or_default();
            self.hear(backing, record);
            wait = wait.min(self.ask(backing, record));
        }
        self.changed.notify_all();
        wait
    }

    /// An answer has come, or has been waited for too long.
    fn hear(&self, backing: &Backing, record: &mut Record) {
        let Some(question) = &record.question else { return };
        let Some(answer) = question.answer.lock().take() else {
            if question.since.elapsed() >= self.deadline_of(question) && !backing.health.is_out() {
                become_of(backing, Health::Hung);
                backing.health.judge(question.suspicions);
            }
            return;
        };
        let suspicions = question.suspicions;
        record.question = None;
        record.next = Some(Instant::now() + INTERVAL);
        match answer {
            // Unmounted meanwhile: that's another matter.
            Answer::Is(_) if backing.health.get().is_let_go() => record.next = None,
            Answer::Is(health) => {
                let has_erred = backing.health.take_fault();
                let is_news = become_of(backing, health);
                if !is_news && health == Health::Well && has_erred {
                    self.tell_odd(backing, record);
                }
            }
            Answer::Back(said) => {
                record.tries = 0;
                tracing::info!("backing {}: it's used again; {said}", backing.path.display());
                self.look_for_work(backing);
            }
            Answer::Away(why) => {
                record.tries = (record.tries + 1).min(8);
                record.next = Some(Instant::now() + REST.min(INTERVAL * 2u32.pow(record.tries - 1)));
                if backing.health.set_hindrance(why.clone()) {
                    tracing::info!("backing {}: not used again yet: {why}", backing.path.display());
                }
            }
            Answer::LetGo => record.next = Some(Instant::now() + INTERVAL),
        }
        backing.health.judge(suspicions);
    }

    /// Puts a question to a drive if it's time: how long there is until then.
    fn ask(self: &Arc<Drives>, backing: &Arc<Backing>, record: &mut Record) -> Duration {
        if let Some(question) = &record.question {
            let left = self.deadline_of(question).saturating_sub(question.since.elapsed());
            return if backing.health.is_out() { INTERVAL } else { left.max(Duration::from_millis(1)) };
        }
        let health = backing.health.get();
        let is_held = health.is_let_go() && !backing.is_stand_in;
        let now = Instant::now();
        let left = record.next.unwrap_or(now).saturating_duration_since(now);
        let is_suspected = backing.health.is_suspected();
        if !left.is_zero() && !is_suspected && !is_held {
            return left;
        }
        let answer = Arc::new(Mutex::new(None));
        let suspicions = backing.health.suspicions();
        let is_grave = backing.health.take_grave() || health != Health::Well;
        record.question = Some(Question { since: now, suspicions, is_grave, answer: answer.clone() });
        let (drives, backing, slot) = (self.clone(), backing.clone(), backing.slot);
        let put = move || {
            let said = match (health.is_let_go(), is_held) {
                (false, _) if is_grave => Answer::Is(backing.examine()),
                (false, _) => Answer::Is(backing.glance()),
                (true, true) => {
                    drop(backing);
                    drives.let_go(slot)
                }
                (true, false) => drives.reopen(&backing).map_or_else(Answer::Away, Answer::Back),
            };
            *answer.lock() = Some(said);
            drives.context.fs.alarm.ring();
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-ask".into()).spawn(put) {
            tracing::warn!("no thread to look at a drive with: {e}");
            record.question = None;
            record.next = Some(now + INTERVAL);
        }
        self.deadline
    }

    fn deadline_of(&self, question: &Question) -> Duration {
        if question.is_grave { self.deadline * SYNC } else { self.deadline }
    }

    fn let_go(&self, slot: Slot) -> Answer {
        self.context.direct.backing_left(slot);
        match self.context.fs.let_go(slot) {
            Ok(()) => Answer::LetGo,
            Err(e) => Answer::Away(format!("it can't be let go of: {e}")),
        }
    }

    /// Takes a drive in again, if it's there: what has changed on it.
    fn reopen(&self, away: &Backing) -> Result<String, String> {
        let backing = away.reopen().map_err(|e| e.to_string())?;
        (self.context.decide)(&backing)?;
        self.context.direct.backing_joins(&backing);
        let fs = &self.context.fs;
        let back = fs.come_back(backing).map_err(|e| e.to_string())?;
        remember_members(&fs.backings());
        let mut said = format!(
            "it has {} files: {} names appeared, {} are gone, {} are other files",
            back.files, back.appeared, back.gone, back.replaced
        );
        if back.unreadable > 0 {
            said += &format!("; {} directories can't be read and are shown as they were", back.unreadable);
        }
        Ok(said)
    }

    /// A drive that was being drained gets no new files.
    fn look_for_work(&self, backing: &Backing) {
        if let Ok(Some(SavedJob::Drain { .. })) = backing.saved_job()
            && let Some(backing) = self.context.fs.backings().get(backing.slot)
        {
            backing.set_state(State::Draining);
            tracing::info!(
                "backing {} was being drained: `kvfs backing drain` goes on with it, `kvfs backing set ... rw` calls it off",
                backing.path.display()
            );
        }
    }

    /// Requests met errors of a drive that answers.
    fn tell_odd(&self, backing: &Backing, record: &mut Record) {
        if record.told.is_none_or(|at| at.elapsed() >= TELL) {
            record.told = Some(Instant::now());
            tracing::warn!(
                "backing {}: requests met errors of its drive, which answers otherwise; look into the kernel's log",
                backing.path.display()
            );
        }
    }
}

/// A drive is like this now: whether that's news, which the log has then.
fn become_of(backing: &Backing, health: Health) -> bool {
    let is_news = backing.health.set(health);
    if is_news {
        tell(backing, health);
    }
    is_news
}

fn tell(backing: &Backing, health: Health) {
    let path = backing.path.display();
    match health {
        Health::Well => tracing::info!("backing {path}: it answers, and takes new files again"),
        Health::ReadOnly => tracing::warn!(
            "backing {path}: {health}; its files can be read and not changed, new ones go elsewhere: {}",
            health.advice()
        ),
        Health::Absent => {
            tracing::warn!("backing {path}: mounted without it; new files go elsewhere: {}", health.advice());
        }
        _ => tracing::warn!(
            "backing {path}: {health}; its files give EIO, new ones go elsewhere: {}",
            health.advice()
        ),
    }
}
