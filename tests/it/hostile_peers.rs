//! Peers that mean harm, or are broken: others are served meanwhile, and memory and descriptors stay bounded.
//!
//! They may connect, so they are users who may open seeds anyway; they must not be able to stop an API server's work. Frames are
//! written byte by byte (RFC 9113 sections 3.4, 4.1 and 6).

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Config, Plugin, TestToken, run, run_ceremony, text, wait_for};
use crate::processes::descriptors_and_threads;

/// Connections that one process may have. Written down again: were it the plugin's own constant, a changed one would pass.
const CONNECTIONS_PER_PROCESS: usize = 64;

/// Memory of the front that an attack may cost, in KiB: each of 64 connections with 64 requests, each of 64 KiB.
const GROWTH: u64 = 64 * 64 * 64;

/// Longest wait of a good peer for its seed, with the start of its process, on a machine that is busy with the attack.
const SERVED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_silent_peer_is_closed() {
    attack("silent", |socket| {
        let mut peer = UnixStream::connect(socket).unwrap();
        closes_within(&mut peer, Duration::from_secs(10));
    })
    .await;
}

#[tokio::test]
async fn a_slow_peer_is_closed() {
    attack("slow", |socket| {
        let mut peer = UnixStream::connect(socket).unwrap();
        let began = Instant::now();
        for byte in PREFACE.iter().cycle() {
            // The preface would take 12 s.
            thread::sleep(Duration::from_millis(500));
            if peer.write_all(&[*byte]).is_err() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is still open");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_sends_a_preface_and_no_more_is_closed() {
    attack("half-open", |socket| {
        let mut peer = UnixStream::connect(socket).unwrap();
        peer.write_all(PREFACE).unwrap();
        closes_within(&mut peer, Duration::from_secs(75));
    })
    .await;
}

#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    attack("rapid reset", |socket| {
        let mut peer = opened(socket);
        let (mut requests, mut bytes) = (0, Vec::new());
        for stream in (1..2_000_000_u32).step_by(2) {
            bytes.clear();
            bytes.extend(headers(stream, END_HEADERS, &head("/v2.KeyManagementService/Decrypt")));
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            if peer.write_all(&bytes).is_err() {
                break;
            }
            requests += 1;
        }
        assert!(requests < 900_000, "it took them all");
    })
    .await;
}

#[tokio::test]
async fn huge_headers_are_refused() {
    attack("huge headers", |socket| {
        // The limit is 8 KiB; a field counts 32 bytes more than it has (RFC 9113 section 6.5.2).
        assert!(is_answered(socket, 6 * 1024), "6 KiB were refused");
        for kibibytes in [9, 64, 1024] {
            assert!(!is_answered(socket, kibibytes * 1024), "{kibibytes} KiB were taken");
        }
    })
    .await;
}

/// Asks for Status with so many bytes of headers. Refused is an answer without a message (431), or the end of the connection.
fn is_answered(socket: &Path, bytes: usize) -> bool {
    let mut peer = opened(socket);
    let mut block = head("/v2.KeyManagementService/Status");
    for _ in 0..bytes / 1024 {
        block.extend(field("x-large", &"a".repeat(1024)));
    }
    let pieces: Vec<_> = block.chunks(16 * 1024).collect();
    for (index, piece) in pieces.iter().enumerate() {
        let flags = if index + 1 == pieces.len() { END_HEADERS } else { 0 };
        let kind = if index == 0 { HEADERS } else { CONTINUATION };
        if peer.write_all(&frame(kind, flags, 1, piece)).is_err() {
            return false;
        }
    }
    // An empty message, and the end of the request.
    if peer.write_all(&frame(DATA, END_STREAM, 1, &[0; 5])).is_err() {
        return false;
    }
    peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    loop {
        match next(&mut peer) {
            Ok((DATA, _)) => return true,
            // Trailers come with the headers where there is no message.
            Ok((HEADERS | RST_STREAM, flags)) if flags & END_STREAM != 0 => return false,
            Ok((RST_STREAM, _)) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    attack("CONTINUATION flood", |socket| {
        let mut peer = opened(socket);
        peer.write_all(&headers(1, 0, &head("/v2.KeyManagementService/Status"))).unwrap();
        let piece = field("x-flood", &"a".repeat(4 * 1024));
        let flood = frame(CONTINUATION, 0, 1, &piece);
        let sent = (0..100_000).take_while(|_| peer.write_all(&flood).is_ok()).count();
        assert!(sent < 90_000, "it took them all");
    })
    .await;
}

#[tokio::test]
async fn requests_that_do_not_end_are_ended() {
    attack("unfinished requests", |socket| {
        let mut peers: Vec<_> = (0..CONNECTIONS_PER_PROCESS - 4).map(|_| opened(socket)).collect();
        for stream in (1..128).step_by(2) {
            for peer in &mut peers {
                let _ = peer.write_all(&headers(stream, END_HEADERS, &head("/v2.KeyManagementService/Decrypt")));
                // A message of 60 000 bytes, of which 8 000 come.
                let mut body = vec![0, 0, 0, 0xea, 0x60];
                body.resize(8_000, 7);
                let _ = peer.write_all(&frame(DATA, 0, stream, &body));
            }
        }
        // Each stream is answered, by an error, though its request never ended; or all of them end with the connection, where a peer
        // still sent when the time of its first requests was over.
        for peer in &mut peers {
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            loop {
                match next(peer) {
                    Ok((HEADERS, _)) => break,
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                        break;
                    }
                    Err(error) => panic!("nothing was ended: {error}"),
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_connections_leave_room_for_others() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (plugin, _token) = attack("10 000 connections", |socket| {
        let mut peers: Vec<_> = (0..10_000).map(|_| opened_or_closed(socket)).collect();
        wait_for("the rest to be closed", || {
            let open = peers.iter_mut().map(is_open).filter(|open| *open).count();
            (open <= CONNECTIONS_PER_PROCESS).then_some(())
        });
    })
    .await;
    wait_for("the descriptors to go", || {
        let (descriptors, _) = descriptors_and_threads(plugin.pid());
        (descriptors < 40).then_some(())
    });
}

/// Lets the peer do its work while another process seals again and again; then the front must be as before.
async fn attack(name: &str, hostile: impl FnOnce(&Path) + Send + 'static) -> (Plugin, TestToken) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let plugin = Plugin::start(&Config::new(&token, &record, "hostile")).healthy().await;
    let socket = plugin.socket().to_owned();
    assert!(seal(&socket) < SERVED);
    let (before, front) = (resident(&plugin), plugin.pid());
    let is_over = AtomicBool::new(false);
    let (mut served, mut longest, mut peak, mut descriptors) = (0, Duration::ZERO, before, 0);
    thread::scope(|scope| {
        let (socket, is_over) = (&socket, &is_over);
        let attacker = scope.spawn(move || {
            let _end = End(is_over);
            hostile(socket);
        });
        let watcher = scope.spawn(|| {
            let (mut peak, mut descriptors) = (before, 0);
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(resident(&plugin));
                descriptors = descriptors.max(descriptors_and_threads(front).0);
                thread::sleep(Duration::from_millis(5));
            }
            (peak, descriptors)
        });
        loop {
            longest = longest.max(seal(socket));
            served += 1;
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        attacker.join().unwrap();
        (peak, descriptors) = watcher.join().unwrap();
    });
    assert!(seal(&socket) < SERVED);
    eprintln!(
        "{name}: {served} seals by others meanwhile, the longest {longest:?} with the start of its process; \
         front {before} KiB before, {peak} KiB at most, {descriptors} descriptors at most"
    );
    assert!(longest < SERVED, "{longest:?}");
    assert!(peak < before + GROWTH, "{before} KiB before, {peak} KiB at most");
    assert!(descriptors < CONNECTIONS_PER_PROCESS + 40, "{descriptors} descriptors");
    (plugin, token)
}

/// Set when the attacker ends, also by a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A seal by a process of its own.
fn seal(socket: &Path) -> Duration {
    let began = Instant::now();
    let sealed = run(&["call", "encrypt", "--socket", &text(socket)], &[7; 32]);
    assert!(sealed.status.success(), "{sealed:?}");
    began.elapsed()
}

/// Memory of the front in RAM, in KiB.
fn resident(plugin: &Plugin) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", plugin.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn closes_within(peer: &mut UnixStream, limit: Duration) {
    peer.set_read_timeout(Some(limit)).unwrap();
    let deadline = Instant::now() + limit;
    let mut bytes = [0; 1024];
    while match peer.read(&mut bytes) {
        Ok(0) => false,
        Ok(_) => true,
        // Nothing was read: a process that is stopped and goes on gets this from a read with a time limit (signal(7)).
        Err(error) if error.kind() == ErrorKind::Interrupted => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is still open");
            false
        }
    } {
        assert!(Instant::now() < deadline, "it is still open");
    }
}

fn is_open(peer: &mut UnixStream) -> bool {
    let mut bytes = [0; 1024];
    loop {
        match peer.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// A connection on which HTTP/2 was begun.
fn opened(socket: &Path) -> UnixStream {
    let mut peer = UnixStream::connect(socket).unwrap();
    peer.write_all(PREFACE).unwrap();
    peer.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    peer.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    peer
}

/// The same, or a connection that is closed already. Reading does not wait.
fn opened_or_closed(socket: &Path) -> UnixStream {
    let mut peer = UnixStream::connect(socket).unwrap();
    let _ = peer.write_all(PREFACE).and_then(|()| peer.write_all(&frame(SETTINGS, 0, 0, &[])));
    peer.set_nonblocking(true).unwrap();
    peer
}

/// Reads a frame, and tells its kind and flags.
fn next(peer: &mut UnixStream) -> std::io::Result<(u8, u8)> {
    let mut head = [0; 9];
    peer.read_exact(&mut head)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    peer.read_exact(&mut vec![0; length])?;
    Ok((head[3], head[4]))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

/// The header list of a request.
fn head(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.into_iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A header field, literal and not indexed (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for part in [name, value] {
        length(part.len(), &mut bytes);
        bytes.extend(part.as_bytes());
    }
    bytes
}

/// An integer with a prefix of 7 bits (RFC 7541 section 5.1).
fn length(mut length: usize, bytes: &mut Vec<u8>) {
    if length < 127 {
        return bytes.push(u8::try_from(length).unwrap());
    }
    bytes.push(127);
    length -= 127;
    while length >= 128 {
        bytes.push(u8::try_from(length % 128).unwrap() | 128);
        length /= 128;
    }
    bytes.push(u8::try_from(length).unwrap());
}
