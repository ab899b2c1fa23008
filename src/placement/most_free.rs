//! The `most-free` policy: each new file goes to the backing with the most room.
//!
//! What always holds: backings that have about as much room as the roomiest count as equal, and the name's
//! hash chooses among them. Otherwise all of a burst of files would go to one drive, because it has a page
//! more than the others, until the next look at the room there is.

use super::{Asker, Basis, Candidate, Decision, Policy, Target, names, rendezvous};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "most-free";

/// How much less than the most still counts as the most: a hundredth. 35 GB of a drive that's half full is
/// more than is written between two looks, and little enough to keep the drives level.
const ALIKE: u64 = 100;

/// The usable backing with the most room.
#[derive(Debug, Clone, Copy, Default)]
pub struct MostFree;

impl Policy for MostFree {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, _: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        let usable = backings.iter().filter(|backing| backing.usable);
        let most = usable.clone().map(|backing| backing.free).max()?;
        let enough = most - most / ALIKE;
        let roomiest = usable.filter(|backing| backing.free >= enough);
        let alike = roomiest.clone().count() - 1;
        // Evenly: a larger drive with as much room isn't to be filled faster.
        let chosen = rendezvous::choose_evenly(names::key(target.name()), roomiest)?;
        let basis = Basis::MostFree { free: chosen.free, alike: u8::try_from(alike).unwrap_or(u8::MAX) };
        Some(Decision::preferred(basis, chosen.slot, backings.len()))
    }

    /// What room there was then isn't known.
    fn explain(&self, _: &Target<'_>, _: &[Candidate]) -> String {
        format!("{NAME}: each new file to the backing that has the most room then")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, rendezvous::tests::backings};
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn with_free<const N: usize>(free: [u64; N]) -> Vec<Candidate> {
        let mut list = backings(N as u8);
        list.iter_mut().zip(free).for_each(|(backing, free)| backing.free = free);
        list
    }

    fn choose(path: &str, backings: &[Candidate]) -> Option<Decision> {
        MostFree.choose(&Asker::default(), &Target { path: path.as_bytes() }, backings)
    }

    /// How many of some names each backing gets.
    fn counts<const N: usize>(backings: &[Candidate]) -> [u32; N] {
        let mut counts = [0; N];
        for i in 0..1000 {
            let decision = choose(&format!("chunk-{i}"), backings).expect("one is usable");
            assert_eq!(decision.reason, Reason::MostFree);
            counts[usize::from(decision.slot)] += 1;
        }
        counts
    }

    #[test]
    fn the_roomiest_that_is_usable() {
        let mut list = with_free([100 * GB, 300 * GB, 200 * GB, 0]);
        assert_eq!(counts(&list), [0, 1000, 0, 0]);
        let detail = choose("a", &list).map(|d| d.detail.to_string());
        assert_eq!(detail.as_deref(), Some("the most room: 279.4 GiB free = backing 1"));
        list[1].usable = false;
        assert_eq!(counts(&list), [0, 0, 1000, 0]);
        list.iter_mut().for_each(|backing| backing.usable = false);
        assert_eq!(choose("a", &list), None);
        assert_eq!(choose("a", &[]), None);
    }

    #[test]
    fn those_with_about_as_much_share_the_files_evenly() {
        let mut list = with_free([1000 * GB, 991 * GB, 989 * GB, 995 * GB]);
        list[0].weight *= 8;
        let got = counts::<4>(&list);
        assert!([0, 1, 3].into_iter().all(|i| (270..400).contains(&got[i])) && got[2] == 0, "{got:?}");
        let decision = choose("a", &list).expect("all are usable");
        let ending = format!("free, as 2 others; hash among these = backing {}", decision.slot);
        let detail = decision.detail.to_string();
        assert!(detail.starts_with("the most room: 9") && detail.ends_with(&ending), "{detail}");
    }

    /// A burst between two looks at the room: the drives fill at the same speed, and stay level.
    #[test]
    fn a_burst_is_shared_and_evens_out() {
        let mut list = with_free([500 * GB, 500 * GB, 520 * GB, 500 * GB]);
        let mut name = 0;
        let mut counts = [0; 4];
        for look in 0..1000 {
            let seen = list.clone();
            for _ in 0..100 {
                name += 1;
                let slot = choose(&format!("chunk-{name}"), &seen).expect("all are usable").slot;
                list[usize::from(slot)].free -= GB / 100;
                counts[usize::from(slot)] += 1;
            }
            // Level after 20 GB. All share any ten bursts, and none takes the whole of one.
            if look > 20 && look % 10 == 0 {
                assert!(counts.iter().all(|n| (100..400).contains(n)), "{counts:?} until look {look}");
            }
            if look % 10 == 0 {
                counts = [0; 4];
            }
        }
        let least = list.iter().map(|c| c.free).min().unwrap_or_default();
        let most = list.iter().map(|c| c.free).max().unwrap_or_default();
        assert!(most - least <= most / 50, "{list:?}");
    }

    #[test]
    fn no_room_known_at_all_is_a_hash() {
        let list = with_free([0; 4]);
        assert!(counts::<4>(&list).iter().all(|&n| n > 150));
    }
}
