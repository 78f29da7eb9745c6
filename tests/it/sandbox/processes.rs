//! The plugin's own processes: that they are limited, and what a start says of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Pid;
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
use serde_json::json;

use crate::fault_module::FaultModule;
use crate::harness::{Config, Plugin, TestToken, run_ceremony, wait_for};
use crate::processes::{launcher, worker};
use crate::refusal::serve_refuses;

/// The line of `/proc/PID/status` with this name.
fn status(process: Pid, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

#[tokio::test]
async fn front_launcher_and_worker_are_limited() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "limited");
    config.value["sandbox"] = json!("require");
    let plugin = Plugin::start(&config).healthy().await;
    for process in [plugin.pid(), launcher(&plugin).unwrap(), worker(&plugin).unwrap()] {
        // 2: by filters.
        assert_eq!((status(process, "NoNewPrivs"), status(process, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    }
    let log = plugin.log();
    assert!(log.contains("front=no_new_privs, Landlock, seccomp"), "{log}");
    assert!(log.contains("sandbox=\"no_new_privs, Landlock, seccomp\""), "{log}");
}

#[tokio::test]
async fn off_limits_nothing_and_warns() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "off");
    config.value["sandbox"] = json!("off");
    let plugin = Plugin::start(&config).healthy().await;
    for process in [plugin.pid(), launcher(&plugin).unwrap(), worker(&plugin).unwrap()] {
        assert_eq!(status(process, "Seccomp"), "0");
    }
    assert!(plugin.log().contains("sandbox: off"), "{}", plugin.log());
}

/// Nothing but the sandbox is in this module's way.
#[tokio::test]
async fn a_module_that_lacks_a_path_is_kept_from_it_and_the_log_names_the_key() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    // Its own files are where no profile looks for any.
    let elsewhere = tempfile::tempdir().unwrap();
    let fault = FaultModule::before(&token.module, elsewhere.path(), "kept");
    let mut config = Config::new(&token, &record, "kept");
    fault.stand_in_front(&mut config.value["token"]);
    let allowed = config.value["token"].as_object_mut().unwrap().remove("sandbox").unwrap();
    let plugin = Plugin::start(&config);
    let log = wait_for("the refusal", || Some(plugin.log()).filter(|log| log.contains("token down")));
    assert!(log.contains("token.sandbox in docs/configuration.md"), "{log}");
    drop(plugin);
    config.value["token"]["sandbox"] = allowed;
    Plugin::start(&config).healthy().await;
}

#[tokio::test]
async fn a_kernel_without_landlock_is_named_and_the_rest_holds() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "old");
    let plugin = Plugin::start_by(&config, on_an_old_kernel(env!("CARGO_BIN_EXE_hsm-kms"))).healthy().await;
    let log = plugin.log();
    assert!(log.contains("the sandbox is not whole: this kernel lacks Landlock (Linux 5.13"), "{log}");
    assert!(log.contains("front=no_new_privs, seccomp; missing: Landlock (Linux 5.13"), "{log}");
    for process in [plugin.pid(), launcher(&plugin).unwrap(), worker(&plugin).unwrap()] {
        // One filter is the old kernel's.
        assert!(status(process, "Seccomp_filters").parse::<u32>().unwrap() > 1);
    }
}

#[test]
fn a_start_that_requires_the_sandbox_refuses_an_old_kernel() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "required");
    config.value["sandbox"] = json!("require");
    let output =
        on_an_old_kernel(env!("CARGO_BIN_EXE_hsm-kms")).args(["serve", "--config"]).arg(config.write()).output();
    let output = output.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("sandbox: require, and this kernel lacks Landlock"), "{error}");
    config.value["sandbox"] = json!("sometimes");
    serve_refuses(config.write(), "`sandbox`: expected one of");
}

/// Has the program start where Landlock's calls do not exist.
#[allow(unsafe_code, reason = "what a child does before its exec")]
fn on_an_old_kernel(program: &str) -> Command {
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: seccompiler::BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, absent, arch).unwrap().try_into().unwrap();
    let mut command = Command::new(program);
    // SAFETY: it makes two system calls, and allocates nothing unless they fail.
    unsafe { command.pre_exec(move || apply_filter(&filter).map_err(std::io::Error::other)) };
    command
}
