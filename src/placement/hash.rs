//! The `hash` policy: every file goes where rendezvous hashing of its name says, whoever asks.
//!
//! What always holds: the answer depends on the name, the backings' UUIDs, their capacities and their
//! usability only; a temporary name and the final one it is renamed to have the same answer.

use super::{Asker, Basis, Candidate, Decision, Policy, Target, names, rendezvous};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "hash";

/// Weighted rendezvous hashing of the file name; see [`rendezvous`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Hash;

impl Policy for Hash {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, _: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        by_hash(Basis::Hash, target, backings)
    }
}

/// Places by the name's hash, also where another policy knows nothing better and says so as `basis`.
pub(super) fn by_hash(basis: Basis, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
    let preferred = rendezvous::choose(names::key(target.name()), backings)?;
    settle(basis, preferred, target, backings)
}

/// Takes `preferred` if it's usable, else spills to the usable backing that the name's hash prefers.
pub(super) fn settle(
    basis: Basis,
    preferred: &Candidate,
    target: &Target<'_>,
    backings: &[Candidate],
) -> Option<Decision> {
    if preferred.usable {
        return Some(Decision::preferred(basis, preferred.slot, backings.len()));
    }
    let usable = backings.iter().filter(|backing| backing.usable);
    let taken = rendezvous::choose(names::key(target.name()), usable)?;
    Some(Decision::spilled(basis, preferred.slot, taken.slot, backings.len()))
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, rendezvous::tests::backings};
    use super::*;

    fn choose(path: &[u8], backings: &[Candidate]) -> Option<Decision> {
        Hash.choose(&Asker::default(), &Target { path }, backings)
    }

    #[test]
    fn the_directory_and_the_temporary_part_of_the_name_do_not_matter() {
        let list = backings(8);
        let chosen = |path: &str| choose(path.as_bytes(), &list).expect("all are usable").slot;
        for i in 0..50 {
            let file = chosen(&format!("73/12/m%408%403%40{i:x}%40half.kvcache.safetensors"));
            for other in [".tmp72ec72f3", ".metadata", ".metadata.tmp00ff00ff"] {
                let path = format!("elsewhere/m%408%403%40{i:x}%40half.kvcache.safetensors{other}");
                assert_eq!(chosen(&path), file, "{path}");
            }
        }
    }

    #[test]
    fn only_the_files_of_an_unusable_backing_spill() {
        let all = backings(4);
        let mut three = all.clone();
        three[2].usable = false;
        let mut spilled = [0; 4];
        for i in 0..400 {
            let path = format!("chunk-{i}.pt").into_bytes();
            let (before, after) = (choose(&path, &all).unwrap(), choose(&path, &three).unwrap());
            assert_eq!(before.reason, Reason::Hash);
            if before.slot == 2 {
                assert_eq!(after.reason, Reason::Spilled);
                spilled[usize::from(after.slot)] += 1;
            } else {
                assert_eq!((after.slot, after.reason), (before.slot, Reason::Hash));
            }
        }
        assert_eq!(spilled[2], 0);
        assert!(
            spilled.iter().sum::<i32>() > 60 && [0, 1, 3].iter().all(|&s| spilled[s] > 10),
            "{spilled:?}"
        );
    }

    #[test]
    fn no_usable_backing_is_no_answer() {
        let mut list = backings(2);
        list.iter_mut().for_each(|backing| backing.usable = false);
        assert_eq!(choose(b"a", &list), None);
        assert_eq!(choose(b"a", &[]), None);
        assert_eq!(Hash.explain(&Target { path: b"a" }, &list), "hash: no backing takes new files");
    }
}
