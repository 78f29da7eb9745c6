//! A socket path that cannot be had: refused at the start with exit code 2, and whoever has the path is left alone.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use hsm_kms::kms::proto::EncryptRequest;
use hsm_kms::kms::socket::PATH_LIMIT;
use serde_json::json;

use crate::harness::{Config, Plugin, TestToken, run_ceremony, wait_for};
use crate::refusal::serve_refuses;

#[tokio::test]
async fn a_second_instance_is_refused_and_the_first_goes_on() {
    let (token, config) = prepared();
    let plugin = Plugin::start(&config).healthy().await;
    let before = inode(plugin.socket());
    let mut second = Config::new(&token, Path::new(record_of(&config)), "second");
    second.value["socket"] = config.value["socket"].clone();
    let refusal = serve_refuses(second.write(), "another instance holds the lock");
    assert!(refusal.error.contains(plugin.socket().to_str().unwrap()), "{}", refusal.text);
    assert!(refusal.hint.contains("stop the other instance"), "{}", refusal.text);
    assert_eq!(inode(plugin.socket()), before);
    let mut client = plugin.client().await;
    let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "first".to_owned() };
    client.encrypt(request).await.unwrap();
}

#[test]
fn a_socket_on_which_another_program_listens_is_left_alone() {
    let (_token, config) = prepared();
    let other = UnixListener::bind(config.socket()).unwrap();
    let before = inode(&config.socket());
    serve_refuses(config.write(), "another instance is listening");
    assert_eq!(inode(&config.socket()), before);
    UnixStream::connect(config.socket()).unwrap();
    other.accept().unwrap();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (token, config) = prepared();
    fs::write(config.socket(), "precious").unwrap();
    let refusal = serve_refuses(config.write(), "exists and is not a socket");
    assert!(refusal.hint.contains("move"), "{}", refusal.text);
    assert_eq!(fs::read_to_string(config.socket()).unwrap(), "precious");

    fs::remove_file(config.socket()).unwrap();
    fs::create_dir(config.socket()).unwrap();
    serve_refuses(config.write(), "exists and is not a socket");
    assert!(config.socket().is_dir());

    fs::remove_dir(config.socket()).unwrap();
    let target = token.directory().join("elsewhere");
    symlink(&target, config.socket()).unwrap();
    serve_refuses(config.write(), "exists and is not a socket");
    assert!(config.socket().is_symlink() && !target.exists());
}

#[test]
fn a_directory_that_does_not_fit_is_refused() {
    let (token, mut config) = prepared();
    let directory = token.directory().join("run");
    config.value["socket"]["path"] = json!(directory.join("hsm@kms.sock"));
    let refusal = serve_refuses(config.write(), "does not exist");
    assert!(refusal.hint.contains(&format!("install -d -m 0750 {}", directory.display())), "{}", refusal.text);
    assert!(!directory.exists());

    fs::write(&directory, "").unwrap();
    serve_refuses(config.write(), "is not a directory");
    fs::remove_file(&directory).unwrap();

    fs::create_dir(&directory).unwrap();
    for mode in [0o777, 0o757, 0o775, 0o722] {
        fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        let refusal = serve_refuses(config.write(), "lets other users replace files");
        assert!(refusal.why.contains(&format!("mode {mode:04o}")), "{}", refusal.text);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing was made there");
    }
    fs::set_permissions(&directory, Permissions::from_mode(0o750)).unwrap();
    Plugin::start(&config);
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let (_token, config) = prepared();
    let mut plugin = Plugin::start(&config);
    plugin.kill();
    let stale = inode(&config.socket());
    // A worker that was just being started holds the socket until its exec.
    let refused = wait_for("the socket's end", || UnixStream::connect(config.socket()).err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // One that was left between bind and rename.
    drop(UnixListener::bind(with_suffix(&config.socket(), ".new")).unwrap());
    let mut plugin = Plugin::start(&config).healthy().await;
    assert_ne!(inode(&config.socket()), stale);
    assert_eq!(fs::metadata(plugin.socket()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!with_suffix(&config.socket(), ".new").exists());
    assert_eq!(plugin.stop().await.code(), Some(0));
    assert!(!config.socket().exists());
}

#[test]
fn the_longest_path_works_and_one_byte_more_is_refused() {
    let (token, mut config) = prepared();
    let room = PATH_LIMIT - token.directory().as_os_str().len() - 1;
    let path = |length: usize| token.directory().join(format!("@{}", "k".repeat(length - 1)));
    config.value["socket"]["path"] = json!(path(room + 1));
    let refusal = serve_refuses(config.write(), "`socket.path`: the path has 104 bytes, a socket's at most 103");
    assert!(refusal.why.contains("line "), "{}", refusal.text);
    config.value["socket"]["path"] = json!(path(room));
    Plugin::start(&config);
}

fn prepared() -> (TestToken, Config) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "socket");
    (token, config)
}

fn record_of(config: &Config) -> &str {
    config.value["kek"]["record"].as_str().unwrap()
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}
