//! The daemon's end of the control socket.
//!
//! What always holds: it answers root and the mount's owner, whoever else can reach the socket; and it answers no
//! more than [`MOST`] at a time.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::passing::Reader;
use super::{Answer, Given, PATIENCE, Parts, Question, is_trusted, peer, runtime_dir, socket_path};

/// Questions that are answered at a time.
const MOST: usize = 16;
/// A longer question is none of ours.
const LONGEST: u64 = 64 << 10;

/// Listens until it's dropped, which removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// The socket's own number: a later mount may have got our device number, and its socket our path.
    socket: (u64, u64),
}

impl Server {
    /// Listens for the mount with this device number; `answer` answers, or says why not. With a question a
    /// descriptor may come.
    pub fn start(
        device: (u32, u32),
        answer: impl Fn(Question, Option<OwnedFd>) -> Result<Given, String> + Send + Sync + 'static,
    ) -> io::Result<Server> {
        runtime_dir()?;
        let path = socket_path(device);
        // One that a daemon that was killed has left: the kernel has given its number to us.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = bind(&path)?;
        let socket = identity(&path)?;
        let answer = Arc::new(answer);
        let name = || std::thread::Builder::new().name("kvfs-control".into());
        name().spawn(move || {
            let asked = Arc::new(());
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if !peer(&stream).is_some_and(is_trusted) {
                    tracing::warn!("control socket: somebody else than this mount's owner was hung up on");
                    continue;
                }
                // The owner's own tools: more than these at a time is a mistake, and is hung up on.
                if Arc::strong_count(&asked) > MOST {
                    continue;
                }
                let (answer, asked) = (answer.clone(), asked.clone());
                let talk = move || {
                    if let Err(e) = converse(stream, &*answer) {
                        tracing::debug!("control socket: {e}");
                    }
                    drop(asked);
                };
                if let Err(e) = name().spawn(talk) {
                    tracing::warn!("control socket: no thread to answer with: {e}");
                }
            }
        })?;
        Ok(Server { path, socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.socket) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path that is the owner's alone from its first moment on, whatever the process's umask is.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The name gets the socket's own mode (unix_bind_bsd in net/unix/af_unix.c).
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 128)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

fn converse(
    stream: UnixStream,
    answer: &dyn Fn(Question, Option<OwnedFd>) -> Result<Given, String>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut line, mut fd) = (String::new(), None);
    let reader = Reader { stream: &stream, fd: &mut fd };
    BufReader::new(reader).take(LONGEST).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => match answer(question, fd) {
            Ok(Given::One(answer)) => Answer::Done(answer),
            Ok(Given::Many(write)) => {
                let mut parts = Parts::to(&stream);
                match write(&mut parts) {
                    Ok(()) => return parts.end(),
                    // Of a reader that's gone, or too slow, nothing will be heard anyway.
                    Err(e) => Answer::Refused(e.to_string()),
                }
            }
            Err(why) => Answer::Refused(why),
        },
        Err(e) => Answer::Refused(format!("this daemon doesn't know the question: {e}")),
    };
    let mut answer = serde_json::to_string(&answer)?;
    answer.push('\n');
    (&stream).write_all(answer.as_bytes())
}
