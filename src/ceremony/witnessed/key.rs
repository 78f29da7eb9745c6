//! Login, and the key: made, or found after a crash; destroyed if it is not a KEK.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::Run;
use crate::ceremony::CeremonyError;
use crate::ceremony::keys::Keys;
use crate::ceremony::plan::{CopyPlan, ImportPlan};
use crate::ceremony::site::Site;
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::{Event, EventKind};
use crate::pin::PinError;
use crate::pkcs11::{self, Session};
use crate::profile::{KeyGeneration, UserKind};
use crate::record::ShareSet;
use crate::secret::Pin;
use crate::shares::SecretDigest;

/// What an interrupted ceremony may have left on the token.
#[derive(Default)]
pub(super) struct EarlierKeys {
    /// It began to make keys, and did not destroy them.
    may_exist: bool,
    /// `CKA_ID`s that it chose, or that the token gave, in hex.
    ids: Vec<String>,
    /// The digest of the shares that were handed out for them.
    pub(super) shares: Option<SecretDigest>,
    /// Serial numbers of the tokens that proved to have them too.
    copies: Vec<String>,
}

impl EarlierKeys {
    /// What these events tell.
    pub(super) fn of(events: &[Event]) -> Self {
        let mut earlier = Self::default();
        for event in events {
            let ids = event.data.get("cka_ids").and_then(Value::as_array);
            let ids = ids.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
            match (event.step.as_str(), event.kind) {
                ("generate" | "import", EventKind::Intent | EventKind::Result) => {
                    if event.kind == EventKind::Intent {
                        earlier.may_exist = true;
                        earlier.copies.clear();
                    }
                    earlier.ids.extend(ids);
                }
                ("make", EventKind::Result) => {
                    let digest = event.data.get("digest").and_then(Value::as_str);
                    earlier.shares = digest.and_then(|text| text.parse().ok());
                }
                ("copies", EventKind::Check) => {
                    let serial = event.data.get("serial").and_then(Value::as_str);
                    earlier.copies.extend(serial.map(str::to_owned));
                }
                ("destroy", EventKind::Result) if event.data.get("destroyed") == Some(&Value::Bool(true)) => {
                    earlier = Self::default();
                }
                _ => {}
            }
        }
        earlier
    }
}

impl Run<'_> {
    pub(super) fn login(&mut self, site: &Site) -> Result<Session, CeremonyError> {
        self.step(StepId::Login, json!({"token": run_label(site), "attempts": 1}), |run| {
            let login = &run.plan.token.profile.login;
            let pin = if login.user == UserKind::None {
                run.console
                    .tell("Nobody logs in with this module: it has means of its own, such as a PIN pad or cards.");
                None
            } else {
                Some(run.pin("pin")?)
            };
            if let Some(pin) = &pin
                && !login.pin.fits(pin.expose_secret())
            {
                // Some tokens count a PIN of the wrong form as an attempt.
                return Err(pkcs11::Error::from(PinError::Form { form: login.pin }).into());
            }
            run.console.begin("log in, one attempt");
            let session = site.token.login(login.user, pin.as_ref())?;
            run.console.done("logged in");
            Ok((session, json!({"logged_in": true})))
        })
    }

    /// Two people type a half of the PIN each.
    pub(super) fn pin(&mut self, question: &str) -> Result<Pin, CeremonyError> {
        let holders = self.witnessed.people.pin_holders(|person| self.is_present(person));
        let mut pin = zeroize::Zeroizing::new(String::new());
        for (position, person) in holders.iter().enumerate() {
            let text = format!("{}: half {} of the PIN", person.name, position + 1);
            let half = self.console.ask_hidden(&format!("{question}-{}", position + 1), &text)?;
            if half.expose_secret().is_empty() {
                return Err(CeremonyError::Refused("a half of the PIN is empty"));
            }
            pin.push_str(half.expose_secret());
        }
        Ok(SecretString::from(pin.as_str()))
    }

    /// Makes the keys of the plan, or finds what an interrupted run of this ceremony has made.
    pub(super) fn make(&mut self, login: &Session) -> Result<Keys, CeremonyError> {
        let mut keys = Keys::new(self.plan);
        if self.plan.token.profile.key.generate == KeyGeneration::Tool {
            self.step(StepId::Generate, json!({"by": "the vendor's tool", "keys": keys.labels()}), |run| {
                run.console.begin("find the keys that the vendor's tool made");
                keys.find(login)?;
                run.console.done(&keys.labels());
                Ok(((), json!({"found": keys.labels()})))
            })?;
            return Ok(keys);
        }
        let is_made = self.earlier.may_exist && self.settle(login, &mut keys)?;
        if is_made {
            if let (Some(ImportPlan { shares, threshold }), Some(digest)) = (self.witnessed.import, self.earlier.shares)
            {
                self.shares = Some(ShareSet { shares, threshold, digest });
            }
            return Ok(keys);
        }
        if let Some(import) = self.witnessed.import {
            self.import(login, &mut keys, import)?;
            return Ok(keys);
        }
        // Before the intent: what is there already is none of this ceremony's, also when it is resumed.
        keys.check_free(login)?;
        keys.choose_ids(login)?;
        let intent = json!({"keys": keys.labels(), "cka_ids": keys.ids(), "templates": keys.describe()?});
        let made = self.step(StepId::Generate, intent, |run| {
            run.console.begin("check that the name is free");
            keys.check_free(login)?;
            run.console.done(&format!("nothing on the token is named {}", keys.labels()));
            run.console.begin("generate");
            keys.generate(login)?;
            run.console.done(keys.summary());
            let data = json!({"made": keys.summary(), "cka_ids": keys.ids()});
            Ok(((), data))
        });
        match made {
            Ok(()) => Ok(keys),
            Err(cause) if cause.is_interruption() => Err(cause),
            Err(cause) => Err(self.destroy(login, &mut keys, cause)),
        }
    }

    /// Looks for what an interrupted run has made. `true`: it is whole, and the ceremony goes on with it. `false`: nothing is left.
    fn settle(&mut self, login: &Session, keys: &mut Keys) -> Result<bool, CeremonyError> {
        let found = keys.present(login, &self.earlier.ids)?;
        let list: Vec<_> = found.iter().map(|(_, what)| what.clone()).collect();
        let step = if self.witnessed.import.is_some() { StepId::Import } else { StepId::Generate };
        self.show(step)?;
        self.write(step.name(), EventKind::Check, json!({"check": "left-by-interruption", "found": list}))?;
        if found.is_empty() {
            self.console.tell("The interrupted run left no key on the token.");
            return Ok(false);
        }
        // The copies of a KEK from outside that are not made yet need its value, which went with the interrupted run.
        let has_it = |copy: &CopyPlan| self.earlier.copies.contains(&copy.serial);
        let is_enough = self.witnessed.import.is_none() || self.witnessed.copies.iter().all(has_it);
        if is_enough && found.len() == keys.all().count() && keys.adopt(login)? {
            if keys.ids().iter().all(|id| self.earlier.ids.contains(id)) {
                self.console.tell(&format!("The interrupted run made {}: it is verified now.", list.join(" and ")));
                return Ok(true);
            }
            keys.forget();
        }
        let text = format!(
            "On the token: {}. That is not what this ceremony needs to go on. \
             The administrator types \"destroy\" to destroy it for good, or anything else to stop",
            list.join(", ")
        );
        self.console.tell(&text);
        if self.witnessed.import.is_some() && !self.earlier.copies.is_empty() {
            self.console.tell(&format!(
                "It is also on the token with serial number {}. Destroy it there with the vendor's tool: what comes next is another KEK.",
                self.earlier.copies.join(", ")
            ));
        }
        let answer = self.console.ask("destroy", "destroy it")?;
        self.write("destroy", EventKind::Answer, json!({"answer": answer}))?;
        if answer != "destroy" {
            return Err(CeremonyError::Refused("what the interrupted run left on the token is not to be destroyed"));
        }
        self.write("destroy", EventKind::Intent, json!({"objects": list}))?;
        let outcome = found.iter().try_for_each(|(key, _)| login.destroy(*key));
        let left = keys.present(login, &self.earlier.ids)?.len();
        self.write("destroy", EventKind::Result, json!({"destroyed": left == 0, "left": left}))?;
        outcome?;
        Ok(false)
    }

    /// Destroys what was made, and writes down why.
    pub(super) fn destroy(&mut self, login: &Session, keys: &mut Keys, cause: CeremonyError) -> CeremonyError {
        if keys.is_nothing_made() {
            return cause;
        }
        let intent = json!({"keys": keys.labels(), "because": cause.to_string()});
        if let Err(error) = self.write("destroy", EventKind::Intent, intent) {
            return error;
        }
        let console = &mut *self.console;
        console.say("");
        let cause = keys.destroy(login, cause, &mut |outcome| console.tell(outcome));
        let is_left = matches!(cause, CeremonyError::LeftBehind { .. });
        match self.write("destroy", EventKind::Result, json!({"destroyed": !is_left})) {
            Ok(()) => cause,
            Err(error) => error,
        }
    }
}

fn run_label(site: &Site) -> &str {
    &site.token.info().label
}
