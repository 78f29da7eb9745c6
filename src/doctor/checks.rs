//! Everything that is looked at, in the order of the table. docs/doctor.md has the same list.

use crate::finding::Check;
use crate::kubernetes;

/// Checks that belong together.
pub struct Group {
    /// Its heading.
    pub title: &'static str,
    /// In the order of the table.
    pub checks: &'static [&'static Check],
}

/// All groups.
pub static GROUPS: [Group; 6] = [
    Group { title: "Files", checks: &[&CONFIG, &CONFIG_FILE, &PIN_FILE, &RECORD_FILE, &SOCKET_FOLDER, &AUDIT_FILE] },
    Group {
        title: "Module and token",
        checks: &[&MODULE_FILE, &MODULE, &MODULE_KNOWN, &TOKEN, &PIN_STATE, &MECHANISMS, &PROFILE, &EVIDENCE],
    },
    Group { title: "KEK", checks: &[&RECORD, &KEK, &RECOVERY, &DRILL, &ROTATION, &KEYRING] },
    Group { title: "Plugin", checks: &[&SOCKET, &STATUS, &PEERS, &MEMORY, &CORE, &SANDBOX] },
    Group { title: "Machine", checks: &[&CLOCK] },
    Group { title: "EncryptionConfiguration", checks: &kubernetes::CHECKS },
];

macro_rules! checks {
    ($($(#[$meta:meta])* $static:ident $name:literal $title:literal $why:literal)*) => {
        $(pub(super) static $static: Check = Check { name: $name, title: $title, why: $why };)*
    };
}

checks! {
    CONFIG "config" "configuration"
        "`serve` does not start with a file that it cannot use"
    CONFIG_FILE "config-file" "its rights"
        "whoever writes it chooses module, socket and who may connect"
    PIN_FILE "pin-file" "PIN"
        "whoever reads the PIN and reaches the HSM can use the KEK"
    RECORD_FILE "record-file" "record's rights"
        "whoever writes it chooses which key is taken for the KEK"
    SOCKET_FOLDER "socket-folder" "socket's folder"
        "whoever writes to it can put another socket there, and be sent every seed"
    AUDIT_FILE "audit-log" "audit log"
        "whoever writes it can hide what was done; and a full disk loses lines, or stops the plugin"
    MODULE_FILE "module-file" "module's rights"
        "whoever writes it runs in the process that has the PIN"
    MODULE "module" "module"
        "without the vendor's library nothing reaches the HSM"
    MODULE_KNOWN "module-known" "as at ceremony"
        "what was proved of the module was proved of the file that made the KEK"
    TOKEN "token" "token"
        "the KEK lies in this token and in no other of the same name"
    PIN_STATE "pin-state" "PIN state"
        "a PIN that is nearly locked is not tried by the plugin, so that it stays usable"
    MECHANISMS "mechanisms" "mechanisms"
        "the profile seals with these"
    PROFILE "profile" "profile"
        "a module that is driven with another vendor's profile does not do what is expected"
    EVIDENCE "evidence" "evidence"
        "what rests on documents was never tried on the device"
    RECORD "record" "record"
        "it says which key is the KEK, and how it was made"
    KEK "kek" "KEK"
        "a key that is weaker than recorded, or another one, protects nothing"
    RECOVERY "recovery" "recovery"
        "without a second way the loss of the token is the loss of every Secret, in backups too"
    DRILL "drill" "recovery drill"
        "a recovery key that nobody has tried may open nothing"
    ROTATION "rotation" "rotation"
        "the longer a KEK is in use, the more its loss or leak costs"
    KEYRING "keyring" "keyring"
        "a node that lacks a KEK cannot read what the others write"
    SOCKET "socket" "socket"
        "the API server reaches the plugin there and nowhere else"
    STATUS "status" "Status"
        "the API server asks for it all the time, and stops writing when it is not well"
    PEERS "peers" "peers"
        "the API server's user must be among those that may connect"
    MEMORY "memory" "memory lock"
        "seeds and PIN must not get onto a disk by way of swap"
    CORE "core-dumps" "core dumps"
        "a core dump would hold seeds and PIN"
    SANDBOX "sandbox" "sandbox"
        "a vendor's library with a hole should reach no more than it needs"
    CLOCK "clock" "clock"
        "planned activations, ages and the times in evidence are worth what the clock is"
}
