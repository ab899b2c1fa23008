//! What a daemon answers on its control socket.
//!
//! What always holds: an answer comes at once; work that takes longer is begun, and asked about later.

use std::sync::Arc;

use super::{About, Question, Status};
use crate::direct::Direct;
use crate::fs::Fs;

/// A running mount.
pub struct Daemon {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// The ioctl fast path.
    pub direct: Arc<Direct>,
    /// What else there is to tell.
    pub about: About,
}

impl Daemon {
    /// The answer to a question, or a sentence that says why there is none.
    pub fn answer(&self, question: Question) -> Result<serde_json::Value, String> {
        let answer = match question {
            Question::Status => serde_json::to_value(Status::of(&self.fs, &self.direct, &self.about)),
        };
        answer.map_err(|e| e.to_string())
    }
}
