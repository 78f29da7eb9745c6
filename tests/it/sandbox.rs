//! What front, launcher and workers may not do: each rule is tried, without the sandbox and with it.
//!
//! The tries are made in a fork of this process, limited by the functions that the plugin calls; that its own processes do call
//! them is seen from outside.

mod processes;
mod tries;

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hsm_kms::pkcs11::Module;
use hsm_kms::sandbox::{self, Connect, FrontRules, Mode, WorkerRules};
use rustix::io::Errno;

use self::tries::{call, forbids, permits};
use crate::harness::TestToken;

const LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// As `hsm-kms serve` does it.
fn front(rules: &FrontRules) -> impl Fn() + '_ {
    || assert_eq!(sandbox::front(rules, Mode::Require).unwrap().missing, [""; 0])
}

fn launcher() {
    assert_eq!(sandbox::launcher(Mode::Require).unwrap().missing, [""; 0]);
}

fn worker(rules: &WorkerRules) -> impl Fn() + '_ {
    || assert_eq!(sandbox::worker(rules, Path::new(LIBRARY), Mode::Require).unwrap().missing, [""; 0])
}

/// A worker of a module that needs nothing but itself.
fn bare() -> WorkerRules {
    WorkerRules::default()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn file(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, "1234").unwrap();
    path
}

fn open(path: &Path) -> io::Result<()> {
    File::open(path).map(drop)
}

fn run(program: &str) -> io::Result<()> {
    // Without /dev/null, which the front cannot open.
    Command::new(program).arg("--list").arg("no-such-test").stdin(Stdio::inherit()).output().map(drop)
}

#[test]
fn the_front_cannot_load_a_library() {
    let rules = FrontRules::default();
    let token = TestToken::softhsm2();
    let load = || Module::load(&token.module, None, &[], Vec::new()).map(drop).map_err(|_| Errno::ACCESS.into());
    forbids(front(&rules), load, Errno::ACCESS);
    // Nor one that it has open, nor one that it writes into its memory.
    let library = File::open(LIBRARY).unwrap();
    let executable = (libc::PROT_READ | libc::PROT_EXEC).into();
    let map =
        |flags: i32, descriptor: i32| call(libc::SYS_mmap, [0, 4096, executable, flags.into(), descriptor.into(), 0]);
    forbids(front(&rules), || map(libc::MAP_PRIVATE, library.as_raw_fd()), Errno::PERM);
    forbids(front(&rules), || map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1), Errno::PERM);
    let page = Box::new([0_u8; 3 * 4096]);
    let address = (page.as_ptr().addr() + 4095) & !4095;
    let protect = || call(libc::SYS_mprotect, [address.try_into().unwrap(), 4096, executable, 0, 0, 0]);
    forbids(front(&rules), protect, Errno::PERM);
    permits(front(&rules), || drop(vec![1_u8; 1 << 22]));
}

#[test]
fn the_front_reaches_no_network() {
    let rules = FrontRules::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    forbids(front(&rules), || TcpStream::connect(address).map(drop), Errno::PERM);
    forbids(front(&rules), || TcpListener::bind("127.0.0.1:0").map(drop), Errno::PERM);
    forbids(front(&rules), || UdpSocket::bind("127.0.0.1:0").map(drop), Errno::PERM);
    // What is bound before still accepts.
    let waiting = TcpStream::connect(address).unwrap();
    permits(front(&rules), || drop(listener.accept().unwrap()));
    drop(waiting);
}

#[test]
fn the_front_reaches_no_service_on_the_machine() {
    let rules = FrontRules::default();
    let folder = folder();
    let path = folder.path().join("service");
    let _listener = UnixListener::bind(&path).unwrap();
    forbids(front(&rules), || UnixStream::connect(&path).map(drop), Errno::PERM);
    forbids(front(&rules), || UnixDatagram::pair().map(drop), Errno::PERM);
    // Workers' sessions.
    permits(front(&rules), || drop(UnixStream::pair().unwrap()));
}

#[test]
fn the_front_cannot_read_the_pin() {
    let (pins, keyring) = (folder(), folder());
    let (pin, record) = (file(pins.path(), "pin"), file(keyring.path(), "record"));
    let rules = FrontRules { read: vec![keyring.path().to_owned()], ..FrontRules::default() };
    forbids(front(&rules), || open(&pin), Errno::ACCESS);
    forbids(front(&rules), || open(Path::new("/etc/shadow")), Errno::ACCESS);
    permits(front(&rules), || open(&record).unwrap());
}

#[test]
fn the_front_starts_no_program() {
    let rules = FrontRules::default();
    forbids(front(&rules), || run("/bin/true"), Errno::PERM);
    forbids(front(&rules), || call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0]), Errno::PERM);
    permits(front(&rules), || std::thread::spawn(|| ()).join().unwrap());
}

#[test]
fn the_front_changes_no_file_but_its_own() {
    let (own, other) = (folder(), folder());
    let victim = file(other.path(), "victim");
    let rules =
        FrontRules { write: vec![own.path().to_owned()], remove: vec![own.path().to_owned()], ..FrontRules::default() };
    forbids(front(&rules), || fs::write(other.path().join("new"), "x"), Errno::ACCESS);
    forbids(front(&rules), || File::options().append(true).open(&victim).map(drop), Errno::ACCESS);
    forbids(front(&rules), || fs::set_permissions(&victim, fs::Permissions::from_mode(0o666)), Errno::PERM);
    forbids(front(&rules), || std::os::unix::fs::chown(&victim, Some(65534), None), Errno::PERM);
    permits(front(&rules), || {
        let log = own.path().join("audit");
        fs::write(&log, "x").unwrap();
        fs::remove_file(&log).unwrap();
    });
    let removed = || {
        let again = fs::remove_file(&victim);
        let _ = fs::write(&victim, "1234");
        again
    };
    forbids(front(&rules), removed, Errno::ACCESS);
}

#[test]
fn the_front_signals_no_other_process() {
    let rules = FrontRules::default();
    let parent = i64::from(std::process::id());
    forbids(front(&rules), || call(libc::SYS_kill, [parent, 0, 0, 0, 0, 0]), Errno::PERM);
    forbids(front(&rules), || call(libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]), Errno::PERM);
}

#[test]
fn nobody_looks_into_other_processes_or_changes_the_system() {
    let (no_rules, bare) = (FrontRules::default(), bare());
    // With arguments that do no harm; unlimited, the kernel answers something else than EPERM.
    let calls: [(libc::c_long, [i64; 6]); 12] = [
        (libc::SYS_ptrace, [i64::from(libc::PTRACE_ATTACH), 0, 0, 0, 0, 0]),
        (libc::SYS_process_vm_readv, [std::process::id().into(), 0, 0, 0, 0, 0]),
        (libc::SYS_kcmp, [0; 6]),
        (libc::SYS_unshare, [0; 6]),
        (libc::SYS_setns, [-1, 0, 0, 0, 0, 0]),
        (libc::SYS_mount, [0; 6]),
        (libc::SYS_bpf, [-1, 0, 0, 0, 0, 0]),
        (libc::SYS_keyctl, [-1, 0, 0, 0, 0, 0]),
        (libc::SYS_io_uring_setup, [0; 6]),
        (libc::SYS_userfaultfd, [-1, 0, 0, 0, 0, 0]),
        (libc::SYS_clock_settime, [-1, 0, 0, 0, 0, 0]),
        (libc::SYS_chroot, [0; 6]),
    ];
    for (number, arguments) in calls {
        // That the call is made at all is what is seen, so any other answer counts as made.
        let made = || match call(number, arguments) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
            _ => Ok(()),
        };
        forbids(front(&no_rules), made, Errno::PERM);
        forbids(launcher, made, Errno::PERM);
        forbids(worker(&bare), made, Errno::PERM);
    }
    let namespace = || call(libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0, 0, 0, 0]);
    forbids(worker(&bare), namespace, Errno::PERM);
    let clone3 = || match call(libc::SYS_clone3, [0; 6]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    };
    forbids(worker(&bare), clone3, Errno::NOSYS);
}

/// Numbers of the second set of calls that an `x86_64` kernel may have.
#[test]
#[cfg(target_arch = "x86_64")]
fn calls_by_x32_numbers_are_denied() {
    let x32 = || match call(libc::SYS_getpid | 0x4000_0000, [0; 6]) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        _ => Ok(()),
    };
    forbids(launcher, x32, Errno::PERM);
}

#[test]
fn the_launcher_starts_this_program_and_no_other() {
    forbids(launcher, || run("/bin/true"), Errno::ACCESS);
    permits(launcher, || run("/proc/self/exe").unwrap());
}

#[test]
fn a_worker_reads_its_modules_files_and_nothing_else() {
    let (own, other) = (folder(), folder());
    let (configuration, secret) = (file(own.path(), "conf"), file(other.path(), "pin"));
    let rules = WorkerRules { read: vec![configuration.clone()], ..bare() };
    forbids(worker(&rules), || open(&secret), Errno::ACCESS);
    forbids(worker(&rules), || open(Path::new("/etc/shadow")), Errno::ACCESS);
    let neighbour = file(own.path(), "neighbour");
    forbids(worker(&rules), || open(&neighbour), Errno::ACCESS);
    permits(worker(&rules), || {
        open(&configuration).unwrap();
        open(Path::new("/dev/urandom")).unwrap();
        open(Path::new("/etc/passwd")).unwrap();
    });
}

#[test]
fn a_worker_writes_where_its_profile_says() {
    let (tokens, other) = (folder(), folder());
    let victim = file(other.path(), "victim");
    let rules = WorkerRules { read: vec![other.path().to_owned()], write: vec![tokens.path().to_owned()], ..bare() };
    forbids(worker(&rules), || fs::write(&victim, "x"), Errno::ACCESS);
    forbids(worker(&rules), || fs::write(other.path().join("new"), "x"), Errno::ACCESS);
    let device = || call_mknod(&tokens.path().join("disk"));
    forbids(worker(&rules), device, Errno::ACCESS);
    permits(worker(&rules), || {
        fs::create_dir(tokens.path().join("new")).unwrap();
        fs::write(tokens.path().join("new/object"), "x").unwrap();
        fs::rename(tokens.path().join("new/object"), tokens.path().join("object")).unwrap();
    });
}

/// Makes the device node of a disk, and takes it away.
fn call_mknod(path: &Path) -> io::Result<()> {
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::BlockDevice, mode, rustix::fs::makedev(8, 0))?;
    fs::remove_file(path)
}

#[test]
fn a_worker_starts_no_program() {
    let rules = bare();
    forbids(worker(&rules), || run("/bin/true"), Errno::PERM);
    permits(worker(&rules), || drop(Module::load(Path::new(LIBRARY), None, &[], Vec::new())));
}

#[test]
fn a_worker_connects_to_its_hsms_port_alone() {
    let [hsm, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [hsm, other] = [&hsm, &other].map(|listener| listener.local_addr().unwrap());
    let rules = WorkerRules { connect: Connect::Ports(vec![hsm.port()]), ..bare() };
    forbids(worker(&rules), || TcpStream::connect(other).map(drop), Errno::ACCESS);
    forbids(worker(&rules), || TcpListener::bind("127.0.0.1:0").map(drop), Errno::ACCESS);
    permits(worker(&rules), || drop(TcpStream::connect(hsm).unwrap()));
    let any = WorkerRules { connect: Connect::Any, ..bare() };
    permits(worker(&any), || drop(TcpStream::connect(other).unwrap()));
}

#[test]
fn a_worker_of_a_software_token_has_no_network() {
    let rules = bare();
    forbids(worker(&rules), || UdpSocket::bind("127.0.0.1:0").map(drop), Errno::PERM);
    let socket = |family: i32| call(libc::SYS_socket, [family.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0]);
    forbids(worker(&rules), || socket(libc::AF_NETLINK), Errno::PERM);
    // Nor has one with a network all of it.
    let any = WorkerRules { connect: Connect::Any, ..bare() };
    forbids(worker(&any), || socket(libc::AF_PACKET), Errno::PERM);
    permits(worker(&any), || drop(UdpSocket::bind("127.0.0.1:0").unwrap()));
    permits(worker(&rules), || drop(UnixStream::pair().unwrap()));
}

#[test]
fn a_worker_kills_no_other_process() {
    let rules = bare();
    let mut victim = Command::new("sleep").arg("60").spawn().unwrap();
    let id = i64::from(victim.id());
    let signal = |number: i32| call(libc::SYS_kill, [id, number.into(), 0, 0, 0, 0]);
    forbids(worker(&rules), || signal(libc::SIGURG), Errno::PERM);
    // Some modules ask so whether their daemon is there.
    permits(worker(&rules), || signal(0).unwrap());
    victim.kill().unwrap();
    victim.wait().unwrap();
}
