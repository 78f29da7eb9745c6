//! What every module must let the plugin do, on the six real ones that tests can have.
//!
//! The suite is the same for all. What differs stands in `expectations/`, one file for each module. A test of this file
//! runs once, whatever `HSM_KMS_TEST_MODULE` says.

mod expectations;
mod steps;

use std::path::PathBuf;

use self::expectations::Expectations;
use crate::harness::TestToken;
use crate::parts::record_run;

/// Goes through all that must hold. The order is that of an HSM's life; each step begins on what the one before left.
async fn conforms(name: &str, new_token: fn() -> TestToken) {
    let expected = Expectations::read(name);
    steps::what_is_given_away(new_token, &expected);
    let token = new_token();
    steps::probe(&token, &expected);
    let record = steps::ceremony(&token, &expected);
    steps::service(&token, &record, &expected).await;
    steps::wrong_pin(&token, &record, &expected).await;
    record_run(&format!("conformance: {}", expected.component));
}

/// A KEK that the ceremony makes on a token of this module. Returns the path of its record.
pub fn kek_of(name: &str, token: &TestToken) -> PathBuf {
    steps::ceremony(token, &Expectations::read(name))
}

/// How the KEK of this module seals, by the name that profiles have for it.
pub fn seal_of(name: &str) -> &'static str {
    Expectations::read(name).form().seal.word()
}

/// The module, as `scripts/test` looks for it in the evidence.
pub fn component_of(name: &str) -> String {
    Expectations::read(name).component
}

#[tokio::test]
async fn softhsm2() {
    conforms("softhsm2", TestToken::softhsm2).await;
}

#[tokio::test]
async fn kryoptic() {
    conforms("kryoptic", TestToken::kryoptic).await;
}

#[tokio::test]
async fn nss() {
    conforms("nss", TestToken::nss).await;
}

#[tokio::test]
async fn opencryptoki() {
    conforms("opencryptoki", TestToken::opencryptoki).await;
}

#[tokio::test]
async fn yubihsm2() {
    conforms("yubihsm2", TestToken::yubihsm2).await;
}

#[tokio::test]
async fn tpm2() {
    conforms("tpm2", TestToken::tpm2).await;
}
