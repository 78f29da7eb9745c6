//! `hsm-kms keyring converged`: whether every node has the keyring and opens with all of its KEKs.

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Target, nodes, print, read, show};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::keyring::{Entry, KeyringFile, NodeKek, NodeReport, NodeVerdict, Place, RecordPath, State};

#[derive(Args, Debug)]
pub(super) struct ConvergedArgs {
    #[command(flatten)]
    target: Target,
    /// Every node: the address or socket of its endpoints, or a file with what it said at /keyring
    #[arg(long, value_name = "NODE", value_delimiter = ',', required = true)]
    nodes: Vec<String>,
}

pub(super) fn run(args: &ConvergedArgs) -> Result<ExitCode, CliError> {
    let ConvergedArgs { target, nodes } = args;
    let file = read(&target.keyring)?;
    let reports = nodes::reports(nodes)?;
    let judged: Vec<(&String, &NodeReport, NodeVerdict)> =
        nodes.iter().zip(&reports).map(|(node, report)| (node, report, report.judge(&file))).collect();
    let holds = |verdict: &NodeVerdict| verdict.place == Place::Same && verdict.missing.is_empty();
    let converged = judged.iter().all(|(_, _, verdict)| holds(verdict));
    if target.json {
        let nodes = judged.iter().map(|(node, report, verdict)| {
            json!({
                "node": node,
                "host": report.host,
                "keyring": place(verdict.place),
                "cannot_open": verdict.missing,
                "epoch": report.epoch,
                "key_id_hash": report.key_id_hash,
                "refused": report.refused,
            })
        });
        print(&format!("{:#}\n", json!({"converged": converged, "nodes": nodes.collect::<Vec<Value>>()})))?;
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["NODE", "KEYRING", "EPOCH", "CANNOT OPEN", "ANNOUNCES"]);
        for (node, report, verdict) in &judged {
            let (epoch, missing) = (report.epoch.to_string(), missing(verdict));
            table.add_row([node.as_str(), &place(verdict.place), &epoch, &missing, &report.key_id_hash]);
        }
        let word = if converged { "converged" } else { "not converged" };
        print(&format!("{}\n{word}\n", show::lines(&table)))?;
        for (node, report, _) in &judged {
            if let Some(refused) = &report.refused {
                print(&format!("{node} refuses the file on its disk: {refused}\n"))?;
            }
        }
    }
    Ok(if converged { ExitCode::Done } else { ExitCode::DoesNotHold })
}

/// Refuses unless every node opens with the KEK of this record, and has this keyring or an earlier state of it.
pub(super) fn require(file: &KeyringFile, nodes: &[String], record: &RecordPath) -> Result<(), CliError> {
    for (node, report) in nodes.iter().zip(nodes::reports(nodes)?) {
        let verdict = report.judge(file);
        if verdict.missing.contains(record) {
            let because = match (verdict.place, report.proved, report.refused) {
                (Place::Elsewhere, ..) => "its keyring is of another history".to_owned(),
                (_, _, Some(refused)) => format!("it refuses the file on its disk: {refused}"),
                (_, false, None) => "its KEKs are not proved now".to_owned(),
                (place_, true, None) => format!("its keyring is {}", place(place_)),
            };
            return Err(CliError {
                code: ExitCode::DoesNotHold,
                what: "the KEK was not activated".to_owned(),
                why: format!("the node {node} cannot open with {record}: {because}"),
                hint: "copy the keyring and its records to every node, then look at `hsm-kms keyring converged`"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Refuses unless every node has this keyring or an earlier state of it, and none seals with this KEK.
pub(super) fn require_inactive(file: &KeyringFile, nodes: &[String], entry: &Entry) -> Result<(), CliError> {
    for (node, report) in nodes.iter().zip(nodes::reports(nodes)?) {
        let seals = |kek: &NodeKek| kek.record_sha256 == entry.record_sha256 && kek.state == State::Active;
        let because = match report.judge(file).place {
            Place::Elsewhere => "has a keyring of another history",
            _ if report.keks.iter().any(seals) => "seals with it",
            _ => continue,
        };
        return Err(CliError {
            code: ExitCode::DoesNotHold,
            what: "the KEK was not retired".to_owned(),
            why: format!("the node {node} {because}"),
            hint: "copy the keyring to every node, wait 10 minutes, and make the inventories anew".to_owned(),
        });
    }
    Ok(())
}

fn place(place: Place) -> String {
    match place {
        Place::Same => "the same".to_owned(),
        Place::Behind(1) => "1 event behind".to_owned(),
        Place::Behind(events) => format!("{events} events behind"),
        Place::Elsewhere => "another".to_owned(),
    }
}

fn missing(verdict: &NodeVerdict) -> String {
    let names: Vec<_> = verdict.missing.iter().map(RecordPath::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}
