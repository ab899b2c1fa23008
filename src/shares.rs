//! What users share and none may take all of: open files, threads that wait, buffers.
//!
//! What always holds: there are never more than the total; and a user gets another one only while they have
//! fewer than are left. So one alone gets half, and whoever comes after still gets something. Root and the daemon's
//! own user, who are trusted, get all but a sixteenth. What was taken is given back when its [`Share`] is dropped,
//! whatever ended it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often it's logged that somebody gets no more.
const SAID: Duration = Duration::from_secs(60);

/// A number of things, of one kind.
#[derive(Debug)]
pub struct Shares {
    what: &'static str,
    total: usize,
    /// What one of an ordinary user's counts.
    weight: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_user: HashMap<u32, usize>,
    said: Option<Instant>,
}

/// One of them, until it's dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    user: u32,
    weight: usize,
}

/// How many times what is left somebody who is trusted may have.
const TRUSTED: usize = 15;

fn is_trusted(user: u32) -> bool {
    static ME: LazyLock<u32> = LazyLock::new(|| rustix::process::geteuid().as_raw());
    user == 0 || user == *ME
}

impl Shares {
    /// So many of `what`.
    pub fn new(what: &'static str, total: usize) -> Arc<Shares> {
        Shares::weighed(what, total, 1)
    }

    /// The same, of which each counts as `weight` where it's an ordinary user's: who may make more of it than
    /// is usual.
    pub fn weighed(what: &'static str, total: usize, weight: usize) -> Arc<Shares> {
        Arc::new(Shares { what, total, weight, used: Mutex::default() })
    }

    /// One for this user; `None` if they have as many as are left.
    pub fn take(self: &Arc<Shares>, user: u32) -> Option<Share> {
        let mut used = self.used.lock();
        let weight = self.weight_of(user);
        if !self.is_left_for(&used, user) {
            let mine = used.by_user.get(&user).copied().unwrap_or(0);
            if used.said.is_none_or(|at| at.elapsed() > SAID) {
                used.said = Some(Instant::now());
                let (all, total) = (used.all, self.total);
                drop(used);
                tracing::warn!("user {user} gets no more {}: {mine} of {total}, {all} are in use", self.what);
            }
            return None;
        }
        used.add(user, weight);
        drop(used);
        Some(Share { of: self.clone(), user, weight })
    }

    /// One for this user, which is there whether they may have it or not.
    pub fn taken(self: &Arc<Shares>, user: u32) -> Share {
        let weight = self.weight_of(user);
        self.used.lock().add(user, weight);
        Share { of: self.clone(), user, weight }
    }

    /// Whether the user would get one now.
    pub fn has_some_for(&self, user: u32) -> bool {
        self.is_left_for(&self.used.lock(), user)
    }

    fn weight_of(&self, user: u32) -> usize {
        if is_trusted(user) { 1 } else { self.weight }
    }

    fn is_left_for(&self, used: &Used, user: u32) -> bool {
        let mine = used.by_user.get(&user).copied().unwrap_or(0);
        let left = self.total.saturating_sub(used.all);
        let may_have = if is_trusted(user) { left.saturating_mul(TRUSTED) } else { left };
        left >= self.weight_of(user) && mine < may_have
    }

    /// How many this user has.
    pub fn held_by(&self, user: u32) -> usize {
        self.used.lock().by_user.get(&user).copied().unwrap_or(0)
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.used.lock().all
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl Used {
    fn add(&mut self, user: u32, weight: usize) {
        self.all += weight;
        *self.by_user.entry(user).or_default() += weight;
    }
}

impl Share {
    /// Whose it is.
    pub fn user(&self) -> u32 {
        self.user
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.of.used.lock();
        used.all -= self.weight;
        if let Some(mine) = used.by_user.get_mut(&self.user) {
            *mine -= self.weight;
            if *mine == 0 {
                used.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_last_still_gets_one() {
        let shares = Shares::new("things", 64);
        let mut held = Vec::new();
        let mut all = |user| {
            let before = held.len();
            held.extend(std::iter::from_fn(|| shares.take(user)));
            held.len() - before
        };
        assert_eq!([all(1), all(2), all(3), all(1)], [32, 16, 8, 0]);
        drop(held);
        let mut held: Vec<_> = std::iter::from_fn(|| shares.take(0)).collect();
        assert_eq!(held.len(), 60, "root's");
        held.extend(std::iter::from_fn(|| shares.take(1)));
        assert_eq!(held.len(), 62);
        drop(held);
        assert!(shares.used.lock().by_user.is_empty() && shares.in_use() == 0);
    }

    #[test]
    fn what_may_cost_more_counts_more() {
        let shares = Shares::weighed("things", 64, 3);
        let held: Vec<_> = std::iter::from_fn(|| shares.take(1)).collect();
        assert_eq!((held.len(), shares.in_use()), (11, 33));
        assert_eq!(std::iter::from_fn(|| shares.take(0)).take(40).collect::<Vec<_>>().len(), 30);
        drop(held);
        assert_eq!(shares.in_use(), 0);
    }

    #[test]
    fn what_is_there_anyway_counts() {
        let shares = Shares::new("things", 4);
        let held: Vec<_> = (0..6).map(|_| shares.taken(1)).collect();
        assert!(!shares.has_some_for(1) && !shares.has_some_for(2) && shares.take(2).is_none());
        drop(held);
        assert!(shares.has_some_for(1) && shares.take(1).is_some());
    }
}
