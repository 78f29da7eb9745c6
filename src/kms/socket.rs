//! The Unix socket of the service: bound safely, given up only by its owner, open to known users only.
//!
//! The API server's client backs off for up to two minutes once it meets a missing or refusing socket, so the socket must
//! appear ready to accept and must not go away while the process lives. It must also never be taken from a live process.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::time::Sleep;
use tokio_stream::Stream;

use super::connection::Connection;
use super::peers::Peers;

/// Longest socket path, in bytes: `sun_path` holds 107, and the socket is first bound as `<path>.new`.
pub const PATH_LIMIT: usize = 107 - TEMPORARY_SUFFIX.len();

/// A socket that listens under its path, and the lock that keeps other instances away from it.
///
/// Dropping it removes the socket, if the file under the path is still this socket, and then releases the lock. The lock
/// file `<path>.lock` stays: removing it would let two instances hold two different locks.
#[derive(Debug)]
pub struct Listener {
    // Dropped in this order: the name must go while the lock is still held. Neither is ours where the socket was passed on.
    _name: Option<Name>,
    socket: net::UnixListener,
    _lock: Option<OwnedFd>,
}

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {refusal}", path.display())]
pub struct SocketError {
    /// The socket's path.
    pub path: PathBuf,
    /// The reason.
    pub refusal: Refusal,
}

/// The reason why a socket is not bound.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("the path is not absolute")]
    NotAbsolute,
    #[error("the path ends in no file name")]
    NoFileName,
    #[error("the path has {length} bytes, more than {PATH_LIMIT}")]
    TooLong { length: usize },
    #[error("the directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("the directory {} belongs to uid {uid}, not to root or to this process (uid {own})", directory.display())]
    ForeignDirectory { directory: PathBuf, uid: u32, own: u32 },
    #[error("the directory {} (mode {mode:04o}) lets other users replace files", directory.display())]
    OpenDirectory { directory: PathBuf, mode: u32 },
    #[error("another instance holds the lock {}", .0.display())]
    Locked(PathBuf),
    #[error("another instance is listening")]
    InUse,
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("the socket there belongs to uid {uid}, not to this process (uid {own})")]
    ForeignSocket { uid: u32, own: u32 },
    #[error("the socket that was passed on does not listen: it is a connection")]
    NotListening,
    #[error("the socket that was passed on listens on {}", .0.display())]
    AnotherPath(PathBuf),
    #[error("the socket that was passed on has mode {found:04o}, more open than {mode:04o}")]
    OpenSocket { found: u32, mode: u32 },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
}

impl Listener {
    /// Listens on `path`, an absolute path of at most [`PATH_LIMIT`] bytes, with the permission bits `mode`.
    ///
    /// The socket appears under its path by rename, when it already listens: no connect in between is refused, and a stale
    /// socket of an earlier run is replaced without a gap. Anything else that stands under the path stays there.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        bind(path, mode).map_err(|refusal| SocketError { path: path.to_owned(), refusal })
    }

    /// Takes over a socket that listens already, passed on by whoever started this process (systemd.socket): it stays when this
    /// process ends, so that no connect is refused while another takes its place. It must be the one at `path`, and no more open
    /// than `mode`.
    pub fn inherit(socket: net::UnixListener, path: &Path, mode: u32) -> Result<Self, SocketError> {
        inherit(socket, path, mode).map_err(|refusal| SocketError { path: path.to_owned(), refusal })
    }

    /// A handle for accepting connections in the current tokio runtime. This value must outlive it.
    pub fn tokio(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.socket.try_clone()?)
    }
}

impl SocketError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match &self.refusal {
            Refusal::NotAbsolute | Refusal::NoFileName => {
                "give the full path of a file socket, such as /run/hsm-kms/hsm@kms.sock".to_owned()
            }
            Refusal::TooLong { .. } => "choose a shorter path, such as /run/hsm-kms/hsm@kms.sock".to_owned(),
            Refusal::NoDirectory(directory) => {
                format!("make it first: install -d -m 0750 {}", directory.display())
            }
            Refusal::NotADirectory(_) => "name a file in an existing directory".to_owned(),
            Refusal::ForeignDirectory { directory, .. } => {
                format!("use a directory of your own, or change its owner: chown root {}", directory.display())
            }
            Refusal::OpenDirectory { directory, .. } => format!("chmod go-w {}", directory.display()),
            Refusal::Locked(_) | Refusal::InUse => {
                "stop the other instance, or give this one a socket path of its own".to_owned()
            }
            Refusal::NotASocket(path) => {
                format!("look what it is; move {} away or choose another path", path.display())
            }
            Refusal::NotListening => "set Accept=no in the socket unit: the plugin accepts by itself".to_owned(),
            Refusal::AnotherPath(_) => "set ListenStream= of the socket unit to socket.path".to_owned(),
            Refusal::OpenSocket { mode, .. } => format!("set SocketMode={mode:04o} in the socket unit"),
            Refusal::ForeignSocket { .. } => "find out whose it is; remove it or choose another path".to_owned(),
            Refusal::System { .. } => "check the rights on the directory and the file system's health".to_owned(),
        }
    }
}

/// The connections from `peers`; others are closed before a byte is read.
///
/// A failed accept never ends the stream: it is logged and accepting goes on, after a pause if descriptors ran out.
pub fn incoming(listener: UnixListener, peers: Peers) -> Incoming {
    Incoming { listener, peers, pause: None }
}

/// The stream that [`incoming`] makes. It has no end and no errors.
#[derive(Debug)]
pub struct Incoming {
    listener: UnixListener,
    peers: Peers,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    if let Some(place) = self.peers.admit(&stream) {
                        return Poll::Ready(Some(Ok(Connection::new(stream, place))));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed; trying again");
                    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                        self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    }
                }
            }
        }
    }
}

/// Connections that wait for accept while the process is busy or restarts its runtime.
const BACKLOG: i32 = 512;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TEMPORARY_SUFFIX: &str = ".new";

fn bind(path: &Path, mode: u32) -> Result<Listener, Refusal> {
    check_path(path)?;
    check_directory(path.parent().ok_or(Refusal::NoFileName)?, own_uid())?;
    let lock = claim(path)?;

    let temporary = with_suffix(path, TEMPORARY_SUFFIX);
    if check_occupant(&temporary, own_uid())? == Occupant::StaleSocket {
        fs::remove_file(&temporary).map_err(system("remove the leftover of an earlier start"))?;
    }
    let socket = new_socket()?;
    let address = SocketAddrUnix::new(&temporary).map_err(system("use the path"))?;
    rustix::net::bind(&socket, &address).map_err(system("bind the socket"))?;
    let mut name = Name::of(temporary)?;
    // Nobody can connect before listen, so the mode that bind chose (umask) never counts.
    fs::set_permissions(&name.path, Permissions::from_mode(mode)).map_err(system("set the socket's mode"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(system("listen"))?;
    fs::rename(&name.path, path).map_err(system("rename the socket to its path"))?;
    path.clone_into(&mut name.path);
    Ok(Listener { _name: Some(name), socket: socket.into(), _lock: Some(lock) })
}

fn inherit(socket: net::UnixListener, path: &Path, mode: u32) -> Result<Listener, Refusal> {
    check_path(path)?;
    check_directory(path.parent().ok_or(Refusal::NoFileName)?, own_uid())?;
    // With Accept=yes systemd passes on one connection, which has the path of the socket too.
    if !rustix::net::sockopt::socket_acceptconn(&socket).map_err(system("look at the socket that was passed on"))? {
        return Err(Refusal::NotListening);
    }
    let address = socket.local_addr().map_err(system("look at the socket that was passed on"))?;
    let bound = address.as_pathname().unwrap_or(Path::new(""));
    if bound != path {
        return Err(Refusal::AnotherPath(bound.to_owned()));
    }
    let found = fs::metadata(path).map_err(system("look at the socket"))?.mode() & 0o777;
    if found & !mode != 0 {
        return Err(Refusal::OpenSocket { found, mode });
    }
    socket.set_nonblocking(true).map_err(system("use the socket that was passed on"))?;
    Ok(Listener { _name: None, socket, _lock: None })
}

fn check_path(path: &Path) -> Result<(), Refusal> {
    if !path.is_absolute() {
        return Err(Refusal::NotAbsolute);
    }
    let length = path.as_os_str().len();
    if length > PATH_LIMIT {
        return Err(Refusal::TooLong { length });
    }
    let bytes = path.as_os_str().as_encoded_bytes();
    if path.file_name().is_none() || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(Refusal::NoFileName);
    }
    Ok(())
}

/// Whoever can write to the directory, or to one above it, can put another socket there and so play the plugin.
fn check_directory(directory: &Path, own: u32) -> Result<(), Refusal> {
    check_one_directory(directory, own)?;
    // Without links: it is the directories themselves that somebody could exchange.
    let real = fs::canonicalize(directory).map_err(system("look at the directory"))?;
    real.ancestors().try_for_each(|directory| check_one_directory(directory, own))
}

fn check_one_directory(directory: &Path, own: u32) -> Result<(), Refusal> {
    let found = match fs::metadata(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::NoDirectory(directory.to_owned()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Refusal::NotADirectory(directory.to_owned()));
        }
        Err(source) => return Err(Refusal::System { action: "look at the directory", source }),
    };
    if !found.is_dir() {
        return Err(Refusal::NotADirectory(directory.to_owned()));
    }
    if found.uid() != 0 && found.uid() != own {
        return Err(Refusal::ForeignDirectory { directory: directory.to_owned(), uid: found.uid(), own });
    }
    let mode = found.mode() & 0o7777;
    if mode & GROUP_OR_OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(Refusal::OpenDirectory { directory: directory.to_owned(), mode });
    }
    Ok(())
}

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Takes the lock, with nobody listening on the path. Does not give up at once: if an instance is killed while it starts its
/// worker, the child holds copies of lock and listener until its exec, and the successor must not fail for that.
fn claim(path: &Path) -> Result<OwnedFd, Refusal> {
    let deadline = Instant::now() + CLAIM_LIMIT;
    loop {
        let claimed = take_lock(&with_suffix(path, ".lock")).and_then(|lock| {
            check_occupant(path, own_uid())?;
            Ok(lock)
        });
        match claimed {
            Err(Refusal::Locked(_) | Refusal::InUse) if Instant::now() < deadline => thread::sleep(CLAIM_PAUSE),
            claimed => return claimed,
        }
    }
}

/// Much longer than a child needs from fork to exec, and short for an operator who started a second instance.
const CLAIM_LIMIT: Duration = Duration::from_millis(500);
const CLAIM_PAUSE: Duration = Duration::from_millis(5);

/// Held until the descriptor closes, also by a crash.
fn take_lock(path: &Path) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let lock = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(system("open the lock file"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::Locked(path.to_owned())),
        Err(error) => Err(Refusal::System { action: "lock the lock file", source: error.into() }),
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Occupant {
    Nothing,
    StaleSocket,
}

/// What stands under the path, if it may be replaced.
fn check_occupant(path: &Path, own: u32) -> Result<Occupant, Refusal> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(source) => return Err(Refusal::System { action: "look at the path", source }),
    };
    if !found.file_type().is_socket() {
        return Err(Refusal::NotASocket(path.to_owned()));
    }
    if found.uid() != own {
        return Err(Refusal::ForeignSocket { uid: found.uid(), own });
    }
    let address = SocketAddrUnix::new(path).map_err(system("use the path"))?;
    // The probe does not block: a full backlog of a hung instance answers AGAIN.
    match rustix::net::connect(new_socket()?, &address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(Refusal::InUse),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(Occupant::StaleSocket),
        Err(rustix::io::Errno::NOENT) => Ok(Occupant::Nothing),
        Err(error) => Err(Refusal::System { action: "find out whether the socket is in use", source: error.into() }),
    }
}

fn new_socket() -> Result<OwnedFd, Refusal> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system("make a socket"))
}

/// A socket file that this process made. Removed on drop, unless another file has taken the path.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Name {
    fn of(path: PathBuf) -> Result<Self, Refusal> {
        let found = fs::symlink_metadata(&path).map_err(system("look at the new socket"))?;
        Ok(Self { path, device: found.dev(), inode: found.ino() })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let still_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::System { action, source: error.into() }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
