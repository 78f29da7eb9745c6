//! Measures hsm-kms as a whole, in one run: what PKCS#11 alone costs, what gRPC alone costs, and what both cost together.
//!
//! Started by `scripts/bench`, which makes the token. The KEK and the configurations are made here.

mod direct;
mod load;
mod process;
mod report;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::load::{Load, Method};
use crate::process::Plugin;
use crate::report::{Report, Row};
use crate::site::Site;

/// Measure a plugin binary against the PKCS#11 module it uses
#[derive(Parser)]
pub struct Args {
    /// The hsm-kms binary to measure
    #[arg(long)]
    plugin: PathBuf,
    /// What the module is called in the tables
    #[arg(long)]
    module: String,
    /// YAML file with the section `token` of a configuration
    #[arg(long)]
    token: PathBuf,
    /// Where record, configurations and socket go; a KEK whose record is there is used again
    #[arg(long)]
    directory: PathBuf,
    /// Attributes of the KEK that may deviate
    #[arg(long, value_delimiter = ',')]
    permit: Vec<String>,
    /// Functions that are hidden from the ceremony: with them the module does what it must refuse
    #[arg(long, value_delimiter = ',')]
    hide: Vec<String>,
    /// The fault module, for --hide and --delay-ms
    #[arg(long)]
    fault_module: Option<PathBuf>,
    /// Milliseconds that each PKCS#11 call takes longer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// `sandbox` of the configuration
    #[arg(long, default_value = "best-effort")]
    sandbox: String,
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
    let site = Site::new(&args);
    if direct::is_child() {
        return direct::measure_here(&site, span);
    }
    let mut report = Report::new(&args);
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        report.direct.push(direct::measure(&site));
        for &sessions in &args.sessions {
            let plugin = Plugin::start(&args.plugin, &site, sessions);
            report.start(sessions, plugin.first_encrypt);
            let load = Load::connect(&site.socket());
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
