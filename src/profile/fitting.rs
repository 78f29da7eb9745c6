//! Which profiles fit a token, by the mechanisms that it has.

use super::{Family, Profile, check};
use crate::seal::Seal;

/// The profiles of this manufacturer that this release can serve with and whose mechanisms are all there; without any, the
/// seals that the token could do under a profile of the operator's own.
pub fn fitting(manufacturer: &str, has: impl Fn(u64, u64) -> bool) -> Vec<String> {
    let own = Family::built_in()
        .filter_map(|(name, _)| Family::by_name(name).ok())
        .flat_map(|family| family.profiles)
        .filter(|profile| profile.module.manufacturers.iter().any(|known| known == manufacturer))
        .filter(|profile| profile.usable().is_ok_and(|sealing| sealing.mechanisms().iter().all(|(m, f)| has(*m, *f))));
    let own: Vec<_> = own.map(|profile: Profile| profile.full_name()).collect();
    if !own.is_empty() {
        return own;
    }
    let seals = Seal::ALL.into_iter().map(check::default_sealing);
    let fits = seals.filter(|sealing| sealing.mechanisms().iter().all(|(mechanism, flags)| has(*mechanism, *flags)));
    fits.map(|sealing| format!("a profile of your own with seal {}", sealing.form.seal.word())).collect()
}
