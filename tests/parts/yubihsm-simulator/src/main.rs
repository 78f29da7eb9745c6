//! A YubiHSM 2 behind its connector, for tests of Yubico's own PKCS#11 driver.
//!
//! It keeps its objects in a file, so that a restart keeps the keys, and fails on demand: see [`faults`]. Nothing in it protects a key.
//!
//! The messages are those that libyubihsm 2.6 sends. What only a device could show (the bytes in front of a wrapped plaintext's nonce, the error codes of rare cases) is a guess that the driver accepts.

mod commands;
mod connector;
mod device;
mod faults;
mod scp03;
mod store;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::device::Device;
use crate::store::Store;

#[derive(Parser)]
#[command(about = "A simulated YubiHSM 2 behind its connector, on 127.0.0.1")]
struct Arguments {
    /// Port of the connector; 0 takes a free one.
    #[arg(long)]
    port: u16,
    /// Where the objects are kept; without it they end with the program.
    #[arg(long)]
    state: Option<PathBuf>,
    /// JSON file with the faults; it is read again before every command.
    #[arg(long)]
    control: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let store = Store::open(arguments.state);
    let Err(error) = store.and_then(|store| connector::serve(arguments.port, arguments.control, Device::new(store)));
    eprintln!("yubihsm-simulator: {error}");
    ExitCode::FAILURE
}
