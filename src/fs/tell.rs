//! Telling the kernel that names have gone, or stand for another file, without its doing.
//!
//! The kernel drops a name under the lock of its directory, which a client holds while it waits for the daemon
//! to make a file there. So what always holds: only this thread tells it; it answers no requests and holds no
//! lock of ours, and nobody who does either waits for it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Fs, NodeId};
use crate::index::DirId;

pub(super) type Invalidate = Arc<OnceLock<Box<dyn Fn(NodeId) + Send + Sync>>>;

/// What the kernel is to hear of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It has gone, and with it this file.
    Gone(NodeId),
    /// What it stands for was this file, and nobody has that open.
    Moved(NodeId),
    /// It stands for something else, or for anything at all.
    Changed,
}

/// Tells the kernel; true if it looks up all names again.
type Tell<'a> = dyn Fn(NodeId, &[u8], News) -> bool + 'a;

/// Something for the kernel.
enum Message {
    Name {
        parent: NodeId,
        name: Vec<u8>,
        news: News,
        /// The inode that the kernel believes it is, kept until it has been told: so its number is no
        /// other file's before.
        _held: Option<OwnedFd>,
    },
    /// A directory's listing has changed.
    Listing(NodeId),
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Message>,
    /// How many were ever put in, and how many of them the kernel has been told.
    put: u64,
    told: u64,
    /// Somebody tells: without a mount nobody does.
    is_served: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    told: Condvar,
}

/// The way to that thread.
pub(super) struct Teller {
    shared: Arc<Shared>,
    invalidate: Invalidate,
}

impl Teller {
    pub(super) fn new(invalidate: Invalidate) -> Teller {
        Teller { shared: Arc::default(), invalidate }
    }

    fn put(&self, message: Message) {
        let mut queue = self.shared.queue.lock();
        if queue.is_served {
            queue.waiting.push(message);
            queue.put += 1;
            self.shared.more.notify_one();
        }
    }
}

impl Shared {
    fn serve(&self, tell: &Tell<'_>, invalidate: &dyn Fn(NodeId)) -> ! {
        loop {
            let mut queue = self.queue.lock();
            while queue.waiting.is_empty() {
                self.more.wait(&mut queue);
            }
            let messages = std::mem::take(&mut queue.waiting);
            drop(queue);
            let count = messages.len() as u64;
            let (mut listings, mut all_again) = (HashSet::new(), false);
            for message in messages {
                match message {
                    Message::Name { parent, name, news, .. } => {
                        if !all_again || news != News::Changed {
                            all_again |= tell(parent, &name, news);
                        }
                        listings.insert(parent);
                    }
                    Message::Listing(dir) => drop(listings.insert(dir)),
                }
            }
            // Many names of one directory are one change of its listing.
            listings.into_iter().for_each(invalidate);
            self.queue.lock().told += count;
            self.told.notify_all();
        }
    }
}

impl Fs {
    /// Who tells the kernel of names: the directory, the name, and what became of it. Called on a thread of its own.
    pub fn set_names_changed(
        &self,
        tell: impl Fn(NodeId, &[u8], News) -> bool + Send + 'static,
    ) -> std::io::Result<()> {
        let (shared, invalidate) = (self.tell.shared.clone(), self.tell.invalidate.clone());
        let serve = move || {
            shared.serve(&tell, &|node| {
                if let Some(invalidate) = invalidate.get() {
                    invalidate(node);
                }
            })
        };
        std::thread::Builder::new().name("kvfs-notify".into()).spawn(serve)?;
        self.tell.shared.queue.lock().is_served = true;
        Ok(())
    }

    /// A name has gone, and with it this file.
    pub(crate) fn tell_gone(&self, parent: DirId, name: &[u8], node: NodeId) {
        self.put_name(parent, name, News::Gone(node), None);
    }

    /// A name stands for another file, or for one at all: the kernel is to look it up again.
    pub(crate) fn tell_changed(&self, parent: DirId, name: &[u8]) {
        self.put_name(parent, name, News::Changed, None);
    }

    /// The same of one that was this file's, which nobody has open. `held` is kept until the kernel was told.
    pub(crate) fn tell_moved(&self, parent: DirId, name: &[u8], node: NodeId, held: Option<OwnedFd>) {
        self.put_name(parent, name, News::Moved(node), held);
    }

    fn put_name(&self, parent: DirId, name: &[u8], news: News, held: Option<OwnedFd>) {
        let (parent, name) = (NodeId::dir(parent), name.to_vec());
        self.tell.put(Message::Name { parent, name, news, _held: held });
    }

    /// A directory's listing or attributes have changed.
    pub(crate) fn tell_listing(&self, dir: DirId) {
        self.tell.put(Message::Listing(NodeId::dir(dir)));
    }

    /// Waits until the kernel has been told all that was put in before, but not for ever: a client may keep a
    /// directory's lock as long as a drive hangs.
    pub(crate) fn told(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.tell.shared.queue.lock();
        let until = queue.put;
        while queue.told < until && !self.tell.shared.told.wait_until(&mut queue, deadline).timed_out() {}
    }
}
