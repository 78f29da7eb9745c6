use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use rustix::process::{Resource, Rlimit};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio_stream::StreamExt;

use super::*;

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    directory
}

fn refusal(path: &Path) -> Refusal {
    Listener::bind(path, 0o600).unwrap_err().refusal
}

/// Runs the named test of this file again in a process of its own, with the variable `CHILD` set.
fn again_in_a_child(test: &str, value: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("kms::socket::tests::{test}"), "--nocapture"]).env(CHILD, value);
    command
}

const CHILD: &str = "SOCKET_TEST_CHILD";

/// What a killed process leaves behind: a socket that nobody listens on.
fn leave_stale_socket(path: &Path) {
    drop(net::UnixListener::bind(path).unwrap());
    assert!(path.exists());
}

#[test]
fn binds_with_the_mode_and_removes_its_files_on_drop() {
    let directory = directory();
    let path = directory.path().join("hsm@kms.sock");
    for mode in [0o600, 0o660, 0o666] {
        let listener = Listener::bind(&path, mode).unwrap();
        assert!(path.exists());
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.mode() & 0o7777, mode);
        net::UnixStream::connect(&path).unwrap();
        drop(listener);
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["hsm@kms.sock.lock"]);
    }
}

#[test]
fn a_socket_that_was_passed_on_must_be_the_configured_one_and_listen() {
    let directory = directory();
    let path = directory.path().join("s");
    // As systemd binds it; ours would tell the name under which it was bound first.
    let held = net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let connected = net::UnixStream::connect(&path).unwrap();
    // What systemd passes on with Accept=yes: it has the socket's path too.
    let (accepted, _) = held.accept().unwrap();
    let inherit = |socket: OwnedFd, path: &Path, mode| {
        Listener::inherit(socket.into(), path, mode).map_err(|error| error.refusal)
    };
    assert_eq!(accepted.local_addr().unwrap().as_pathname(), Some(path.as_path()));
    let listening = || OwnedFd::from(held.try_clone().unwrap());
    assert!(matches!(inherit(accepted.into(), &path, 0o600), Err(Refusal::NotListening)));
    assert!(matches!(inherit(connected.into(), &path, 0o600), Err(Refusal::NotListening)));
    let other = directory.path().join("other");
    assert!(matches!(inherit(listening(), &other, 0o600), Err(Refusal::AnotherPath(found)) if found == path));
    assert!(matches!(inherit(listening(), &path, 0o400), Err(Refusal::OpenSocket { found: 0o600, mode: 0o400 })));
    drop(inherit(listening(), &path, 0o600).unwrap());
    assert!(path.exists(), "the socket is another's");
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = directory();
    let path = directory.path().join("s");
    leave_stale_socket(&path);
    leave_stale_socket(&directory.path().join("s.new"));
    let _listener = Listener::bind(&path, 0o600).unwrap();
    net::UnixStream::connect(&path).unwrap();
    assert!(!directory.path().join("s.new").exists());
}

#[test]
fn a_live_socket_is_not_taken() {
    let directory = directory();
    let path = directory.path().join("s");
    let other = net::UnixListener::bind(&path).unwrap();
    assert!(matches!(refusal(&path), Refusal::InUse));
    drop(other.accept().unwrap());
    net::UnixStream::connect(&path).unwrap();
}

#[test]
fn a_live_socket_with_a_full_backlog_is_not_taken() {
    let directory = directory();
    let path = directory.path().join("s");
    let hung = new_socket().unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    rustix::net::bind(&hung, &address).unwrap();
    rustix::net::listen(&hung, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = new_socket().unwrap();
        match rustix::net::connect(&socket, &address) {
            Ok(()) => waiting.push(socket),
            Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
        }
    }
    assert!(matches!(refusal(&path), Refusal::InUse));
}

#[test]
fn a_second_instance_meets_the_lock() {
    let directory = directory();
    let path = directory.path().join("s");
    let first = Listener::bind(&path, 0o600).unwrap();
    assert!(matches!(refusal(&path), Refusal::Locked(_)));
    net::UnixStream::connect(&path).unwrap();
    drop(first);
    Listener::bind(&path, 0o600).unwrap();
}

/// What a killed instance leaves for a moment: its child has copies of lock and listener.
#[test]
fn a_lock_and_a_listener_that_go_away_are_waited_for() {
    let directory = directory();
    let path = directory.path().join("s");
    let lock = take_lock(&with_suffix(&path, ".lock")).unwrap();
    let listener = net::UnixListener::bind(&path).unwrap();
    let both_held = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            both_held.wait();
            thread::sleep(CLAIM_LIMIT / 10);
            drop(lock);
            thread::sleep(CLAIM_LIMIT / 10);
            drop(listener);
        });
        both_held.wait();
        let began = Instant::now();
        Listener::bind(&path, 0o600).unwrap();
        assert!(began.elapsed() >= CLAIM_LIMIT / 10);
    });
}

#[test]
fn what_is_not_a_socket_stays() {
    let directory = directory();
    let path = directory.path().join("s");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(refusal(&path), Refusal::NotASocket(_)));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(refusal(&link), Refusal::NotASocket(_)));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    fs::write(directory.path().join("t.new"), "precious too").unwrap();
    assert!(matches!(refusal(&directory.path().join("t")), Refusal::NotASocket(_)));
    assert!(!directory.path().join("t").exists());
}

#[test]
fn a_socket_of_another_user_stays() {
    let directory = directory();
    let path = directory.path().join("s");
    leave_stale_socket(&path);
    let error = check_occupant(&path, own_uid() + 1).unwrap_err();
    assert!(matches!(error, Refusal::ForeignSocket { uid, .. } if uid == own_uid()));
    assert!(path.exists());
}

#[test]
fn a_socket_of_another_kind_is_not_taken() {
    let directory = directory();
    let path = directory.path().join("s");
    let _datagrams = net::UnixDatagram::bind(&path).unwrap();
    assert!(matches!(refusal(&path), Refusal::System { .. }));
    assert!(path.exists());
}

#[test]
fn the_directory_must_be_safe() {
    let directory = directory();
    let missing = directory.path().join("no");
    assert!(matches!(refusal(&missing.join("s")), Refusal::NoDirectory(path) if path == missing));

    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(refusal(&file.join("s")), Refusal::NotADirectory(path) if path == file));

    for (mode, safe) in [(0o700, true), (0o755, true), (0o770, false), (0o702, false), (0o777, false), (0o1777, true)] {
        fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
        let result = Listener::bind(&directory.path().join("s"), 0o600);
        assert_eq!(result.is_ok(), safe, "{mode:o}");
        if let Err(error) = result {
            assert!(matches!(error.refusal, Refusal::OpenDirectory { mode: found, .. } if found == mode));
        }
    }

    // One above it is as good a place to exchange the socket; a link to it does not hide that.
    let (above, link) = (directory.path().join("above"), directory.path().join("link"));
    fs::create_dir_all(above.join("below")).unwrap();
    std::os::unix::fs::symlink(above.join("below"), &link).unwrap();
    fs::set_permissions(&above, Permissions::from_mode(0o777)).unwrap();
    for below in [above.join("below"), link] {
        let found = refusal(&below.join("s"));
        assert!(matches!(&found, Refusal::OpenDirectory { directory, .. } if *directory == above), "{found}");
    }

    // The owner is judged by number, so that the test needs no second user; root's own directory is always accepted.
    let own = fs::metadata(directory.path()).unwrap().uid();
    if own != 0 {
        assert!(matches!(check_directory(directory.path(), own + 1), Err(Refusal::ForeignDirectory { .. })));
    } else {
        std::os::unix::fs::chown(directory.path(), Some(12345), None).unwrap();
        assert!(matches!(check_directory(directory.path(), 0), Err(Refusal::ForeignDirectory { uid: 12345, .. })));
        assert!(check_directory(directory.path(), 12345).is_ok());
    }
}

#[test]
fn the_path_must_fit() {
    let directory = directory();
    let room = PATH_LIMIT - directory.path().as_os_str().len() - 1;
    let longest = directory.path().join("s".repeat(room));
    let _listener = Listener::bind(&longest, 0o600).unwrap();
    net::UnixStream::connect(&longest).unwrap();

    let longer = directory.path().join("s".repeat(room + 1));
    assert!(matches!(refusal(&longer), Refusal::TooLong { length } if length == PATH_LIMIT + 1));
    assert!(matches!(refusal(Path::new("s")), Refusal::NotAbsolute));
    assert!(matches!(refusal(Path::new("@s")), Refusal::NotAbsolute));
    for path in ["/", "/run/..", "/run/.", "/run/s/"] {
        assert!(matches!(refusal(Path::new(path)), Refusal::NoFileName), "{path}");
    }
    assert!(matches!(refusal(&directory.path().join("a\0b")), Refusal::System { .. }));
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let directory = directory();
    let victim = directory.path().join("victim");
    std::os::unix::fs::symlink(&victim, directory.path().join("s.lock")).unwrap();
    assert!(matches!(refusal(&directory.path().join("s")), Refusal::System { action: "open the lock file", .. }));
    assert!(!victim.exists());
}

#[test]
fn only_its_own_inode_is_removed() {
    let directory = directory();
    let path = directory.path().join("s");
    let listener = Listener::bind(&path, 0o600).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = net::UnixListener::bind(&path).unwrap();
    drop(listener);
    net::UnixStream::connect(&path).unwrap();
}

#[test]
fn of_many_concurrent_starts_exactly_one_wins() {
    // The losers of a round wait for the lock: all rounds at once.
    thread::scope(|scope| {
        for round in 0..20 {
            scope.spawn(move || race(round % 2 == 0));
        }
    });
}

fn race(with_stale_socket: bool) {
    let directory = directory();
    let path = directory.path().join("s");
    if with_stale_socket {
        leave_stale_socket(&path);
    }
    let barrier = Barrier::new(8);
    let start = || {
        barrier.wait();
        Listener::bind(&path, 0o600)
    };
    let results = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(error.refusal, Refusal::Locked(_)), "{error}");
    }
    net::UnixStream::connect(&path).unwrap();
}

#[test]
fn a_killed_instance_is_succeeded_by_the_next() {
    if let Some(path) = env::var_os(CHILD) {
        let _listener = Listener::bind(Path::new(&path), 0o600).unwrap();
        println!("listening");
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return;
    }
    let directory = directory();
    let path = directory.path().join("s");
    let mut child = again_in_a_child("a_killed_instance_is_succeeded_by_the_next", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("listening")));
    assert!(matches!(refusal(&path), Refusal::Locked(_)));

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(path.exists());
    let _listener = Listener::bind(&path, 0o600).unwrap();
    net::UnixStream::connect(&path).unwrap();
}

#[test]
fn accepting_goes_on_after_descriptors_ran_out() {
    let Some(path) = env::var_os(CHILD) else {
        let directory = directory();
        let path = directory.path().join("s");
        let mut child = again_in_a_child("accepting_goes_on_after_descriptors_ran_out", &path);
        return assert!(child.stdout(Stdio::null()).status().unwrap().success());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = Listener::bind(Path::new(&path), 0o600).unwrap();
        let mut stream = incoming(listener.tokio().unwrap(), Peers::new(Peers::default_uids()));
        let _client = UnixStream::connect(&path).await.unwrap();

        let limit = rustix::process::getrlimit(Resource::Nofile);
        let next = u64::try_from(fs::File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(next), ..limit }).unwrap();
        assert!(tokio::time::timeout(3 * ACCEPT_PAUSE, stream.next()).await.is_err());

        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        stream.next().await.unwrap().unwrap();
    });
}

#[test]
fn no_connect_is_refused_while_a_stale_socket_is_replaced() {
    let directory = directory();
    let path = directory.path().join("s");
    leave_stale_socket(&path);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connected = 0;
            while connected < 100 {
                match net::UnixStream::connect(&path) {
                    Ok(_) => connected += 1,
                    // Once served, never refused or absent again.
                    Err(error) => assert_eq!(connected, 0, "{error}"),
                }
            }
        });
        let _listener = Listener::bind(&path, 0o600).unwrap();
        client.join().unwrap();
    });
}

#[tokio::test]
async fn only_allowed_users_get_in() {
    let directory = directory();
    let path = directory.path().join("s");
    let listener = Listener::bind(&path, 0o600).unwrap();
    assert!(Peers::default_uids().contains(&own_uid()) && Peers::default_uids().contains(&0));

    let mut stream = incoming(listener.tokio().unwrap(), Peers::new(Peers::default_uids()));
    let _client = UnixStream::connect(&path).await.unwrap();
    stream.next().await.unwrap().unwrap();

    let mut closed = incoming(listener.tokio().unwrap(), Peers::new(vec![own_uid() + 1]));
    let foreigner = UnixStream::connect(&path).await.unwrap();
    tokio::select! {
        _ = closed.next() => panic!("a foreign user got in"),
        ready = foreigner.readable() => ready.unwrap(),
    }
    assert!(matches!(foreigner.try_read(&mut [0; 1]), Ok(0)), "the connection is not closed");
}

#[test]
fn every_refusal_has_a_hint() {
    let error = Listener::bind(Path::new("/nonexistent/s"), 0o600).unwrap_err();
    assert_eq!(error.to_string(), "cannot listen on /nonexistent/s: the directory /nonexistent does not exist");
    assert_eq!(error.hint(), "make it first: install -d -m 0750 /nonexistent");
}
