//! A session: the mount, the handshake, what the kernel was found able to do, and the end.
//!
//! What always holds: when [`Session::start`] returns, the kernel has been told everything and the mount
//! will answer as soon as [`Session::serve`] is called; when it fails, nothing is left mounted.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, SessionACL};

use super::adapter::Adapter;
use super::answer::waiting;
use super::handshake::{Greeting, resend};
use super::help::help;
use super::mount::{MountError, Mounted, mount};
use super::prune::Pruner;
use super::start::Start;
use super::uring::{Chosen, Queues, is_offered};
use super::wanted::Wanted;
use super::watch::Watch;
use super::watched::Watched;
use crate::backing::{Backing, List, Passthrough};
use crate::config::{MountConfig, PassthroughMode};
use crate::direct::Direct;
use crate::fs::{Changed, Fs, News};
use crate::index::NodeId;
use crate::io::BackingRegistry;
use crate::shares::Shares;
use crate::supervise::{Survival, Tag};

/// Why a session can't start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The mount itself.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// `--passthrough require` and it isn't to be had.
    #[error("passthrough is required but not available: {0}; mount with --passthrough auto to go without it")]
    NoPassthrough(String),
    /// The kernel and fuser didn't come to terms.
    #[error("the FUSE handshake failed: {0}")]
    Handshake(io::Error),
    /// The kernel can't send requests again.
    #[error(
        "this kernel can't send requests again that a daemon died over ({0}; Linux 6.9 or newer can); mount with --supervise off"
    )]
    NoResend(io::Error),
    /// `--transport io-uring` and it isn't to be had.
    #[error("requests can't come by io_uring: {0}; or leave --transport out")]
    NoUring(String),
    /// Requests should come by io_uring, and don't.
    #[error("the kernel doesn't give its requests to io_uring: {0}; mount with --transport dev-fuse")]
    Uring(io::Error),
}

/// A mounted filesystem, ready to answer.
pub struct Session {
    session: fuser::Session<Watched>,
    watch: Arc<Watch>,
    mounted: Arc<Mounted>,
    registry: Arc<BackingRegistry>,
    device: OwnedFd,
    start: Arc<Start>,
    transport: Chosen,
    /// Where requests come by io_uring.
    queues: Option<Arc<Queues>>,
}

/// A session that answers requests.
pub struct Running {
    thread: JoinHandle<io::Result<()>>,
    watch: Arc<Watch>,
    mounted: Arc<Mounted>,
    queues: Option<Arc<Queues>>,
}

impl Running {
    /// Waits until the filesystem is unmounted.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
        if let Some(queues) = self.queues {
            queues.wait();
        }
        self.watch.end();
        // After an abort of the connection the dead mount is still there.
        self.mounted.detach();
        ended
    }
}

impl Session {
    /// Mounts and shakes hands. `survival` is told what a daemon after this one needs.
    pub fn start(
        fs: &Arc<Fs>,
        direct: &Arc<Direct>,
        config: &MountConfig,
        transport: Chosen,
        survival: &Survival,
    ) -> Result<Session, SessionError> {
        let source = config.source.clone().unwrap_or_else(|| source(&fs.backings()));
        let (device, mounted) = mount(&config.mount_point, &source, &config.kernel, config.allow_other)?;
        let mounted = Arc::new(mounted);
        // Whatever goes wrong from here on: nothing stays mounted.
        let result = Session::on(fs, direct, config, transport, device, mounted.clone(), survival).and_then(
            |session| {
                if let Some(state) = &survival.state {
                    // There's nothing to send again yet: this tells whether the kernel can.
                    resend(session.device.as_fd()).map_err(SessionError::NoResend)?;
                    survival.keeper.keep(Tag::State, state.fd());
                    fs.keep_locks();
                    survival.keeper.keep(Tag::Device, session.device.as_fd());
                }
                Ok(session)
            },
        );
        if result.is_err() {
            mounted.detach();
        }
        result
    }

    /// Takes a session over from a daemon that died. What that had read and not answered is sent again when
    /// [`Session::serve`] is called.
    pub fn take_over(
        fs: &Arc<Fs>,
        direct: &Arc<Direct>,
        config: &MountConfig,
        transport: Chosen,
        survival: &Survival,
        device: OwnedFd,
    ) -> Result<Session, SessionError> {
        let number = survival.state.as_ref().map(|state| state.device()).unwrap_or_default();
        let mounted = Arc::new(Mounted::at(&config.mount_point, number));
        Session::on(fs, direct, config, transport, device, mounted, survival)
    }

    fn on(
        fs: &Arc<Fs>,
        direct: &Arc<Direct>,
        config: &MountConfig,
        transport: Chosen,
        device: OwnedFd,
        mounted: Arc<Mounted>,
        survival: &Survival,
    ) -> Result<Session, SessionError> {
        let is_root = rustix::process::geteuid().is_root();
        let state = survival.state.as_deref();
        let greeting = Greeting::read(&device, state).map_err(SessionError::Handshake)?;
        if transport.uring && !is_offered(greeting.init()) {
            return Err(SessionError::NoUring("the kernel hasn't offered it".into()));
        }
        let passthrough = match config.passthrough {
            PassthroughMode::Off => None,
            // The set of backings may have changed since that was agreed on.
            _ => Some(survival.stack_depth(|| stack_depth(&fs.backings()))),
        };
        let wanted = Wanted { passthrough, uring: transport.uring };
        let registry = device.try_clone().map_err(SessionError::Handshake)?;
        // The kernel checks permissions (default_permissions); who may come in at all was said at the mount.
        let acl = if is_root || config.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut options = Config::default();
        options.acl = acl;
        // By the device come only forgotten nodes and interrupts then.
        let threads = config.threads.get().min(if transport.uring { 2 } else { usize::MAX });
        options.n_threads = Some(threads);
        let start = Arc::new(Start::new(threads));
        let copy = || device.try_clone().map_err(SessionError::Handshake);
        let watch = Watch::new(copy()?, threads);
        let adapter = Adapter {
            fs: fs.clone(),
            direct: direct.clone(),
            wanted,
            xattrs: config.xattrs,
            start: start.clone(),
            waiting: Shares::new("requests that wait", waiting()),
            watch: watch.clone(),
        };
        let watched = Watched::new(adapter.clone()).map_err(SessionError::Handshake)?;
        let (session, mut threshold) = greeting
            .shake_hands(watched, &device, acl, options, state, mounted.device)
            .map_err(SessionError::Handshake)?;
        threshold.prepare(session.as_fd(), threads).map_err(SessionError::Handshake)?;
        start.set(threshold);
        let queues = transport.uring.then(|| {
            let watched = Watched::new(adapter.clone())?;
            Queues::new(watched, device.try_clone()?, acl, watch.clone())
        });
        let queues = queues.transpose().map_err(SessionError::Uring)?;
        let connection = copy()?;
        let more = move |threads| help(&greeting, &adapter, &connection, acl, threads);
        watch.start(fs.clone(), config.drive_timeout, more).map_err(SessionError::Handshake)?;
        let registry = BackingRegistry::new(registry, survival.state.clone());
        for backing in fs.backings().iter().filter(|b| !b.health.is_out()) {
            decide_passthrough(backing, config.passthrough, &registry)?;
        }
        fs.set_registry(registry.clone());
        if fs.backings().iter().any(|b| !b.health.is_out() && *b.passthrough() != Passthrough::On) {
            widen_read_ahead(mounted.device);
        }
        Ok(Session { session, watch, device, mounted, registry, start, transport, queues })
    }

    /// What the kernel passes through of this session.
    pub fn registry(&self) -> &Arc<BackingRegistry> {
        &self.registry
    }

    /// How requests come.
    pub fn transport(&self) -> &Chosen {
        &self.transport
    }

    /// The mount.
    pub fn mounted(&self) -> Arc<Mounted> {
        self.mounted.clone()
    }

    /// What tells the kernel to ask again for what it was told of a node.
    pub fn invalidator(&self) -> impl Fn(NodeId) + Send + Sync + 'static {
        let notifier = self.session.notifier();
        move |node| {
            // Attributes and a directory's cached listing. An error means that the session has ended.
            let _ = notifier.inval_inode(super::convert::ino(node), 0, 0);
        }
    }

    /// What tells the kernel of names that have gone, or are to be looked up again; true if it looks up all.
    pub fn names_changed(&self) -> io::Result<impl Fn(NodeId, &[u8], News) -> bool + Send + Sync + 'static> {
        let notifier = self.session.notifier();
        let pruner = Pruner::new(self.device.try_clone()?);
        Ok(move |parent, name: &[u8], news| {
            match news {
                News::Gone(node) | News::Moved(node) if pruner.prune(node.0) => return false,
                News::Changed if pruner.age_all() => return true,
                _ => {}
            }
            // This takes the directory's lock. A daemon that is killed while a client has it, and waits for the
            // daemon, would not end before the connection is aborted.
            let (parent, name) = (super::convert::ino(parent), OsStr::from_bytes(name));
            // An error of these means that the kernel doesn't have the name, or that the session has ended.
            let _ = match news {
                News::Gone(node) => notifier.delete(parent, super::convert::ino(node), name),
                News::Moved(_) | News::Changed => notifier.inval_entry(parent, name),
            };
            false
        })
    }

    /// What decides how the data of a backing moves that joins later. How deep the kernel stacks was settled at
    /// the start.
    pub fn decider(
        &self,
        mode: PassthroughMode,
    ) -> impl Fn(&Backing) -> Result<(), String> + Send + Sync + 'static {
        let (registry, device) = (self.registry.clone(), self.mounted.device);
        move |backing| {
            decide_passthrough(backing, mode, &registry).map_err(|e| e.to_string())?;
            if *backing.passthrough() != Passthrough::On {
                widen_read_ahead(device);
            }
            Ok(())
        }
    }

    /// What tells the kernel that a file has changed without its doing.
    pub fn data_changed(&self) -> impl Fn(Changed) + Send + Sync + 'static {
        let notifier = self.session.notifier();
        move |Changed { node, pages, end }| {
            let ino = super::convert::ino(node);
            // An error means that the kernel doesn't have the inode, or that the session has ended.
            if let Some((at, byte)) = end {
                // Appending writes and page faults go by the size that the kernel knows, and don't ask for
                // another: only a store moves it (fuse_notify_store in fs/fuse/dev.c).
                let _ = notifier.store(ino, at, &[byte]);
            }
            // An offset below 0: attributes alone (fuse_reverse_inval_inode in fs/fuse/inode.c).
            let (offset, len) = pages.map_or((-1, 0), |(offset, len)| (offset as i64, len as i64));
            let _ = notifier.inval_inode(ino, offset, len);
        }
    }

    /// Answers requests from now on.
    pub fn serve(self) -> Result<Running, SessionError> {
        let Session { session, watch, mounted, start, queues, .. } = self;
        let thread = std::thread::Builder::new()
            .name("kvfs-session".into())
            .spawn(|| session.run())
            .map_err(SessionError::Handshake)?;
        start.crossed().map_err(SessionError::Handshake)?;
        if let Some(queues) = &queues {
            queues.start().map_err(SessionError::Uring)?;
        }
        Ok(Running { thread, watch, mounted, queues })
    }
}

/// What is shown as the mount's source: the backings, if they fit.
fn source(backings: &List) -> String {
    let paths: Vec<_> = backings.iter().map(|b| b.path.to_string_lossy()).collect();
    let source = paths.join(",");
    if source.len() <= 1024 { source } else { "kvfs".into() }
}

/// How deep the kernel must be ready to stack (`fuse_init_out.max_stack_depth`): 2 if a backing is itself a
/// file system on a file system.
fn stack_depth(backings: &List) -> u32 {
    let stacked = |b: &Arc<crate::backing::Backing>| {
        b.fs_type == "overlay" || b.fs_type == "ecryptfs" || b.fs_type.starts_with("fuse")
    };
    if backings.iter().any(stacked) { 2 } else { 1 }
}

/// Tries whether the kernel passes a backing's files through.
fn decide_passthrough(
    backing: &Backing,
    mode: PassthroughMode,
    registry: &Arc<BackingRegistry>,
) -> Result<(), SessionError> {
    let state = match mode {
        PassthroughMode::Off => Passthrough::Off("switched off (--passthrough off)".into()),
        _ => match probe(backing).and_then(|file| registry.register(file.as_fd())) {
            Ok(_) => Passthrough::On,
            Err(e) => Passthrough::Off(explain(&e)),
        },
    };
    if let (PassthroughMode::Require, Passthrough::Off(why)) = (mode, &state) {
        return Err(SessionError::NoPassthrough(format!("backing {}: {why}", backing.path.display())));
    }
    backing.set_passthrough(state);
    Ok(())
}

/// A file of the backing, opened for this alone: what is registered stays open if we die now, and with the very
/// file that the backing's lock is on it would stay locked.
fn probe(backing: &Backing) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", backing.probe_file().as_raw_fd());
    Ok(rustix::fs::open(
        path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)
}

/// The kernel reads ahead 128 KiB of a FUSE file, in requests of that size: the INIT reply can't ask for more
/// than the kernel offered. Where data comes to the daemon, larger requests are worth several times that.
fn widen_read_ahead(device: (u32, u32)) {
    let knob = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.0, device.1);
    // Without it (an ordinary user's mount) it's only slower.
    if let Err(e) = std::fs::write(&knob, "1024") {
        tracing::debug!("{knob}: {e}");
    }
}

fn explain(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel refuses: it needs CAP_SYS_ADMIN in the initial user namespace".into()
        }
        Some(libc::ENOTTY | libc::EINVAL) => {
            "this kernel has no FUSE passthrough (Linux 6.9 or newer does)".into()
        }
        Some(libc::ELOOP) => "its file system is stacked too deep".into(),
        _ => format!("the kernel refuses: {e}"),
    }
}
