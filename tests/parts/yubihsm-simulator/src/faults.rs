//! What goes wrong on demand: the control file.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process;

use serde::Deserialize;

/// The control file's content. No file, or no field: no fault.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Milliseconds that every command takes longer. The device does one at a time.
    pub delay_ms: u64,
    /// Close all connections and refuse new ones.
    pub refuse: bool,
    /// Take commands and do none of them until this is gone.
    pub silent: bool,
    /// Spoil the MAC of every answer in a session. The command itself is done.
    pub wrong_mac: bool,
    /// Have no free session.
    pub sessions_full: bool,
    /// Whenever this number changes, all sessions are forgotten.
    pub drop_sessions: u64,
    /// Refuse a command of a session.
    pub device_error: Option<DeviceError>,
}

/// The answer to a command is an error.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DeviceError {
    /// Number of the command, 0x68 (104) for WRAP DATA.
    pub command: u8,
    /// The device's error code.
    pub code: u8,
    /// Only the nth such command since this file's content last changed, from 1; without it every one.
    pub nth: Option<u64>,
}

impl Faults {
    /// Reads the file as it is now. One that cannot be understood ends the program: a test must not run on without its fault.
    pub fn read(path: Option<&Path>) -> Self {
        let Some(path) = path else { return Self::default() };
        let read = match fs::read(path) {
            Ok(content) => serde_json::from_slice(&content).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|error| {
            eprintln!("yubihsm-simulator: {}: {error}", path.display());
            process::exit(2);
        })
    }
}
