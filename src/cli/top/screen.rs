//! The terminal, while something is drawn on it.
//!
//! What always holds: it's as it was before when this is dropped; signals that would end the process come as events, so
//! that it is dropped then, too.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// What happens while nothing is drawn.
pub(super) enum Event {
    Key(u8),
    Resized,
    /// It's time for the next picture.
    Due,
    /// Somebody wants the process to end, or the terminal has gone.
    End,
}

/// A terminal that is drawn on.
pub(super) struct Screen {
    before: Termios,
    signals: SignalFd,
}

impl Screen {
    pub(super) fn open() -> io::Result<Screen> {
        let wanted = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH];
        let set = SigSet::from_iter(wanted);
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        // Keys come one by one, and aren't shown; ^C is one of them.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let screen = Screen { before, signals };
        // The other screen, and no cursor.
        io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Draws lines from the top, as far as there's room.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout())?;
        let (columns, rows) = (usize::from(size.ws_col.max(20)), usize::from(size.ws_row.max(4)));
        let mut out = String::from("\x1b[H");
        // The last line is the one that says which keys there are.
        let fits = lines.len().min(rows);
        let (top, last) = lines.split_at(lines.len().saturating_sub(1));
        for (n, line) in top.iter().take(fits - 1).chain(last).enumerate() {
            let line: String = line.chars().take(columns).collect();
            let _ = write!(out, "{}{line}\x1b[K", if n == 0 { "" } else { "\r\n" });
        }
        out.push_str("\x1b[J");
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// Waits for what comes first; without a moment that's due, for the others.
    pub(super) fn wait(&mut self, due: Option<Instant>) -> io::Result<Event> {
        let stdin = io::stdin();
        loop {
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            let left = left
                .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let signals = self.signals.as_fd();
            let mut fds = [
                PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals, PollFlags::IN),
            ];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(Event::Due),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
            let keys = fds[0].revents();
            if let Some(signal) = self.signals.read_signal()? {
                let resized = signal.ssi_signo == Signal::SIGWINCH as u32;
                return Ok(if resized { Event::Resized } else { Event::End });
            }
            if keys.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                let mut key = [0];
                return Ok(match rustix::io::read(&stdin, &mut key)? {
                    0 => Event::End,
                    _ => Event::Key(key[0]),
                });
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
