//! Frames with open descriptors attached (`SCM_RIGHTS`), over a stream socket.

use std::io::{Error as IoError, ErrorKind, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::{FrameBuffer, FrameError, append};

/// Most descriptors that one frame can carry.
pub const MAX_DESCRIPTORS: usize = 64;

/// Sends one frame with these descriptors.
pub fn send(socket: impl AsFd, message: &impl Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), IoError> {
    let mut frame = Vec::new();
    append(message, &mut frame);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(IoError::other("too many descriptors for one frame"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent != frame.len() {
        return Err(IoError::other("the message does not fit the socket buffer"));
    }
    Ok(())
}

/// What was received: frames, and the descriptors that came with them, in their order.
#[derive(Default)]
pub struct Receiver {
    frames: FrameBuffer,
    descriptors: Vec<OwnedFd>,
}

impl Receiver {
    /// Receives once. How many bytes: none at the end.
    pub fn receive(&mut self, socket: impl AsFd) -> Result<usize, IoError> {
        let mut bytes = [0; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.frames.push(bytes.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    }

    /// The next whole message, or `None` until more bytes are there.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        self.frames.take()
    }

    /// The next message from a blocking socket, or `None` at its end.
    pub fn next<M: Message + Default>(&mut self, socket: impl AsFd) -> Result<Option<M>, IoError> {
        loop {
            if let Some(message) = self.take().map_err(|error| IoError::new(ErrorKind::InvalidData, error))? {
                return Ok(Some(message));
            }
            if self.receive(&socket)? == 0 {
                return Ok(None);
            }
        }
    }

    /// The rest of the bytes, from a socket that carries no more descriptors.
    pub fn into_frames(self) -> FrameBuffer {
        self.frames
    }

    /// The descriptors that have come so far.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.descriptors)
    }
}
