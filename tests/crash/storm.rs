//! Clients at work on everything while daemons are killed at random: no error, no wrong byte, nothing lost.
//!
//! KVFS_TEST_KILLS says how many are killed in each mode (200); KVFS_TEST_SEED repeats a run.

use std::time::{Duration, Instant};

use super::kill;
use super::load::{Dice, MOVERS, finished, number, under_load};
use crate::common::{Lab, Mount, Passthrough};

/// Kills daemons under a load, and says how long it took until others answered.
pub(crate) fn kills_under_load(mount: &Mount, kills: u64) {
    let mut pauses = Vec::new();
    let steps = under_load(mount, MOVERS, |seed, going| {
        let mut dice = Dice(seed);
        for _ in 0..kills {
            // A random moment of the work, not an event to be waited for.
            std::thread::sleep(Duration::from_micros(dice.below(60_000) as u64));
            if !going() {
                break;
            }
            let begun = Instant::now();
            kill(mount);
            pauses.push(begun.elapsed());
        }
    });
    pauses.sort();
    let share = |percent: usize| pauses[(pauses.len() * percent / 100).min(pauses.len() - 1)].as_millis();
    println!(
        "{} kills, {steps} steps; until another daemon answered: p50 {} ms, p99 {}, at most {}",
        pauses.len(),
        share(50),
        share(99),
        share(100)
    );
    assert_eq!(mount.status()["index"]["shadows"], 0, "no file is there twice");
}

fn storm(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(4)).passthrough(mode).supervised().start();
    kills_under_load(&mount, number("KVFS_TEST_KILLS", 200));
    finished(mount);
}

#[test]
fn passed_through() {
    storm(Passthrough::Auto);
}

#[test]
fn through_the_daemon() {
    storm(Passthrough::Off);
}
