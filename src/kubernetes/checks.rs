//! What is looked at in an `EncryptionConfiguration`. docs/doctor.md has the same list.

use crate::finding::Check;

/// The file can be read.
pub static FILE: Check = Check {
    name: "encryption-file",
    title: "file",
    why: "the API server does not start with a file that it cannot read, and takes no unknown key",
};
pub(super) static KIND: Check =
    Check { name: "encryption-kind", title: "kind", why: "the API server reads one kind and version of this file" };
pub(super) static PROVIDER: Check = Check {
    name: "encryption-kms-v2",
    title: "KMS v2",
    why: "without `apiVersion: v2` the API server speaks KMS v1, which this plugin does not answer",
};
pub(super) static CACHE: Check =
    Check { name: "encryption-cachesize", title: "cachesize", why: "it is of KMS v1; with v2 the file is refused" };
pub(super) static NAME: Check = Check {
    name: "encryption-name",
    title: "provider name",
    why: "the name is stored in front of every value, so it must be unique and stay as it is",
};
pub(super) static TIMEOUT: Check = Check {
    name: "encryption-timeout",
    title: "timeout",
    why: "an API server that gives up before the plugin does never hears the reason",
};
pub(super) static ENDPOINT: Check =
    Check { name: "encryption-endpoint", title: "endpoint", why: "it must lead to the socket of this plugin" };
pub(super) static SOCKET_NAME: Check = Check {
    name: "encryption-socket-name",
    title: "socket name",
    why: "Kubernetes 1.29 to 1.31 reaches a socket only if its file name has an @",
};
pub(super) static ORDER: Check = Check {
    name: "encryption-order",
    title: "who writes",
    why: "the first provider of an entry writes; the others only read what is there",
};
pub(super) static IDENTITY: Check = Check {
    name: "encryption-identity",
    title: "identity",
    why: "while it is listed, whoever writes to etcd can plant values in clear text",
};
pub(super) static OLD: Check = Check {
    name: "encryption-old-keys",
    title: "older providers",
    why: "their keys stand in this file, or need another plugin: whoever has them reads what they wrote",
};
pub(super) static SECRETS: Check =
    Check { name: "encryption-secrets", title: "secrets", why: "what no entry names is written in clear text" };
pub(super) static RESOURCES: Check = Check {
    name: "encryption-resources",
    title: "resources",
    why: "the first entry that names a resource decides; names that overlap in one entry are refused",
};
pub(super) static VERSION: Check = Check {
    name: "encryption-kubernetes",
    title: "Kubernetes",
    why: "KMS v2 is stable, and derives a key for each write, from Kubernetes 1.29 on",
};
/// All files say the same.
pub static SAME: Check = Check {
    name: "encryption-same",
    title: "same on all nodes",
    why: "an API server with another file cannot read what the others write",
};

/// All rules, in the order of the table.
pub static CHECKS: [&Check; 15] = [
    &FILE,
    &KIND,
    &PROVIDER,
    &CACHE,
    &NAME,
    &TIMEOUT,
    &ENDPOINT,
    &SOCKET_NAME,
    &ORDER,
    &IDENTITY,
    &OLD,
    &SECRETS,
    &RESOURCES,
    &VERSION,
    &SAME,
];
