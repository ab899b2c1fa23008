//! What outlives a crash of the daemon: the parent that starts it again, what it keeps, and the memory in
//! which the daemon writes down what the kernel holds it to.
//!
//! What always holds: the parent never touches the mount, starts no thread and allocates nothing once it
//! waits. What is in the [`State`] was true before the kernel heard of it: a daemon may be killed between any
//! two instructions, and its successor answers for everything that was promised.
//!
//! ```text
//!   kvfs mount ──► parent (holds /dev/fuse, the state, files without a name, clients' buffers)
//!                    │  fork and exec, again after a crash
//!                    ▼
//!                  daemon ── serves; tells the parent what to keep
//! ```

use std::sync::Arc;

mod alone;
mod clients;
mod door;
mod handover;
mod keeper;
mod lifeline;
mod opened;
mod parent;
mod places;
mod state;
mod twice;
mod watchdog;
mod work;

pub use clients::{BufferRecord, RECORD_ROOM, TokenRecord};
pub use door::Door;
pub use handover::{Handover, HandoverOutcome};
pub use keeper::{BY_SYSTEMD, HANDED_OVER, Keeper, Kept, Notify, Tag};
pub use lifeline::Lifeline;
pub use opened::{HandleRecord, NodeRecord};
pub use parent::{Start, supervise};
pub use places::name_hash;
pub use state::{STATE_VERSION, State, StateError};
pub use watchdog::Watchdog;
pub use work::{
    Deadly, HandedOver, Intent, Outcome, Path, Work, asked_by, asking_thread, hand_over, is_done,
    is_sent_again, unique, was_begun, was_intended,
};

/// What a daemon needs of all this.
#[derive(Clone, Debug, Default)]
pub struct Survival {
    /// Where it writes down what its successor has to know; `None`: there won't be one.
    pub state: Option<Arc<State>>,
    /// Who keeps descriptors for it.
    pub keeper: Arc<Keeper>,
    /// The requests at work.
    pub work: Arc<Work>,
    /// Whether anything of daemons before is still under way.
    pub lifeline: Arc<Lifeline>,
}

impl Survival {
    /// How deep the kernel was told to stack at the mount's start, which is as `now` says if it's now.
    pub fn stack_depth(&self, now: impl FnOnce() -> u32) -> u32 {
        match &self.state {
            Some(state) => state.stack_depth(now),
            None => now(),
        }
    }
}
