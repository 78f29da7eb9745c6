//! Randomness that is there before it is used: some libraries take only a source that cannot fail.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use zeroize::Zeroizing;

/// Hands out bytes that were filled in before, each once.
pub(crate) struct Pool {
    bytes: Zeroizing<Vec<u8>>,
    used: usize,
    ran_out: bool,
}

impl Pool {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: Zeroizing::new(vec![0; bytes]), used: 0, ran_out: false }
    }

    /// So many bytes from the kernel.
    pub(crate) fn filled(bytes: usize) -> Result<Self, getrandom::Error> {
        let mut pool = Self::new(bytes);
        getrandom::fill(&mut pool.bytes)?;
        Ok(pool)
    }

    /// To be filled.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Whether more was asked for than there was: what was made of it must not be used.
    pub(crate) fn ran_out(&self) -> bool {
        self.ran_out
    }
}

impl TryRng for Pool {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; size_of::<u32>()];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; size_of::<u64>()];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        let end = self.used.saturating_add(buffer.len());
        match self.bytes.get(self.used..end) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                self.used = end;
            }
            None => self.ran_out = true,
        }
        Ok(())
    }
}

impl TryCryptoRng for Pool {}
