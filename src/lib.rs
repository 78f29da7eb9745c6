//! `hsm-kms`: a Kubernetes KMS v2 plugin whose key encryption key (KEK) is a non-extractable AES key in a PKCS#11 HSM.
//!
//! The way of one Encrypt: [`kms`] takes the request from the socket, [`keyring`] picks the KEK's wrap handle, [`envelope`]
//! binds the context, [`token`] sends the work over a socketpair to the [`worker`] process, which runs two PKCS#11 calls in
//! [`pkcs11`]; the answer goes the same way back. The front process never loads the vendor module and never holds a PIN.

pub mod attributes;
pub mod audit;
pub mod ceremony;
pub mod class;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod doctor;
pub mod envelope;
pub mod etcd;
pub mod exit;
pub mod finding;
pub mod init;
pub mod key_id;
pub mod keyring;
pub mod kms;
pub mod kubernetes;
pub mod memory;
pub mod observe;
pub mod pin;
pub mod pkcs11;
pub mod probe;
pub mod profile;
mod random;
pub mod record;
pub mod recovery;
pub mod sandbox;
pub mod seal;
pub mod secret;
pub mod shares;
pub mod strict;
pub mod token;
pub mod wire;
pub mod worker;
