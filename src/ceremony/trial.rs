//! A KEK for trials: the same key and the same proofs, unattended, with a record that says so.

use super::keys::{Keys, random};
use super::output::{check_output, write_new};
use super::prove::{self, PROOFS};
use super::site::Site;
use super::{CeremonyError, Outcome, Plan, Progress, Watcher, without_core_dumps};
use crate::pkcs11;
use crate::profile::KeyGeneration;
use crate::record::{Ceremony, CeremonyId, KekRecord, Kind, UtcTime};

/// Runs the plan. Leaves either a KEK with its record, or neither.
pub fn run(plan: &Plan, watcher: Watcher<'_>) -> Result<Outcome, CeremonyError> {
    let path = check_output(&plan.output)?;
    without_core_dumps()?;
    // Before the module opens files of its own: a descriptor that nobody passed on could be one of them.
    let login = &plan.token.profile.login;
    let pin = plan.token.pin.as_ref().map(|source| source.read(login.pin)).transpose().map_err(pkcs11::Error::from)?;

    watcher(Progress::Begins("load the module and find the token"));
    let site = Site::open(&plan.token, None)?;
    watcher(Progress::Done(&site.summary()));
    site.token.require(&plan.token.sealing)?;

    watcher(Progress::Begins("log in, one attempt"));
    let session = site.token.login(login.user, pin.as_ref())?;
    drop(pin);
    watcher(Progress::Done("the user is logged in"));

    let mut keys = Keys::new(plan);
    // From here on there are keys on the token: either they get their record, or they go.
    let outcome = make(plan, &session, &mut keys, watcher).and_then(|()| prove(plan, &site, &keys, watcher));
    let outcome = outcome.and_then(|(record, refusals)| {
        watcher(Progress::Begins("write the record"));
        write_new(&path, record.to_json()?.as_bytes())?;
        watcher(Progress::Done(&path.display().to_string()));
        Ok(Outcome { record, path, refusals })
    });
    outcome.map_err(|cause| {
        let mut is_first = true;
        keys.destroy(&session, cause, &mut |outcome| {
            if std::mem::take(&mut is_first) {
                watcher(Progress::Begins("destroy what was made"));
            }
            watcher(Progress::Done(outcome));
        })
    })
}

/// Makes the keys of the plan, or finds them where the vendor's tool made them.
fn make(plan: &Plan, session: &pkcs11::Session, keys: &mut Keys, watcher: Watcher<'_>) -> Result<(), CeremonyError> {
    if plan.token.profile.key.generate == KeyGeneration::Tool {
        watcher(Progress::Begins("find the keys that the vendor's tool made"));
        keys.find(session)?;
        watcher(Progress::Done(&keys.labels()));
        return Ok(());
    }
    watcher(Progress::Begins("check that the label is free"));
    keys.check_free(session)?;
    watcher(Progress::Done(&format!("nothing on the token is named {}", keys.labels())));
    watcher(Progress::Begins("generate the KEK in the HSM"));
    keys.choose_ids(session)?;
    keys.generate(session)?;
    watcher(Progress::Done(keys.summary()));
    Ok(())
}

/// Everything that must be true of the keys, and the record that says so.
fn prove(
    plan: &Plan,
    site: &Site,
    keys: &Keys,
    watcher: Watcher<'_>,
) -> Result<(KekRecord, Vec<super::Refusal>), CeremonyError> {
    watcher(Progress::Begins("read every attribute back in a new session"));
    let session = site.token.open_session()?;
    let read = prove::read_back(plan, &session, keys)?;
    watcher(Progress::Done(&read.summary()));

    watcher(Progress::Begins("try what the token must refuse"));
    let refusals = prove::refusals(plan, &session, keys, &read)?;
    watcher(Progress::Done(&format!("{} attempts, none made a key less secret", refusals.len())));

    watcher(Progress::Begins("seal and open proof blobs"));
    let id = CeremonyId::new(random()?);
    let proofs = prove::proofs(plan, &session, &id, &read)?;
    watcher(Progress::Done(&format!(
        "{PROOFS} proof blobs; 1 byte and 33 came back as they were; a changed blob and a wrong context were refused"
    )));
    let record = KekRecord::new(
        Kind::Trial,
        Ceremony { id, time: UtcTime::now(), tool: super::TOOL.to_owned() },
        plan.cluster.clone(),
        plan.token.profile.full_name(),
        site.module_record(&plan.token)?,
        site.token_record(),
        read.kek,
        read.mac,
        plan.recipients.clone(),
        proofs,
        read.deviations,
        None,
    );
    Ok((record, refusals))
}
