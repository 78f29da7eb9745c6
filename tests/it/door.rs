//! A second door into a module beside the product's own: cryptoki, on the same token and with the same login.
//!
//! The module must not be loaded into the tests' process. So this runs the test binary once more, as a child with one test, which finds in
//! the variable `HSM_KMS_TEST_DOOR` what it has to do, and writes its answer to a file.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use cryptoki::context::Pkcs11;
use cryptoki::session::SessionState;
use cryptoki::slot::Slot;
use hsm_kms::pin::{PinForm, PinSource};
use hsm_kms::pkcs11::{Module, Session, Token};
use hsm_kms::profile::UserKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::TestToken;

/// What a child is given.
#[derive(Deserialize, Serialize)]
struct Errand {
    section: Value,
    work: Value,
    answer: PathBuf,
}

/// Lets the test of this name do the work in a child. Returns its answer.
pub fn in_child<T: DeserializeOwned>(test: &str, token: &TestToken, work: &impl Serialize) -> T {
    let answer = token.directory().join("answer.json");
    let errand = Errand { section: token.section(), work: json!(work), answer };
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).envs(&token.environment);
    let output = child.env(VARIABLE, json!(errand).to_string()).output().unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {}: {said}\n{errors}", output.status);
    serde_json::from_slice(&fs::read(&errand.answer).unwrap()).unwrap()
}

/// If this process is a child: does what it is told to do.
pub fn when_asked<W: DeserializeOwned, T: Serialize>(run: impl FnOnce(&Door, W) -> T) {
    let Ok(errand) = env::var(VARIABLE) else { return };
    let Errand { section, work, answer } = serde_json::from_str(&errand).unwrap();
    let done = run(&Door::new(section), serde_json::from_value(work).unwrap());
    fs::write(answer, json!(done).to_string()).unwrap();
}

const VARIABLE: &str = "HSM_KMS_TEST_DOOR";

/// The module, before the login.
pub struct Door {
    section: Value,
    ours: Module,
    pub context: Pkcs11,
    pub slots: Vec<Slot>,
}

impl Door {
    fn new(section: Value) -> Self {
        let module = PathBuf::from(section["module"].as_str().unwrap());
        // By the product's own code, since cryptoki has no safe way to give NSS its arguments.
        let ours = Module::load(&module, section["init_reserved"].as_str(), &[], Vec::new()).unwrap();
        let context = Pkcs11::new(&module).unwrap();
        let slots = context.get_slots_with_token().unwrap();
        Self { section, ours, context, slots }
    }

    /// Logs in, by the product's own code. Returns its session, and the slot for sessions of cryptoki.
    pub fn log_in(&self) -> (Session, Slot) {
        let path = PathBuf::from(self.section["pin"]["file"].as_str().unwrap());
        let pin = PinSource::File(path).read(PinForm::Opaque).unwrap();
        let login = self.token().login(UserKind::User, Some(&pin)).unwrap();
        let slot = *self.slots.iter().find(|slot| self.has_user(**slot)).expect("the slot that was logged in to");
        (login, slot)
    }

    /// The token, as the product sees it.
    pub fn token(&self) -> Token {
        self.ours.token(self.section["label"].as_str().unwrap()).unwrap()
    }

    /// A further session by the product's own code.
    pub fn session(&self) -> Session {
        self.token().open_session().unwrap()
    }

    fn has_user(&self, slot: Slot) -> bool {
        let Ok(session) = self.context.open_rw_session(slot) else { return false };
        let is_user = session.get_session_info().is_ok_and(|info| info.session_state() == SessionState::RwUser);
        // openCryptoki says that of its other slots, too, and then refuses to search there.
        is_user && session.find_objects(&[]).is_ok()
    }
}
