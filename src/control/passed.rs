//! What the kernel moves by itself, for the metrics of a mount.
//!
//! What always holds: it's counted only for a mount with `--metrics`, because each call in passthrough then costs a little
//! more; where it can't be counted the mount goes on, and says why.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::backing::Backing;
use crate::fs::Fs;
use crate::index::Slot;
use crate::metrics::PassedThrough;
use crate::metrics::passthrough::{Device, PassthroughBytes, device_of};

/// Counts from now on, where that's possible. Before the sandbox is entered, which forbids bpf(2). `mount`: the mount's
/// device number.
pub fn count_passed_through(fs: &Arc<Fs>, mount: Device, wanted: bool) {
    if !wanted {
        let why = "it's counted only for a mount with --metrics";
        return fs.metrics.set_passed_through(move || PassedThrough::Unknown(why.into()));
    }
    let backings: Vec<(Slot, Device)> = fs.backings().iter().filter_map(device).collect();
    match PassthroughBytes::attach(mount, &backings) {
        Ok(counts) => {
            let fs_again = Arc::downgrade(fs);
            fs.metrics.set_passed_through(move || match fs_again.upgrade() {
                Some(fs) => told(&counts, &fs),
                None => PassedThrough::Unknown("the mount ends".into()),
            });
        }
        Err(why) => {
            tracing::info!("bytes that the kernel moves by itself aren't counted: {why}");
            let why = why.to_string();
            fs.metrics.set_passed_through(move || PassedThrough::Unknown(why.clone()));
        }
    }
}

fn device(backing: &Arc<Backing>) -> Option<(Slot, Device)> {
    Some((backing.slot, device_of(backing.root().as_fd()).ok()?))
}

/// Backings on one file system can't be told apart: the first has it all.
fn told(counts: &PassthroughBytes, fs: &Fs) -> PassedThrough {
    for (slot, device) in fs.backings().iter().filter(|b| !b.health.is_out()).filter_map(device) {
        counts.add(slot, device);
    }
    let passed = counts.read().into_iter();
    let bytes = passed.filter_map(|p| Some((p.slots.first()?.0, p.read, p.written))).collect();
    PassedThrough::Counted { bytes, missed: counts.uncounted() }
}
