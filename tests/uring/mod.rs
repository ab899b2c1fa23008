//! What the tests of the transport have in common.

mod clients;
mod ends;
#[path = "../direct/frozen.rs"]
mod frozen;
mod hung;
mod refused;

use crate::common::{Builder, Lab, Mount};

/// A mount over three backings in the scratch directory.
fn by_uring(lab: &Lab) -> Builder {
    lab.mount(&lab.dirs(3)).transport("io-uring")
}

/// Keeps the calling thread on a processor.
fn stay_on(processor: usize) {
    let mut only = nix::sched::CpuSet::new();
    only.set(processor).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
}

/// Runs this on each processor, on a thread of its own; it's told on which.
fn on_each<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let n = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let work = &work;
        let run = |processor| move || (stay_on(processor), work(processor)).1;
        let all: Vec<_> = (0..n).map(|processor| scope.spawn(run(processor))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// How many threads of the daemon take requests from queues.
fn servers(mount: &Mount) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap();
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().map(name).filter(|name| name.starts_with("kvfs-cpu-")).count()
}
