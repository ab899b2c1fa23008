//! Answers of many parts.
//!
//! What always holds: nothing of an answer is kept: a part is written before the next is made; whoever reads too slowly
//! for too long, or goes, ends it.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, AskError, Question, put};

/// Longer than any part.
const LONGEST: u64 = 1 << 20;

/// Writes the parts of an answer.
pub type Writer = Box<dyn FnOnce(&mut Parts<'_>) -> io::Result<()> + Send>;

/// What is given to a question.
pub enum Given {
    /// One answer.
    One(serde_json::Value),
    /// Many, by what writes them.
    Many(Writer),
}

impl From<serde_json::Value> for Given {
    fn from(value: serde_json::Value) -> Given {
        Given::One(value)
    }
}

/// Where the parts of an answer go.
pub struct Parts<'a> {
    stream: &'a UnixStream,
    out: BufWriter<&'a UnixStream>,
}

impl<'a> Parts<'a> {
    pub(super) fn to(stream: &'a UnixStream) -> Parts<'a> {
        Parts { stream, out: BufWriter::with_capacity(64 << 10, stream) }
    }

    /// Writes a part, soon.
    pub fn part(&mut self, part: &impl Serialize) -> io::Result<()> {
        let part = Answer::Part(serde_json::to_value(part)?);
        serde_json::to_writer(&mut self.out, &part)?;
        self.out.write_all(b"\n")
    }

    /// Writes what hasn't been written yet.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Whether who has asked is gone.
    pub fn is_over(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(self.stream, PollFlags::RDHUP)], Some(&now)) != Ok(0)
    }

    /// That was all.
    pub(super) fn end(mut self) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, &Answer::Done(serde_json::Value::Null))?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

/// Asks a question that has many answers; `act` gets them, until it says that it wants no more. The next may
/// take any time.
pub fn ask_each<T: DeserializeOwned>(
    device: (u32, u32),
    question: &Question,
    mut act: impl FnMut(T) -> ControlFlow<()>,
) -> Result<(), AskError> {
    use std::io::Read;
    let stream = put(device, question, None)?;
    stream.set_read_timeout(None)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut line = String::new();
    loop {
        line.clear();
        (&mut stream).take(LONGEST).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon has ended").into());
        }
        match serde_json::from_str(&line)? {
            Answer::Done(_) => return Ok(()),
            Answer::Refused(why) => return Err(AskError::Refused(why)),
            Answer::Part(part) => {
                if act(serde_json::from_value(part)?).is_break() {
                    return Ok(());
                }
            }
        }
    }
}
