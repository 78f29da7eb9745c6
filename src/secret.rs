//! What must not be printed, copied by accident, or left behind in memory.

use std::fmt;

use zeroize::Zeroizing;

/// A PIN. Debug prints a placeholder; memory is wiped on drop.
pub type Pin = secrecy::SecretString;

/// A DEK seed or other plaintext in transit. Wiped on drop, never printed.
#[derive(Clone)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes ownership of the bytes, which are wiped when the value goes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Plaintext({} bytes)", self.0.len())
    }
}
