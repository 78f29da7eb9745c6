//! Bytes sealed by `C_WrapKey` and opened by `C_UnwrapKey`, on tokens that have nothing else: on their way they are a secret
//! object of the session, which is destroyed before the call returns.

use std::ops::RangeInclusive;

use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys as sys;
use zeroize::{Zeroize, Zeroizing};

use super::raw::{Mechanism, Parameter};
use super::{Error, Key, Session};
use crate::class::Class;

impl Session {
    /// Wraps `bytes` with the key. Gives exactly `expected` bytes, or an error.
    pub(super) fn wrap_bytes(&self, key: Key, mechanism: u64, bytes: &[u8], expected: usize) -> Result<Vec<u8>, Error> {
        let mut template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Value(bytes.to_vec()),
        ];
        let made = self.session.create_object(&template);
        if let Some(Attribute::Value(copy)) = template.last_mut() {
            copy.zeroize();
        }
        let secret = made.map_err(|error| self.module.error(error))?;
        let wrapped = self
            .functions()
            .wrap(self.session.handle(), without_parameter(mechanism), key.handle.handle(), secret.handle(), expected)
            .map_err(|failed| self.module.call_error(failed));
        self.forget(secret)?;
        wrapped
    }

    /// Unwraps what [`Session::wrap_bytes`] gave. Gives a number of bytes in `expected`, or an error.
    pub(super) fn unwrap_bytes(
        &self,
        key: Key,
        mechanism: u64,
        wrapped: &[u8],
        expected: &RangeInclusive<usize>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let secret = self
            .functions()
            .unwrap(self.session.handle(), mechanism, key.handle.handle(), wrapped)
            .map_err(|failed| self.module.call_error(failed))?;
        let value = self.secret_value(secret);
        self.forget(secret)?;
        match value? {
            Some(bytes) if expected.contains(&bytes.len()) => Ok(bytes),
            Some(_) => Err(self.data_error("C_UnwrapKey")),
            None => Err(Error::Sealing { what: "it does not give an unwrapped secret away".to_owned() }),
        }
    }

    /// `CKA_VALUE`, read without asking for its size, and wiped wherever it is dropped. `None`: the token keeps it.
    pub(super) fn secret_value(&self, object: ObjectHandle) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        match self.functions().attribute(self.session.handle(), object.handle(), sys::CKA_VALUE) {
            Err(failed) if matches!(failed.code, sys::CKR_ATTRIBUTE_SENSITIVE | sys::CKR_ATTRIBUTE_TYPE_INVALID) => {
                Ok(None)
            }
            read => read.map_err(|failed| self.module.call_error(failed)),
        }
    }

    /// A secret that cannot be destroyed goes with its session.
    fn forget(&self, secret: ObjectHandle) -> Result<(), Error> {
        self.session.destroy_object(secret).map_err(|error| match self.module.error(error) {
            Error::Call { function, code, .. } => Error::Call { function, code, class: Class::Session, poisoned: true },
            other => other,
        })
    }
}

fn without_parameter(code: u64) -> Mechanism<'static> {
    Mechanism { code, parameter: Parameter::None }
}
