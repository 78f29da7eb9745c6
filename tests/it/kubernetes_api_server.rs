//! `scripts/e2e-kube-apiserver` on Kubernetes' own API server for custom resources, which Debian packages; kube-apiserver itself is
//! no part of any registry that the tests can reach.

use std::process::{Command, Output};

use crate::parts::{folder, installed, record_run};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/e2e-kube-apiserver");

#[test]
fn objects_outlive_a_restart_another_kek_and_a_lost_hsm() {
    let server = installed(folder().join("bin/apiextensions-apiserver"));
    let mut script = Command::new(SCRIPT);
    script.args(["--bin", env!("CARGO_BIN_EXE_hsm-kms"), "--custom-resources"]).arg(server);
    let output = script.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("21 of 21 objects read, each as it was written"), "{text}");
    assert!(text.ends_with("All of it holds.\n"), "{text}");
    record_run("kubernetes api server");
}

#[test]
fn without_binaries_it_says_how_to_get_them() {
    let empty = tempfile::tempdir().unwrap();
    let refused = |assets: Option<&std::path::Path>| -> Output {
        let mut script = Command::new(SCRIPT);
        script.env_remove("KUBEBUILDER_ASSETS");
        if let Some(assets) = assets {
            script.env("KUBEBUILDER_ASSETS", assets);
        }
        script.output().unwrap()
    };
    for (assets, why) in [(None, "KUBEBUILDER_ASSETS is not set"), (Some(empty.path()), "has no kube-apiserver")] {
        let output = refused(assets);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(why) && text.contains("setup-envtest use -p path"), "{text}");
    }
}
