//! Serves one document over HTTP: what Prometheus and its like fetch.
//!
//! What always holds: at most [`MOST`] are served at a time, and each is over after [`PATIENCE`] and [`READ`], however
//! slowly it writes or reads; more wait for their turn in the kernel's queue. Nothing that comes in is believed, but the
//! method and the path; nobody who asks keeps a thread that answers the mount.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Served at a time.
const MOST: usize = 8;
/// A question is there within so long: who asks sends it at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// And its answer is read within so long.
const READ: Duration = Duration::from_secs(10);
/// A longer question is none of a collector of metrics.
const LONGEST: usize = 8 << 10;
/// How often a daemon that takes over tries to get its address back.
const AGAIN: Duration = Duration::from_millis(250);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At a port.
    Tcp(SocketAddr),
    /// At a socket of this path, which is absolute.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("a path behind unix:".into());
            }
            return std::path::absolute(path).map(Address::Unix).map_err(|e| e.to_string());
        }
        let local = text.strip_prefix("localhost").unwrap_or(text);
        let port = local.strip_prefix(':').unwrap_or(local).parse::<u16>();
        match (port, text.parse()) {
            (Ok(port), _) => Ok(Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))),
            (_, Ok(address)) => Ok(Address::Tcp(address)),
            _ => Err("IP:PORT, such as 127.0.0.1:9464, a port alone for this machine, or unix:/PATH".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether other machines may reach it.
    pub fn is_open(&self) -> bool {
        matches!(self, Address::Tcp(address) if !address.ip().is_loopback())
    }
}

/// Why nothing can be served there.
#[derive(Debug, thiserror::Error)]
#[error(
    "--metrics {address}: {why}; choose another address, or leave --metrics out and use `kvfs stats --prometheus`"
)]
pub struct BindError {
    address: Address,
    why: io::Error,
}

/// An address that's ours.
#[derive(Debug)]
pub struct Listener {
    listens: Listens,
    /// The socket's own number, where it has a name: somebody else's may be there later.
    name: Option<(PathBuf, (u64, u64))>,
}

#[derive(Debug)]
enum Listens {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes the address. A socket that a dead process has left is replaced.
    ///
    /// # Errors
    /// When it can't be had, with what to do.
    pub fn bind(address: &Address) -> Result<Listener, BindError> {
        Listener::take(address).map_err(|why| BindError { address: address.clone(), why })
    }

    fn take(address: &Address) -> io::Result<Listener> {
        let path = match address {
            // With SO_REUSEADDR: connections of a daemon before may linger.
            Address::Tcp(address) => {
                return Ok(Listener { listens: Listens::Tcp(TcpListener::bind(address)?), name: None });
            }
            Address::Unix(path) => path,
        };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something else than a socket",
                ));
            }
            Ok(_) if is_served(path) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves there"));
            }
            Ok(_) => std::fs::remove_file(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let listens = UnixListener::bind(path)?;
        // As a port of this machine is everybody's; its directory may say otherwise.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Listener { listens: Listens::Unix(listens), name: Some((path.clone(), number(path)?)) })
    }

    /// Where it listens: with the port that the kernel has chosen, where 0 was asked for.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match (&self.listens, &self.name) {
            (Listens::Tcp(tcp), _) => Address::Tcp(tcp.local_addr()?),
            (Listens::Unix(_), Some((path, _))) => Address::Unix(path.clone()),
            (Listens::Unix(_), None) => Address::Unix(PathBuf::new()),
        })
    }

    fn accept(&self) -> io::Result<Connection> {
        Ok(match &self.listens {
            Listens::Tcp(tcp) => Connection::Tcp(tcp.accept()?.0),
            Listens::Unix(unix) => Connection::Unix(unix.accept()?.0),
        })
    }
}

fn number(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Whether somebody listens there. Doesn't wait for who does and never answers.
fn is_served(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// Serves until it's dropped, which removes the socket's name.
pub struct Server(Arc<Serving>);

struct Serving {
    content: Box<dyn Fn() -> String + Send + Sync>,
    /// What was made last, and until when it's good.
    last: Mutex<Option<(Instant, Arc<str>)>>,
    /// Connections there are now.
    busy: Mutex<usize>,
    less_busy: Condvar,
    name: Mutex<Option<(PathBuf, (u64, u64))>>,
}

impl Server {
    /// Serves what `content` gives. Without a listener the address is taken when it's free: a daemon that takes over
    /// mustn't fail for it.
    pub fn start(
        address: Address,
        listener: Option<Listener>,
        content: impl Fn() -> String + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let serving = Arc::new(Serving {
            content: Box::new(content),
            last: Mutex::new(None),
            busy: Mutex::new(0),
            less_busy: Condvar::new(),
            name: Mutex::new(None),
        });
        let serves = serving.clone();
        let run = move || {
            let listener = listener.unwrap_or_else(|| take_again(&address));
            *serves.name.lock() = listener.name.clone();
            match listener.address() {
                Ok(address) => tracing::info!("metrics are served at {address}"),
                Err(e) => tracing::debug!("metrics: {e}"),
            }
            loop {
                serves.wait_for_a_place();
                match listener.accept() {
                    Ok(connection) => serves.clone().serve(connection),
                    Err(e) => {
                        // No descriptors left, mostly: that may last.
                        tracing::debug!("metrics: {e}");
                        std::thread::sleep(AGAIN);
                    }
                }
            }
        };
        std::thread::Builder::new().name("kvfs-metrics".into()).spawn(run)?;
        Ok(Server(serving))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((path, socket)) = self.0.name.lock().take()
            && number(&path).is_ok_and(|there| there == socket)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn take_again(address: &Address) -> Listener {
    let mut said = false;
    loop {
        match Listener::bind(address) {
            Ok(listener) => return listener,
            Err(e) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("{e}; tried again until it works");
                }
                std::thread::sleep(AGAIN);
            }
        }
    }
}

/// A connection's place, until it's dropped.
struct Busy(Arc<Serving>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.busy.lock() -= 1;
        self.0.less_busy.notify_one();
    }
}

impl Serving {
    fn wait_for_a_place(&self) {
        let mut busy = self.busy.lock();
        self.less_busy.wait_while(&mut busy, |busy| *busy >= MOST);
    }

    /// The document: made anew unless that was done a moment ago. So whoever asks without a pause takes a tenth of a
    /// processor, and not all of them.
    fn document(&self) -> Arc<str> {
        let mut last = self.last.lock();
        let began = Instant::now();
        if let Some((good_until, text)) = &*last
            && began < *good_until
        {
            return text.clone();
        }
        let text: Arc<str> = (self.content)().into();
        *last = Some((Instant::now() + 10 * began.elapsed(), text.clone()));
        text
    }

    fn serve(self: Arc<Self>, connection: Connection) {
        *self.busy.lock() += 1;
        let busy = Busy(self);
        let talk = move || {
            let mut slow = Slow { connection, until: Instant::now() + PATIENCE };
            if let Err(e) = converse(&mut slow, &|| busy.0.document()) {
                tracing::debug!("metrics: {e}");
            }
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-metrics".into()).spawn(talk) {
            tracing::warn!("metrics: no thread to answer with: {e}");
        }
    }
}

enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that is over at a certain moment.
struct Slow {
    connection: Connection,
    until: Instant,
}

impl Slow {
    /// What is left of its time.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Slow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        match &mut self.connection {
            Connection::Tcp(tcp) => tcp.set_read_timeout(left).and_then(|()| tcp.read(into)),
            Connection::Unix(unix) => unix.set_read_timeout(left).and_then(|()| unix.read(into)),
        }
    }
}

impl Write for Slow {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match &mut self.connection {
            Connection::Tcp(tcp) => tcp.set_write_timeout(left).and_then(|()| tcp.write(from)),
            Connection::Unix(unix) => unix.set_write_timeout(left).and_then(|()| unix.write(from)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn converse(connection: &mut Slow, content: &dyn Fn() -> Arc<str>) -> io::Result<()> {
    let mut asked = Vec::new();
    let mut part = [0; 1024];
    while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
        let got = connection.read(&mut part)?;
        if got == 0 {
            return Ok(());
        }
        asked.extend_from_slice(&part[..got]);
        if asked.len() > LONGEST {
            return answer(connection, "431 Request Header Fields Too Large", "", "", true);
        }
    }
    connection.until = Instant::now() + READ;
    let line = asked.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
    let (method, path) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(path), Some("HTTP/1.0" | "HTTP/1.1"), None) => (method, path),
        _ => return answer(connection, "400 Bad Request", "", "this is no HTTP/1.1\n", true),
    };
    let with_body = method != "HEAD";
    if path.split('?').next() != Some("/metrics") {
        return answer(connection, "404 Not Found", "", "there is /metrics, and nothing else\n", with_body);
    }
    if !matches!(method, "GET" | "HEAD") {
        return answer(connection, "405 Method Not Allowed", "Allow: GET, HEAD\r\n", "GET, or HEAD\n", true);
    }
    let kind = format!("Content-Type: {}\r\n", super::CONTENT_TYPE);
    answer(connection, "200 OK", &kind, &content(), with_body)
}

fn answer(
    connection: &mut impl Write,
    status: &str,
    headers: &str,
    body: &str,
    with_body: bool,
) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    connection.write_all(head.as_bytes())?;
    if with_body { connection.write_all(body.as_bytes()) } else { Ok(()) }
}
