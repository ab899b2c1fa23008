//! Who sees a file that is being written (`--publish on-close`): the processes that write it, until its last
//! writing handle is closed; nobody else.
//!
//! What always holds: a file is in this table before its name can be found, and leaves it after its record on
//! disk was crossed out (`backing::unclosed`); the kernel keeps no name of a file that is in it, so it
//! asks each time. RELEASE, which says that a handle is closed, comes after close(2) has returned;
//! FLUSH, before that, only says that one of perhaps several descriptors goes. So after a FLUSH, which a daemon
//! before this one may have answered, whoever looks for the file waits a moment for the RELEASE. A process that is
//! killed closes its files too: FLUSH comes from the dying thread itself, and `/proc` then says what it dies of. No
//! lock is held across a disk call.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::NodeId;

/// Tables, so that files don't wait for each other.
const SHARDS: usize = 32;
/// So long a RELEASE is waited for after a FLUSH: once, then a descriptor is left somewhere.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// The same after a FLUSH that another daemon has answered: from the moment on that this one has taken over.
const PATIENCE_AFTER_ANOTHER: Duration = Duration::from_millis(50);
/// So long the end of one is waited for that has come: it waits for the drive.
const PATIENCE_ONCE_RELEASED: Duration = Duration::from_secs(10);

/// A process that has a file open to write: its id, and when it started; zeros for those that can't be seen from
/// the daemon's pid namespace, which count as one.
pub(super) type Writer = (u32, u64);

/// A file that is open to be written.
#[derive(Debug, Default)]
struct Written {
    /// Writing handles.
    handles: usize,
    writers: Vec<Writer>,
    hidden: Option<Hidden>,
}

/// One that isn't published.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Its records, one for each process.
    pub(super) records: Vec<u32>,
    /// A process was killed that had it open.
    pub(super) dead: bool,
    /// It was fsynced.
    pub(super) synced: bool,
    /// It was fsynced and closed after that: whatever becomes of other descriptors, it's not lost.
    pub(super) acknowledged: bool,
    closing: Closing,
}

/// How far the end of a hidden file is known to have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// A descriptor was closed, perhaps the last one; if a daemon before was told so, it's waited for until then.
    Perhaps(Option<Instant>),
    /// The last handle is released: it's about to be shown.
    Released,
}

/// What becomes of a file with its last writing handle.
#[derive(Debug)]
pub(super) enum Last {
    /// There are others, or it was published.
    Nothing,
    /// It's whole; these records are to be crossed out, then it's shown.
    Whole(Vec<u32>),
    /// Who wrote it was killed: it's to be removed.
    Torn,
}

#[derive(Debug, Default)]
struct Shard {
    files: Mutex<HashMap<NodeId, Written>>,
    changed: Condvar,
}

/// The files that are open to be written.
#[derive(Debug)]
pub(super) struct Publishing {
    on: bool,
    shards: Vec<Shard>,
    /// How many are hidden: mostly none is, and then nobody takes a lock.
    hidden: AtomicUsize,
    pub(super) dropped_at_start: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// What `status` says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishStatus {
    /// `on-create` or `on-close`.
    pub publish: String,
    /// Files that are hidden now.
    pub unpublished: usize,
    /// Files that were removed at the start because they had never been closed.
    pub dropped_at_start: u64,
    /// Files that were removed since, because who wrote them was killed.
    pub dropped: u64,
}

impl Publishing {
    pub(super) fn new(on: bool) -> Publishing {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        let (dropped_at_start, dropped) = Default::default();
        Publishing { on, shards, hidden: AtomicUsize::new(0), dropped_at_start, dropped }
    }

    /// Whether files are hidden at all.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether any file is hidden now.
    pub(super) fn hides_any(&self) -> bool {
        self.hidden.load(SeqCst) > 0
    }

    pub(super) fn status(&self) -> PublishStatus {
        PublishStatus {
            publish: if self.on { "on-close" } else { "on-create" }.into(),
            unpublished: self.hidden.load(Relaxed),
            dropped_at_start: self.dropped_at_start.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }

    fn shard(&self, node: NodeId) -> &Shard {
        &self.shards[node.0 as usize % SHARDS]
    }

    fn files(&self, node: NodeId) -> MutexGuard<'_, HashMap<NodeId, Written>> {
        self.shard(node).files.lock()
    }

    /// Does something with what is known of a hidden file; `None` if it isn't one.
    pub(super) fn with<T>(&self, node: NodeId, act: impl FnOnce(&mut Hidden) -> T) -> Option<T> {
        if !self.hides_any() {
            return None;
        }
        self.files(node).get_mut(&node)?.hidden.as_mut().map(act)
    }

    /// Whether the file is hidden from somebody.
    pub(super) fn is_hidden(&self, node: NodeId) -> bool {
        self.with(node, |_| ()).is_some()
    }

    /// Whether the file is hidden from all but others than this process; `who` is asked for only if it matters.
    pub(super) fn hides(&self, node: NodeId, who: impl FnOnce() -> Writer) -> bool {
        if !self.hides_any() {
            return false;
        }
        let writers = match self.files(node).get(&node) {
            Some(Written { hidden: Some(_), writers, .. }) => writers.clone(),
            _ => return false,
        };
        !writers.contains(&who())
    }

    /// Waits until a file that may have been closed is published, or it's clear that it isn't closed, or that its
    /// drive is out.
    pub(super) fn wait(&self, node: NodeId, deadline: Instant, is_out: impl Fn() -> bool) {
        let shard = self.shard(node);
        let mut files = shard.files.lock();
        loop {
            let Some(Written { hidden: Some(hidden), .. }) = files.get_mut(&node) else { return };
            let until = match hidden.closing {
                Closing::No => return,
                Closing::Perhaps(limit) => limit.map_or(deadline, |limit| limit.min(deadline)),
                Closing::Released => deadline + PATIENCE_ONCE_RELEASED,
            };
            let now = Instant::now();
            if now >= until || is_out() {
                // Another descriptor is left: nobody waits for it again.
                hidden.closing = Closing::No;
                return;
            }
            shard.changed.wait_until(&mut files, until.min(now + PATIENCE));
        }
    }

    /// Whether the file may have been closed.
    pub(super) fn is_closing(&self, node: NodeId) -> bool {
        self.with(node, |hidden| hidden.closing != Closing::No) == Some(true)
    }

    /// Files that may have been closed.
    pub(super) fn closing(&self) -> Vec<NodeId> {
        if !self.hides_any() {
            return Vec::new();
        }
        let is_closing =
            |file: &Written| file.hidden.as_ref().is_some_and(|hidden| hidden.closing != Closing::No);
        let of = |shard: &Shard| -> Vec<NodeId> {
            let files = shard.files.lock();
            files.iter().filter(|(_, file)| is_closing(file)).map(|(node, _)| *node).collect()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// A new file, or one that is cut off: it's hidden from now on, with so many handles more.
    pub(super) fn hide(&self, node: NodeId, handles: usize, record: Option<u32>, writer: Option<Writer>) {
        let mut files = self.files(node);
        let file = files.entry(node).or_default();
        file.handles += handles;
        if let Some(writer) = writer.filter(|writer| !file.writers.contains(writer)) {
            file.writers.push(writer);
        }
        if file.hidden.is_none() {
            self.hidden.fetch_add(1, SeqCst);
        }
        let records = &mut file.hidden.get_or_insert_default().records;
        records.extend(record.filter(|record| !records.contains(record)));
    }

    /// One more handle of a process that may write the file. Whether the file is hidden, and doesn't have this
    /// process among its writers yet.
    pub(super) fn opened(&self, node: NodeId, writer: Option<Writer>, synced: bool) -> bool {
        let mut files = self.files(node);
        let file = files.entry(node).or_default();
        file.handles += 1;
        if let Some(hidden) = &mut file.hidden {
            hidden.synced |= synced;
            if hidden.closing == Closing::Released {
                hidden.closing = Closing::No;
            }
        }
        let Some(writer) = writer.filter(|writer| !file.writers.contains(writer)) else { return false };
        file.writers.push(writer);
        file.hidden.is_some()
    }

    /// All hidden files.
    pub(super) fn all_hidden(&self) -> Vec<NodeId> {
        let of = |shard: &Shard| -> Vec<NodeId> {
            let files = shard.files.lock();
            files.iter().filter(|(_, file)| file.hidden.is_some()).map(|(node, _)| *node).collect()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// Who has the file open to write, as far as that's known. `None` if nobody has.
    pub(super) fn writers(&self, node: NodeId) -> Option<Vec<Writer>> {
        let files = self.files(node);
        files.get(&node).filter(|file| file.handles > 0).map(|file| file.writers.clone())
    }

    /// A descriptor is closed, perhaps the last one. The file's records, if it has one handle alone.
    pub(super) fn may_be_closed(&self, node: NodeId) -> Vec<u32> {
        let mut files = self.files(node);
        let Some(Written { handles, hidden: Some(hidden), .. }) = files.get_mut(&node) else {
            return Vec::new();
        };
        hidden.closing = Closing::Perhaps(None);
        if *handles == 1 { hidden.records.clone() } else { Vec::new() }
    }

    /// A daemon before was told that a descriptor is closed, perhaps the last one. If it was, the RELEASE is among
    /// what waits for this daemon, or nearly.
    pub(super) fn may_have_been_closed(&self, node: NodeId) {
        let until = Instant::now() + PATIENCE_AFTER_ANOTHER;
        self.with(node, |hidden| hidden.closing = Closing::Perhaps(Some(until)));
    }

    /// A process is killed that has the file open. Its records.
    pub(super) fn died(&self, node: NodeId) -> Vec<u32> {
        self.with(node, |hidden| {
            hidden.dead = true;
            hidden.records.clone()
        })
        .unwrap_or_default()
    }

    /// One writing handle less.
    pub(super) fn released(&self, node: NodeId) -> Last {
        let mut files = self.files(node);
        let Some(file) = files.get_mut(&node) else { return Last::Nothing };
        file.handles = file.handles.saturating_sub(1);
        match &mut file.hidden {
            _ if file.handles > 0 => Last::Nothing,
            None => {
                files.remove(&node);
                Last::Nothing
            }
            Some(hidden) if hidden.dead && !hidden.acknowledged => Last::Torn,
            Some(hidden) => {
                hidden.closing = Closing::Released;
                Last::Whole(std::mem::take(&mut hidden.records))
            }
        }
    }

    /// The file is shown, or has gone, unless somebody has opened it meanwhile.
    pub(super) fn show(&self, node: NodeId) {
        let shard = self.shard(node);
        let mut files = shard.files.lock();
        if let Some(file) = files.get(&node)
            && file.handles == 0
            && files.remove(&node).is_some_and(|file| file.hidden.is_some())
        {
            self.hidden.fetch_sub(1, SeqCst);
        }
        shard.changed.notify_all();
    }
}

/// `PF_EXITING` (include/linux/sched.h), as field 9 of `/proc/PID/stat` has it.
const EXITING: u64 = 4;

/// Whether a thread, which waits for us, is ending because of a signal. Whoever exits closes its files.
///
/// execve(2) closes files, too, and holds a lock meanwhile that `/proc/PID/stat` waits for, uninterruptibly
/// (`exec_update_lock`, fs/proc/array.c): so that is read only of a thread that has no memory any more, which is
/// one that has begun to end.
pub(super) fn is_killed(tid: u32) -> bool {
    // Each close of a written file comes by here: one read, without asking for the size before.
    let mut start = [0; 2];
    let read = File::open(format!("/proc/{tid}/statm")).and_then(|mut file| file.read(&mut start));
    let has_no_memory = read.is_ok_and(|count| start[..count] == *b"0 ");
    let stat = || std::fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
    has_no_memory && ends_by_signal(&stat()).unwrap_or(false)
}

/// The same by what `/proc/PID/stat` says. Its last field is the exit status, which is set before the files are
/// closed; other users' is shown to those with CAP_SYS_PTRACE alone.
fn ends_by_signal(stat: &[u8]) -> Option<bool> {
    // The second field is a name in parentheses, with anything in it. Numbered as in proc(5), from 3 on.
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let text = std::str::from_utf8(&stat[after..]).ok()?;
    let field = |number: usize| text.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    Some(field(9)? & EXITING != 0 && field(52)? & 0x7f != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: NodeId = NodeId(1 << 48 | 7);
    const ONE: Writer = (10, 1);
    const OTHER: Writer = (11, 1);

    #[test]
    fn a_file_is_its_writers_until_the_last_handle() {
        let table = Publishing::new(true);
        table.hide(FILE, 1, Some(5), Some(ONE));
        assert!(!table.hides(FILE, || ONE) && table.hides(FILE, || OTHER));
        assert!(table.opened(FILE, Some(OTHER), false), "another process joins");
        assert!(!table.opened(FILE, Some(OTHER), false));
        assert!(!table.hides(FILE, || OTHER));
        assert!(matches!(table.released(FILE), Last::Nothing));
        assert!(matches!(table.released(FILE), Last::Nothing));
        let Last::Whole(records) = table.released(FILE) else { panic!("the last one") };
        assert_eq!(records, [5]);
        assert!(table.is_hidden(FILE), "until its record is crossed out");
        table.show(FILE);
        assert!(!table.is_hidden(FILE) && !table.hides_any());
    }

    #[test]
    fn who_joins_at_the_last_moment_keeps_it_hidden() {
        let table = Publishing::new(true);
        table.hide(FILE, 1, Some(5), Some(ONE));
        assert!(matches!(table.released(FILE), Last::Whole(_)));
        assert!(table.is_closing(FILE), "waited for until it's shown");
        table.opened(FILE, Some(OTHER), false);
        assert!(!table.is_closing(FILE));
        table.show(FILE);
        assert!(table.hides(FILE, || (12, 1)));
    }

    #[test]
    fn a_killed_writer_leaves_a_torn_file_unless_it_was_acknowledged() {
        for acknowledged in [false, true] {
            let table = Publishing::new(true);
            table.hide(FILE, 1, Some(5), Some(ONE));
            table.with(FILE, |hidden| hidden.acknowledged = acknowledged);
            assert_eq!(table.died(FILE), [5]);
            assert_eq!(matches!(table.released(FILE), Last::Torn), !acknowledged);
        }
    }

    #[test]
    fn a_descriptor_that_is_left_somewhere_is_waited_for_once() {
        let table = Publishing::new(true);
        table.hide(FILE, 1, None, Some(ONE));
        table.may_be_closed(FILE);
        assert_eq!(table.closing(), [FILE]);
        table.wait(FILE, Instant::now() + PATIENCE, || false);
        assert!(table.closing().is_empty() && table.is_hidden(FILE));
    }

    #[test]
    fn death_is_told_from_exit() {
        let stat = |flags: u64, code: u64| {
            let mut fields = vec!["0".to_owned(); 50];
            (fields[0], fields[6], fields[49]) = ("R".into(), flags.to_string(), code.to_string());
            ends_by_signal(format!("7 (a ) b) {}\n", fields.join(" ")).as_bytes())
        };
        assert_eq!(stat(0x40400004, 9), Some(true), "SIGKILL");
        assert_eq!(stat(0x40400204, 0x86), Some(true), "SIGABRT with a core");
        assert_eq!(stat(0x40000004, 0), Some(false), "exit(0)");
        assert_eq!(stat(0x40000404, 0x100), Some(false), "exit(1), on another thread");
        assert_eq!(stat(0x40000000, 0), Some(false), "close(2)");
        assert_eq!(ends_by_signal(b"nothing"), None);
    }
}
