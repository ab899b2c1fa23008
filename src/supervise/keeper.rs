//! The daemon's side: what it has kept for its successor, with the parent that started it or with systemd.
//!
//! What always holds: what was kept is there for the next daemon, whatever becomes of this one. Nobody waits:
//! what can't be kept is lost in a crash, and nothing else comes of that.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Where the daemon that a parent started finds it.
pub(super) const SOCKET_FD: RawFd = 100;

/// The exit status of a daemon that has handed over to the next one.
pub const HANDED_OVER: u8 = 77;

/// Who keeps things for a daemon that systemd starts, for people.
pub const BY_SYSTEMD: &str = "systemd";

/// How long who keeps things may take to say that all was heard.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// What a kept descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// The session's `/dev/fuse`.
    Device,
    /// The [`State`](super::State).
    State,
    /// The lock on a backing's marker, by slot.
    Lock(u8),
    /// A file that has lost its name while it's open, by node.
    File(u64),
    /// A client's buffer, by its number, of which 56 bits count.
    Buffer(u64),
    /// What hangs up when all that a daemon had under way has ended; by which daemon it was.
    Lifeline(u32),
}

const KIND: u32 = 56;

impl Tag {
    /// 8 bits of kind, 56 of number.
    pub(super) fn code(self) -> u64 {
        let number = |n: u64| n & ((1 << KIND) - 1);
        match self {
            Tag::Device => 1 << KIND,
            Tag::State => 2 << KIND,
            Tag::Lock(slot) => 3 << KIND | u64::from(slot),
            Tag::File(node) => 4 << KIND | number(node),
            Tag::Buffer(id) => 5 << KIND | number(id),
            Tag::Lifeline(daemon) => 6 << KIND | u64::from(daemon),
        }
    }

    pub(super) fn from_code(code: u64) -> Option<Tag> {
        let number = code & ((1 << KIND) - 1);
        Some(match code >> KIND {
            1 => Tag::Device,
            2 => Tag::State,
            3 => Tag::Lock(u8::try_from(number).ok()?),
            4 => Tag::File(number),
            5 => Tag::Buffer(number),
            6 => Tag::Lifeline(u32::try_from(number).ok()?),
            _ => return None,
        })
    }
}

/// What one side says to the other: 16 bytes, with a descriptor at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Keep this (daemon to parent); this was kept (the other way).
    Keep(u64),
    /// It's no longer needed.
    Drop(u64),
    /// What is there?
    List,
    /// That was all; how the daemon before ended: a signal, 0 if there was none or it ended by itself.
    End(u64),
    /// The mount answers.
    Ready,
    /// From now on this executable.
    Upgrade,
    /// It was the new executable that didn't come up: this is the one before.
    Former,
    /// Was all heard? Yes, it was.
    Sync,
}

impl Word {
    pub(super) fn bytes(self) -> [u8; 16] {
        let (op, value) = match self {
            Word::Keep(tag) => (1u64, tag),
            Word::Drop(tag) => (2, tag),
            Word::List => (3, 0),
            Word::End(signal) => (4, signal),
            Word::Ready => (5, 0),
            Word::Upgrade => (6, 0),
            Word::Former => (7, 0),
            Word::Sync => (8, 0),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&op.to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: [u8; 16]) -> Option<Word> {
        let word = |half: &[u8]| half.try_into().map(u64::from_le_bytes).unwrap_or(0);
        let value = word(&bytes[8..]);
        Some(match word(&bytes[..8]) {
            1 => Word::Keep(value),
            2 => Word::Drop(value),
            3 => Word::List,
            4 => Word::End(value),
            5 => Word::Ready,
            6 => Word::Upgrade,
            7 => Word::Former,
            8 => Word::Sync,
            _ => return None,
        })
    }
}

/// Sends a word. Waits for room only where the other side has hung.
pub(super) fn say(socket: BorrowedFd<'_>, word: Word, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send(socket, &word.bytes(), fd)
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fd = fd.as_slice();
    if !fd.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fd)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Hears a word; `None` when the other side is gone. Allocates nothing.
pub(super) fn hear(socket: BorrowedFd<'_>) -> io::Result<Option<(Word, Option<OwnedFd>)>> {
    let mut bytes = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = part {
            fd = fds.next();
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let word = Word::parse(bytes).filter(|_| message.bytes == 16);
    word.map(|word| Some((word, fd))).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Who keeps things.
#[derive(Debug)]
enum With {
    /// The parent, at the other end.
    Parent(OwnedFd),
    /// systemd's store (sd_pid_notify_with_fds(3)).
    Systemd(UnixDatagram),
}

/// What was kept by the daemon before.
#[derive(Debug, Default)]
pub struct Kept {
    fds: Vec<(Tag, OwnedFd)>,
    /// The signal that ended it, 0 for none.
    pub signal: i32,
    /// The executable that was to come after it didn't come up.
    pub fell_back: bool,
}

impl Kept {
    /// Takes one out.
    pub fn take(&mut self, tag: Tag) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(there, _)| *there == tag)?;
        Some(self.fds.swap_remove(at).1)
    }

    /// Takes out, and closes, what is left.
    pub fn drain(&mut self) -> impl Iterator<Item = Tag> + '_ {
        self.fds.drain(..).map(|(tag, _)| tag)
    }

    /// Takes out, and closes, the locks.
    pub fn locks(&mut self) -> impl Iterator<Item = Tag> + '_ {
        self.fds.extract_if(.., |(tag, _)| matches!(tag, Tag::Lock(_))).map(|(tag, _)| tag)
    }

    /// Takes the files without a name out.
    pub fn files(&mut self) -> Vec<(u64, OwnedFd)> {
        self.take_all(|tag| if let Tag::File(node) = tag { Some(node) } else { None })
    }

    /// Takes clients' buffers out.
    pub fn buffers(&mut self) -> Vec<(u64, OwnedFd)> {
        self.take_all(|tag| if let Tag::Buffer(id) = tag { Some(id) } else { None })
    }

    /// Takes out what tells of the ends of daemons before.
    pub fn lifelines(&mut self) -> Vec<(u32, OwnedFd)> {
        self.take_all(|tag| if let Tag::Lifeline(daemon) = tag { Some(daemon) } else { None })
    }

    fn take_all<T>(&mut self, number: impl Fn(Tag) -> Option<T>) -> Vec<(T, OwnedFd)> {
        let mut taken = Vec::new();
        for (tag, fd) in std::mem::take(&mut self.fds) {
            match number(tag) {
                Some(number) => taken.push((number, fd)),
                None => self.fds.push((tag, fd)),
            }
        }
        taken
    }

    /// How the daemon before ended, for people.
    pub fn how(&self) -> String {
        match nix::sys::signal::Signal::try_from(self.signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => "ended".into(),
        }
    }

    /// Whether the daemon before ended by a fault of its own: not because it was killed.
    pub fn crashed(&self) -> bool {
        self.signal != 0 && self.signal != libc::SIGKILL && self.signal != libc::SIGTERM
    }
}

/// What keeps things for the next daemon, if anything does.
#[derive(Debug, Default)]
pub struct Keeper(Option<With>);

impl Keeper {
    /// Nothing does.
    pub fn none() -> Keeper {
        Keeper(None)
    }

    /// The parent that started this process does.
    ///
    /// To be called once, by a process that it started.
    pub fn parent() -> io::Result<(Keeper, Kept)> {
        // SAFETY: it was made for this process at this number, and nobody else uses it.
        let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        say(socket.as_fd(), Word::List, None)?;
        let mut kept = Kept::default();
        loop {
            match hear(socket.as_fd())? {
                Some((Word::Keep(code), Some(fd))) => {
                    kept.fds.extend(Tag::from_code(code).map(|tag| (tag, fd)))
                }
                Some((Word::Former, _)) => kept.fell_back = true,
                Some((Word::End(signal), _)) => {
                    kept.signal = signal as i32;
                    break;
                }
                Some(_) => {}
                None => return Err(io::Error::other("the parent has ended")),
            }
        }
        Ok((Keeper(Some(With::Parent(socket))), kept))
    }

    /// systemd does, if it started this process with a store for descriptors (`FileDescriptorStoreMax=`).
    ///
    /// Under the names that it was given in sd_listen_fds_with_names(3) it hands back what it has.
    pub fn systemd() -> io::Result<Option<(Keeper, Kept)>> {
        let variable = |name: &str| std::env::var(name).ok();
        // Set for units with a store: sd_notify(3), FDSTORE=1; systemd.exec(5).
        if variable("FDSTORE").and_then(|n| n.parse::<u32>().ok()).is_none_or(|n| n == 0) {
            return Ok(None);
        }
        let Some(Notify(socket)) = Notify::systemd()? else { return Ok(None) };
        let mut kept = Kept { signal: libc::SIGKILL, ..Kept::default() };
        if variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string()) {
            let n = variable("LISTEN_FDS").and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
            let names = variable("LISTEN_FDNAMES").unwrap_or_default();
            for (at, name) in (0..n).zip(names.split(':')) {
                // SAFETY: by the protocol these descriptors, from 3 on, are this process's.
                let fd = unsafe { OwnedFd::from_raw_fd(3 + at) };
                rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
                let code = name.strip_prefix("kvfs-").and_then(|hex| u64::from_str_radix(hex, 16).ok());
                kept.fds.extend(code.and_then(Tag::from_code).map(|tag| (tag, fd)));
            }
        }
        Ok(Some((Keeper(Some(With::Systemd(socket))), kept)))
    }

    /// Whether a successor will find anything.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Who it is, for people.
    pub fn name(&self) -> &'static str {
        match self.0 {
            None => "nobody",
            Some(With::Parent(_)) => "its parent process",
            Some(With::Systemd(_)) => BY_SYSTEMD,
        }
    }

    /// Has a descriptor kept.
    pub fn keep(&self, tag: Tag, fd: BorrowedFd<'_>) {
        let kept = match &self.0 {
            None => return,
            Some(With::Parent(socket)) => say(socket.as_fd(), Word::Keep(tag.code()), Some(fd)),
            Some(With::Systemd(socket)) => {
                // FDPOLL=0: systemd otherwise drops what is hung up, as a dead connection of /dev/fuse is.
                notify(socket, &format!("FDSTORE=1\nFDNAME=kvfs-{:x}\nFDPOLL=0", tag.code()), Some(fd))
            }
        };
        if let Err(e) = kept {
            tracing::warn!("{tag:?} can't be kept for a daemon after this one: {e}");
        }
    }

    /// It's no longer needed.
    pub fn release(&self, tag: Tag) {
        let _ = match &self.0 {
            None => return,
            Some(With::Parent(socket)) => say(socket.as_fd(), Word::Drop(tag.code()), None),
            Some(With::Systemd(socket)) => {
                notify(socket, &format!("FDSTOREREMOVE=1\nFDNAME=kvfs-{:x}", tag.code()), None)
            }
        };
    }

    /// Waits until all that was said has been heard: what isn't needed is closed then. Not for ever.
    pub fn sync(&self) {
        let synced = match &self.0 {
            None => return,
            Some(With::Parent(socket)) => {
                let _asks = ASKS.lock();
                say(socket.as_fd(), Word::Sync, None).and_then(|()| {
                    answers(socket.as_fd(), PollFlags::IN)?;
                    hear(socket.as_fd()).map(drop)
                })
            }
            // sd_notify_barrier(3): the other end of a pipe is closed when the word was heard.
            Some(With::Systemd(socket)) => {
                let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from);
                pipe.and_then(|(heard, tells)| {
                    notify(socket, "BARRIER=1", Some(tells.as_fd()))?;
                    drop(tells);
                    answers(heard.as_fd(), PollFlags::HUP)
                })
            }
        };
        if let Err(e) = synced {
            tracing::warn!("{} doesn't say that it has closed what isn't needed any more: {e}", self.name());
        }
    }

    /// The mount has ended: nothing of it is needed by anybody.
    pub fn end(&self, locks: impl Iterator<Item = Tag>) {
        [Tag::Device, Tag::State].into_iter().chain(locks).for_each(|tag| self.release(tag));
        self.sync();
    }

    /// The service is being stopped, and what of the mount is still open is in nobody's sight: a daemon that systemd
    /// starts after this one, because it had to be killed, is to mount anew.
    pub fn mount_anew(&self) {
        if let Some(With::Systemd(_)) = &self.0 {
            self.release(Tag::Device);
        }
    }

    /// The mount answers.
    pub fn ready(&self) {
        let _ = match &self.0 {
            None => return,
            Some(With::Parent(socket)) => say(socket.as_fd(), Word::Ready, None),
            Some(With::Systemd(socket)) => notify(socket, "READY=1", None),
        };
    }

    /// The next daemon is to be this executable. Refused where somebody else starts it.
    pub fn upgrade(&self, executable: BorrowedFd<'_>) -> io::Result<()> {
        match &self.0 {
            Some(With::Parent(socket)) => say(socket.as_fd(), Word::Upgrade, Some(executable)),
            // It starts what the unit says, and goes back to nothing.
            Some(With::Systemd(_)) => Ok(()),
            None => Err(io::Error::other("nothing would start the new daemon: mounted with --supervise off")),
        }
    }
}

/// One asks at a time.
static ASKS: Mutex<()> = Mutex::new(());

/// Waits for an answer.
fn answers(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(&fd, what)], Some(&PATIENCE))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Where systemd hears that a service is ready (sd_notify(3)).
#[derive(Debug)]
pub struct Notify(UnixDatagram);

impl Notify {
    /// The one of this process, if systemd started it and waits for that.
    pub fn systemd() -> io::Result<Option<Notify>> {
        let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return Ok(None) };
        let socket = UnixDatagram::unbound()?;
        match path.strip_prefix('@') {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
            }
            None => socket.connect(&path)?,
        }
        Ok(Some(Notify(socket)))
    }

    /// The service is ready. Allocates nothing.
    pub fn ready(&self) {
        let _ = notify(&self.0, "READY=1", None);
    }

    /// The service lives.
    pub(super) fn lives(&self) {
        let _ = notify(&self.0, "WATCHDOG=1", None);
    }
}

fn notify(socket: &UnixDatagram, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send(socket.as_fd(), text.as_bytes(), fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_tags_come_through() {
        let plain = [Word::List, Word::Ready, Word::Upgrade, Word::Former, Word::Sync];
        for word in [Word::Keep(7), Word::Drop(u64::MAX), Word::End(9)].into_iter().chain(plain) {
            assert_eq!(Word::parse(word.bytes()), Some(word));
        }
        assert_eq!(Word::parse([9; 16]), None);
        let node = 64 << 48 | 12345;
        for tag in
            [Tag::Device, Tag::State, Tag::Lock(63), Tag::File(node), Tag::Buffer(1 << 55), Tag::Lifeline(9)]
        {
            assert_eq!(Tag::from_code(tag.code()), Some(tag));
        }
        assert_eq!(Tag::from_code(0), None);
    }

    #[test]
    fn descriptors_come_through() {
        let (a, b) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        say(a.as_fd(), Word::Keep(1), Some(file.as_fd())).unwrap();
        say(a.as_fd(), Word::Ready, None).unwrap();
        let (word, fd) = hear(b.as_fd()).unwrap().unwrap();
        assert_eq!(word, Word::Keep(1));
        let ino = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(ino(fd.unwrap().as_fd()), ino(file.as_fd()));
        assert!(matches!(hear(b.as_fd()), Ok(Some((Word::Ready, None)))));
        drop(a);
        assert!(hear(b.as_fd()).unwrap().is_none());
    }
}
