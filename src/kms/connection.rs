//! One connection, and what Status last said on it: the API server's Encrypt must agree with that, also amid a rotation.
//!
//! One connection belongs to one provider entry of one API server, which seals right after a Status with another key_id.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::peers::Place;
use crate::keyring::Keyring;

/// A connection to the service. Who sends no preface of HTTP/2 in time loses it: until then no ping would find out.
pub struct Connection {
    stream: UnixStream,
    told: Told,
    opening: Option<Opening>,
    place: Place,
}

/// What must still come, and until when.
struct Opening {
    bytes: usize,
    limit: Pin<Box<Sleep>>,
}

/// Longest time from the connection to the end of the preface.
const OPENING_LIMIT: Duration = Duration::from_secs(5);

/// "PRI * HTTP/2.0" and what follows (RFC 9113 section 3.4), in bytes.
const PREFACE: usize = 24;

/// The keyring that answered the last Status on a connection, while it is still there. Cheap to clone.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Weak<Keyring>>>);

/// Who is at the other end, and what it was told.
#[derive(Clone)]
pub struct Caller {
    /// What Status said.
    pub told: Told,
    /// As the kernel told it at the connect.
    pub uid: u32,
    /// The same.
    pub pid: i32,
}

impl Connection {
    /// A connection on which nothing was said.
    pub fn new(stream: UnixStream, place: Place) -> Self {
        let opening = Opening { bytes: PREFACE, limit: Box::pin(tokio::time::sleep(OPENING_LIMIT)) };
        Self { stream, told: Told::default(), opening: Some(opening), place }
    }
}

impl Told {
    /// Status was answered from `keyring`.
    pub fn tell(&self, keyring: &Arc<Keyring>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(keyring);
    }

    /// The keyring to seal with: the one that Status told of, or else the one that is `current`.
    pub fn sealing(&self, current: Arc<Keyring>) -> Arc<Keyring> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        told.filter(|told| told.active() != current.active()).unwrap_or(current)
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let (uid, pid) = self.place.peer();
        Caller { told: self.told.clone(), uid, pid }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(opening) = &mut self.opening {
            opening.bytes = opening.bytes.saturating_sub(buffer.filled().len() - before);
            if opening.bytes == 0 {
                self.opening = None;
            } else if read.is_pending() && opening.limit.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
