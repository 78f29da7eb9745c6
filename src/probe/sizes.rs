//! What the module says when asked for the size of its output, against the truth. Only asked: no memory is taken by it.

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::outcome::Outcome;
use super::seals::{CONTEXT, SEED, by_encrypt, fresh};
use super::steps::Trial;
use crate::pkcs11::Error;
use crate::seal::IvLayout;

/// The answers for a plaintext of 32 bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// `C_Encrypt` with a NULL output.
    pub encrypt: Size,
    /// `C_Decrypt` with a NULL output.
    pub decrypt: Size,
}

/// One answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// What the module says.
    pub says: Says,
    /// What came out, in bytes.
    pub is: Option<usize>,
}

/// A number of bytes, or none.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Says {
    /// So many bytes.
    Bytes(u64),
    /// No number.
    Not(Outcome),
}

pub(super) fn run(bench: &mut Bench, trial: Trial) -> Result<Sizes, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    let sealing = &candidate.sealing;
    if let Some(untried) = by_encrypt(&candidate) {
        let size = Size { says: Says::Not(untried), is: None };
        return Ok(Sizes { encrypt: size.clone(), decrypt: size });
    }
    let key = bench.keys(&candidate, trial.on_token)?.keys.key;
    let bench_ref = &*bench;
    let says = fresh(bench_ref, |session| session.encrypted_size(key, sealing, &CONTEXT, &SEED));
    let made = fresh(bench_ref, |session| session.encrypt_anything(key, sealing, &CONTEXT, &SEED));
    let encrypt = Size { says: says.into(), is: made.as_ref().ok().map(|(output, _)| output.len()) };
    let decrypt = match made {
        Ok((output, iv)) => {
            let (ciphertext, iv) = split(output, iv, sealing.form.iv_layout, sealing.form.iv_length.into());
            let says = fresh(bench_ref, |session| session.decrypted_size(key, sealing, &iv, &CONTEXT, &ciphertext));
            let is = fresh(bench_ref, |session| session.decrypt_anything(key, sealing, &iv, &CONTEXT, &ciphertext));
            Size { says: says.into(), is: is.ok() }
        }
        Err(error) => Size { says: Says::Not(Outcome::from(&error)), is: None },
    };
    bench.clear()?;
    Ok(Sizes { encrypt, decrypt })
}

/// Ciphertext and IV of an output.
fn split(mut output: Vec<u8>, iv: Vec<u8>, layout: IvLayout, bytes: usize) -> (Vec<u8>, Vec<u8>) {
    match layout {
        IvLayout::Suffix => {
            let iv = output.split_off(output.len().saturating_sub(bytes));
            (output, iv)
        }
        IvLayout::Prefix => {
            let ciphertext = output.split_off(bytes.min(output.len()));
            (ciphertext, output)
        }
        IvLayout::Inside | IvLayout::Param | IvLayout::Sent => (output, iv),
    }
}

impl From<Result<u64, Error>> for Says {
    fn from(result: Result<u64, Error>) -> Self {
        result.map_or_else(|error| Self::Not(Outcome::from(&error)), Self::Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_iv_is_taken_from_where_it_is() {
        let output = || vec![1, 2, 3, 4, 5];
        assert_eq!(split(output(), vec![9], IvLayout::Sent, 2), (output(), vec![9]));
        assert_eq!(split(output(), vec![], IvLayout::Suffix, 2), (vec![1, 2, 3], vec![4, 5]));
        assert_eq!(split(output(), vec![], IvLayout::Prefix, 2), (vec![3, 4, 5], vec![1, 2]));
        assert_eq!(split(output(), vec![], IvLayout::Prefix, 9), (vec![], output()));
        assert_eq!(split(output(), vec![], IvLayout::Suffix, 9), (vec![], output()));
    }
}
