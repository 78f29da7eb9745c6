//! A KEK from outside, for HSMs that cannot copy one: made in memory, handed out in shares, read back, restored, and only then put into
//! the token.

use secrecy::ExposeSecret;
use serde_json::json;

use super::Run;
use crate::ceremony::CeremonyError;
use crate::ceremony::import::{self, Handout, Material, Restored};
use crate::ceremony::keys::Keys;
use crate::ceremony::people::{Person, Role};
use crate::ceremony::plan::ImportPlan;
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::EventKind;
use crate::pkcs11::Session;
use crate::record::ShareSet;

/// How often a custodian may type the share back. It is on paper in front of them.
const TRIES: usize = 5;

impl Run<'_> {
    pub(super) fn import(&mut self, login: &Session, keys: &mut Keys, plan: ImportPlan) -> Result<(), CeremonyError> {
        if self.earlier.shares.is_some() {
            self.console.tell("The interrupted run handed out shares of a KEK that is lost: destroy those papers now.");
        }
        let intent = json!({"shares": plan.shares, "threshold": plan.threshold});
        let mut handout = self.step(StepId::Make, intent, |run| {
            run.console.begin("make the KEK in memory, and split it");
            let handout = Material::make(keys, import::mixed(login))?.share_out(&plan, import::mixed(login))?;
            run.console.done(&format!("{} shares, any {} of which restore it", plan.shares, plan.threshold));
            let digest = handout.digest();
            run.shares = Some(ShareSet { shares: plan.shares, threshold: plan.threshold, digest });
            Ok((handout, json!({"digest": digest})))
        })?;
        self.hand_out(&mut handout)?;
        let restored = self.step(StepId::Drill, json!({}), |run| {
            run.console.begin("restore the KEK from what was typed back");
            let restored = handout.drill()?;
            run.console.done("the shares restore the KEK");
            Ok((restored, json!({"restored": true})))
        })?;
        self.put_in(login, keys, &restored)?;
        self.restored = (!self.witnessed.copies.is_empty()).then_some(restored);
        Ok(())
    }

    /// Each custodian alone: sees the share, writes it down, and types it from the paper.
    fn hand_out(&mut self, handout: &mut Handout) -> Result<(), CeremonyError> {
        let witnessed = self.witnessed;
        let is_custodian = |person: &&Person| person.role == Role::Custodian;
        let custodians: Vec<_> = witnessed.people.all().iter().filter(is_custodian).collect();
        if let Some(absent) = custodians.iter().find(|custodian| !self.is_present(custodian)) {
            return Err(CeremonyError::People(format!("{} is absent, and gets a share", absent.name)));
        }
        let numbers: Vec<_> = handout.numbers().collect();
        self.step(StepId::Shares, json!({"custodians": custodians.len()}), |run| {
            for (number, custodian) in numbers.iter().copied().zip(&custodians) {
                let text = format!("Share {number} is for {}. Everybody else leaves the screen.", custodian.name);
                run.console.tell(&text);
                run.ask_until(&format!("share-{number}"), "type \"alone\" when you are", |answer| {
                    (answer == "alone").then_some(())
                })?;
                run.console.show_secret(&handout.text(number)?);
                run.ask_until(&format!("share-{number}-written"), "type \"written\" when it is on paper", |answer| {
                    (answer == "written").then_some(())
                })?;
                run.console.clear();
                run.read_back(handout, number)?;
                run.console.clear();
                run.console.tell(&format!("Share {number} was read back right. It goes into a sealed envelope."));
                let data = json!({"check": "share", "number": number, "custodian": custodian.name.as_str()});
                run.write(StepId::Shares.name(), EventKind::Check, data)?;
            }
            let count = numbers.len();
            Ok(((), json!({"read_back": count})))
        })
    }

    fn read_back(&mut self, handout: &mut Handout, number: u8) -> Result<(), CeremonyError> {
        let question = format!("share-{number}-back");
        for attempt in 1..=TRIES {
            let typed = self.console.ask_hidden(&question, "type it back from the paper")?;
            match handout.read_back(number, typed.expose_secret()) {
                Ok(()) => return Ok(()),
                // The reason names a group of the share, never its characters.
                Err(error) if attempt < TRIES => self.console.tell(&format!("Not right: {error}. {}.", error.hint())),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CeremonyError::Unanswered(question))
    }

    fn put_in(&mut self, login: &Session, keys: &mut Keys, restored: &Restored) -> Result<(), CeremonyError> {
        keys.choose_ids(login)?;
        let intent = json!({"keys": keys.labels(), "cka_ids": keys.ids(), "templates": keys.describe()?});
        let made = self.step(StepId::Import, intent, |run| {
            run.console.begin("check that the name is free");
            keys.check_free(login)?;
            run.console.done(&format!("nothing on the token is named {}", keys.labels()));
            run.console.begin("put the KEK into the token");
            let way = import::import(keys, login, restored)?;
            run.console.done(keys.summary());
            Ok(((), json!({"made": keys.summary(), "way": way.to_string(), "cka_ids": keys.ids()})))
        });
        match made {
            Err(cause) if !cause.is_interruption() => Err(self.destroy(login, keys, cause)),
            made => made,
        }
    }
}
