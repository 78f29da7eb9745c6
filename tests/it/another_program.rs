//! What another program with the PIN does to a token: it destroys the KEK and makes keys in its place.
//!
//! The module must not be loaded into the tests' process. So this runs the test binary once more, as a child with one test
//! ([`works_when_asked`]) and the work to do in the variable `HSM_KMS_TEST_WORK`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::harness::{LABEL, TestToken, run_ceremony};

/// Destroys every key with the label and id of the record.
pub fn destroy_kek(token: &TestToken, record: &Path) {
    ask(&Work { make: None, ..Work::new(token, record) });
}

/// Makes a key with the label, the id and the attributes of the record, but for the flags in `changes`.
pub fn make_like_kek(token: &TestToken, record: &Path, changes: &[(&str, bool)]) {
    let mut work = Work::new(token, record);
    for (name, value) in changes {
        let known = work.make.as_mut().unwrap().insert((*name).to_owned(), (*value).into());
        assert!(known.is_some(), "{name} is not in the record");
    }
    ask(&work);
}

/// Destroys the KEK and makes another key in its place.
pub fn replace_kek(token: &TestToken, record: &Path, changes: &[(&str, bool)]) {
    destroy_kek(token, record);
    make_like_kek(token, record, changes);
}

#[derive(Deserialize, Serialize)]
struct Work {
    environment: BTreeMap<String, String>,
    module: PathBuf,
    pin: PathBuf,
    label: String,
    id: String,
    /// Attributes of the key to make. `None`: destroy all with this label and id.
    make: Option<Map<String, Value>>,
}

impl Work {
    fn new(token: &TestToken, record: &Path) -> Self {
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        let text = |name: &str| record["kek"][name].as_str().unwrap().to_owned();
        Self {
            environment: token.environment.clone(),
            module: token.module.clone(),
            pin: token.pin.clone(),
            label: text("label"),
            id: text("id"),
            make: record["kek"]["attributes"].as_object().cloned(),
        }
    }

    fn run(&self) {
        let module = Pkcs11::new(&self.module).unwrap();
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slots = module.get_slots_with_token().unwrap();
        let slot = slots.into_iter().find(|slot| module.get_token_info(*slot).unwrap().label() == LABEL).unwrap();
        let session = module.open_rw_session(slot).unwrap();
        let pin = AuthPin::new(fs::read_to_string(&self.pin).unwrap().trim_end().into());
        session.login(UserType::User, Some(&pin)).unwrap();
        match &self.make {
            Some(attributes) => self.make(&session, attributes),
            None => self.destroy(&session),
        }
    }

    fn name(&self) -> [Attribute; 3] {
        let id = data_encoding::HEXLOWER.decode(self.id.as_bytes()).unwrap();
        let label = self.label.as_bytes().to_vec();
        [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label), Attribute::Id(id)]
    }

    fn destroy(&self, session: &Session) {
        let keys = session.find_objects(&self.name()).unwrap();
        assert!(!keys.is_empty());
        for key in keys {
            session.destroy_object(key).unwrap();
        }
    }

    fn make(&self, session: &Session, attributes: &Map<String, Value>) {
        let mut template = self.name().to_vec();
        template.extend(SETTABLE.into_iter().filter_map(|(name, attribute)| attribute(&attributes[name])));
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    }
}

type Settable = (&'static str, fn(&Value) -> Option<Attribute>);

/// What a template may set, and how. What the record calls unavailable is not set.
const SETTABLE: [Settable; 15] = [
    ("CKA_TOKEN", |value| value.as_bool().map(Attribute::Token)),
    ("CKA_PRIVATE", |value| value.as_bool().map(Attribute::Private)),
    ("CKA_SENSITIVE", |value| value.as_bool().map(Attribute::Sensitive)),
    ("CKA_EXTRACTABLE", |value| value.as_bool().map(Attribute::Extractable)),
    ("CKA_ENCRYPT", |value| value.as_bool().map(Attribute::Encrypt)),
    ("CKA_DECRYPT", |value| value.as_bool().map(Attribute::Decrypt)),
    ("CKA_WRAP", |value| value.as_bool().map(Attribute::Wrap)),
    ("CKA_UNWRAP", |value| value.as_bool().map(Attribute::Unwrap)),
    ("CKA_SIGN", |value| value.as_bool().map(Attribute::Sign)),
    ("CKA_VERIFY", |value| value.as_bool().map(Attribute::Verify)),
    ("CKA_DERIVE", |value| value.as_bool().map(Attribute::Derive)),
    ("CKA_COPYABLE", |value| value.as_bool().map(Attribute::Copyable)),
    ("CKA_VALUE_LEN", |value| value.as_u64().map(|bytes| Attribute::ValueLen(bytes.into()))),
    ("CKA_ALLOWED_MECHANISMS", |value| {
        let gcm_only = value.as_array()?.iter().all(|mechanism| mechanism == AES_GCM);
        assert!(gcm_only, "{value}");
        Some(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]))
    }),
    // Last: SoftHSM2 applies a template in order, and refuses what follows this.
    ("CKA_MODIFIABLE", |value| value.as_bool().map(Attribute::Modifiable)),
];

/// `CKM_AES_GCM`.
const AES_GCM: u64 = 0x1087;

const VARIABLE: &str = "HSM_KMS_TEST_WORK";

fn ask(work: &Work) {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "another_program::works_when_asked", "--nocapture"]).envs(&work.environment);
    let output = child.env(VARIABLE, serde_json::to_string(work).unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

/// In the child it does the work; in a run of the tests it shows that the child does.
#[test]
fn works_when_asked() {
    if let Ok(work) = env::var(VARIABLE) {
        return serde_json::from_str::<Work>(&work).unwrap().run();
    }
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let keys = || {
        let mut tool = Command::new("pkcs11-tool");
        let pin = fs::read_to_string(&token.pin).unwrap();
        tool.envs(&token.environment).arg("--module").arg(&token.module).args(["--token-label", LABEL]);
        let output = tool.args(["--login", "--pin", pin.trim_end(), "--list-objects"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().matches("Secret Key Object; AES").count()
    };
    assert_eq!(keys(), 1);
    make_like_kek(&token, &record, &[("CKA_WRAP", true)]);
    assert_eq!(keys(), 2);
    destroy_kek(&token, &record);
    assert_eq!(keys(), 0);
}
