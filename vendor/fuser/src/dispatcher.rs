use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::unistd::geteuid;

use crate::Filesystem;
use crate::SessionACL;
use crate::channel::Channel;
use crate::channel::Transport;
use crate::dev_fuse::DevFuse;
use crate::request::RequestWithSender;
use crate::session::FilesystemHolder;
use crate::session::SessionEventLoop;

/// Calls a filesystem for requests that somebody else has read.
pub struct Dispatcher<FS: Filesystem> {
    event_loop: SessionEventLoop<FS>,
}

impl<FS: Filesystem> std::fmt::Debug for Dispatcher<FS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

impl<FS: Filesystem> Dispatcher<FS> {
    /// For requests of the connection that `device` is of, whose kernel has had its answer to
    /// INIT. `filesystem` isn't asked to initialize itself.
    pub fn new(filesystem: FS, device: OwnedFd, acl: SessionACL) -> Self {
        let filesystem = FilesystemHolder {
            fs: Some(filesystem),
        };
        Dispatcher {
            event_loop: SessionEventLoop {
                thread_name: "dispatcher".into(),
                ch: Channel::new(Arc::new(DevFuse(File::from(device)))),
                filesystem: Arc::new(filesystem),
                allowed: acl,
                session_owner: geteuid(),
            },
        }
    }

    /// Calls the filesystem for one request, as the device gives it: `fuse_in_header`, and what
    /// follows it, aligned to 8 bytes. It's answered through `transport`, perhaps later and by
    /// another thread.
    /// # Errors
    /// Returns an error if the data isn't a request; nothing is answered then.
    pub fn dispatch(&self, request: &[u8], transport: Arc<dyn Transport>) -> io::Result<()> {
        let sender = self.event_loop.ch.sender_by(transport);
        let request = RequestWithSender::new(sender, request)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "Invalid request"))?;
        request.dispatch(&self.event_loop);
        Ok(())
    }
}
