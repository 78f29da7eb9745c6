//! Exit codes of every command. Values never change meaning.

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command did what it was asked.
    Done = 0,
    /// What was checked does not hold.
    DoesNotHold = 1,
    /// Bad usage or configuration.
    BadUsage = 2,
    /// The HSM, the plugin or etcd cannot be reached.
    NotReachable = 3,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
