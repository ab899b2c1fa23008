//! What a daemon answers on its control socket.
//!
//! What always holds: an answer comes at once; work that takes longer is begun, and asked about later.

use std::sync::Arc;

use super::{About, Jobs, Question, Status};
use crate::direct::Direct;
use crate::fs::Fs;

/// A running mount.
pub struct Daemon {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// The ioctl fast path.
    pub direct: Arc<Direct>,
    /// Work on the backings.
    pub jobs: Arc<Jobs>,
    /// What else there is to tell.
    pub about: About,
}

impl Daemon {
    /// The answer to a question, or a sentence that says why there is none.
    pub fn answer(&self, question: Question) -> Result<serde_json::Value, String> {
        let answer = match question {
            Question::Status => {
                let job = self.jobs.status();
                serde_json::to_value(Status { job, ..Status::of(&self.fs, &self.direct, &self.about) })
            }
            Question::Job => serde_json::to_value(self.jobs.status()),
            Question::Order(order) => return self.jobs.order(order),
        };
        answer.map_err(|e| e.to_string())
    }
}
