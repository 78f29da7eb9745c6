//! What kube-apiserver is told of this plugin: its `EncryptionConfiguration`, and what is wrong with it.

mod checks;
mod duration;
mod encryption_configuration;
mod lint;
mod resources;
#[cfg(test)]
mod tests;
mod version;

pub use self::checks::{CHECKS, FILE, SAME};
pub use self::encryption_configuration::EncryptionConfiguration;
pub use self::lint::{Surroundings, lint, unread};
pub use self::version::KubernetesVersion;
