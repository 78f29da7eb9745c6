//! placeholder until merged
pub use super::transcript::TRANSCRIPT_FILE;
use super::transcript::{self, Event};
use super::{CeremonyError, Plan, WitnessedPlan};
use crate::record::{KekRecord, Sha256Digest};
use sha2::{Digest, Sha256};
use std::path::Path;
pub const PLAN_FILE: &str = "plan.lock.json";
pub fn file_digest(path: &Path) -> Result<Sha256Digest, CeremonyError> {
    let bytes =
        std::fs::read(path).map_err(|e| CeremonyError::Output { path: path.to_owned(), reason: e.to_string() })?;
    Ok(Sha256Digest(Sha256::digest(bytes).into()))
}
pub fn write_all(plan: &Plan, w: &WitnessedPlan) -> Result<(KekRecord, Vec<Event>), CeremonyError> {
    let record = KekRecord::read(&plan.output.join("kek-record.json"))?;
    let bytes = std::fs::read(plan.output.join(TRANSCRIPT_FILE)).unwrap();
    Ok((record, transcript::verify(&bytes, &w.lock.digest).unwrap()))
}
