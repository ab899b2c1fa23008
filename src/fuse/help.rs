//! More threads for a session that runs: a second session on the same connection.
//!
//! What always holds: the kernel has shaken hands once and isn't asked again. The second session ends with the
//! connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{Config, SessionACL};

use super::adapter::Adapter;
use super::handshake::Greeting;
use super::start::Start;
use super::watched::Watched;

/// Starts so many threads that answer requests of `device`.
pub(super) fn help(
    greeting: &Greeting,
    adapter: &Adapter,
    device: &OwnedFd,
    acl: SessionACL,
    threads: usize,
) -> io::Result<()> {
    let start = Arc::new(Start::new(threads));
    let watched = Watched::new(Adapter { start: start.clone(), ..adapter.clone() })?;
    let mut options = Config::default();
    options.acl = acl;
    options.n_threads = Some(threads);
    let (session, mut threshold) = greeting.again(watched, device, acl, options)?;
    threshold.prepare(session.as_fd(), threads)?;
    start.set(threshold);
    std::thread::Builder::new().name("kvfs-help".into()).spawn(move || session.run())?;
    start.crossed()
}
