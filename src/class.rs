//! The class of a failure: what it means for the request, the session, the worker and the operator.

/// What a failed PKCS#11 call means. Decided by return code and function, see `pkcs11::codes`.
///
/// The numbers travel between front and worker.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Class {
    /// The device has no room or time just now; the same call may work in a moment.
    Busy = 1,
    /// The request itself is at fault (a corrupt or foreign blob). Says nothing about the HSM.
    Data = 2,
    /// Token, module or worker is away, or its state cannot be trusted.
    Gone = 3,
    /// Not logged in any more, or the key handle no longer holds: log in and find the key again.
    Login = 4,
    /// PIN, key or configuration is wrong. Trying again cannot help and may lock the token.
    PinOrConfig = 5,
    /// The session is unusable; a new one may work.
    Session = 6,
}

impl Class {
    /// The class with this number; unknown numbers mean the peer cannot be trusted: [`Class::Gone`].
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Busy,
            2 => Self::Data,
            4 => Self::Login,
            5 => Self::PinOrConfig,
            6 => Self::Session,
            _ => Self::Gone,
        }
    }

    /// The number that travels between front and worker.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Whether the worker that met it must be replaced: its state, or the token's, cannot be trusted.
    pub fn ends_worker(self) -> bool {
        matches!(self, Self::Gone | Self::Login | Self::Session)
    }

    /// The word used in logs, metrics and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Data => "data",
            Self::Gone => "gone",
            Self::Login => "login",
            Self::PinOrConfig => "pin-or-config",
            Self::Session => "session",
        }
    }
}
