//! Which processors a thread runs on.
//!
//! What always holds: a thread that is bound to one is bound by itself; those that it starts, which would inherit that,
//! say that they run anywhere. Processes are started by such threads alone.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where this process's threads ran before the first was bound.
static ANYWHERE: OnceLock<CpuSet> = OnceLock::new();

/// Keeps the calling thread on a processor. It isn't where that one is off, or isn't for this process.
pub(crate) fn stay_on(processor: usize) {
    let Ok(before) = sched_getaffinity(None) else { return };
    ANYWHERE.get_or_init(|| before);
    if processor >= CpuSet::MAX_CPU {
        return;
    }
    let mut only = CpuSet::new();
    only.set(processor);
    if let Err(e) = sched_setaffinity(None, &only) {
        tracing::debug!("a thread isn't kept on processor {processor}: {e}");
    }
}

/// Lets the calling thread run wherever the process may, whoever has started it.
pub(crate) fn anywhere() {
    if let Some(all) = ANYWHERE.get()
        && let Err(e) = sched_setaffinity(None, all)
    {
        tracing::debug!("a thread stays where the one is that started it: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_started_by_a_bound_thread_runs_anywhere() {
        let mine = || sched_getaffinity(None).unwrap();
        let all = mine();
        let first = (0..CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
        let bound = move || {
            stay_on(first);
            let bound = mine();
            let inherits = std::thread::spawn(mine).join().unwrap();
            let free = std::thread::spawn(move || (anywhere(), mine()).1).join().unwrap();
            (bound, inherits, free)
        };
        let (bound, inherits, free) = std::thread::spawn(bound).join().unwrap();
        assert_eq!((bound.count(), bound.is_set(first)), (1, true));
        assert_eq!(inherits, bound);
        assert_eq!(free, all);
    }
}
