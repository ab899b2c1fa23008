//! Weighted rendezvous hashing: which backing a name belongs to when nothing else is known of it.
//!
//! Every backing has a score for every name, computed from the name, the backing's UUID and its weight
//! alone; the highest score wins. So each backing gets its weight's share of the names, the order of the
//! list is irrelevant, adding a backing only moves names *to* it and removing one only moves its own. The
//! result is the same on every machine: the logarithm is computed here, with operations that IEEE 754
//! defines to the last bit, and not by the platform's `libm`.
//!
//! The score `-w / ln(h)` is Schindelhauer and Schomaker's logarithmic method ("Weighted distributed hash
//! tables", SPAA 2005).

use super::Candidate;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The backing of `backings` that `name` belongs to; `None` when there is none.
///
/// Whether a backing is usable isn't looked at: filter first where that matters.
pub fn choose<'a>(name: &[u8], backings: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    let seed = xxh3_64(name);
    // The UUID breaks ties, so that the order of the list can't.
    backings
        .into_iter()
        .map(|backing| (score(seed, backing), backing))
        .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.id.cmp(&y.id)))
        .map(|(_, backing)| backing)
}

/// The same with all backings taken for equally large.
pub fn choose_evenly<'a>(
    name: &[u8],
    backings: impl IntoIterator<Item = &'a Candidate>,
) -> Option<&'a Candidate> {
    let seed = xxh3_64(name);
    backings.into_iter().max_by_key(|backing| (xxh3_64_with_seed(backing.id.as_bytes(), seed), backing.id))
}

/// The backing's score for the name that hashes to `seed`; more is better, never NaN.
fn score(seed: u64, backing: &Candidate) -> f64 {
    let hash = xxh3_64_with_seed(backing.id.as_bytes(), seed);
    // A capacity has no meaning beyond f64's 53 bits: that is a byte in 8 PiB.
    backing.weight as f64 / -ln_of_fraction(hash)
}

/// `ln((hash / 2^12 + 0.5) / 2^52)`: the logarithm of a hash taken as a fraction in the open interval (0, 1).
fn ln_of_fraction(hash: u64) -> f64 {
    // One bit fewer than f64's precision, so that the half is exact and neither 0 nor 1 can come out.
    let fraction = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    // fraction = mantissa * 2^exponent with the mantissa near 1, where the series converges fast.
    let bits = fraction.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln(m) = 2 * atanh(s), s = (m - 1) / (m + 1); |s| < 0.172, so eleven terms are more than f64 holds.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..11).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use uuid::Uuid;

    /// Backings of 1 TB with UUIDs that are the same in every run.
    pub(in crate::placement) fn backings(count: u8) -> Vec<Candidate> {
        (0..count)
            .map(|slot| Candidate {
                slot,
                id: Uuid::from_u128(0x6b76_6673_0000_4000_8000_0000_0000_0000 + u128::from(slot)),
                weight: 1_000_000_000_000,
                free: 500_000_000_000,
                device: u64::from(slot) + 1,
                usable: true,
            })
            .collect()
    }

    fn slot(name: &str, backings: &[Candidate]) -> u8 {
        choose(name.as_bytes(), backings).expect("there are backings").slot
    }

    fn names() -> impl Iterator<Item = String> {
        (0..20_000).map(|i| format!("{i:064x}.bin"))
    }

    #[test]
    fn nothing_is_chosen_from_nothing() {
        assert_eq!(choose(b"name", &[]), None);
    }

    #[test]
    fn a_ninth_backing_takes_a_ninth_of_the_names_and_moves_no_other() {
        let nine = backings(9);
        let eight = &nine[..8];
        let mut moved = 0;
        for name in names() {
            let (before, after) = (slot(&name, eight), slot(&name, &nine));
            if before != after {
                assert_eq!(after, 8, "{name} moved between old backings");
                moved += 1;
            }
        }
        let share = f64::from(moved) / 20_000.0;
        assert!((share - 1.0 / 9.0).abs() < 0.01, "{share}");
    }

    #[test]
    fn reordering_the_list_changes_nothing() {
        let listed = backings(8);
        let mut reversed = listed.clone();
        reversed.reverse();
        for name in names() {
            assert_eq!(slot(&name, &listed), slot(&name, &reversed));
        }
    }

    #[test]
    fn each_backing_gets_its_weights_share() {
        let mut list = backings(4);
        for (backing, terabytes) in list.iter_mut().zip([1, 2, 4, 8]) {
            backing.weight = terabytes * 1_000_000_000_000;
        }
        let mut counts = [0_u32; 4];
        names().for_each(|name| counts[usize::from(slot(&name, &list))] += 1);
        for (count, share) in counts.into_iter().zip([1.0, 2.0, 4.0, 8.0]) {
            let (got, wanted) = (f64::from(count) / 20_000.0, share / 15.0);
            assert!((got - wanted).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn a_backing_without_capacity_is_the_last_resort() {
        let mut list = backings(3);
        list[1].weight = 0;
        assert!(names().all(|name| slot(&name, &list) != 1));
        assert_eq!(slot("name", &list[1..2]), 1);
    }

    /// Files lie where these answers put them: they may never change.
    #[test]
    fn answers_are_fixed() {
        let list = backings(8);
        let got: Vec<u8> = (0..12).map(|i| slot(&format!("chunk-{i}.pt"), &list)).collect();
        assert_eq!(got, [5, 6, 6, 7, 5, 1, 1, 6, 6, 4, 6, 2]);
    }

    #[test]
    fn the_logarithm_is_right_over_its_whole_range() {
        let hashes =
            [0, 1 << 12, u64::MAX, u64::MAX / 2, 1 << 63, 0x9e37_79b9_7f4a_7c15, 0xb504_f333_f9de_6484];
        for hash in hashes.into_iter().chain((0..1000_u64).map(|i| i.wrapping_mul(0x0123_4567_89ab_cdef))) {
            let wanted = (((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64).ln();
            let got = ln_of_fraction(hash);
            assert!(got < 0.0 && ((got - wanted) / wanted).abs() < 1e-14, "{hash:x}: {got} {wanted}");
        }
    }
}
