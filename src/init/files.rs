//! The files of each platform: those of docs/deploy, with the paths and names of the answers.

use super::texts;
use super::{Answers, InitError, Platform};
use crate::config::Config;

/// A file to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewFile {
    /// Where, below the folder.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// What the answers make, sorted by path. The configuration was read as `serve` reads it.
pub fn files(answers: &Answers) -> Result<Vec<NewFile>, InitError> {
    let configuration = texts::configuration(answers);
    check(&configuration)?;
    let mut files = vec![
        file("CHECKLIST.md", texts::checklist(answers)),
        file("config.yaml", configuration),
        file("ceremony-plan.yaml", texts::plan(answers)),
    ];
    let mut add = |path: &str, source: &str| files.push(file(path, adapted(answers, source)));
    if answers.platform.has_units() {
        add("systemd/hsm-kms.service", &service(answers));
        add("systemd/hsm-kms.socket", include_str!("../../docs/deploy/systemd/hsm-kms.socket"));
        add("systemd/sysusers.conf", include_str!("../../docs/deploy/systemd/sysusers.conf"));
        add("systemd/tmpfiles.conf", include_str!("../../docs/deploy/systemd/tmpfiles.conf"));
        if let Some((name, text)) = drop_in(&answers.profile.name) {
            add(&format!("systemd/hsm-kms.service.d/{name}"), text);
        }
    }
    if answers.platform != Platform::Openshift {
        add("encryption/phase-0.yaml", include_str!("../../docs/deploy/encryption/phase-0.yaml"));
        add("encryption/phase-1.yaml", include_str!("../../docs/deploy/encryption/phase-1.yaml"));
        add("encryption/phase-2.yaml", include_str!("../../docs/deploy/encryption/phase-2.yaml"));
    }
    match answers.platform {
        Platform::Systemd => {}
        Platform::Kubeadm | Platform::StaticPod => {
            add("kubeadm/kube-apiserver+json.yaml", include_str!("../../docs/deploy/kubeadm/kube-apiserver+json.yaml"));
            add(
                "kubeadm/cluster-configuration.yaml",
                include_str!("../../docs/deploy/kubeadm/cluster-configuration.yaml"),
            );
        }
        Platform::K3s => add("k3s/hsm-kms.yaml", include_str!("../../docs/deploy/k3s/hsm-kms.yaml")),
        Platform::Rke2 => add("rke2/hsm-kms.yaml", include_str!("../../docs/deploy/rke2/hsm-kms.yaml")),
        Platform::Talos => files.push(file("talos/hsm-kms.yaml", talos(answers))),
        Platform::Openshift => {
            add("openshift/apiserver.yaml", include_str!("../../docs/deploy/openshift/apiserver.yaml"));
        }
    }
    if matches!(answers.platform, Platform::StaticPod | Platform::Openshift) {
        files.push(file("static-pod/hsm-kms.yaml", pod(answers)));
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn file(path: &str, text: String) -> NewFile {
    NewFile { path: path.to_owned(), text }
}

/// As `serve` reads it, but for files of the vendor's client: this may be another machine than the one that serves.
fn check(configuration: &str) -> Result<(), InitError> {
    let anywhere = configuration.replacen("\n  label: ", "\n  init_reserved: none\n  label: ", 1);
    Config::parse(anywhere.as_bytes())?;
    Ok(())
}

/// Texts of the sources that an answer takes the place of.
const SOCKET: &str = "/run/hsm-kms/hsm@kms.sock";
const SOCKET_FOLDER: &str = "/run/hsm-kms";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const IMAGE: &str = "localhost/hsm-kms:latest";

fn adapted(answers: &Answers, source: &str) -> String {
    // In pieces: what was put in is not looked at again.
    let pieces = source.split(SOCKET).map(|piece| piece.replace(SOCKET_FOLDER, answers.socket.folder()));
    pieces.collect::<Vec<_>>().join(answers.socket.as_str())
}

fn service(answers: &Answers) -> String {
    let unit = include_str!("../../docs/deploy/systemd/hsm-kms.service");
    if answers.logs_in() { unit.to_owned() } else { unit.replace(CREDENTIAL, "") }
}

/// systemd starts no service whose credential is missing.
const CREDENTIAL: &str = "LoadCredential=pin:/etc/hsm-kms/pin\n";

/// What the unit must be opened for.
fn drop_in(profile: &str) -> Option<(&'static str, &'static str)> {
    match profile {
        "opencryptoki-cca" | "opencryptoki-soft" => {
            Some(("opencryptoki.conf", include_str!("../../docs/deploy/systemd/drop-ins/opencryptoki.conf")))
        }
        "smartcard-hsm" => Some(("usb.conf", include_str!("../../docs/deploy/systemd/drop-ins/usb.conf"))),
        "tpm2" => Some(("tpm.conf", include_str!("../../docs/deploy/systemd/drop-ins/tpm.conf"))),
        _ => None,
    }
}

fn pod(answers: &Answers) -> String {
    let pod = adapted(answers, include_str!("../../docs/deploy/static-pod/hsm-kms.yaml"));
    pod.replace(MODULE, answers.module.as_str()).replace(IMAGE, answers.image.as_str())
}

/// The patch with the pod in it.
fn talos(answers: &Answers) -> String {
    let mut pod = pod(answers);
    // Nothing can be installed there: the module is in the image. And only /var can be written.
    for (found, replacement) in [
        (TALOS_MOUNT.replace(MODULE, answers.module.as_str()), ""),
        (TALOS_VOLUME.replace(MODULE, answers.module.as_str()), ""),
        ("hostPath: { path: /etc/hsm-kms, ".to_owned(), "hostPath: { path: /var/lib/hsm-kms-configuration, "),
        ("runAsGroup: 0\n".to_owned(), "runAsGroup: 65534\n"),
    ] {
        pod = pod.replace(&found, replacement);
    }
    let lines: Vec<_> = pod.lines().skip_while(|line| line.starts_with('#')).collect();
    let item = format!("  - {}\n", lines.join("\n    "));
    adapted(answers, include_str!("../../docs/deploy/talos/hsm-kms.yaml")).replace("  - {}\n", &item)
}

const TALOS_MOUNT: &str = "    - { name: module, mountPath: /usr/lib/softhsm/libsofthsm2.so, readOnly: true }\n";
const TALOS_VOLUME: &str = "  # The vendor's module; mount its folder if it needs files beside it.\n  - name: module\n    hostPath: { path: \
    /usr/lib/softhsm/libsofthsm2.so, type: File }\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of docs/deploy that `init` no longer finds its places in.
    #[test]
    fn the_sources_have_what_is_replaced() {
        let pod = include_str!("../../docs/deploy/static-pod/hsm-kms.yaml");
        for text in
            [SOCKET_FOLDER, MODULE, IMAGE, TALOS_MOUNT, TALOS_VOLUME, "runAsGroup: 0\n", "{ path: /etc/hsm-kms, "]
        {
            assert!(pod.contains(text), "{text}");
        }
        assert!(include_str!("../../docs/deploy/systemd/hsm-kms.service").contains(CREDENTIAL));
        assert!(include_str!("../../docs/deploy/systemd/hsm-kms.socket").contains(SOCKET));
        let talos = include_str!("../../docs/deploy/talos/hsm-kms.yaml");
        assert!(talos.contains(SOCKET) && talos.contains("  - {}\n"));
    }
}
