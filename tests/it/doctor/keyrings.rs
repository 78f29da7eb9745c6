//! A node with a keyring; standby tokens; an audit log; a socket of systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hsm_kms::kms::client;
use hsm_kms::kms::proto::StatusRequest;
use serde_json::{Value, json};

use super::{Rows, Site};
use crate::faults::until;
use crate::handover::Holder;
use crate::harness::text;
use crate::rotation::site;

#[tokio::test]
async fn a_node_is_held_against_its_keyring() {
    let mut site = site::Site::start(1, 1).await;
    let config = text(site.nodes[0].config());
    let rows = Rows::of(&["--config", &config]);
    assert_eq!(rows.row("keyring")["result"], "ok", "{:#}", rows.json);
    let files: Vec<_> = rows.all().iter().filter(|row| row["check"] == "record-file").collect();
    assert_eq!(files.len(), 2, "the keyring and its record");
    site.nodes[0].plugin = None;
    let rows = Rows::of(&["--config", &config]);
    assert_eq!(rows.row("keyring")["result"], "not-checked", "{:#}", rows.json);
    assert_eq!(rows.with("failed"), ["socket"]);
}

#[test]
fn each_token_has_its_rows_and_the_audit_log_its_own() {
    let mut site = Site::new();
    let mut standby = site.config.value["token"].clone();
    standby["label"] = json!("another");
    site.config.value["standby"] = json!([{"token": standby, "serial": "1"}]);
    site.config.value["audit"] = json!({"to": site.file("audit.log")});
    let rows = site.rows();
    let token = |rows: &Rows| -> Vec<(Value, Value)> {
        let rows = rows.all().iter().filter(|row| row["check"] == "token");
        rows.map(|row| (row["subject"].clone(), row["result"].clone())).collect()
    };
    assert_eq!(token(&rows), [(json!("token"), json!("ok")), (json!("standby 1"), json!("failed"))]);
    assert_eq!(rows.row("audit-log")["result"], "not-checked", "the plugin makes it");
    crate::harness::write_secret(&site.file("audit.log"), "");
    assert_ne!(site.rows().row("audit-log")["result"], "failed");
    fs::set_permissions(site.file("audit.log"), Permissions::from_mode(0o644)).unwrap();
    assert_eq!(site.rows().row("audit-log")["result"], "failed");
    site.config.value["audit"] = json!({"to": "journal"});
    assert_eq!(site.rows().row("audit-log")["result"], "ok");
}

/// Where systemd made the socket, the plugin is found by its command line.
#[tokio::test]
async fn the_process_behind_a_socket_of_systemd_is_found() {
    let site = Site::new();
    let mut holder = Holder::start(&site.config);
    holder.next_plugin();
    let mut client = client::connect(&site.config.socket(), Duration::from_secs(20)).await.unwrap();
    until("health", async || {
        client.status(StatusRequest {}).await.is_ok_and(|answer| answer.get_ref().healthz == "ok")
    })
    .await;
    let rows = site.rows();
    assert_eq!(
        (rows.row("core-dumps")["result"].as_str(), rows.row("kek")["result"].as_str()),
        (Some("ok"), Some("ok"))
    );
}
