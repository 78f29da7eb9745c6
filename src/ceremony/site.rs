//! The token of a plan, found and checked, before anybody logs in.

use super::CeremonyError;
use crate::config::Token as TokenPlan;
use crate::pkcs11::{Module, Token};
use crate::record::{Module as ModuleRecord, Sha256Digest, Token as TokenRecord};

/// A token, and the module that it is reached through.
pub(super) struct Site {
    /// The module.
    pub(super) module: Module,
    /// The token.
    pub(super) token: Token,
}

impl Site {
    /// Loads the module and finds the token; one with this serial number, if there are several of the label.
    pub(super) fn open(plan: &TokenPlan, serial: Option<&str>) -> Result<Self, CeremonyError> {
        let profile = &plan.profile;
        let reserved = plan.init_reserved.as_deref();
        let module = Module::load(&plan.module, reserved, &profile.module.manufacturers, profile.codes.clone())?;
        let token = module.token_of(&plan.label, serial)?;
        Ok(Self { module, token })
    }

    /// The token in a line.
    pub(super) fn summary(&self) -> String {
        let info = self.token.info();
        format!("{} {}, serial {}", info.manufacturer, info.model, info.serial)
    }

    /// The module, as records keep it.
    pub(super) fn module_record(&self, plan: &TokenPlan) -> Result<ModuleRecord, CeremonyError> {
        let info = self.module.info()?;
        let bytes = std::fs::read(&plan.module)
            .map_err(|source| CeremonyError::System { what: "the module file cannot be read for its hash", source })?;
        Ok(ModuleRecord {
            library: info.library,
            library_version: info.library_version,
            sha256: Sha256Digest::of(bytes),
        })
    }

    /// The token, as records keep it.
    pub(super) fn token_record(&self) -> TokenRecord {
        let info = self.token.info().clone();
        TokenRecord {
            label: info.label,
            manufacturer: info.manufacturer,
            model: info.model,
            serial: info.serial,
            firmware: info.firmware,
        }
    }
}
