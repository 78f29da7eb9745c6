//! The end of a KEK: on every token of the plan it proves that it is this KEK, is destroyed, and is looked for again.

use std::path::Path;

use serde_json::{Value, json};

use super::{Closed, Options, Run, begin, finish};
use crate::ceremony::console::Console;
use crate::ceremony::copies::{Errand, KeyProof, send};
use crate::ceremony::evidence;
use crate::ceremony::output::{RECORD_FILE, write_new};
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::EventKind;
use crate::ceremony::{CeremonyError, Plan, WitnessedPlan};
use crate::profile::UserKind;
use crate::record::KekRecord;

/// Holds the ceremony of a plan that destroys the KEK of this record. `unused`: what shows that nothing needs it; or why nothing does.
pub fn destroy(
    plan: &Plan,
    witnessed: &WitnessedPlan,
    record: &Path,
    unused: &Result<String, String>,
    options: &Options<'_>,
    console: &mut Console,
) -> Result<Closed, CeremonyError> {
    let kek = KekRecord::read(record)?;
    if witnessed.destroys != Some(evidence::file_digest(record)?) {
        return Err(CeremonyError::Destroys("the record given is not the one that the plan destroys"));
    }
    if kek.cluster != plan.cluster || kek.kek.label != plan.kek.label || kek.token.serial != witnessed.serial {
        return Err(CeremonyError::Destroys("the record is of another cluster, label or token than the plan"));
    }
    if let Some(mut run) = begin(plan, witnessed, options, console)? {
        run.open()?;
        // Looked at, and let go again: the processes that are sent to it load the module anew.
        drop(run.preflight()?);
        run.unused(unused)?;
        run.destroy_everywhere(&kek)?;
        run.close_destruction(record)?;
    }
    finish(plan, witnessed)
}

impl Run<'_> {
    /// The keyring says that nothing needs the KEK, or somebody answers for that.
    fn unused(&mut self, unused: &Result<String, String>) -> Result<(), CeremonyError> {
        self.step(StepId::Unused, json!({}), |run| {
            let found = match unused {
                Ok(found) => found.clone(),
                Err(found) => {
                    run.except("unused", found)?;
                    format!("exception: {found}")
                }
            };
            run.console.tell(&found);
            Ok(((), json!({"found": found})))
        })
    }

    fn destroy_everywhere(&mut self, record: &KekRecord) -> Result<(), CeremonyError> {
        let copies = self.witnessed.copies.iter().map(|copy| (copy.serial.clone(), copy.token.profile.login.user));
        let tokens: Vec<_> = std::iter::once((self.witnessed.serial.clone(), self.plan.token.profile.login.user))
            .chain(copies)
            .collect();
        let serials: Vec<_> = tokens.iter().map(|(serial, _)| serial.clone()).collect();
        self.step(StepId::Destroy, json!({"key": record.kek.label, "tokens": serials}), |run| {
            let text = format!("{:?} goes for good from {} tokens.", record.kek.label, serials.len());
            run.console.tell(&text);
            let asked = "the administrator types the key's label to destroy it";
            run.ask_until("destroy", asked, |answer| (answer == record.kek.label).then_some(()))?;
            for (position, (serial, user)) in tokens.iter().enumerate() {
                run.console.tell(&format!("The token with serial number {serial}:"));
                let needs_pin = *user != UserKind::None;
                let pin = needs_pin.then(|| run.pin(&format!("pin-{}", position + 1))).transpose()?;
                let go = |errand| send::<Value>(errand, run.options.plan, serial, record, pin.as_ref(), None);
                run.console.begin("prove the key, destroy it, look for it again");
                let left = |found: Value| found.get("left").and_then(Value::as_u64);
                // An interrupted run may have been here.
                let was_there = left(go(Errand::SeeGone)?) != Some(0);
                let proof = if was_there { Some(go(Errand::Destroy)?) } else { None };
                if left(go(Errand::SeeGone)?) != Some(0) {
                    return Err(CeremonyError::Proof("it is still on the token"));
                }
                let opened = proof.and_then(|proof| serde_json::from_value::<KeyProof>(proof).ok());
                let opened = opened.map_or(0, |proof| proof.opened);
                run.console.done(if was_there { "it is gone" } else { "it was gone already" });
                let data =
                    json!({"check": "gone", "serial": serial, "was_there": was_there, "opened": opened, "left": 0});
                run.write(StepId::Destroy.name(), EventKind::Check, data)?;
            }
            Ok(((), json!({"destroyed": serials})))
        })
    }

    fn close_destruction(&mut self, record: &Path) -> Result<(), CeremonyError> {
        let system = |source| CeremonyError::System { what: "the record cannot be kept with the evidence", source };
        let copy = self.plan.output.join(RECORD_FILE);
        if !copy.exists() {
            write_new(&copy, &std::fs::read(record).map_err(system)?)?;
        }
        self.end()
    }
}
