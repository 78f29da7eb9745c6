//! Profiles say what they say, and contradictions are refused.

use std::collections::BTreeSet;

use super::*;
use crate::class::Class;
use crate::seal::{IvLayout, IvSend, Seal, SealCall, SealForm};

const SOFTHSM2: &str = include_str!("../../hsm-profiles/softhsm2.yaml");

/// Small, so that every line of it can be changed by its text.
const SMALL: &str = "version: 1
name: small
title: Small
seal:
  mechanism: aes-gcm
  iv: { send: random, found: sent, bytes: 12 }
evidence:
  default: documents
";

/// Two variants, each with something of its own, over settings for both.
const TWO: &str = "version: 1
name: two
title: Two
module:
  manufacturers: [Both]
seal:
  mechanism: aes-gcm
  max_bytes: 4096
variants:
  a:
    seal:
      iv: { send: none, found: suffix, bytes: 16 }
    codes:
      CKR_DEVICE_ERROR: busy
    evidence:
      seal.iv: device
  b:
    module:
      manufacturers: [Only B]
    refuse: because
codes:
  CKR_DEVICE_ERROR: gone
  CKR_DEVICE_MEMORY: gone
evidence:
  default: documents
  seal: ci
";

fn error(text: &str) -> ProfileError {
    Profile::parse(text.as_bytes()).unwrap_err()
}

fn error_after(text: &str, old: &str, new: &str) -> ProfileError {
    assert!(text.contains(old), "{old}");
    error(&text.replacen(old, new, 1))
}

fn evidence_of(profile: &Profile, field: &str) -> Evidence {
    profile.evidence.iter().find(|(other, _)| *other == field).unwrap().1
}

#[test]
fn every_profile_is_read_by_its_name() {
    assert!(Profile::names().is_sorted());
    for name in Profile::names() {
        let family = Family::by_name(name).unwrap();
        assert_eq!(family.name, name);
        assert!(family.title.len() <= 26, "{name}: the list has 80 columns");
        for profile in family.profiles {
            let fields: Vec<_> = profile.evidence.iter().map(|(field, _)| *field).collect();
            assert_eq!(fields, FIELDS);
            assert!(profile.seal.is_some() || profile.refuse.is_some(), "{name}");
            let chosen = Profile::by_name(&profile.full_name()).unwrap();
            assert_eq!(chosen, profile);
        }
        let text = Family::text(name).unwrap();
        for word in ["# Sources: ", "# Not known: "] {
            assert!(text.contains(word), "{name} begins with what it is, its sources, and what is not known");
        }
        assert!(text.starts_with("# "));
    }
    let files: BTreeSet<_> = std::fs::read_dir("hsm-profiles")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let built_in: BTreeSet<_> = Profile::names().map(|name| format!("{name}.yaml")).collect();
    assert_eq!(files, built_in, "each file in hsm-profiles/ is built in");
}

#[test]
fn softhsm2_says_what_differs() {
    let profile = Profile::by_name("softhsm2").unwrap();
    assert_eq!(profile.module.environment, ["SOFTHSM2_CONF"]);
    assert_eq!(profile.codes, [CodeOverride { code: 5, function: Some("C_Decrypt"), class: Class::Data }]);
    assert_eq!(profile.usable(), Ok(Sealing::AES_GCM_SENT));
    assert_eq!(evidence_of(&profile, "seal.iv.bytes"), Evidence::Ci);
}

#[test]
fn vendors_differ_in_the_seal() {
    let seal = |name| {
        let sealing = Profile::by_name(name).unwrap().seal.unwrap().sealing;
        let SealForm { seal, iv_layout, iv_length } = sealing.form;
        (seal, sealing.mechanism, sealing.send, iv_layout, iv_length)
    };
    let gcm = cryptoki_sys::CKM_AES_GCM;
    assert_eq!(seal("thales-luna/fips"), (Seal::AesGcm, gcm, IvSend::Null, IvLayout::Suffix, 16));
    assert_eq!(seal("thales-luna/nonfips"), (Seal::AesGcm, gcm, IvSend::Random, IvLayout::Sent, 12));
    assert_eq!(seal("thales-protectserver3/ptk-7-0"), (Seal::AesGcm, gcm, IvSend::Random, IvLayout::Suffix, 12));
    assert_eq!(seal("aws-cloudhsm"), (Seal::AesGcm, gcm, IvSend::Zeros, IvLayout::Param, 12));
    assert_eq!(seal("google-kms"), (Seal::AesGcm, 0x8001_E101, IvSend::Zeros, IvLayout::Param, 12));
    assert_eq!(seal("yubihsm2"), (Seal::YubicoCcm, 0xD955_4204, IvSend::Null, IvLayout::Inside, 0));
    assert_eq!(seal("entrust-nshield/kwp"), (Seal::AesKwp, 0x210B, IvSend::Null, IvLayout::Inside, 0));
    assert_eq!(seal("tpm2"), (Seal::AesCbcHmac, 0x1082, IvSend::Random, IvLayout::Sent, 16));
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    let hint = |name| Profile::by_name(name).unwrap_err().hint();
    assert_eq!(hint("softhsm"), "did you mean `softhsm2`?");
    assert!(hint("luna").starts_with("use one of aws-cloudhsm, azure-cloudhsm, "), "{}", hint("luna"));
    assert_eq!(hint("thales-luna"), hint("thales-luna/fipps"));
    assert!(hint("thales-luna").starts_with("write `thales-luna/fips` or `thales-luna/nonfips`"));
    assert_eq!(hint("softhsm2/fips"), "write `softhsm2`: it has no variants");
}

#[test]
fn a_device_that_keeps_no_secret_refuses() {
    for name in ["nss", "nethsm", "ibm-hpcs", "smartcard-hsm"] {
        let unusable = Profile::by_name(name).unwrap().usable().unwrap_err();
        assert!(unusable.to_string().starts_with(&format!("profile {name} refuses: it")), "{unusable}");
    }
}

#[test]
fn what_this_release_cannot_do_is_refused() {
    let vendor = SMALL.replacen("evidence:", "key: { generate: 0x80000001 }\nevidence:", 1);
    let unusable = Profile::parse(vendor.as_bytes()).unwrap().usable().unwrap_err();
    assert!(unusable.to_string().contains("cannot make a KEK"), "{unusable}");
    assert!(Profile::parse(SMALL.as_bytes()).unwrap().usable().is_ok());
}

#[test]
fn what_this_release_can_do_is_not_refused() {
    for (old, new) in [
        ("send: random, found: sent, bytes: 12", "send: zeros, found: param"),
        ("bytes: 12", "bytes: 16"),
        ("mechanism: aes-gcm", "mechanism: aes-gcm\n  number: 0x80000001"),
        ("evidence:", "key: { omit: [CKA_COPYABLE] }\nevidence:"),
        ("evidence:", "key: { generate: tool }\nevidence:"),
        ("evidence:", "key: { add: { CKA_DESTROYABLE: false } }\nevidence:"),
        ("evidence:", "login: { user: crypto-user }\nevidence:"),
        ("evidence:", "login: { user: none }\nevidence:"),
    ] {
        let profile = Profile::parse(SMALL.replacen(old, new, 1).as_bytes()).unwrap();
        assert!(profile.usable().is_ok(), "{new}");
    }
}

#[test]
fn defaults_are_those_of_most_vendors() {
    let written = Profile::parse(SMALL.as_bytes()).unwrap();
    let omitted = SMALL.replace("  iv: { send: random, found: sent, bytes: 12 }\n", "");
    assert_eq!(Profile::parse(omitted.as_bytes()).unwrap(), written);
    assert_eq!(written.seal.unwrap().sealing, Sealing::AES_GCM_SENT);
    assert_eq!(written.key, Key::default());
    assert_eq!(written.login, Login { user: UserKind::User, pin: PinForm::Opaque });
    assert_eq!(written.sessions, Sessions { max: None, serial: false });
}

#[test]
fn a_variant_lies_over_the_file() {
    let family = Family::parse(TWO.as_bytes()).unwrap();
    let a = family.clone().choose(Some("a")).unwrap();
    assert_eq!(a.full_name(), "two/a");
    assert_eq!(a.module.manufacturers, ["Both"]);
    let seal = a.seal.unwrap();
    assert_eq!(seal.sealing.form, SealForm { seal: Seal::AesGcm, iv_layout: IvLayout::Suffix, iv_length: 16 });
    assert_eq!((seal.sealing.send, seal.sealing.call, seal.max_bytes), (IvSend::Null, SealCall::Encrypt, Some(4096)));
    assert_eq!(
        a.codes.iter().map(|entry| (entry.code, entry.class)).collect::<Vec<_>>(),
        [(0x30, Class::Busy), (0x31, Class::Gone)]
    );
    assert_eq!(evidence_of(&a, "seal.iv.send"), Evidence::Device);
    assert_eq!(evidence_of(&a, "seal.mechanism"), Evidence::Ci);
    assert_eq!(evidence_of(&a, "backup"), Evidence::Documents);

    let b = family.clone().choose(Some("b")).unwrap();
    assert_eq!(b.module.manufacturers, ["Only B"]);
    assert_eq!(b.refuse.as_deref(), Some("because"));
    assert_eq!(b.seal.unwrap().sealing, Sealing::AES_GCM_SENT);
    assert_eq!(evidence_of(&b, "seal.iv.send"), Evidence::Ci);

    assert_eq!(family.choose(None).unwrap_err().to_string(), "profile two has variants, and none is named");
    let with_default = TWO.replace("variants:", "default_variant: b\nvariants:");
    assert_eq!(Profile::parse(with_default.as_bytes()).unwrap(), b);
    let error = error_after(TWO, "variants:", "default_variant: bb\nvariants:");
    assert!(error.to_string().contains("line 9, column 1: `default_variant`: there is no such variant"), "{error}");
    assert_eq!(error.hint(), "did you mean `b`?");
}

#[test]
fn a_conflict_in_a_variant_is_found_where_it_stands() {
    let error = error_after(TWO, "found: suffix", "found: inside");
    let text = error.to_string();
    assert!(text.contains("line 12, column 7: `variants.a.seal.iv`: an IV that stays in the ciphertext"), "{text}");
    let error = error_after(TWO, "mechanism: aes-gcm", "mechanism: aes-gcm\n  aad: plaintext");
    assert!(error.to_string().contains("line 8, column 3: `seal.aad`: the mechanism takes the context"), "{error}");
}

#[test]
fn codes_are_names_or_numbers() {
    let read = |line: &str| {
        let text = SOFTHSM2.replacen("CKR_GENERAL_ERROR@C_Decrypt: data", line, 1);
        Profile::parse(text.as_bytes()).unwrap().codes
    };
    assert_eq!(
        read("0x80000123: pin-or-config"),
        [CodeOverride { code: 0x8000_0123, function: None, class: Class::PinOrConfig }]
    );
    assert_eq!(read("CKR_DEVICE_ERROR: session")[0].code, 0x30);
    let both = read("CKR_DEVICE_ERROR: session\n  CKR_DEVICE_ERROR@C_Login: busy");
    assert_eq!(both[0].function, Some("C_Login"), "the code of one function comes first");
    assert_eq!(read("{}").len(), 0);
}

#[test]
fn contradictions_are_refused_with_field_line_and_hint() {
    let iv = "  iv: { send: random, found: sent, bytes: 12 }";
    let end = "evidence:";
    for (old, new, error) in [
        (iv, "  iv: { send: none }", "line 6, column 3: `seal.iv.found`: the IV that was sent is kept, so it must be"),
        (iv, "  iv: { send: zeros }", "`seal.iv.found`: the IV that was sent is kept, so it must be random"),
        (iv, "  iv: { send: none, found: param }", "`seal.iv.send`: the module cannot write its IV"),
        (iv, "  iv: { found: inside }", "`seal.iv`: an IV that stays in the ciphertext is neither sent nor known"),
        (iv, "  iv: { send: none, found: suffix, bytes: 0 }", "`seal.iv.bytes`: an IV of aes-gcm has 12 or 16"),
        (iv, "  iv: { send: zeros, found: prefix, bytes: 13 }", "`seal.iv.bytes`: an IV of aes-gcm has 12 or 16"),
        (iv, "  aad: plaintext", "line 6, column 3: `seal.aad`: the mechanism takes the context as AAD"),
        (iv, "  params: none", "`seal.params`: the mechanism takes other parameters"),
        (iv, "  call: wrap", "`seal.call`: only aes-kwp can wrap"),
        (iv, "  call: message\n  iv: { send: none, found: suffix }", "`seal.call`: message encryption is for"),
        ("aes-gcm", "aes-kwp", "line 6, column 3: `seal.iv`: the mechanism takes no IV"),
        ("aes-gcm\n  iv", "aes-kwp\n  aad: param #", "`seal.aad`: the mechanism has no AAD"),
        ("aes-gcm\n  iv", "yubico-ccm\n  aad: param #", "`seal.aad`: the mechanism has no AAD"),
        ("aes-gcm\n  iv", "aes-cbc-hmac\n  aad: param #", "`seal.aad`: the context goes into the MAC"),
        ("aes-gcm", "aes-cbc-hmac", "`seal.iv`: aes-cbc-hmac sends 16 random bytes"),
        ("aes-gcm\n  iv", "aes-kwp\n  call: message #", "`seal.call`: message encryption is for aes-gcm"),
        ("  mechanism: aes-gcm\n", "", "line 4, column 1: `seal.mechanism`: no mechanism is named"),
        (end, "login: { user: none, pin: user:password }\nevidence:", "`login.pin`: nobody logs in"),
        (end, "key: { generate: tool, omit: [CKA_SIGN] }\nevidence:", "`key.generate`: the vendor's tool takes no"),
        (end, "key: { add: { CKA_EXTRACTABLE: true } }\nevidence:", "`key.add`: CKA_EXTRACTABLE is always the same"),
        (end, "key: { add: { CKA_WRAP: true } }\nevidence:", "`key.add`: CKA_WRAP is a right that no KEK may have"),
        (end, "key: { add: { CKA_WRAP: 1 } }\nevidence:", "`key.add`: CKA_WRAP is a right that no KEK may have"),
        (end, "key: { add: { 0x1: true }, omit: [0x1] }\nevidence:", "`key.add`: CKA_TOKEN is always the same"),
        (
            end,
            "key: { add: { 0x80000001: 2 }, omit: [0x80000001] }\nevidence:",
            "`key.add`: 0x80000001 is under `omit`",
        ),
        (end, "module: { manufacturers: ['x '] }\nevidence:", "`module.manufacturers`: C_GetInfo has room for 32"),
        (end, "default_variant: x\nevidence:", "`default_variant`: there is no such variant"),
        (end, "codes: { CKR_DEVICE_ERROR: gone, 0x30: gone }\nevidence:", "`codes`: CKR_DEVICE_ERROR stands twice"),
        ("  default: documents", "  seal: documents", "line 7, column 1: `evidence.default`: it is missing"),
        (end, "evidence:\n  seal.iv.byte: ci", "line 8, column 3: `evidence.seal.iv.byte`: there is no such field"),
        (end, "evidence:\n  name: ci", "`evidence.name`: there is no such field"),
    ] {
        let found = error_after(SMALL, old, new);
        assert!(found.to_string().contains(error), "{found}\n{error}");
        assert!(!found.hint().is_empty());
    }
    assert_eq!(error_after(SMALL, end, "evidence:\n  seal.iv.byte: ci").hint(), "did you mean `seal.iv.bytes`?");
    assert_eq!(error_after(SMALL, end, "evidence:\n  modul: ci").hint(), "did you mean `module`?");
}

#[test]
fn values_and_keys_are_strict() {
    let end = "evidence:";
    for (old, new, error) in [
        ("title:", "tittle:", "line 3, column 1: unknown key `tittle`"),
        ("version: 1", "version: 2", "version 2 is not known"),
        ("name: small", "name: Small HSM", "`name`: expected 1 to 63 of a-z, 0-9 and '-'"),
        ("title: Small", "title: ''", "`title`: must not be empty"),
        ("found: sent", "fund: sent", "line 6, column 23: unknown key `seal.iv.fund`"),
        ("found: sent", "found: here", "`seal.iv.found`: expected one of"),
        ("send: random", "send: null", "`seal.iv.send`: expected"),
        ("mechanism: aes-gcm", "mechanism: null", "`seal.mechanism`: expected"),
        ("mechanism: aes-gcm", "mechanism: aes-gmc", "line 5, column 14: `seal.mechanism`: expected one of `aes-gcm`"),
        ("bytes: 12", "bytes: 17", "`seal.iv.bytes`: expected a whole number from 0 to 16"),
        (
            "mechanism: aes-gcm",
            "mechanism: aes-gcm\n  max_bytes: 31",
            "`seal.max_bytes`: expected a whole number from 32",
        ),
        (
            "mechanism: aes-gcm",
            "mechanism: aes-gcm\n  number: CKM_AES",
            "`seal.number`: expected a mechanism: one of CKM_AES_GCM",
        ),
        (end, "module: { paths: [usr/x.so] }\nevidence:", "`module.paths[0]`: expected an absolute path"),
        (end, "module: { environment: [1A] }\nevidence:", "`module.environment[0]`: expected the name"),
        (end, "module: { manufacturers: [''] }\nevidence:", "`module.manufacturers[0]`: must not be empty"),
        (end, "login: { user: so }\nevidence:", "`login.user`: expected one of"),
        (end, "key: { type: CKK_DES }\nevidence:", "`key.type`: expected a key type: one of CKK_AES"),
        (end, "key: { generate: hand }\nevidence:", "`key.generate`: expected `tool` or a mechanism"),
        (end, "key: { omit: [CKA_NO] }\nevidence:", "`key.omit[0]`: expected an attribute: one of"),
        (end, "key: { add: { CKA_COPYABLE: maybe } }\nevidence:", "`key.add.CKA_COPYABLE`: expected true, false or"),
        (end, "sessions: { max: 1 }\nevidence:", "`sessions.max`: expected a whole number from 2 to 65536"),
        (end, "key_settle: 24\nevidence:", "`key_settle`: expected a number and `s`, `m` or `h`"),
        (end, "key_settle: 1000h\nevidence:", "`key_settle`: expected a number and `s`, `m` or `h`"),
        (end, "codes: { CKR_GENERAL_EROR: data }\nevidence:", "not a return code of PKCS#11"),
        (end, "codes: { 0xZZ: data }\nevidence:", "not a return code of PKCS#11"),
        (end, "codes: { CKR_OK: data }\nevidence:", "CKR_OK is no failure"),
        (end, "codes: { CKR_GENERAL_ERROR@C_Decript: data }\nevidence:", "not a function of PKCS#11"),
        (end, "codes: { CKR_GENERAL_ERROR: dead }\nevidence:", "expected one of `busy`, `data`, `gone`"),
        (end, "ha: yes\nevidence:", "`ha`: expected one of"),
        (end, "variants: { A: {} }\nevidence:", "expected 1 to 63 of a-z"),
        (end, "variants: { a: { modul: {} } }\nevidence:", "unknown key `variants.a.modul`"),
        ("default: documents", "default: hearsay", "`evidence.default`: expected one of"),
    ] {
        let found = error_after(SMALL, old, new).to_string();
        assert!(found.contains(error), "{found}\n{error}");
    }
    assert_eq!(error_after(SMALL, "found: sent", "fund: sent").hint(), "did you mean `found`?");
}

#[test]
fn a_profile_needs_a_seal_or_a_refusal() {
    let none = SMALL.replace("seal:\n  mechanism: aes-gcm\n  iv: { send: random, found: sent, bytes: 12 }\n", "");
    assert_eq!(error(&none).to_string(), "profile: `seal.mechanism`: no mechanism is named");
    let refused = none.replace("title: Small", "title: Small\nrefuse: it leaks");
    let unusable = Profile::parse(refused.as_bytes()).unwrap().usable().unwrap_err();
    assert_eq!(unusable.to_string(), "profile small refuses: it leaks");
    assert!(
        error(&refused.replace("evidence:", "seal: { aad: param }\nevidence:")).to_string().contains("no mechanism")
    );
}

#[test]
fn what_is_not_proved_is_named() {
    let unproved = |evidence: &str| {
        let text = SMALL.replace("  default: documents\n", evidence);
        Profile::parse(text.as_bytes()).unwrap().unproved()
    };
    assert_eq!(unproved("  default: ci\n"), [""; 0]);
    assert_eq!(unproved("  default: device\n  seal: ci-imitated\n  key.add: documents\n"), ["seal", "key.add"]);
    assert_eq!(
        unproved("  default: ci\n  module.daemon: unconfirmed\n  backup: documents\n"),
        ["module.daemon", "backup"]
    );
}

#[test]
fn the_checked_form_has_every_field() {
    for name in Profile::names() {
        let json = Family::by_name(name).unwrap().json();
        for profile in json["profiles"].as_array().unwrap() {
            for field in FIELDS {
                let pointer = format!("/{}", field.replace('.', "/"));
                let refused = field.starts_with("seal.") && profile["seal"].is_null();
                assert!(refused || profile.pointer(&pointer).is_some(), "{name}: {field}");
                assert!(profile["evidence"][field].is_string(), "{name}: {field}");
            }
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Profile::load(Path::new("/nonexistent/profile.yaml")).unwrap_err();
    assert!(error.to_string().starts_with("profile /nonexistent/profile.yaml: the file cannot be read"));
}

mod damaged {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            cut in 0..TWO.len(),
            place in 0..TWO.len(),
            junk in prop::sample::select(vec!["[", "{", ": ", "- ", "&a ", "*a", "!t ", "null", "\n", "-1", "0x", "\"", "\u{0}"]),
        ) {
            let damaged = format!("{}{junk}{}", &TWO[..place], &TWO[place..]);
            let _ = Profile::parse(damaged.as_bytes());
            let _ = Profile::parse(&damaged.as_bytes()[..cut]);
            let _ = Profile::parse(&damaged.as_bytes()[cut..]);
        }
    }
}
