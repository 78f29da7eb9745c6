//! The hybrid scheme: HPKE base mode, single shot (RFC 9180 section 6.1), with X-Wing, HKDF-SHA256 and AES-256-GCM.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal_with_rng};
use zeroize::Zeroizing;

use super::{Binding, Recipient, Scheme, SealError};
use crate::random::Pool;
use crate::secret::Plaintext;

/// The private half, made in software: 32 random bytes, from which X-Wing derives its keys. Wiped on drop, never printed.
#[derive(Clone)]
pub struct HybridKey(Zeroizing<[u8; HybridKey::BYTES]>);

pub(super) type HybridPublic = <XWing as Kem>::PublicKey;

/// Bytes that a sealed seed is longer than the seed: encapsulated key (1120) and tag (16).
pub(super) const OVERHEAD_BYTES: usize = ENCAPSULATED_BYTES + 16;

const ENCAPSULATED_BYTES: usize = 1120;

/// What X-Wing takes to encapsulate.
const RANDOM_BYTES: usize = 64;

/// Ties the HPKE key schedule to this use.
const INFO: &[u8] = b"hsm-kms/recovery/v1 x25519-ml-kem-768";

impl HybridKey {
    /// Bytes of the private key.
    pub const BYTES: usize = 32;

    /// A new one, from the kernel's randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The public half. `None`: the library took its own key for none, which it never does.
    pub fn recipient(&self) -> Option<Recipient> {
        let public = XWing::sk_to_pk(&self.private()?);
        Recipient::new(Scheme::Hybrid, public.to_bytes().to_vec()).ok()
    }

    /// Opens what was sealed to it under this binding. `None`: it was sealed to another key, under another binding, or it was changed.
    pub fn open(&self, sealed: &[u8], binding: &Binding) -> Option<Plaintext> {
        let (encapsulated, ciphertext) = sealed.split_at_checked(ENCAPSULATED_BYTES)?;
        let encapsulated = <XWing as Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
        let opened = single_shot_open::<AesGcm256, HkdfSha256, XWing>(
            &OpModeR::Base,
            &self.private()?,
            &encapsulated,
            INFO,
            ciphertext,
            binding.as_bytes(),
        );
        opened.ok().map(Plaintext::new)
    }

    fn private(&self) -> Option<<XWing as Kem>::PrivateKey> {
        <XWing as Kem>::PrivateKey::from_bytes(&*self.0).ok()
    }
}

pub(super) fn read(encoded: &[u8]) -> Result<HybridPublic, String> {
    HybridPublic::from_bytes(encoded)
        .map_err(|_| format!("expected an X-Wing public key of 1216 bytes, found {} that are none", encoded.len()))
}

pub(super) fn seal(key: &HybridPublic, seed: &Plaintext, binding: &Binding) -> Result<Vec<u8>, SealError> {
    let failed = |error: String| SealError::Failed(error);
    let mut random = Pool::filled(RANDOM_BYTES).map_err(|error| failed(error.to_string()))?;
    let (encapsulated, ciphertext) = single_shot_seal_with_rng::<AesGcm256, HkdfSha256, XWing>(
        &OpModeS::Base,
        key,
        INFO,
        seed.expose(),
        binding.as_bytes(),
        &mut random,
    )
    .map_err(|error| failed(error.to_string()))?;
    if random.ran_out() {
        return Err(failed("it took more randomness than it needs".to_owned()));
    }
    Ok([encapsulated.to_bytes().as_slice(), &ciphertext].concat())
}
