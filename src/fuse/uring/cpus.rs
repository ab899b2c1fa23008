//! The processors: the kernel has a queue for each that there could be.
//!
//! What always holds: there's an entry for each, also of those that are off: the kernel waits for all.

use std::io;

/// Entries of all queues together, as far as `EACH` allows.
const ALL: usize = 256;
/// Entries of a queue: at least, at most.
const EACH: (usize, usize) = (2, 8);

/// Entries for each queue: 8 on 32 processors or fewer, 2 on 128 or more; 1 where a processor is off.
///
/// A request of which a disk has to think keeps its entry, so one isn't enough; each has a thread of its own, and
/// a megabyte of address space.
pub(super) fn entries() -> io::Result<Vec<usize>> {
    let read = |name| std::fs::read_to_string(format!("/sys/devices/system/cpu/{name}"));
    Ok(share(&list(&read("possible")?), &list(&read("online")?)))
}

fn share(possible: &[usize], online: &[usize]) -> Vec<usize> {
    let each = (ALL / online.len().max(1)).clamp(EACH.0, EACH.1);
    // The kernel numbers queues by the processors' numbers, and has as many as there could be processors.
    (0..possible.len()).map(|cpu| if online.contains(&cpu) { each } else { 1 }).collect()
}

/// A list as the kernel writes it: `0-3,8`.
fn list(text: &str) -> Vec<usize> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(part).map(|only| only..=only),
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_that_could_be_has_a_queue() {
        let all = |n: usize| (0..n).collect::<Vec<_>>();
        assert_eq!(list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(share(&all(2), &all(2)), [8, 8]);
        assert_eq!(share(&all(4), &all(2)), [8, 8, 1, 1]);
        assert_eq!(share(&all(64), &all(64)), [4; 64]);
        assert_eq!(share(&all(192), &all(192)), [2; 192]);
        assert!(entries().unwrap().iter().all(|entries| *entries > 0));
    }
}
