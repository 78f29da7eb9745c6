//! A short busy wait before a blocking one, where measurement says that it pays.
//!
//! A sleeping thread costs its waker an interrupt and itself a cold start: together 20 to 40 us here, as much as a soft
//! token's whole operation. So a side that waited only briefly the last time looks a little longer before it sleeps. On a
//! network HSM no wait is that short, and nothing ever spins (docs/performance.md).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Longest busy wait.
const LIMIT: Duration = Duration::from_micros(100);

/// A wait that ended in sleep and was shorter than this would have ended within [`LIMIT`] without the sleep.
const LIMIT_WITH_SLEEP: Duration = Duration::from_micros(200);

/// Waits without a look after one that was in vain, so that looking costs next to nothing where it does not pay.
const PAUSE: u32 = 64;

/// Whether to look before the next wait. Starts with "no".
#[derive(Debug, Default)]
pub struct Spin {
    worthwhile: bool,
    looked: bool,
    pause: u32,
}

impl Spin {
    /// Looks for bytes until some arrive or it no longer pays. `None`: wait in the usual way. `Some(0)`: the peer closed.
    pub fn receive(&mut self, socket: impl AsFd, buffer: &mut [u8]) -> Option<std::io::Result<usize>> {
        self.looked = self.worthwhile;
        let began = Instant::now();
        while self.worthwhile && began.elapsed() < LIMIT {
            match recv(&socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Some(Ok(count)),
                Err(Errno::AGAIN | Errno::INTR) => std::hint::spin_loop(),
                Err(error) => return Some(Err(error.into())),
            }
        }
        None
    }

    /// Tells how long the wait was, and whether one caller alone was served: with several, work waits for the thread and not
    /// the thread for work.
    pub fn learn(&mut self, waited: Duration, alone: bool) {
        if self.looked && waited >= LIMIT {
            self.pause = PAUSE;
        }
        self.pause = self.pause.saturating_sub(1);
        self.worthwhile = alone && self.pause == 0 && waited < LIMIT_WITH_SLEEP;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_looks_only_after_a_short_wait() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"1").unwrap();
        let mut buffer = [0; 8];
        let mut spin = Spin::default();
        assert!(spin.receive(&far, &mut buffer).is_none());
        spin.learn(LIMIT_WITH_SLEEP, true);
        assert!(spin.receive(&far, &mut buffer).is_none());
        spin.learn(Duration::ZERO, false);
        assert!(spin.receive(&far, &mut buffer).is_none());
        spin.learn(LIMIT, true);
        assert_eq!(spin.receive(&far, &mut buffer).unwrap().unwrap(), 1);
    }

    #[test]
    fn after_a_look_in_vain_it_pauses() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut buffer = [0; 8];
        let mut spin = Spin::default();
        spin.learn(Duration::ZERO, true);
        assert!(spin.receive(&far, &mut buffer).is_none(), "nothing there: it gives up");
        drop(near);
        for _ in 0..PAUSE {
            spin.learn(LIMIT, true);
            let found = spin.receive(&far, &mut buffer).is_some();
            assert_eq!(found, spin.looked);
        }
        assert!(spin.looked);
    }
}
