//! Ceremonies that cannot be held: three lines, the documented exit code, and a token that is as it was.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fault_module::FaultModule;
use crate::harness::{LABEL, TestToken, hold_ceremony, run_ceremony};
use crate::refusal::{Refusal, refusal};

#[test]
fn plans_that_cannot_be_used_change_nothing() {
    let trial = Ceremony::new();
    let before = trial.objects();
    let folder = trial.output.path();
    let open_pin = trial.token.directory().join("open-pin");
    fs::write(&open_pin, "12345678").unwrap();
    fs::set_permissions(&open_pin, Permissions::from_mode(0o644)).unwrap();
    for (place, value, why) in [
        ("/custodians", json!(3), "unknown key `custodians`"),
        ("/kek/lable", json!("a"), "unknown key `kek.lable`"),
        ("/kind", json!("rehearsal"), "`kind`: expected `production` or `trial`"),
        ("/kek/label", json!("l".repeat(41)), "`kek.label`: expected at most 40 bytes"),
        ("/kek/label", json!(""), "`kek.label`"),
        ("/kek/label", json!("a\nb"), "`kek.label`"),
        ("/kek/permit", json!(["CKA_COPYABEL"]), "CKA_COPYABLE"),
        ("/kek/permit", json!("CKA_COPYABLE"), "`kek.permit`"),
        ("/kek/permit", json!(["CKA_COPYABLE", "CKA_DECRYPT"]), "`kek.permit`: CKA_DECRYPT is not negotiable"),
        ("/output", json!(folder.join("missing")), "missing: is no directory"),
        ("/output", json!(trial.token.pin), "is no directory"),
        ("/output", json!("relative"), "`output`: expected an absolute path"),
        ("/cluster", json!("UPPER"), "`cluster`: a cluster id has"),
        ("/token/module", json!("/nonexistent/module.so"), "cannot load the PKCS#11 module"),
        ("/token/init_reserved", json!(""), "`token.init_reserved`: must not be empty"),
        ("/token/pin/file", json!(folder.join("no-pin")), "PIN file"),
        ("/token/pin/file", json!(open_pin), "other users may read or write it"),
    ] {
        let mut plan = trial.plan(LABEL);
        set(&mut plan, place, value);
        let refusal = trial.refusal(&plan, why);
        assert_eq!(refusal.code, 2, "{place}: {}", refusal.text);
        assert_eq!(trial.objects(), before, "{place}");
    }
    let refusal = refusal(&["ceremony", "run", "--plan", "/nonexistent/plan.yaml"], b"");
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

#[test]
fn a_record_that_is_there_is_never_overwritten() {
    let trial = Ceremony::new();
    let record = trial.output.path().join("kek-record.json");
    fs::write(&record, "precious").unwrap();
    let before = trial.objects();
    let refusal = trial.refusal(&trial.plan(LABEL), "kek-record.json: is there already");
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    assert_eq!(fs::read_to_string(&record).unwrap(), "precious");
    assert_eq!(trial.objects(), before);
}

#[test]
fn a_label_that_is_taken_stops_the_ceremony() {
    let trial = Ceremony::new();
    run_ceremony(&trial.token, trial.token.directory());
    let before = trial.objects();
    assert!(before.contains(LABEL), "{before}");
    let refusal = trial.refusal(&trial.plan(LABEL), "are on the token already");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
    assert_eq!(trial.objects(), before);
    assert_eq!(fs::read_dir(trial.output.path()).unwrap().count(), 0);
}

#[test]
fn a_refused_pin_or_a_missing_token_stops_the_ceremony() {
    let trial = Ceremony::new();
    let before = trial.objects();
    let wrong = trial.token.directory().join("wrong-pin");
    fs::write(&wrong, "98769876").unwrap();
    fs::set_permissions(&wrong, Permissions::from_mode(0o600)).unwrap();
    let mut plan = trial.plan(LABEL);
    set(&mut plan, "/token/pin/file", json!(wrong));
    let refusal = trial.refusal(&plan, "C_Login");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
    assert!(!refusal.text.contains("98769876"), "{}", refusal.text);

    let mut plan = trial.plan(LABEL);
    set(&mut plan, "/token/label", json!("nowhere"));
    let refusal = trial.refusal(&plan, "no token with label \"nowhere\"");
    assert_eq!(refusal.code, 3, "{}", refusal.text);
    assert_eq!(trial.objects(), before);
    assert_eq!(fs::read_dir(trial.output.path()).unwrap().count(), 0);
}

#[test]
fn a_key_that_the_vendors_tool_has_not_made_stops_the_ceremony() {
    let trial = Ceremony::new();
    let mut plan = trial.plan(LABEL);
    set(&mut plan, "/token/profile", json!(trial.profile("generate: tool")));
    let refusal = trial.refusal(&plan, "no key with label");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
}

/// What a profile adds is a deviation like any other.
#[test]
fn a_profile_cannot_weaken_a_kek_in_silence() {
    let trial = Ceremony::new();
    let before = trial.objects();
    let mut plan = trial.plan(LABEL);
    set(&mut plan, "/token/profile", json!(trial.profile("add: { CKA_MODIFIABLE: true }")));
    let refusal = trial.refusal(&plan, "CKA_MODIFIABLE is true, expected false");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
    assert_eq!(trial.objects(), before);
    // What it adds to the KEK does not take from the MAC key what it is for.
    set(
        &mut plan,
        "/token/profile",
        json!(trial.profile("add: { CKA_SIGN: false }\nseal: { mechanism: aes-cbc-hmac }")),
    );
    let output = hold_ceremony(&plan["token"], &[], trial.output.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The token lies about what it did: each ends the ceremony, with what became of the key.
#[test]
fn what_a_token_did_to_a_key_or_its_copy_is_named() {
    let copyable = "add: { CKA_COPYABLE: true }";
    for (mut rule, key, why, hint) in [
        // It says that it set one, and then that it cannot set it back.
        (
            json!({"function": "C_SetAttributeValue", "times": 1}),
            "",
            "must refuse: set CKA_EXTRACTABLE true; and it does not let it be undone: C_SetAttributeValue",
            "the key was altered",
        ),
        // A copy that is not there to be destroyed.
        (
            json!({"function": "C_CopyObject", "times": 1}),
            "",
            "(copy with CKA_EXTRACTABLE true), cannot be destroyed: C_DestroyObject",
            "destroy what is left",
        ),
        // Eight attempts on the key, and then the first one on a copy.
        (
            json!({"function": "C_SetAttributeValue", "after": 8, "times": 1}),
            copyable,
            "must refuse: copy it, and set CKA_EXTRACTABLE true on the copy",
            "do not use this token",
        ),
    ] {
        // SoftHSM2 copies no key that cannot be modified.
        let token = if key.is_empty() { TestToken::new() } else { TestToken::kryoptic() };
        let trial = Ceremony::on(token);
        let fault = FaultModule::new(&trial.token, "liar");
        rule["action"] = json!({"return": 0});
        fault.set(&json!({"rules": [rule]}));
        let mut plan = trial.plan(LABEL);
        fault.stand_in_front(&mut plan["token"]);
        if !key.is_empty() {
            set(&mut plan, "/token/profile", json!(trial.profile(key)));
            set(&mut plan, "/kek/permit", json!(["CKA_COPYABLE"]));
        }
        let refusal = trial.refusal(&plan, why);
        assert!(refusal.hint.contains(hint), "{}", refusal.text);
        assert_eq!(refusal.code, 1, "{}", refusal.text);
        assert!(!trial.objects().contains(LABEL));
    }
}

/// A token without a KEK, and a directory for a record.
struct Ceremony {
    token: TestToken,
    output: TempDir,
}

impl Ceremony {
    fn new() -> Self {
        Self::on(TestToken::new())
    }

    fn on(token: TestToken) -> Self {
        Self { token, output: tempfile::tempdir().unwrap() }
    }

    fn plan(&self, label: &str) -> Value {
        json!({
            "version": 1,
            "kind": "trial",
            "cluster": "test",
            "token": self.token.section(),
            "kek": {"label": label},
            "output": self.output.path(),
        })
    }

    /// The token's own profile, with this under `key`.
    fn profile(&self, key: &str) -> PathBuf {
        let path = self.token.directory().join("profile.yaml");
        let manufacturer = if self.token.profile == "softhsm2" { "SoftHSM" } else { "Kryoptic" };
        let seal = if key.contains("seal:") { "" } else { "seal: { mechanism: aes-gcm }\n" };
        let profile = format!(
            "version: 1\nname: own\ntitle: Own\nmodule:\n  paths: [/none]\n  manufacturers: [{manufacturer}]\n\
             {seal}key:\n  {key}\nevidence:\n  default: unconfirmed\n"
        );
        fs::write(&path, profile).unwrap();
        path
    }

    fn refusal(&self, plan: &Value, why: &str) -> Refusal {
        let path = self.token.directory().join("bad-plan.yaml");
        fs::write(&path, format!("{plan:#}\n")).unwrap();
        let refusal = refusal(&["ceremony", "run", "--plan", path.to_str().unwrap()], b"");
        assert!(format!("{} {}", refusal.why, refusal.hint).contains(why), "not {why:?}: {}", refusal.text);
        refusal
    }

    /// What is on the token, as another program sees it.
    fn objects(&self) -> String {
        let mut tool = Command::new("pkcs11-tool");
        tool.envs(&self.token.environment).arg("--module").arg(&self.token.module).args(["--token-label", LABEL]);
        let pin = fs::read_to_string(&self.token.pin).unwrap();
        let output = tool.args(["--login", "--pin", pin.trim_end(), "--list-objects"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        // Kryoptic also lists its mechanisms (CKO_MECHANISM is 7), each time in another order.
        text.lines().filter(|line| !line.ends_with(", type 7")).collect::<Vec<_>>().join("\n")
    }
}

/// Puts a value at a place that may not be there yet.
fn set(value: &mut Value, place: &str, new: Value) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[name] = new;
}
