//! How the KEK outlives its token: copies on other tokens, each proved; or people who say that they know that there are none.

use serde_json::json;

use super::{KeyProof, Run};
use crate::ceremony::CeremonyError;
use crate::ceremony::copies::{self, Errand};
use crate::ceremony::plan::CopyPlan;
use crate::ceremony::rehearsal;
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::{CeremonyKind, EventKind};
use crate::profile::UserKind;
use crate::record::{KekRecord, Recovery, TokenCopy};

impl Run<'_> {
    pub(super) fn copies(&mut self, draft: &KekRecord) -> Result<Vec<TokenCopy>, CeremonyError> {
        let planned = self.witnessed.copies.len();
        self.step(StepId::Copies, json!({"planned": planned}), |run| {
            let mut copies = Vec::new();
            for (position, copy) in run.witnessed.copies.iter().enumerate() {
                let question = format!("copy-{}", position + 1);
                let restored = run.restored.take();
                // A KEK from outside whose value is gone is there already: an interrupted run has put it in.
                if restored.is_none() && run.witnessed.import.is_none() {
                    run.copied(&draft.kek.label, copy, &question)?;
                }
                let needs_pin = copy.token.profile.login.user != UserKind::None;
                let pin = needs_pin.then(|| run.pin(&format!("{question}-pin"))).transpose()?;
                let (errand, what) = match &restored {
                    Some(_) => (Errand::Import, "put the KEK in there, and open the proof blobs"),
                    None => (Errand::Prove, "open the proof blobs there"),
                };
                run.console.begin(what);
                let KeyProof { serial, library, opened } =
 copies::send(errand, run.options.plan, &copy.serial, draft, pin.as_ref(), restored.as_ref())?;
                run.console.done(&format!("token {serial} opened {opened} proof blobs: it has this KEK"));
                let data = json!({"check": "copy", "serial": serial, "library": library, "opened": opened});
                run.write(StepId::Copies.name(), EventKind::Check, data)?;
                copies.push(TokenCopy { serial, library });
                run.restored = restored;
            }
            // Wiped: every token that was to get the KEK has it.
            run.restored = None;
            let count = copies.len();
            let recovery = Recovery::of(count, run.shares.is_some(), !run.plan.recipients.is_empty());
            if recovery == Recovery::None {
                run.console.tell(
                    "NO-RECOVERY: fewer than two copies of this KEK are proved, and there is no recovery recipient. If its token is lost, every Secret in etcd and in its \
                     backups is lost. The plugin serves such a KEK only with kek.accept_data_loss.",
                );
                run.ask_until("no-recovery", "type NO-RECOVERY to go on, knowing this", |answer| {
                    (answer == "NO-RECOVERY").then_some(())
                })?;
            }
            Ok((copies, json!({"proved": count, "recovery": recovery})))
        })
    }

    /// Waits until the administrator has copied the KEK; in a rehearsal the program plays the vendor's tool.
    fn copied(&mut self, label: &str, copy: &CopyPlan, question: &str) -> Result<(), CeremonyError> {
        let text = format!("Copy {label:?} to the token with serial number {} with the vendor's tool.", copy.serial);
        self.console.tell(&text);
        self.ask_until(question, "type \"copied\" when that is done", |answer| (answer == "copied").then_some(()))?;
        if self.options.kind == CeremonyKind::Rehearsal {
            rehearsal::copy_token(self.plan, &self.witnessed.serial, copy)?;
        }
        Ok(())
    }
}
