//! Measures hsm-kms as a whole, in one run: what PKCS#11 alone costs, what gRPC alone costs, and what both cost together.
//!
//! Started by `scripts/bench`, which makes the token, the KEK and one configuration file per session count.

mod direct;
mod load;
mod process;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::load::{Load, Method};
use crate::process::Plugin;
use crate::report::{Report, Row};

/// Measure a plugin binary against the PKCS#11 module it uses
#[derive(Parser)]
pub struct Args {
    /// The hsm-kms binary to measure
    #[arg(long)]
    plugin: PathBuf,
    /// The PKCS#11 module, for the direct loop; its own environment must be set
    #[arg(long)]
    module: PathBuf,
    /// KEK record
    #[arg(long)]
    record: PathBuf,
    /// File with the user PIN
    #[arg(long)]
    pin: PathBuf,
    /// Configuration with the sessions placeholder replaced by each of --sessions
    #[arg(long)]
    config: PathBuf,
    /// Socket named in the configuration
    #[arg(long)]
    socket: PathBuf,
    /// Session counts to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    sessions: Vec<usize>,
    /// Callers on one connection
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    callers: Vec<usize>,
    /// Seconds per measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds; the median of each figure is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write the figures as JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn main() {
    let args = Args::parse();
    let span = Duration::from_secs_f64(args.seconds);
    let mut report = Report::default();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        let direct = direct::measure(&args, span);
        report.direct.push(direct);
        for &sessions in &args.sessions {
            let plugin = Plugin::start(&args, sessions);
            report.start(sessions, plugin.first_encrypt);
            let load = Load::connect(&args.socket);
            load.run(Method::Encrypt, 8, span / 4, &plugin);
            report.resident(sessions, "idle", plugin.resident_kib());
            for &callers in &args.callers {
                for method in [Method::Status, Method::Encrypt, Method::Decrypt] {
                    let figures = load.run(method, callers, span, &plugin);
                    report.rows.push(Row { sessions, method, callers, figures });
                }
            }
            report.resident(sessions, "loaded", plugin.resident_kib());
        }
    }
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.tables());
    }
}
