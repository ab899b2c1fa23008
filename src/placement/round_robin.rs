//! The `round-robin` policy: each new file goes to the next backing in turn.
//!
//! What always holds: over any stretch of time the usable backings get equally many files, whichever others
//! come and go; nobody waits for a lock. The one exception to the turn: LMCache's gds backend writes a
//! `.metadata` after each file of data, and that goes where its data went and takes no turn. Were it to take
//! one, two backings would get all the data on one and all the metadata on the other; and a drive that fails
//! takes whole keys with it this way, where LMCache would find the metadata and then fail to read the data.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_64;

use super::hash::settle;
use super::names::{self, Part};
use super::{Asker, Basis, Candidate, Decision, Policy, Target};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "round-robin";

/// The next usable backing of the list, again and again.
pub struct RoundRobin {
    /// The place in the list of the backing that had the last turn.
    last: AtomicUsize,
    /// Where the data of the latest keys went: the slot in the low byte, the rest is the key's hash.
    data: [AtomicU64; RoundRobin::KEYS],
}

impl RoundRobin {
    /// As many keys as may be between their data and their metadata: LMCache writes a key's two files one
    /// after the other, from a few threads per GPU. A power of two.
    const KEYS: usize = 1024;

    /// The policy, with the first backing's turn next.
    pub fn new() -> Self {
        Self { last: AtomicUsize::new(usize::MAX), data: [const { AtomicU64::new(0) }; Self::KEYS] }
    }

    /// The backing whose turn it is, and has been with that.
    ///
    /// The one after the last, and not the n-th of those that are usable: so an unusable one passes its turn
    /// on without anybody getting two for one, even if it's only found to be unusable when it's tried.
    fn next<'a>(&self, backings: &'a [Candidate]) -> Option<&'a Candidate> {
        let after = |last: usize| {
            let first = last.wrapping_add(1);
            (first..backings.len()).chain(0..first.min(backings.len())).find(|&i| backings[i].usable)
        };
        let last = self.last.fetch_update(Relaxed, Relaxed, after).ok()?;
        after(last).map(|place| &backings[place])
    }

    /// Where the data of the key with this hash is remembered, or would be.
    fn place_of(&self, hash: u64) -> &AtomicU64 {
        &self.data[(hash >> 8) as usize % Self::KEYS]
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, _: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        let part = names::part(target.name());
        let hash = part.map_or(0, |_| hash_of_key(target));
        if part == Some(Part::Metadata) {
            let seen = self.place_of(hash).load(Relaxed);
            let with = backings.iter().find(|backing| u64::from(backing.slot) == seen & 0xff);
            if let Some(with) = with.filter(|_| seen >> 8 == hash >> 8) {
                return settle(Basis::WithItsData, with, target, backings);
            }
        }
        let next = self.next(backings)?;
        if part == Some(Part::Data) {
            self.place_of(hash).store(hash >> 8 << 8 | u64::from(next.slot), Relaxed);
        }
        Some(Decision::preferred(Basis::Turn, next.slot, backings.len()))
    }

    /// Asking takes nobody's turn, and the name says nothing.
    fn explain(&self, _: &Target<'_>, _: &[Candidate]) -> String {
        format!("{NAME}: each new file to the next backing, whatever its name")
    }
}

/// The hash of what the data and the metadata of a key have in common: the directory, and the name's key.
fn hash_of_key(target: &Target<'_>) -> u64 {
    let name = target.name();
    // The key is where the name begins, so it's a prefix of the path too.
    let without = name.len() - names::key(name).len();
    xxh3_64(&target.path[..target.path.len() - without])
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, rendezvous::tests::backings};
    use super::*;

    fn choose(policy: &RoundRobin, path: &str, backings: &[Candidate]) -> Decision {
        let target = Target { path: path.as_bytes() };
        policy.choose(&Asker::default(), &target, backings).expect("one is usable")
    }

    fn slots(policy: &RoundRobin, count: usize, backings: &[Candidate]) -> Vec<u8> {
        (0..count).map(|i| choose(policy, &format!("chunk-{i}"), backings).slot).collect()
    }

    #[test]
    fn one_after_the_other() {
        let list = backings(3);
        let policy = RoundRobin::new();
        assert_eq!(slots(&policy, 7, &list), [0, 1, 2, 0, 1, 2, 0]);
        let decision = choose(&policy, "a", &list);
        assert_eq!(decision.reason, Reason::Turn);
        assert_eq!(decision.detail.to_string(), "its turn = backing 1");
        let explained = policy.explain(&Target { path: b"a" }, &list);
        assert_eq!(explained, "round-robin: each new file to the next backing, whatever its name");
        assert_eq!(slots(&policy, 1, &list), [2], "asking for the rule takes no turn");
    }

    #[test]
    fn an_unusable_one_gives_its_turns_to_all_alike() {
        let mut list = backings(4);
        list[1].usable = false;
        let policy = RoundRobin::new();
        assert_eq!(slots(&policy, 7, &list), [0, 2, 3, 0, 2, 3, 0]);
        list[1].usable = true;
        assert_eq!(slots(&policy, 4, &list), [1, 2, 3, 0]);
        // Found to be unusable only when it was tried: the next is asked for at once.
        let mut counts = [0; 4];
        for _ in 0..90 {
            let mut slot = slots(&policy, 1, &list)[0];
            if slot == 1 {
                let without: Vec<_> = list.iter().map(|c| Candidate { usable: c.slot != 1, ..*c }).collect();
                slot = slots(&policy, 1, &without)[0];
            }
            counts[usize::from(slot)] += 1;
        }
        assert_eq!(counts, [30, 0, 30, 30]);
    }

    #[test]
    fn nothing_usable_takes_no_turn() {
        let mut list = backings(2);
        let policy = RoundRobin::new();
        assert_eq!(slots(&policy, 1, &list), [0]);
        list.iter_mut().for_each(|backing| backing.usable = false);
        let target = Target { path: b"a" };
        assert_eq!(policy.choose(&Asker::default(), &target, &list), None);
        assert_eq!(policy.choose(&Asker::default(), &target, &[]), None);
        assert_eq!(slots(&policy, 1, &backings(2)), [1]);
        // A list that has become shorter begins anew.
        assert_eq!(slots(&policy, 1, &backings(1)), [0]);
    }

    #[test]
    fn threads_share_the_turns_exactly() {
        let list = backings(4);
        let policy = RoundRobin::new();
        let gate = std::sync::Barrier::new(4);
        let take_turns = || {
            gate.wait();
            let mut counts = [0; 4];
            // Long enough to run at the same time on a busy machine too.
            let start = std::time::Instant::now();
            while start.elapsed() < std::time::Duration::from_millis(300) {
                for _ in 0..4000 {
                    counts[usize::from(choose(&policy, "a", &list).slot)] += 1;
                }
            }
            counts
        };
        let mut counts = [0; 4];
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take_turns)).collect();
            for of_thread in threads.into_iter().map(|thread| thread.join().expect("no panic")) {
                counts.iter_mut().zip(of_thread).for_each(|(all, own)| *all += own);
            }
        });
        assert_eq!(counts, [counts[0]; 4]);
    }

    const FILE: &str = "73/12/m%408%403%40HASH%40half.kvcache.safetensors";

    fn file(hash: usize) -> String {
        FILE.replace("HASH", &format!("{hash:x}"))
    }

    #[test]
    fn metadata_is_with_its_data_and_takes_no_turn() {
        let list = backings(2);
        let policy = RoundRobin::new();
        for i in 0..6 {
            let data = choose(&policy, &format!("{}.tmp72ec72f3", file(i)), &list);
            let metadata = choose(&policy, &format!("{}.metadata.tmp00ff00ff", file(i)), &list);
            assert_eq!((usize::from(data.slot), metadata.slot), (i % 2, data.slot));
            assert_eq!(metadata.reason, Reason::Turn);
        }
        let decision = choose(&policy, &format!("{}.metadata", file(3)), &list);
        assert_eq!(decision.detail.to_string(), "with its data, whose turn it was = backing 1");
    }

    #[test]
    fn metadata_of_unknown_data_takes_a_turn() {
        let list = backings(3);
        let policy = RoundRobin::new();
        assert_eq!(choose(&policy, &file(1), &list).slot, 0);
        let elsewhere = file(1).replace("73/12", "73/13");
        for path in [file(2), elsewhere] {
            let slot = choose(&policy, &format!("{path}.metadata"), &list).slot;
            assert_ne!(slot, 0, "{path}");
        }
        // Of a client that doesn't write two files.
        assert_eq!(choose(&policy, "notes", &list).slot, 0);
        assert_eq!(choose(&policy, "notes.metadata", &list).slot, 1);
    }

    #[test]
    fn metadata_leaves_data_that_took_no_more_files() {
        let mut list = backings(3);
        let policy = RoundRobin::new();
        assert_eq!(choose(&policy, &file(1), &list).slot, 0);
        list[0].usable = false;
        let decision = choose(&policy, &format!("{}.metadata", file(1)), &list);
        assert_ne!(decision.slot, 0);
        assert_eq!(decision.reason, Reason::Spilled);
        assert!(decision.detail.to_string().contains("which took no new files"), "{}", decision.detail);
    }
}
