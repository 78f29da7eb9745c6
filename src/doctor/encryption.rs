//! The `EncryptionConfiguration` of the API servers, of one node or of several.

use super::Subject;
use crate::finding::Finding;
use crate::kubernetes::{self, CHECKS, EncryptionConfiguration, FILE, SAME, Surroundings};

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    if subject.encryption.is_empty() {
        return CHECKS.map(|check| Finding::not_checked(check, "no --encryption-configuration was given")).into();
    }
    let around = Surroundings {
        socket: subject.socket(),
        deadline: subject.config().map(|config| config.limits.deadline),
        version: subject.version,
    };
    let read: Vec<_> = subject.encryption.iter().map(|path| (path, EncryptionConfiguration::read(path))).collect();
    let mut findings = Vec::new();
    let mut linted = Vec::new();
    for (path, read) in &read {
        let of_file = match read {
            // The same once more: its row is that it can be read.
            Ok(file) if linted.contains(&file.digest()) => {
                vec![Finding::ok(&FILE, format!("the same content, {}", file.digest()))]
            }
            Ok(file) => {
                linted.push(file.digest());
                kubernetes::lint(file, &around)
            }
            Err(error) => kubernetes::unread(error),
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).display().to_string();
        let is_alone = subject.encryption.len() == 1;
        findings.extend(of_file.into_iter().map(|finding| if is_alone { finding } else { finding.of(&name) }));
    }
    findings.push(if let [(_, Ok(file))] = read.as_slice() {
        let because = format!("one file was given; compare its digest on the other nodes: {}", file.digest());
        Finding::not_checked(&SAME, because)
    } else if read.iter().any(|(_, read)| read.is_err()) {
        Finding::not_checked(&SAME, "a file cannot be read")
    } else if linted.len() == 1 {
        Finding::ok(&SAME, format!("{} files say the same", read.len()))
    } else {
        let advice = "give every API server the same file, and restart or reload them one by one";
        Finding::failed(&SAME, format!("{} files say {} different things", read.len(), linted.len()), advice)
    });
    findings
}
