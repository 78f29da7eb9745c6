//! The ways of sealing that are tried: those of this release with the standard's mechanisms, and those of known profiles.

use cryptoki_sys as sys;

use crate::profile::{self, AttributeSetting, Family, KeyGeneration, Profile};
use crate::seal::{IvLayout, IvSend, Seal, SealCall, SealForm, Sealing};

/// A way of sealing, with the key that it takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// As reports name it: the seal, then IV sent, found and bytes, or the call.
    pub name: String,
    /// The way.
    pub sealing: Sealing,
    /// `CK_KEY_TYPE`.
    pub kind: u64,
    /// `CK_MECHANISM_TYPE` of the generation.
    pub generate: u64,
    /// Attributes that the key needs besides.
    pub add: Vec<(u64, AttributeSetting)>,
    /// Attributes that the module refuses.
    pub omit: Vec<u64>,
}

/// All of them, the best first; the given profile's own in front.
pub(super) fn candidates(profile: Option<&Profile>) -> Vec<Candidate> {
    let mut list: Vec<Candidate> = profile.and_then(of_profile).into_iter().collect();
    let mut add = |candidate: Candidate| {
        if !list.iter().any(|known| known.sealing == candidate.sealing) {
            list.push(candidate);
        }
    };
    for sealing in standard() {
        add(of_sealing(sealing));
    }
    let built_in = Family::built_in().filter_map(|(name, _)| Family::by_name(name).ok());
    for profile in built_in.flat_map(|family| family.profiles) {
        if let Some(candidate) = of_profile(&profile) {
            // Whoever has this device names its profile; others only need the mechanism.
            add(Candidate { add: Vec::new(), omit: Vec::new(), ..candidate });
        }
    }
    list
}

fn standard() -> impl Iterator<Item = Sealing> {
    let gcm = |send, iv_layout, iv_length| Sealing {
        form: SealForm { seal: Seal::AesGcm, iv_layout, iv_length },
        send,
        mechanism: sys::CKM_AES_GCM,
        call: SealCall::Encrypt,
    };
    let wrap = |mechanism, call| Sealing {
        form: SealForm { seal: Seal::AesKwp, iv_layout: IvLayout::Inside, iv_length: 0 },
        send: IvSend::Null,
        mechanism,
        call,
    };
    let cbc = Sealing {
        form: SealForm { seal: Seal::AesCbcHmac, iv_layout: IvLayout::Sent, iv_length: 16 },
        send: IvSend::Random,
        mechanism: sys::CKM_AES_CBC,
        call: SealCall::Encrypt,
    };
    [
        gcm(IvSend::Random, IvLayout::Sent, 12),
        gcm(IvSend::Random, IvLayout::Sent, 16),
        gcm(IvSend::Zeros, IvLayout::Param, 12),
        gcm(IvSend::Zeros, IvLayout::Param, 16),
        gcm(IvSend::Null, IvLayout::Suffix, 12),
        gcm(IvSend::Null, IvLayout::Suffix, 16),
        gcm(IvSend::Null, IvLayout::Prefix, 12),
        gcm(IvSend::Null, IvLayout::Prefix, 16),
        gcm(IvSend::Random, IvLayout::Suffix, 12),
        gcm(IvSend::Null, IvLayout::Inside, 0),
        Sealing { call: SealCall::Message, ..gcm(IvSend::Zeros, IvLayout::Param, 12) },
        wrap(sys::CKM_AES_KEY_WRAP_KWP, SealCall::Encrypt),
        wrap(sys::CKM_AES_KEY_WRAP_KWP, SealCall::Wrap),
        wrap(sys::CKM_AES_KEY_WRAP_PAD, SealCall::Encrypt),
        wrap(sys::CKM_AES_KEY_WRAP_PAD, SealCall::Wrap),
        cbc,
    ]
    .into_iter()
}

fn of_sealing(sealing: Sealing) -> Candidate {
    let (kind, generate) = (sys::CKK_AES, sys::CKM_AES_KEY_GEN);
    Candidate { name: name(&sealing), sealing, kind, generate, add: Vec::new(), omit: Vec::new() }
}

fn of_profile(profile: &Profile) -> Option<Candidate> {
    let sealing = profile.seal?.sealing;
    let key = &profile.key;
    let generate = match key.generate {
        KeyGeneration::Mechanism(mechanism) => mechanism,
        KeyGeneration::Tool => sys::CKM_AES_KEY_GEN,
    };
    sealing.is_supported().then(|| Candidate {
        kind: key.kind,
        generate,
        add: key.add.clone(),
        omit: key.omit.clone(),
        ..of_sealing(sealing)
    })
}

/// The name of a way of sealing: `aes-gcm/random-sent-12`, `aes-gcm/message`, `aes-kwp/wrap`, `aes-cbc-hmac`, and `@` and the
/// mechanism where it is not the usual one.
pub fn name(sealing: &Sealing) -> String {
    let Sealing { form, send, mechanism, call } = sealing;
    let seal = form.seal.word();
    let (form, usual) = match (form.seal, call) {
        (Seal::AesGcm, SealCall::Message) => (format!("{seal}/message"), sys::CKM_AES_GCM),
        (Seal::AesGcm, _) => {
            let send = match send {
                IvSend::Null => "none",
                IvSend::Random => "random",
                IvSend::Zeros => "zeros",
            };
            let found = match form.iv_layout {
                IvLayout::Inside => "inside",
                IvLayout::Param => "param",
                IvLayout::Prefix => "prefix",
                IvLayout::Sent => "sent",
                IvLayout::Suffix => "suffix",
            };
            (format!("{seal}/{send}-{found}-{}", form.iv_length), sys::CKM_AES_GCM)
        }
        (Seal::AesKwp, SealCall::Wrap) => (format!("{seal}/wrap"), sys::CKM_AES_KEY_WRAP_KWP),
        (Seal::AesKwp, _) => (format!("{seal}/encrypt"), sys::CKM_AES_KEY_WRAP_KWP),
        (Seal::YubicoCcm, _) => (seal.to_owned(), *mechanism),
        (Seal::AesCbcHmac, _) => (seal.to_owned(), sys::CKM_AES_CBC),
    };
    if *mechanism == usual { form } else { format!("{form}@{}", profile::mechanism_name(*mechanism)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_candidate_has_a_name_of_its_own_and_is_supported() {
        let all = candidates(None);
        let names: BTreeSet<_> = all.iter().map(|candidate| candidate.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|candidate| candidate.sealing.is_supported()));
        for name in
            ["aes-gcm/random-sent-12", "aes-gcm/none-suffix-16", "aes-gcm/message", "aes-kwp/wrap", "yubico-ccm"]
        {
            assert!(names.contains(name), "{name}");
        }
        assert!(names.contains("aes-gcm/zeros-param-12@0x8001e101"), "{names:?}");
    }

    #[test]
    fn a_profile_s_own_way_comes_first_with_its_key() {
        let profile = Profile::by_name("yubihsm2").unwrap();
        let all = candidates(Some(&profile));
        let first = all.first().unwrap();
        assert_eq!((first.name.as_str(), first.kind), ("yubico-ccm", 0xD955_422A));
        assert!(!first.omit.is_empty());
        assert_eq!(all.len(), candidates(None).len());
    }
}
