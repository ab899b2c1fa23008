//! Rules of directories: a placement policy and a quota for what is in a directory and below it, as
//! extended attributes of that directory.
//!
//! What always holds: a rule is an attribute on every backing that has the directory, and nothing else is
//! kept of it, so it goes where the directory goes. The attributes of a directory are read when something is
//! first made in it or below (it's *settled* then, with all above it), and again when rules or names of
//! directories have changed. A mount without rules pays one look into a set for each new file.
//!
//! A quota is looked at when a file is created: files that are open may still grow beyond it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{Caller, Error, Fs, Node, NodeId, Result, proc_path, xattr};
use crate::backing::{Promise, Space, parse_bytes};
use crate::index::{DirId, EntryId, Index, What};
use crate::placement::Policy;

/// The attribute with a policy's name.
pub(super) const PLACEMENT: &[u8] = b"user.kvfs.placement";
/// The attribute with a size, as [`parse_bytes`] reads it.
pub(super) const QUOTA: &[u8] = b"user.kvfs.quota";

/// Settled directories that are kept in mind.
const SETTLED: usize = 1 << 20;
/// How long a directory stays settled where others may change its attributes.
const SETTLED_SHARED: Duration = Duration::from_secs(10);

/// What is known of the rules.
pub(super) struct Rules {
    known: RwLock<Known>,
    /// Directories whose files are to be counted.
    to_count: Sender<DirId>,
    counted: Mutex<Option<Receiver<DirId>>>,
}

struct Known {
    settled: HashSet<DirId>,
    since: Instant,
    /// Another number each time that directories stop being settled.
    generation: u64,
    placements: HashMap<DirId, &'static str>,
    /// Limits, each with what files that are being written are expected to need.
    quotas: HashMap<DirId, (u64, Arc<Space>)>,
}

/// Room in a quota that a new file is expected to need.
pub(super) type QuotaPromise = (Arc<Space>, Promise);

/// The rules of one directory, for people.
#[derive(Clone, Debug)]
pub struct DirRule {
    /// Its path below the mount's root; empty for the root.
    pub path: Vec<u8>,
    /// The policy that places files there.
    pub placement: Option<&'static str>,
    /// What its files may take, and take, in bytes.
    pub quota: Option<(u64, u64)>,
}

/// Whether an attribute of a directory is a rule.
pub(super) fn is_rule(name: &[u8]) -> bool {
    name == PLACEMENT || name == QUOTA
}

impl Rules {
    pub(super) fn new() -> Rules {
        let (to_count, counted) = channel();
        let known = Known {
            settled: HashSet::new(),
            since: Instant::now(),
            generation: 0,
            placements: HashMap::new(),
            quotas: HashMap::new(),
        };
        Rules { known: RwLock::new(known), to_count, counted: Mutex::new(Some(counted)) }
    }

    /// Rules, or names of directories, have changed: who is below whom is looked up again.
    pub(super) fn unsettle(&self) {
        let mut known = self.known.write();
        known.generation += 1;
        known.settled.clear();
        known.since = Instant::now();
    }

    /// Nobody asks for room in a quota while this is there.
    pub(super) fn settling(&self) -> impl Drop + '_ {
        self.known.write()
    }

    /// The directory is no more. Whether it had a quota.
    fn forget(&self, dir: DirId) -> bool {
        let mut known = self.known.write();
        known.settled.remove(&dir);
        known.placements.remove(&dir);
        known.quotas.remove(&dir).is_some()
    }
}

impl Fs {
    /// Looks for rules in the root directory and those in it, then counts files where a new quota needs it, for
    /// as long as the process lives. To be called once, on a thread of its own.
    pub fn serve_rules(&self) {
        let Some(to_count) = self.rules.counted.lock().take() else { return };
        let dirs: Vec<DirId> = {
            let index = self.index.read();
            let dir = |entry| match index.what(entry) {
                What::Dir(dir) => Some(dir),
                What::File(_) => None,
            };
            index.children(DirId::ROOT, 0).filter_map(dir).collect()
        };
        self.settle(DirId::ROOT);
        dirs.into_iter().for_each(|dir| self.settle(dir));
        to_count.iter().for_each(|dir| self.count_below(dir));
    }

    /// All rules that are known.
    pub fn rules(&self) -> Vec<DirRule> {
        let known = self.rules.known.read();
        let index = self.index.read();
        let mut dirs: Vec<DirId> = known.placements.keys().chain(known.quotas.keys()).copied().collect();
        dirs.sort();
        dirs.dedup();
        let rule = |dir: DirId| DirRule {
            path: index.path(dir),
            placement: known.placements.get(&dir).copied(),
            quota: index.quotas().find(|(at, ..)| *at == dir).map(|(_, limit, used)| (limit, used)),
        };
        dirs.into_iter().filter(|dir| index.slots(*dir).is_some()).map(rule).collect()
    }

    /// The policy for new files in a directory: the nearest rule's at or above it, else the mount's own.
    pub(super) fn policy_in(&self, dir: DirId) -> &dyn Policy {
        self.settle(dir);
        let known = self.rules.known.read();
        if known.placements.is_empty() {
            return self.policy();
        }
        let index = self.index.read();
        let nearest = above(&index, dir).find_map(|at| known.placements.get(&at));
        nearest.and_then(|name| self.policies.get(name).ok()).unwrap_or_else(|| self.policy())
    }

    /// Whether the quotas at and above a directory let a file be created. EDQUOT where one doesn't.
    pub(super) fn admit(&self, dir: DirId) -> Result<()> {
        self.settle(dir);
        if self.rules.known.read().quotas.is_empty() {
            return Ok(());
        }
        if self.full_quota(dir).is_some() {
            // Who can wait may find room in a moment.
            self.retention.kick();
            return Err(Errno::DQUOT.into());
        }
        Ok(())
    }

    /// The innermost quota at or above a directory that has no room left.
    fn full_quota(&self, dir: DirId) -> Option<DirId> {
        let known = self.rules.known.read();
        let index = self.index.read();
        quotas_above(&index, dir)
            .find(|(at, limit, used)| {
                let promised = known.quotas.get(at).map_or(0, |(_, space)| space.promised());
                used.saturating_add(promised) >= *limit
            })
            .map(|(at, ..)| at)
    }

    /// Promises room in the quotas at and above a directory to a file that was created there.
    pub(super) fn promise_in(&self, dir: DirId) -> Vec<QuotaPromise> {
        let known = self.rules.known.read();
        if known.quotas.is_empty() {
            return Vec::new();
        }
        let index = self.index.read();
        let quotas = above(&index, dir).filter_map(|at| known.quotas.get(&at));
        quotas.map(|(_, space)| (space.clone(), space.promise())).collect()
    }

    /// Has the rules of two directories known, for [`Fs::may_move`].
    pub(super) fn settle_both(&self, from: DirId, to: DirId) {
        if from != to {
            self.settle(from);
            self.settle(to);
        }
    }

    /// Whether quotas let `source` go from one directory to the other, and `back` the other way or away. EXDEV
    /// for a directory between two quotas, as project quotas of XFS have it; EDQUOT where a file doesn't fit.
    pub(super) fn may_move(
        &self,
        from: DirId,
        to: DirId,
        source: (EntryId, What),
        target: Option<(EntryId, What)>,
        exchange: bool,
    ) -> Result<()> {
        if from == to || self.rules.known.read().quotas.is_empty() {
            return Ok(());
        }
        let index = self.index.read();
        if !crosses(&index, from, to) {
            return Ok(());
        }
        let is_dir = |what| matches!(what, What::Dir(_));
        if is_dir(source.1) || exchange && target.is_some_and(|(_, what)| is_dir(what)) {
            return Err(Errno::XDEV.into());
        }
        let size = |entry| index.size(entry);
        let (there, here) = (size(source.0), target.map_or(0, |(entry, _)| size(entry)));
        fits(&index, from, to, there, here)?;
        if exchange { fits(&index, to, from, here, there) } else { Ok(()) }
    }

    /// Whether a file in one directory may get a name in the other. EXDEV between two quotas: it would count in
    /// one of them alone.
    pub(super) fn may_link(&self, from: DirId, to: DirId) -> Result<()> {
        if from == to || self.rules.known.read().quotas.is_empty() {
            return Ok(());
        }
        if crosses(&self.index.read(), from, to) { Err(Errno::XDEV.into()) } else { Ok(()) }
    }

    /// The innermost quota at or above the node's directory: limit and use, in bytes.
    pub(super) fn quota_at(&self, node: NodeId) -> Option<(u64, u64)> {
        let dir = match node.node()? {
            Node::Dir(dir) => dir,
            Node::File(slot, ino) => {
                let index = self.index.read();
                let known = index.find_known(slot, ino).then(|| index.find_node(slot, ino)).flatten()?;
                index.place(known).0
            }
        };
        self.settle(dir);
        self.index.read().quota_of(dir).map(|(_, limit, used)| (limit, used))
    }

    /// Sets (`Some`) or removes a rule of a directory, on each of its backings.
    pub(super) fn set_rule(
        &self,
        caller: &Caller,
        dir: DirId,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Result<()> {
        if name == QUOTA && !caller.is_operator() {
            return Err(Errno::PERM.into());
        }
        if let Some(value) = value {
            self.check_rule(name, value).map_err(|why| {
                tracing::warn!("{} of a directory was not set: {why}", String::from_utf8_lossy(name));
                Errno::INVAL
            })?;
        }
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let set = self.on_each(NodeId::dir(dir), |path| match value {
            Some(value) => rustix::fs::setxattr(path, name, value, flags),
            None => rustix::fs::removexattr(path, name),
        });
        // Also when it was set on some backings and not on all: what is there counts.
        self.rules.unsettle();
        self.look(dir);
        set
    }

    fn check_rule(&self, name: &[u8], value: &[u8]) -> std::result::Result<(), String> {
        let text = std::str::from_utf8(value).map_err(|_| "it's no text".to_owned())?;
        if name == QUOTA {
            return parse_bytes(text).map(drop);
        }
        self.policies.get(text).map(drop).map_err(|e| e.to_string())
    }

    /// The directory is gone: so are its rules.
    pub(super) fn forget_rules(&self, dir: DirId) {
        if self.rules.forget(dir) {
            self.index.write().set_quota(dir, None);
        }
    }

    /// Has the rules of a directory, and of those above it, known.
    pub(super) fn settle(&self, dir: DirId) {
        let (generation, stale) = {
            let known = self.rules.known.read();
            let stale = self.others_change() && known.since.elapsed() > SETTLED_SHARED;
            if known.settled.contains(&dir) && !stale {
                return;
            }
            (known.generation, stale || known.settled.len() >= SETTLED)
        };
        if stale {
            self.rules.unsettle();
            return self.settle(dir);
        }
        let mut chain: Vec<DirId> = above(&self.index.read(), dir).collect();
        {
            let known = self.rules.known.read();
            chain.retain(|at| !known.settled.contains(at));
        }
        let mut settled = Vec::with_capacity(chain.len());
        for at in chain.into_iter().rev() {
            // Below a directory that can't be asked nothing is settled.
            if !self.look(at) {
                break;
            }
            settled.push(at);
        }
        let mut known = self.rules.known.write();
        if known.generation == generation {
            known.settled.extend(settled);
        }
    }

    /// Reads the rules of one directory. `false` when it can't be asked.
    fn look(&self, dir: DirId) -> bool {
        // No name is empty: this is the lock of the directory's rules.
        let _lock = self.locks.lock(dir, b"");
        let Some((placement, quota)) = self.read_rules(dir) else { return false };
        let placement = placement.and_then(|value| match self.policies.get(&value) {
            Ok(policy) => Some(policy.name()),
            Err(e) => {
                self.tell_bad_rule(dir, &e.to_string());
                None
            }
        });
        let limit = quota.and_then(|value| match parse_bytes(&value) {
            Ok(bytes) => Some(bytes),
            Err(e) => {
                self.tell_bad_rule(dir, &e);
                None
            }
        });
        let had = {
            let known = self.rules.known.read();
            (known.placements.get(&dir).copied(), known.quotas.get(&dir).map(|(limit, _)| *limit))
        };
        if had != (placement, limit) {
            self.apply(dir, placement, limit, had.1);
        }
        true
    }

    fn apply(&self, dir: DirId, placement: Option<&'static str>, limit: Option<u64>, had: Option<u64>) {
        let mut known = self.rules.known.write();
        match placement {
            Some(name) => drop(known.placements.insert(dir, name)),
            None => drop(known.placements.remove(&dir)),
        }
        if limit == had {
            return;
        }
        match limit {
            Some(limit) => {
                let new = || (limit, Arc::new(Space::new(0, None)));
                known.quotas.entry(dir).or_insert_with(new).0 = limit;
            }
            None => drop(known.quotas.remove(&dir)),
        }
        drop(known);
        let mut index = self.index.write();
        if limit.is_some() && !index.is_counting() {
            index.start_counting();
        }
        index.set_quota(dir, limit);
        drop(index);
        if had.is_none() {
            // The receiver lives as long as the filesystem.
            let _ = self.rules.to_count.send(dir);
        }
    }

    fn tell_bad_rule(&self, dir: DirId, why: &str) {
        let path = self.index.read().path(dir);
        tracing::warn!("a rule of directory /{} doesn't count: {why}", crate::printable::printable(&path));
    }

    /// The values of a directory's rules, as its first backing that answers has them.
    fn read_rules(&self, dir: DirId) -> Option<(Option<String>, Option<String>)> {
        let slots = self.index.read().slots(dir)?;
        for slot in slots.iter() {
            let Ok(fd) = self.dir_fd(slot, dir) else { continue };
            let path = proc_path(&fd);
            let names = match xattr::list_path(&path) {
                Ok(names) => names,
                // A file system without attributes has no rules either.
                Err(Errno::OPNOTSUPP) => Vec::new(),
                Err(_) => continue,
            };
            let value = |name: &[u8]| {
                let there = names.iter().any(|n| n == name);
                let value = there.then(|| xattr::get_path(&path, name).ok()).flatten()?;
                Some(String::from_utf8_lossy(&value).into_owned())
            };
            return Some((value(PLACEMENT), value(QUOTA)));
        }
        None
    }
}

/// The directory and those above it, innermost first.
fn above(index: &Index, dir: DirId) -> impl Iterator<Item = DirId> {
    std::iter::successors(Some(dir), |at| index.dir_place(*at).map(|(parent, _)| parent))
}

/// The quotas at and above a directory, innermost first: directory, limit and use.
fn quotas_above(index: &Index, dir: DirId) -> impl Iterator<Item = (DirId, u64, u64)> {
    let innermost = index.quota_of(dir);
    std::iter::successors(innermost, |(at, ..)| index.quota_of(index.dir_place(*at)?.0))
}

/// Whether the directories are of different quotas.
fn crosses(index: &Index, from: DirId, to: DirId) -> bool {
    index.quota_of(from).map(|q| q.0) != index.quota_of(to).map(|q| q.0)
}

/// Whether the quotas that `to` has and `from` hasn't let so much come in when so much goes.
fn fits(index: &Index, from: DirId, to: DirId, comes: u64, goes: u64) -> Result<()> {
    let mut entered = quotas_above(index, to).filter(|(at, ..)| !index.is_within(from, *at));
    let full = |(_, limit, used): (DirId, u64, u64)| {
        comes > goes && used.saturating_sub(goes).saturating_add(comes) > limit
    };
    if entered.any(full) { Err(Error::from(Errno::DQUOT)) } else { Ok(()) }
}
