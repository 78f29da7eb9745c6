//! `hsm-kms init`: what it writes can be used, and it writes all or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hsm_kms::config;
use hsm_kms::kubernetes::EncryptionConfiguration;
use serde_json::{Value, json};

use crate::ceremony::terminal::Terminal;
use crate::harness::{Config, Plugin, TestToken, copy_program, program, run, run_ceremony, text};

const PLATFORMS: [&str; 7] = ["systemd", "static-pod", "kubeadm", "k3s", "rke2", "talos", "openshift"];

/// Flags that are enough, for this platform and folder.
fn flags<'a>(platform: &'a str, output: &'a str) -> Vec<&'a str> {
    vec![
        "init",
        "--cluster",
        "prod-eu-1",
        "--platform",
        platform,
        "--profile",
        "softhsm2",
        "--token-label",
        "kek",
        "--output",
        output,
    ]
}

fn write(arguments: &[&str]) -> Output {
    let output = run(arguments, b"");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Every file below, by its path there.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)));
        } else {
            // A link that leads nowhere has no text.
            found.insert(name, fs::read_to_string(path).unwrap_or_default());
        }
    }
    found
}

/// For each platform: the configuration is one, each phase has its providers, all YAML is YAML, the plan lacks only what people must fill
/// in, and the commands of the checklist exist.
#[test]
fn what_is_written_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut commands = BTreeSet::new();
    for platform in PLATFORMS {
        let output = text(&folder.path().join(platform));
        let said = String::from_utf8(write(&flags(platform, &output)).stdout).unwrap();
        let files = files(Path::new(&output));
        for (name, content) in &files {
            assert!(said.contains(&format!("\n  {name}\n")) && content.is_ascii(), "{platform}: {name}: {said}");
            if Path::new(name).extension().is_some_and(|extension| extension == "yaml") {
                for document in content.split("\n---\n") {
                    serde_yaml::from_str::<Value>(document).unwrap_or_else(|why| panic!("{platform}: {name}: {why}"));
                }
            }
        }
        let config = config::Config::load(&Path::new(&output).join("config.yaml")).unwrap();
        assert_eq!(
            (config.cluster.as_str(), config.warnings().len()),
            ("prod-eu-1", usize::from(platform == "openshift"))
        );
        let socket = text(&config.socket.path);
        let phases = [("0", "identity,kms"), ("1", "kms,identity"), ("2", "kms")];
        for (phase, expected) in phases.into_iter().filter(|_| platform != "openshift") {
            let phase = &files[&format!("encryption/phase-{phase}.yaml")];
            EncryptionConfiguration::parse(phase.as_bytes()).unwrap();
            let phase: Value = serde_yaml::from_str(phase).unwrap();
            let providers = phase["resources"][0]["providers"].as_array().unwrap();
            let names: Vec<_> =
                providers.iter().flat_map(|provider| provider.as_object().unwrap().keys().cloned()).collect();
            assert_eq!(names.join(","), expected);
            assert!(phase.to_string().contains(&format!("unix://{socket}\"")), "{phase}");
        }
        assert_eq!(
            files.contains_key("systemd/hsm-kms.service"),
            !["static-pod", "talos", "openshift"].contains(&platform)
        );
        let lint = run(&["ceremony", "plan", "lint", &format!("{output}/ceremony-plan.yaml")], b"");
        let why = String::from_utf8(lint.stderr).unwrap();
        assert!(lint.status.code() == Some(2) && why.contains("the name of a person"), "{why}");
        assert!(
            files["ceremony-plan.yaml"].contains("cluster: \"prod-eu-1\"")
                && files["ceremony-plan.yaml"].contains("label: \"kek\"")
        );
        let checklist = &files["CHECKLIST.md"];
        assert!(
            checklist.contains(&socket) && !checklist.contains("{{") && !checklist.contains("\n\n\n"),
            "{checklist}"
        );
        commands.extend(checklist.lines().filter(|line| line.starts_with("hsm-kms ")).map(str::to_owned));
    }
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        let words: Vec<_> = command
            .split(' ')
            .skip(1)
            .take_while(|word| word.starts_with(|first: char| first.is_ascii_lowercase()))
            .collect();
        let words: Vec<_> = words.into_iter().filter(|word| !word.contains('.') && *word != "softhsm2").collect();
        let help = String::from_utf8(run(&[&words[..], &["--help"]].concat(), b"").stdout).unwrap();
        for flag in command.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{flag} ")) || flag == "--help", "{command}: no {flag} in {help}");
        }
    }
}

/// One source: with the usual answers they are the files of docs/deploy, byte by byte.
#[test]
fn the_usual_answers_make_the_files_of_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy");
    let mut compared = 0;
    for platform in PLATFORMS.iter().filter(|platform| !["talos", "openshift"].contains(platform)) {
        let output = text(&folder.path().join(platform));
        write(&flags(platform, &output));
        for (name, content) in files(Path::new(&output)).iter().filter(|(name, _)| name.contains('/')) {
            assert_eq!(*content, fs::read_to_string(deploy.join(name)).unwrap(), "{name}");
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

/// Another socket, module and image stand everywhere that the usual ones stood.
#[test]
fn other_answers_take_the_place_of_the_usual_ones() {
    let folder = tempfile::tempdir().unwrap();
    let socket = "/srv/run/hsm-kms/other@kms.sock";
    for platform in ["kubeadm", "static-pod", "talos", "rke2"] {
        let output = text(&folder.path().join(platform));
        let mut arguments = flags(platform, &output);
        arguments[6] = "opencryptoki-soft/v3-8";
        arguments.extend([
            "--socket",
            socket,
            "--module",
            "/opt/vendor/module+1.so",
            "--image",
            "registry.example:5000/kms@sha256:00",
        ]);
        arguments.extend(["--environment", "A=\"quoted\" # %h", "--environment", "B_2=x"]);
        write(&arguments);
        let files = files(Path::new(&output));
        // The plan's comments have an example of their own.
        for (name, content) in files.iter().filter(|(name, _)| *name != "ceremony-plan.yaml") {
            let without = content.replace(socket, "").replace("/srv/run/hsm-kms", "");
            assert!(!without.contains("/run/hsm-kms") && !content.contains("softhsm"), "{platform}: {name}: {content}");
        }
        let config: Value = serde_yaml::from_str(&files["config.yaml"]).unwrap();
        assert_eq!(config["token"]["environment"], json!({"A": "\"quoted\" # %h", "B_2": "x"}));
        assert_eq!(config["token"]["module"], "/opt/vendor/module+1.so");
        match platform {
            "static-pod" => {
                let pod = &files["static-pod/hsm-kms.yaml"];
                assert!(
                    pod.contains("path: /opt/vendor/module+1.so, type: File")
                        && pod.contains("registry.example:5000/kms@sha256:00")
                );
            }
            "talos" => {
                let patch: Value =
                    serde_yaml::from_str(files["talos/hsm-kms.yaml"].split("\n---\n").next().unwrap()).unwrap();
                let pod = &patch["machine"]["pods"][0];
                assert_eq!(pod["spec"]["containers"][0]["image"], "registry.example:5000/kms@sha256:00");
                assert!(!pod.to_string().contains("module") && config["socket"]["mode"] == "0660", "{pod}");
            }
            _ => {
                let unit = &files["systemd/hsm-kms.service"];
                assert!(
                    unit.contains("LoadCredential=pin:")
                        && files.contains_key("systemd/hsm-kms.service.d/opencryptoki.conf")
                );
                let units = Path::new(&output).join("systemd");
                let analyze = Command::new("systemd-analyze")
                    .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
                    .args(["verify", "--man=no"])
                    .arg(units.join("hsm-kms.socket"))
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&analyze.stderr);
                // The program of the package is not on this machine.
                assert!(said.lines().all(|line| line.contains("Command /usr/bin/hsm-kms is not executable")), "{said}");
            }
        }
    }
}

/// Nobody logs in: no PIN in the configuration, and no credential without which systemd would not start the service.
#[test]
fn a_profile_without_a_login_takes_no_pin() {
    let folder = tempfile::tempdir().unwrap();
    let output = text(&folder.path().join("out"));
    let mut arguments = flags("kubeadm", &output);
    arguments[6] = "google-kms";
    arguments.extend(["--module", "/opt/libkmsp11.so", "--environment", "KMS_PKCS11_CONFIG=/etc/hsm-kms/kmsp11.yaml"]);
    write(&arguments);
    let files = files(Path::new(&output));
    assert!(!files["config.yaml"].contains("pin") && !files["systemd/hsm-kms.service"].contains("\nLoadCredential="));
    assert!(!files["CHECKLIST.md"].contains("the PIN"));
}

/// The plugin serves with it, once the paths are those of this test.
#[tokio::test]
async fn the_configuration_serves() {
    let token = TestToken::softhsm2();
    let record = run_ceremony(&token, token.directory());
    let output = text(&token.directory().join("out"));
    let socket = text(&token.directory().join("run/hsm@kms.sock"));
    let variable = format!("SOFTHSM2_CONF={}", token.environment["SOFTHSM2_CONF"]);
    let mut arguments = flags("static-pod", &output);
    arguments[2] = "test";
    arguments.extend(["--socket", &socket, "--environment", &variable]);
    write(&arguments);
    fs::create_dir(token.directory().join("run")).unwrap();
    let mut config = Config::new(&token, &record, "plugin");
    config.value = serde_yaml::from_str(&files(Path::new(&output))["config.yaml"]).unwrap();
    config.value["token"]["pin"]["file"] = json!(token.pin);
    config.value["kek"] = json!({"record": record, "allow_trial": true});
    config.value.as_object_mut().unwrap().remove("endpoints");
    let mut plugin = Plugin::start(&config).healthy().await;
    assert!(plugin.stop().await.success());
}

#[test]
fn nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let refused = |why: &str| {
        let before = files(folder.path());
        let done = run(&flags("kubeadm", &text(&output)), b"");
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(2) && said.contains(why) && said.contains("nothing was written"), "{said}");
        assert_eq!(files(folder.path()), before);
    };
    fs::write(&output, "a file").unwrap();
    refused("out is there already");
    fs::remove_file(&output).unwrap();
    std::os::unix::fs::symlink("elsewhere", &output).unwrap();
    refused("out is there already");
    fs::remove_file(&output).unwrap();
    // An empty folder is as good as none.
    fs::create_dir(&output).unwrap();
    write(&flags("kubeadm", &text(&output)));
    refused(
        "out is there already, and not empty: CHECKLIST.md, ceremony-plan.yaml, config.yaml, encryption, kubeadm, systemd",
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside");
}

#[test]
fn answers_that_cannot_be_used_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = text(&folder.path().join("out"));
    let long = format!("/srv/{}/s", "x".repeat(100));
    for (flag, value, why) in [
        ("--cluster", "Prod", "a cluster id has"),
        ("--cluster", "", "a cluster id has"),
        ("--platform", "gke", "possible values: systemd, static-pod"),
        ("--profile", "softhsm", "unknown profile"),
        ("--profile", "thales-luna", "variants"),
        ("--profile", "nss", "refuses"),
        ("--profile", "/no/such/profile.yaml", "No such file"),
        ("--profile", "/a b", "letters, digits"),
        ("--token-label", "", "1 to 32 bytes"),
        ("--token-label", "012345678901234567890123456789012", "1 to 32 bytes"),
        ("--token-label", "a\nb", "1 to 32 bytes"),
        ("--module", "libx.so", "absolute path"),
        ("--module", "/opt/%h/lib.so", "letters, digits"),
        ("--module", "/opt/a\nExecStart=/x", "absolute path"),
        ("--socket", "/run/kms.sock", "a folder of its own"),
        ("--socket", "/kms.sock", "a folder of its own"),
        ("--socket", &long, "at most 103"),
        ("--environment", "A", "NAME=VALUE"),
        ("--environment", "A B=c", "environment variable"),
        ("--environment", "A=", "1 to 4095 bytes"),
        ("--image", "a b", "name of an image"),
        ("--output", ".", "no new folder"),
        ("--output", "/", "no new folder"),
        ("--output", "/no/such/folder", "cannot make the folder"),
        ("--output", "/proc/hsm-kms", "cannot make the folder"),
    ] {
        let mut arguments = flags("kubeadm", &output);
        match arguments.iter().position(|argument| *argument == flag) {
            Some(position) => arguments[position + 1] = value,
            None => arguments.extend([flag, value]),
        }
        let done = run(&arguments, b"");
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(2) && said.contains(why), "{flag} {value:?}: {said}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn without_a_terminal_the_missing_flags_are_named() {
    let done = run(&["init", "--profile", "softhsm2"], b"prod\n");
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(said.contains("there is no terminal to ask on, and no --cluster, --platform, --token-label"), "{said}");
}

/// No home, no locale, no terminal, another user: none of it is needed. A folder that he may not write to is refused.
#[test]
fn it_needs_no_home_no_locale_and_no_rights() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // The program lies where another user may not go.
    let copy = folder.path().join("hsm-kms");
    copy_program(&copy);
    let nobody = |output: &Path| {
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.arg("--").arg(&copy).env_clear().env("LC_ALL", "C").current_dir("/");
        command.args(flags("k3s", &text(output))).output().unwrap()
    };
    let done = nobody(&folder.path().join("out"));
    assert!(done.status.success() && done.stdout.is_ascii(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(folder.path().join("out/k3s/hsm-kms.yaml").is_file());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if rustix::process::geteuid().is_root() {
        let done = nobody(&folder.path().join("second"));
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(2) && said.contains("Permission denied"), "{said}");
    }
}

/// On a terminal it asks for what no flag says, takes its default for an empty answer, and asks again after one that cannot be used.
#[test]
fn on_a_terminal_it_asks() {
    let folder = tempfile::tempdir().unwrap();
    let start = |arguments: &[&str]| {
        let arguments: Vec<_> = ["init"].iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        Terminal::start_in(folder.path(), &arguments)
    };
    let mut terminal = start(&["--module", "/usr/lib/softhsm/libsofthsm2.so"]);
    terminal.answer("Name of the cluster: ", "Not One");
    terminal.answer("Name of the cluster: ", "test-1");
    terminal.answer("Platform [kubeadm]: ", "windows");
    terminal.answer("Platform [kubeadm]: ", "");
    terminal.answer("Profile of the HSM [softhsm2]: ", "softhms2");
    terminal.answer("Profile of the HSM [softhsm2]: ", "");
    terminal.answer("Label of the token: ", "");
    terminal.answer("Label of the token: ", "kek");
    terminal.answer("SOFTHSM2_CONF of the module, if it needs it: ", "/etc/hsm-kms/softhsm2.conf");
    terminal.answer("Socket of the plugin [/run/hsm-kms/hsm@kms.sock]: ", "");
    let (status, screen) = terminal.end();
    assert!(status.success(), "{screen}");
    assert!(screen.lines().all(|line| line.trim_end().len() <= 80), "{screen}");
    let written = files(&folder.path().join("hsm-kms-test-1"));
    let config: Value = serde_yaml::from_str(&written["config.yaml"]).unwrap();
    assert_eq!(config["cluster"], "test-1");
    assert_eq!(config["token"]["environment"], json!({"SOFTHSM2_CONF": "/etc/hsm-kms/softhsm2.conf"}));
    assert!(written.contains_key("kubeadm/kube-apiserver+json.yaml"));

    // A terminal that is closed in the middle.
    let mut terminal = start(&[]);
    terminal.answer("Name of the cluster: ", "test-2");
    terminal.until_asked();
    let (status, _) = terminal.close();
    assert_ne!(status.code(), Some(0));
    let left: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [folder.path().join("hsm-kms-test-1")]);
    // Nothing is asked where the flags say all: docs/init.md. The vendor's client need not be on this machine.
    let line =
        "init --cluster prod-eu-1 --platform kubeadm --profile thales-luna/fips --token-label kek --output prod-eu-1";
    let output = program().args(line.split(' ')).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(folder.path().join("prod-eu-1/CHECKLIST.md").is_file());
}
