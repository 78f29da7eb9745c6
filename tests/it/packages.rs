//! What a package holds besides the program: man pages, completions, units, and what stands in docs/deploy for other platforms.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{run, text};

/// `man` reads every page without a complaint, and there is one for each command that help shows.
#[test]
fn every_command_has_a_man_page_and_hidden_ones_have_none() {
    let folder = tempfile::tempdir().unwrap();
    // Made if it is not there; a second time the pages are replaced.
    let out = folder.path().join("a/man1");
    for _ in 0..2 {
        assert!(run(&["generate", "man", "--out", &text(&out)], b"").status.success());
    }
    let found: BTreeSet<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected = BTreeSet::new();
    pages(&[], &mut expected);
    assert_eq!(found, expected);
    assert!(found.contains("hsm-kms-ceremony-plan-new.1") && !found.contains("hsm-kms-worker.1"), "{found:?}");

    let files: Vec<_> = found.iter().map(|name| out.join(name)).collect();
    let output = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).args(&files).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(out.join("hsm-kms.1")).unwrap();
    assert!(page.contains("hsm\\-kms\\-serve(1)") && !page.contains("worker"), "{page}");
}

/// The pages of this command and of those below it, by what its help shows.
fn pages(command: &[String], found: &mut BTreeSet<String>) {
    found.insert(format!("{}.1", [&["hsm-kms".to_owned()], command].concat().join("-")));
    let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let help = String::from_utf8(run(&arguments, b"").stdout).unwrap();
    let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let name = line.strip_prefix("  ").and_then(|line| line.split(' ').next()).unwrap();
        if name != "help" && !name.is_empty() {
            pages(&[command, &[name.to_owned()]].concat(), found);
        }
    }
}

#[test]
fn man_pages_that_cannot_be_written_are_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&["generate", "man", "--out", &text(&file)], b"");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(&format!("the man pages were not written into {}", file.display())), "{error}");
}

/// bash takes the script, and offers what is not hidden.
#[test]
fn completions_offer_commands_that_are_not_hidden() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["generate", "completions", shell], b"");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("serve") && !script.contains("worker"), "{shell}");
    }
    let offered = |words: &str, position: usize| {
        let script = format!(
            "source <({} generate completions bash) && COMP_WORDS=({words}) COMP_CWORD={position} && \
             _hsm__kms hsm-kms \"${{COMP_WORDS[{position}]}}\" '' && echo \"${{COMPREPLY[*]}}\"",
            env!("CARGO_BIN_EXE_hsm-kms")
        );
        let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(offered("hsm-kms ser", 1), "serve");
    assert_eq!(offered("hsm-kms wor", 1), "");
    assert!(offered("hsm-kms serve --co", 2).contains("--config"));
    assert!(offered("hsm-kms ceremony clone-check --re", 3).contains("--record"));
    assert_eq!(run(&["generate", "completions", "sh"], b"").status.code(), Some(2));
}

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy").join(name)
}

/// systemd finds no fault in the units, with and without each drop-in, and calls them safe enough.
#[test]
fn systemd_takes_the_units_and_their_exposure_is_small() {
    for drop_in in [None, Some("opencryptoki"), Some("tpm"), Some("usb")] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["hsm-kms.service", "hsm-kms.socket"] {
            let unit = fs::read_to_string(deploy("systemd").join(name)).unwrap();
            // The program of the package is not on this machine.
            let unit = unit.replace("/usr/bin/hsm-kms ", &format!("{} ", env!("CARGO_BIN_EXE_hsm-kms")));
            fs::write(folder.path().join(name), unit).unwrap();
        }
        if let Some(name) = drop_in {
            let drop_ins = folder.path().join("hsm-kms.service.d");
            fs::create_dir(&drop_ins).unwrap();
            fs::copy(deploy(&format!("systemd/drop-ins/{name}.conf")), drop_ins.join("drop-in.conf")).unwrap();
        }
        let units = ["hsm-kms.service", "hsm-kms.socket"].map(|name| text(&folder.path().join(name)));
        let output = analyze(folder.path(), &["verify", "--man=no", &units[0], &units[1]]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{drop_in:?}: {said}");

        let exposure = ["security", "--offline=true", "--threshold=20", "--no-pager", &units[0]];
        let output = analyze(folder.path(), &exposure);
        assert!(output.status.success(), "{drop_in:?}: {}", String::from_utf8_lossy(&output.stdout));
        // The control: a unit without any of it does not pass.
        let bare = folder.path().join("bare.service");
        fs::write(&bare, "[Service]\nExecStart=/bin/true\n").unwrap();
        let output = analyze(folder.path(), &["security", "--offline=true", "--threshold=20", &text(&bare)]);
        assert!(!output.status.success());
    }
}

fn analyze(units: &Path, arguments: &[&str]) -> Output {
    let path = format!("{}:", units.display());
    Command::new("systemd-analyze").env("SYSTEMD_UNIT_PATH", path).args(arguments).output().unwrap()
}

/// systemd makes the user and the folders, in a root of their own.
#[test]
fn systemd_makes_the_user_and_the_folders() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    let made = |program: &str, file: &str| {
        let mut command = Command::new(program);
        command.arg(format!("--root={}", root.path().display()));
        if program == "systemd-tmpfiles" {
            command.arg("--create");
        }
        let output = command.arg(deploy(file)).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    made("systemd-sysusers", "systemd/sysusers.conf");
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(users.lines().any(|line| line.starts_with("hsm-kms:") && line.ends_with(":/usr/sbin/nologin")), "{users}");
    // Only root may give a folder to a group that is not its own.
    if rustix::process::geteuid().is_root() {
        made("systemd-tmpfiles", "systemd/tmpfiles.conf");
        assert!(root.path().join("etc/hsm-kms/encryption").is_dir());
    }
}

/// All of them name the socket, the configuration and the `EncryptionConfiguration` that the units have.
#[test]
fn files_for_other_platforms_are_yaml_and_agree_with_the_units() {
    let unit = fs::read_to_string(deploy("systemd/hsm-kms.socket")).unwrap();
    let socket = unit.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap();
    let folder = Path::new(socket).parent().unwrap().to_str().unwrap();
    for name in ["encryption/phase-0.yaml", "encryption/phase-1.yaml", "encryption/phase-2.yaml", "talos/hsm-kms.yaml"]
    {
        let text = documents_of(name).iter().map(Value::to_string).collect::<String>();
        assert!(text.contains(&format!("\"endpoint\":\"unix://{socket}\"")), "{name}: {text}");
    }
    let mounting = [
        "kubeadm/kube-apiserver+json.yaml",
        "kubeadm/cluster-configuration.yaml",
        "rke2/hsm-kms.yaml",
        "static-pod/hsm-kms.yaml",
    ];
    for name in mounting {
        let text = documents_of(name).iter().map(Value::to_string).collect::<String>();
        assert!(
            text.contains(folder) && !text.contains(socket),
            "{name}: the folder is mounted, not the socket: {text}"
        );
    }
    for name in [
        "kubeadm/kube-apiserver+json.yaml",
        "kubeadm/cluster-configuration.yaml",
        "rke2/hsm-kms.yaml",
        "k3s/hsm-kms.yaml",
    ] {
        let text = documents_of(name).iter().map(Value::to_string).collect::<String>();
        assert!(text.contains("/etc/hsm-kms/encryption/configuration.yaml"), "{name}: {text}");
    }
    let pod = &documents_of("static-pod/hsm-kms.yaml")[0];
    let names = |list: &Value| list.as_array().unwrap().iter().map(|item| item["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&pod["spec"]["containers"][0]["volumeMounts"]), names(&pod["spec"]["volumes"]));
    assert!(pod["spec"].get("serviceAccountName").is_none() && !pod.to_string().contains("secretKeyRef"));
    assert_eq!(documents_of("openshift/apiserver.yaml")[0]["spec"]["encryption"]["type"], "KMS");
}

fn documents_of(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(deploy(name)).unwrap();
    assert!(text.lines().all(|line| line.len() <= 100), "{name}");
    text.split("\n---\n").map(|text| serde_yaml::from_str(text).unwrap_or_else(|why| panic!("{name}: {why}"))).collect()
}

/// No engine builds images here: the file's instructions exist, and nothing but the program is copied.
#[test]
fn the_container_file_is_well_formed() {
    let file = fs::read_to_string(deploy("container/Containerfile")).unwrap().replace("\\\n", " ");
    let lines: Vec<_> = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let (words, rests): (Vec<_>, Vec<_>) = lines.iter().map(|line| line.split_once(' ').unwrap()).unzip();
    assert_eq!(words, ["FROM", "COPY", "LABEL", "ENTRYPOINT", "CMD"]);
    assert!(rests[0].contains("debian:") && rests[1].ends_with("hsm-kms /usr/bin/hsm-kms"), "{rests:?}");
    for command in &rests[3..] {
        let words: Vec<String> = serde_json::from_str(command).unwrap();
        assert!(words.iter().all(|word| !word.is_empty()));
    }
}
