//! The processors: the kernel has a queue for each that there could be.
//!
//! What always holds: a queue is there for processors that are off, too; what can't be bound to one runs anywhere.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

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

/// Keeps the calling thread on a processor: a request is then answered where it was made, and nobody is woken
/// elsewhere. Not where that processor is off, or isn't for this process.
pub(super) fn stay_on(cpu: usize) {
    if cpu >= CpuSet::MAX_CPU {
        return;
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    if let Err(e) = sched_setaffinity(None, &only) {
        tracing::debug!("the thread of queue {cpu} runs anywhere: {e}");
    }
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
