//! `hsm-kms keyring list` and `history`.

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Target, print, read};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::keyring::{Entry, Event, Kek, KeyringFile};
use crate::record::UtcTime;

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    target: Target,
}

pub(super) fn list(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let Target { keyring, json } = &args.target;
    let file = read(keyring)?;
    let entries = file.at(UtcTime::now());
    let keks: Vec<(&Entry, Option<Kek>)> = entries
        .iter()
        .map(|entry| {
            // One that is out of service may have lost its record.
            let record = KeyringFile::record(keyring, entry).ok();
            let Entry { record_sha256, state, activations, .. } = *entry;
            (entry, record.map(|record| Kek { record_sha256, record, state, activations }))
        })
        .collect();
    if *json {
        let keks: Vec<Value> = keks
            .iter()
            .map(|(entry, kek)| {
                let ids: Option<Vec<KeyId>> = kek.as_ref().map(|kek| kek.key_ids().collect());
                json!({
                    "record": entry.record,
                    "record_sha256": entry.record_sha256,
                    "state": entry.state,
                    "activations": entry.activations,
                    "activate_at": entry.activate_at,
                    "label": kek.as_ref().map(|kek| &kek.record.kek.label),
                    "key_ids": ids.as_ref().map(|ids| ids.iter().map(ToString::to_string).collect::<Vec<_>>()),
                    "key_id_hashes": ids.as_ref().map(|ids| ids.iter().map(KeyId::hash).collect::<Vec<_>>()),
                })
            })
            .collect();
        print(&format!("{:#}\n", json!({"cluster": file.cluster(), "head": file.head(), "keks": keks})))?;
        return Ok(ExitCode::Done);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["RECORD", "STATE", "EPOCH", "KEY_ID", "FROM"]);
    for (entry, kek) in keks {
        let key_id = match kek {
            Some(kek) if entry.activations > 0 => kek.key_id().to_string(),
            Some(_) => "never active".to_owned(),
            None => "its record is not there".to_owned(),
        };
        let planned = entry.activate_at.map_or_else(String::new, |at| at.to_string());
        let (record, state) = (entry.record.as_str().to_owned(), entry.state.word().to_owned());
        table.add_row([record, state, entry.activations.to_string(), key_id, planned]);
    }
    print(&format!("cluster {}, head {}\n\n{}", file.cluster(), file.head(), lines(&table)))?;
    Ok(ExitCode::Done)
}

pub(super) fn history(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let Target { keyring, json } = &args.target;
    let file = read(keyring)?;
    if *json {
        print(&format!("{:#}\n", json!({"cluster": file.cluster(), "head": file.head(), "history": file.history()})))?;
        return Ok(ExitCode::Done);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["TIME", "EVENT", "RECORD", "BY", "REASON"]);
    for Event { time, by, change, reason, .. } in file.history() {
        let who = format!("uid {} on {}", by.uid, by.host);
        let reason = format!("{}{}", change.note(), reason.as_deref().unwrap_or_default());
        table.add_row([&time.to_string(), change.word(), change.record().as_str(), &who, &reason]);
    }
    print(&format!("cluster {}, head {}\n\n{}", file.cluster(), file.head(), lines(&table)))?;
    Ok(ExitCode::Done)
}

pub(super) fn lines(table: &Table) -> String {
    table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect()
}
