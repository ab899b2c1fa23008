//! What users share and none may take all of: open files, threads that wait, buffers.
//!
//! What always holds: there are never more than the total; and a user gets another one only while they have
//! fewer than are left. So one alone gets half, and whoever comes after still gets something. What was taken
//! is given back when its [`Share`] is dropped, whatever ended it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often it's logged that somebody gets no more.
const SAID: Duration = Duration::from_secs(60);

/// A number of things, of one kind.
#[derive(Debug)]
pub struct Shares {
    what: &'static str,
    total: usize,
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
}

impl Shares {
    /// So many of `what`.
    pub fn new(what: &'static str, total: usize) -> Arc<Shares> {
        Arc::new(Shares { what, total, used: Mutex::default() })
    }

    /// One for this user; `None` if they have as many as are left.
    pub fn take(self: &Arc<Shares>, user: u32) -> Option<Share> {
        let mut used = self.used.lock();
        let mine = used.by_user.get(&user).copied().unwrap_or(0);
        if mine >= self.total.saturating_sub(used.all) {
            if used.said.is_none_or(|at| at.elapsed() > SAID) {
                used.said = Some(Instant::now());
                let (all, total) = (used.all, self.total);
                drop(used);
                tracing::warn!("user {user} gets no more {}: {mine} of {total}, {all} are in use", self.what);
            }
            return None;
        }
        used.add(user);
        drop(used);
        Some(Share { of: self.clone(), user })
    }

    /// One for this user, which is there whether they may have it or not.
    pub fn taken(self: &Arc<Shares>, user: u32) -> Share {
        self.used.lock().add(user);
        Share { of: self.clone(), user }
    }

    /// Whether the user would get one now.
    pub fn has_some_for(&self, user: u32) -> bool {
        let used = self.used.lock();
        used.by_user.get(&user).copied().unwrap_or(0) < self.total.saturating_sub(used.all)
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
    fn add(&mut self, user: u32) {
        self.all += 1;
        *self.by_user.entry(user).or_default() += 1;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.of.used.lock();
        used.all -= 1;
        if let Some(mine) = used.by_user.get_mut(&self.user) {
            *mine -= 1;
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
        assert!(shares.used.lock().by_user.is_empty() && shares.in_use() == 0);
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
