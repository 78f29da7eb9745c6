//! What every module must let the plugin do, on the six real ones that tests can have.
//!
//! The suite is the same for all. What differs stands in `expectations/`, one file for each module. A test of this file
//! runs once, whatever `HSM_KMS_TEST_MODULE` says.

mod expectations;
mod steps;

use self::expectations::Expectations;
use crate::harness::TestToken;
use crate::parts::record_run;

/// Goes through all that must hold. The order is that of an HSM's life; each step begins on what the one before left.
async fn conforms(name: &str, new_token: fn() -> TestToken) {
    let expected = Expectations::read(name);
    steps::what_is_given_away(new_token, &expected);
    let token = new_token();
    let record = steps::ceremony(&token, &expected);
    steps::service(&token, &record, &expected).await;
    steps::wrong_pin(&token, &record, &expected).await;
    record_run(&format!("conformance: {}", expected.component));
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
