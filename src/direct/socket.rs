//! The socket in the mount, through which clients send descriptors that the daemon can't take itself: it's an
//! ordinary user's, or the client forbids ptrace.
//!
//! Binding it goes through the mount, which the daemon must never touch: a child does it, in a mount
//! namespace of its own, so that the socket doesn't keep the mount busy for `umount`. The file system would
//! still live as long as the socket; so it's closed when the mount is gone from the daemon's own namespace.
//! What always holds: a descriptor is good for one registration of the process that sent it, for a minute;
//! nobody can fill the daemon with descriptors or hold up others, by saying nothing or by saying much.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, accept4, getsockopt, recvmsg, send,
    sockopt,
};
use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{FD_SOCKET_MAGIC, FdAnswer, FdHello, VERSION};
use super::buffer::random;
use super::handed::Handed;
use super::owner::{Owner, Owners};
use crate::backing::mountinfo;
use crate::fs::Fs;

/// Descriptors that wait for their registration: of one process, of one user, and of all.
const WAITING_OF_ONE: usize = 64;
const WAITING_OF_USER: usize = 256;
const WAITING: usize = 4096;
/// As many as the process can well keep.
fn most_waiting() -> usize {
    super::owner::share_of_descriptors(WAITING)
}

/// How long one waits.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Connections at once, and how long one may say nothing.
const CONNECTIONS: usize = 256;
const SILENCE: Duration = Duration::from_secs(5);
/// Descriptors of one message (include/net/scm.h).
const SCM_MAX_FD: usize = 253;
/// How long binding may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the child finds the socket: its standard output.
const CHILDS_FD: RawFd = 1;

/// A descriptor that was sent.
struct Waiting {
    tgid: u32,
    uid: u32,
    fd: Handed,
    until: Instant,
}

/// Descriptors that were sent, by their tokens.
#[derive(Default)]
pub(super) struct Sent {
    waiting: Mutex<HashMap<u64, Waiting>>,
    bound: AtomicBool,
}

impl Sent {
    /// Whether the socket is there.
    pub(super) fn is_bound(&self) -> bool {
        self.bound.load(Relaxed)
    }

    /// The descriptor of a token, if this process sent it. `ENOENT` if not, or not any more.
    pub(super) fn take(&self, owner: &Owner, token: u64) -> Result<Handed, Errno> {
        let mut waiting = self.waiting.lock();
        match waiting.get(&token) {
            Some(w) if w.tgid == owner.tgid && w.until > Instant::now() => {}
            _ => return Err(Errno::NOENT),
        }
        waiting.remove(&token).map(|w| w.fd).ok_or(Errno::NOENT)
    }

    /// The process has ended.
    pub(super) fn ended(&self, tgid: u32) {
        self.waiting.lock().retain(|_, w| w.tgid != tgid);
    }

    fn enter(&self, owner: &Owner, fd: Handed) -> Result<u64, Errno> {
        let Owner { tgid, uid, .. } = *owner;
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, w| w.until > now);
        let of_one = waiting.values().filter(|w| w.tgid == tgid).count();
        let of_user = waiting.values().filter(|w| w.uid == uid).count();
        // So that there's always room for another user's.
        let of_user_most = WAITING_OF_USER.min(most_waiting().saturating_sub(waiting.len()));
        if of_one >= WAITING_OF_ONE || of_user >= of_user_most {
            return Err(Errno::DQUOT);
        }
        let token = random().map_err(|_| Errno::IO)?;
        waiting.insert(token, Waiting { tgid, uid, fd, until: now + GOOD_FOR });
        Ok(token)
    }
}

/// Binds the socket and serves it, on a thread of its own, until the mount with this device number is gone.
pub(super) fn serve(
    fs: Arc<Fs>,
    owners: Arc<Owners>,
    sent: Arc<Sent>,
    point: PathBuf,
    device: (u32, u32),
) -> io::Result<()> {
    // Now: later this process may start nothing that makes a namespace.
    let binding = Binding::start(&fs, &point, device)?;
    std::thread::Builder::new().name("kvfs-socket".into()).spawn(move || match binding.finish() {
        Ok(listener) => {
            sent.bound.store(true, Relaxed);
            if let Err(e) = listen(&listener, &owners, &sent, device) {
                tracing::warn!("the socket for descriptors is closed: {e}");
            }
            sent.bound.store(false, Relaxed);
        }
        Err(e) => tracing::info!("no socket for descriptors in the mount: {e}"),
    })?;
    Ok(())
}

/// A child that binds a socket of ours to its name in the mount.
struct Binding {
    listener: OwnedFd,
    child: Child,
}

impl Binding {
    /// Starts it. It ends when the mount has answered it.
    fn start(fs: &Fs, point: &Path, (major, minor): (u32, u32)) -> io::Result<Binding> {
        let listener = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("kvfs").arg("bind-socket").arg(point).args([major, minor].map(|n| n.to_string()));
        // As its standard output: so it's started without a fork, which would have the memory that requests are read
        // into copied, and a client told EIO if this process is killed meanwhile (see `fuse::handshake`).
        command.stdin(Stdio::piped()).stdout(listener.try_clone()?).stderr(Stdio::null());
        let mut child = command.spawn()?;
        fs.expect_socket(child.id());
        // Its go-ahead is the end of its standard input.
        drop(child.stdin.take());
        Ok(Binding { listener, child })
    }

    /// Waits until it's bound.
    fn finish(mut self) -> io::Result<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).ok_or(Errno::CHILD)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let timeout = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut ended, Some(&timeout))? == 0 {
            self.child.kill()?;
            // Not waited for: it may not be able to end.
            return Err(io::Error::other("binding it took too long"));
        }
        match self.child.wait()?.code() {
            Some(0) => {}
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
            None => return Err(io::Error::other("the process that binds it was killed")),
        }
        rustix::net::listen(&self.listener, 64)?;
        Ok(self.listener)
    }
}

/// The child: binds the socket that it was started with. ENODEV where the mount with this device number is gone.
pub(crate) fn bind_here(point: &Path, (major, minor): (u32, u32)) -> io::Result<()> {
    // Until the daemon is ready for it.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    use nix::sched::{CloneFlags, unshare};
    // An ordinary user may only in a user namespace.
    unshare(CloneFlags::CLONE_NEWNS)
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS))?;
    let (private, none) = (nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC, None::<&str>);
    nix::mount::mount(none, "/", none, private, none)?;
    // By a relative name: the length of a socket's path is bounded.
    std::env::set_current_dir(point)?;
    // From here on it's this directory, whatever is unmounted: and that mustn't be what was below the mount.
    if rustix::fs::stat(".")?.st_dev != rustix::fs::makedev(major, minor) {
        return Err(Errno::NODEV.into());
    }
    // SAFETY: the parent has put the socket there, and nothing else here uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(CHILDS_FD) };
    let name = std::str::from_utf8(crate::fs::SOCKET_NAME).map_err(io::Error::other)?;
    let address = nix::sys::socket::UnixAddr::new(name)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
    Ok(())
}

/// A client's, which was silent for too long at `until`.
struct Connection {
    fd: OwnedFd,
    uid: u32,
    until: Instant,
}

const LISTENER: u64 = u64::MAX;
const MOUNTS: u64 = u64::MAX - 1;

fn listen(listener: &OwnedFd, owners: &Owners, sent: &Sent, device: (u32, u32)) -> io::Result<()> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let add = |fd: &dyn AsFd, key: u64, flags| {
        epoll::add(&events, fd.as_fd(), epoll::EventData::new_u64(key), flags)
    };
    add(listener, LISTENER, epoll::EventFlags::IN)?;
    // The kernel tells of every change of the list of mounts (poll(2) of /proc/[pid]/mountinfo, proc(5)).
    let mounts = std::fs::File::open("/proc/self/mountinfo")?;
    add(&mounts, MOUNTS, epoll::EventFlags::PRI | epoll::EventFlags::ERR)?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let most = super::owner::share_of_descriptors(CONNECTIONS);
    let mut next = 0u64;
    let mut ready = Vec::with_capacity(16);
    while mountinfo::mounts()?.iter().any(|mount| mount.device == device) {
        ready.clear();
        let patience = rustix::event::Timespec { tv_sec: SILENCE.as_secs() as i64, tv_nsec: 0 };
        let limit = if connections.is_empty() { None } else { Some(&patience) };
        match epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), limit) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let keys: Vec<u64> = ready.iter().map(|event: &epoll::Event| event.data.u64()).collect();
        for key in keys {
            match key {
                MOUNTS => {}
                LISTENER => {
                    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                    let Ok(fd) = accept4(listener.as_raw_fd(), flags) else { continue };
                    // SAFETY: just made, and ours alone.
                    let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                    let Ok(peer) = getsockopt(&connection, sockopt::PeerCredentials) else { continue };
                    // Of a user with as many as are left, the one that has been silent for the longest makes room.
                    let uid = peer.uid();
                    let of_user = connections.iter().filter(|(_, other)| other.uid == uid);
                    if of_user.clone().count() >= most - connections.len() {
                        let silent = of_user.min_by_key(|(_, other)| other.until).map(|(key, _)| *key);
                        silent.and_then(|key| connections.remove(&key));
                    }
                    if connections.len() < most && add(&connection, next, epoll::EventFlags::IN).is_ok() {
                        let until = Instant::now() + SILENCE;
                        connections.insert(next, Connection { fd: connection, uid, until });
                        next += 1;
                    }
                }
                key => {
                    let Some(connection) = connections.get_mut(&key) else { continue };
                    connection.until = Instant::now() + SILENCE;
                    if !answer(connection, owners, sent) {
                        connections.remove(&key);
                    }
                }
            }
        }
        let now = Instant::now();
        connections.retain(|_, connection| connection.until > now);
    }
    Ok(())
}

/// Answers one message; whether another may come.
fn answer(Connection { fd: connection, uid, .. }: &Connection, owners: &Owners, sent: &Sent) -> bool {
    // With the connection goes what waits in it, which the kernel doesn't flush.
    if Handed::room(*uid).is_err() {
        return false;
    }
    let mut bytes = [0u8; size_of::<FdHello>() + 1];
    // As many as can be sent: of what doesn't fit, nix hides those too that the kernel has given us.
    let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
    let received = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let mut fds = Vec::new();
                for part in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(numbers) = part {
                        // SAFETY: the kernel has just given them to us.
                        fds.extend(
                            numbers
                                .into_iter()
                                .map(|fd| Handed::new(unsafe { OwnedFd::from_raw_fd(fd) }, *uid)),
                        );
                    }
                }
                Some((message.bytes, fds))
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return true,
            Err(_) => None,
        }
    };
    let Some((len @ 1.., fds)) = received else { return false };
    let token = taken(connection, &bytes[..len], fds, owners, sent);
    let answer = match token {
        Ok(token) => FdAnswer { token, ..FdAnswer::default() },
        Err(errno) => FdAnswer { error: errno.raw_os_error(), ..FdAnswer::default() },
    };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(connection.as_raw_fd(), answer.as_bytes(), flags).is_ok()
}

fn taken(
    connection: &OwnedFd,
    hello: &[u8],
    fds: Vec<Handed>,
    owners: &Owners,
    sent: &Sent,
) -> Result<u64, Errno> {
    let hello = FdHello::read_from_bytes(hello).map_err(|_| Errno::INVAL)?;
    if hello.magic != FD_SOCKET_MAGIC || hello.version == 0 || hello.version > VERSION {
        return Err(Errno::INVAL);
    }
    let [fd] = <[Handed; 1]>::try_from(fds).map_err(|_| Errno::INVAL)?;
    // In our pid namespace; 0 if it isn't visible there.
    let peer = getsockopt(connection, sockopt::PeerCredentials).map_err(|_| Errno::PERM)?;
    match u32::try_from(peer.pid()) {
        // An owner from now on: with its end its descriptors go, whether it comes back for them or not.
        Ok(tgid) if tgid != 0 => {
            let owner = owners.enter(tgid, peer.uid())?;
            sent.enter(&owner, fd)
        }
        _ => Err(Errno::PERM),
    }
}
