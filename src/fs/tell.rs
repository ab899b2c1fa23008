//! Telling the kernel that a name has gone without its doing: evicted, moved, or lost with its backing.
//!
//! The kernel takes the lock of the directory for that, which a client may hold that waits for an answer of
//! ours. What always holds: a thread of its own tells it, one that answers no requests and holds no locks;
//! nobody waits for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};

use super::NodeId;

/// A name that's gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its directory.
    pub parent: NodeId,
    /// It.
    pub name: Vec<u8>,
    /// What it stood for.
    pub node: NodeId,
}

/// Tells the kernel, as soon as it's known how.
#[derive(Debug, Default)]
pub(super) struct Teller {
    queue: OnceLock<Sender<Gone>>,
    told: AtomicU64,
}

impl Teller {
    /// From now on it's told this way.
    pub(super) fn start(&self, tell: impl Fn(Gone) + Send + 'static) -> std::io::Result<()> {
        let (sender, receiver) = channel();
        // It ends when the sender goes, with the filesystem.
        std::thread::Builder::new().name("kvfs-notify".into()).spawn(move || {
            for gone in receiver {
                tell(gone);
            }
        })?;
        let _ = self.queue.set(sender);
        Ok(())
    }

    /// Tells it. Before there's a mount, nobody has to be told.
    pub(super) fn gone(&self, gone: Gone) {
        if let Some(queue) = self.queue.get() {
            self.told.fetch_add(1, Relaxed);
            let _ = queue.send(gone);
        }
    }
}
