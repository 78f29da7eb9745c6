//! Medians over the rounds, as tables or JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::Args;
use crate::direct::Direct;
use crate::load::{Figures, Method};

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    module: String,
    delay_ms: u64,
    pub direct: Vec<Direct>,
    pub rows: Vec<Row>,
    starts: BTreeMap<usize, Vec<f64>>,
    resident: BTreeMap<(usize, &'static str), Vec<(f64, f64)>>,
}

/// One measurement.
pub struct Row {
    pub sessions: usize,
    pub method: Method,
    pub callers: usize,
    pub figures: Figures,
}

impl Report {
    pub fn new(args: &Args) -> Self {
        Self { module: args.module.clone(), delay_ms: args.delay_ms, ..Self::default() }
    }

    pub fn start(&mut self, sessions: usize, first_encrypt: Duration) {
        self.starts.entry(sessions).or_default().push(first_encrypt.as_secs_f64());
    }

    pub fn resident(&mut self, sessions: usize, when: &'static str, (front, worker): (u64, u64)) {
        self.resident.entry((sessions, when)).or_default().push((front as f64, worker as f64));
    }

    pub fn tables(&self) -> String {
        let (seal, open) = self.floor();
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}, {} ms more for each PKCS#11 call. (a) the calls alone in a loop: seal {:.1} us, open {:.1} us.\n\
             All times in us; CPU is processor time per RPC, of front and worker.\n",
            self.module,
            self.delay_ms,
            seal * 1e6,
            open * 1e6
        );
        for sessions in self.starts.keys() {
            let status = self.median(*sessions, Method::Status, 1).map_or(0.0, |figures| figures.p50);
            let mut table = Table::new();
            table
                .load_style(presets::ASCII_MARKDOWN)
                .set_header(["RPC", "callers", "p50", "p99", "per s", "CPU", "front", "worker", "over a+b"]);
            for (method, callers) in self.cases(*sessions) {
                let Some(figures) = self.median(*sessions, method, callers) else { continue };
                let over = match method {
                    Method::Status => String::new(),
                    _ if callers > 1 => String::new(),
                    Method::Encrypt => format!("{:+.0}", (figures.p50 - seal - status) * 1e6),
                    Method::Decrypt => format!("{:+.0}", (figures.p50 - open - status) * 1e6),
                };
                table.add_row([
                    format!("{method:?}"),
                    callers.to_string(),
                    format!("{:.0}", figures.p50 * 1e6),
                    format!("{:.0}", figures.p99 * 1e6),
                    format!("{:.0}", figures.rate),
                    format!("{:.1}", (figures.front + figures.worker) * 1e6),
                    format!("{:.1}", figures.front * 1e6),
                    format!("{:.1}", figures.worker * 1e6),
                    over,
                ]);
            }
            let start = median(self.starts[sessions].clone());
            let _ = writeln!(
                text,
                "{sessions} session(s): first Encrypt {:.0} ms after exec; resident\n{}",
                start * 1e3,
                self.memory(*sessions)
            );
            let _ = writeln!(text, "\n{table}\n");
        }
        if self.delay_ms > 0 {
            let _ = writeln!(text, "Scaling:\n\n{}\n", self.scaling());
        }
        let _ = writeln!(text, "As rows of docs/performance.md:\n\n{}", self.summary());
        text
    }

    /// A row for each number of sessions, with the columns of the table of all modules.
    fn summary(&self) -> Table {
        let (seal, open) = self.floor();
        let callers = self.callers();
        let join = |values: Vec<String>| values.join(", ");
        let at = callers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "module".to_owned(),
            "sessions".to_owned(),
            "seal, open alone".to_owned(),
            format!("Encrypt p50 at {at}"),
            "per s".to_owned(),
            "CPU".to_owned(),
            format!("Decrypt p50 at {at}"),
            "per s".to_owned(),
            "CPU".to_owned(),
        ]);
        for sessions in self.starts.keys() {
            let column = |method, show: fn(&Figures) -> String| {
                join(
                    callers
                        .iter()
                        .filter_map(|callers| self.median(*sessions, method, *callers))
                        .map(|f| show(&f))
                        .collect(),
                )
            };
            let p50 = |figures: &Figures| format!("{:.0}", figures.p50 * 1e6);
            let rate = |figures: &Figures| format!("{:.0}", figures.rate);
            let cpu = |figures: &Figures| format!("{:.0}", (figures.front + figures.worker) * 1e6);
            table.add_row([
                self.module.clone(),
                sessions.to_string(),
                format!("{:.1}, {:.1}", seal * 1e6, open * 1e6),
                column(Method::Encrypt, p50),
                column(Method::Encrypt, rate),
                column(Method::Encrypt, cpu),
                column(Method::Decrypt, p50),
                column(Method::Decrypt, rate),
                column(Method::Decrypt, cpu),
            ]);
        }
        table
    }

    /// What one caller waits, in delayed calls as they really take, and how near the most callers come to one call per session and latency.
    fn scaling(&self) -> Table {
        let (seal, open) = self.floor();
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "ms per call",
            "sessions",
            "RPC",
            "two calls alone, ms",
            "p50 of 1 caller, ms",
            "in calls",
            "callers",
            "per s",
            "of sessions / latency",
        ]);
        for sessions in self.starts.keys() {
            for (method, latency) in [(Method::Encrypt, seal), (Method::Decrypt, open)] {
                let Some(alone) = self.median(*sessions, method, 1) else { continue };
                for callers in self.callers().into_iter().filter(|callers| *callers > 1) {
                    let Some(many) = self.median(*sessions, method, callers) else { continue };
                    // Fewer callers than sessions cannot use them all.
                    let most = (*sessions).min(callers) as f64 / latency;
                    table.add_row([
                        self.delay_ms.to_string(),
                        sessions.to_string(),
                        format!("{method:?}"),
                        format!("{:.2}", latency * 1e3),
                        format!("{:.2}", alone.p50 * 1e3),
                        format!("{:.2}", alone.p50 / (latency / 2.0)),
                        callers.to_string(),
                        format!("{:.0}", many.rate),
                        format!("{:.3}", many.rate / most),
                    ]);
                }
            }
        }
        table
    }

    fn callers(&self) -> Vec<usize> {
        let mut callers: Vec<_> = self.rows.iter().map(|row| row.callers).collect();
        callers.sort_unstable();
        callers.dedup();
        callers
    }

    pub fn json(&self) -> Value {
        let (seal, open) = self.floor();
        let rows: Vec<_> = self
            .starts
            .keys()
            .flat_map(|sessions| self.cases(*sessions).into_iter().map(move |case| (*sessions, case)))
            .filter_map(|(sessions, (method, callers))| {
                let figures = self.median(sessions, method, callers)?;
                Some(json!({
                    "sessions": sessions, "method": format!("{method:?}"), "callers": callers,
                    "p50_us": figures.p50 * 1e6, "p99_us": figures.p99 * 1e6, "per_second": figures.rate,
                    "front_cpu_us": figures.front * 1e6, "worker_cpu_us": figures.worker * 1e6,
                }))
            })
            .collect();
        let starts: BTreeMap<_, _> =
            self.starts.iter().map(|(sessions, times)| (sessions.to_string(), median(times.clone()) * 1e3)).collect();
        json!({"module": self.module, "delay_ms": self.delay_ms, "direct_seal_us": seal * 1e6, "direct_open_us": open * 1e6, "rows": rows, "first_encrypt_ms": starts})
    }

    fn floor(&self) -> (f64, f64) {
        let of = |part: fn(&Direct) -> f64| median(self.direct.iter().map(part).collect());
        (of(|direct| direct.seal), of(|direct| direct.open))
    }

    fn memory(&self, sessions: usize) -> String {
        let part = |when| {
            let pairs = self.resident.get(&(sessions, when)).cloned().unwrap_or_default();
            let front = median(pairs.iter().map(|pair| pair.0).collect()) / 1024.0;
            let worker = median(pairs.iter().map(|pair| pair.1).collect()) / 1024.0;
            format!("{:.1} MiB {when} (front {front:.1}, worker {worker:.1})", front + worker)
        };
        format!("{}, {}", part("idle"), part("loaded"))
    }

    fn cases(&self, sessions: usize) -> Vec<(Method, usize)> {
        let mut cases = Vec::new();
        for row in self.rows.iter().filter(|row| row.sessions == sessions) {
            if !cases.contains(&(row.method, row.callers)) {
                cases.push((row.method, row.callers));
            }
        }
        cases
    }

    fn median(&self, sessions: usize, method: Method, callers: usize) -> Option<Figures> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.sessions == sessions && row.method == method && row.callers == callers)
            .map(|row| row.figures)
            .collect();
        if rows.is_empty() {
            return None;
        }
        let of = |part: fn(&Figures) -> f64| median(rows.iter().map(part).collect());
        Some(Figures {
            p50: of(|figures| figures.p50),
            p99: of(|figures| figures.p99),
            rate: of(|figures| figures.rate),
            front: of(|figures| figures.front),
            worker: of(|figures| figures.worker),
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
