//! Signatures by OpenSSH (PROTOCOL.sshsig): made and checked by `ssh-keygen`, which everyone who takes part has or can get.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};

use super::EvidenceError;
use crate::ceremony::{People, Person};

/// What these signatures are for; one made for anything else is not taken.
const NAMESPACE: &str = "hsm-kms-ceremony";

/// The name of a person in `allowed_signers`, and of the signature without its ending: place in the plan from 1, and role.
pub fn principal(people: &People, person: &Person) -> Option<String> {
    let place = people.all().iter().position(|other| other == person)?;
    Some(format!("{}-{}", place + 1, person.role.word()))
}

/// `allowed_signers`: one line for each person of the plan (ssh-keygen(1), ALLOWED SIGNERS).
pub fn allowed_signers(people: &People) -> String {
    let line = |person: &Person| {
        let principal = principal(people, person).unwrap_or_default();
        format!("{principal} namespaces=\"{NAMESPACE}\" {}\n", person.key.as_str())
    };
    people.all().iter().map(line).collect()
}

/// Whether this is a signature over the statement by the key that `signers` names for the principal.
pub(super) fn verifies(
    signers: &str,
    principal: &str,
    statement: &[u8],
    signature: &[u8],
) -> Result<bool, EvidenceError> {
    // The very bytes that were checked, and not what lies at a path by now.
    let (signers, signature) = (in_memory(signers.as_bytes())?, in_memory(signature)?);
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new(PROGRAM);
    command.args(["-Y", "verify", "-n", NAMESPACE, "-I", principal]);
    command.args(["-f", &path(&signers), "-s", &path(&signature)]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(EvidenceError::NoProgram)?;
    feed(&mut child, statement);
    Ok(child.wait().map_err(EvidenceError::NoProgram)?.success())
}

/// Signs the statement with this private key, or with one that an agent or a hardware token holds for this public key.
/// `ssh-keygen` asks for a passphrase itself.
pub(super) fn make(key: &Path, statement: &[u8]) -> Result<Vec<u8>, EvidenceError> {
    // A path that begins with a dash would be an option.
    let key = if key.is_absolute() { key.to_owned() } else { Path::new(".").join(key) };
    let mut command = Command::new(PROGRAM);
    command.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(&key);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(EvidenceError::NoProgram)?;
    feed(&mut child, statement);
    let output = child.wait_with_output().map_err(EvidenceError::NoProgram)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(EvidenceError::NotSigned { key, status: output.status })
    }
}

const PROGRAM: &str = "ssh-keygen";

/// Gives the child the whole of its standard input. A statement is far shorter than a pipe holds; a child that does not read it
/// says by its exit status what was wrong.
fn feed(child: &mut std::process::Child, statement: &[u8]) {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(statement);
    }
}

/// A file without a name, which a child inherits.
fn in_memory(bytes: &[u8]) -> Result<File, EvidenceError> {
    let made = memfd_create("ssh-keygen", MemfdFlags::empty()).map_err(std::io::Error::from).and_then(|descriptor| {
        let mut file = File::from(descriptor);
        file.write_all(bytes).map(|()| file)
    });
    made.map_err(EvidenceError::file(Path::new("memfd")))
}
