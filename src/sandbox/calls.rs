//! Seccomp: which system calls fail with EPERM.
//!
//! A list of what is denied, not of what is allowed. Which harmless calls a process makes depends on the C library, on tokio
//! and, in a worker, on code that nobody here has seen; a list of those would break with an update, on somebody's node, at night.
//! What an attacker needs is a short list that does not change. It is closed where lists of this sort leak: other architectures
//! are killed, x32 numbers are denied, and `clone3`, whose flags a filter cannot see, does not exist.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads, sock_filter,
};

/// For whom.
#[derive(Clone, Copy, Debug)]
pub(super) enum Process {
    Front,
    Launcher,
    Worker { has_network: bool },
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Sets the filters of this process, for good.
pub(super) fn restrict(process: Process) -> Result<(), Error> {
    let mut rules = nobody()?;
    match process {
        Process::Front => front(&mut rules)?,
        Process::Launcher => {}
        Process::Worker { has_network } => worker(&mut rules, has_network)?,
    }
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    // The C library then uses clone.
    apply_filter_all_threads(&filter(no_clone3, libc::ENOSYS)?)?;
    #[cfg(target_arch = "x86_64")]
    apply_filter_all_threads(&NO_X32)?;
    apply_filter_all_threads(&filter(rules, libc::EPERM)?)
}

fn filter(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, Error> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

/// Numbers with bit 30 set are the same calls once more, of the x32 architecture: seccomp(2).
#[cfg(target_arch = "x86_64")]
const NO_X32: [sock_filter; 4] = [
    // BPF_LD | BPF_W | BPF_ABS: the number of the call.
    sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
    // BPF_JMP | BPF_JGE | BPF_K
    sock_filter { code: 0x35, jt: 0, jf: 1, k: 0x4000_0000 },
    // BPF_RET | BPF_K: SECCOMP_RET_ERRNO with EPERM, SECCOMP_RET_ALLOW.
    sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0001 },
    sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
];

/// What no process of the plugin has a use for.
fn nobody() -> Result<Rules, Error> {
    let mut rules: Rules = NOBODY.iter().map(|call| (*call, Vec::new())).collect();
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    for flag in namespaces {
        deny(&mut rules, libc::SYS_clone, &[has(0, flag)])?;
    }
    // Input that the terminal seems to have typed.
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        deny(&mut rules, libc::SYS_ioctl, &[(1, SeccompCmpOp::Eq, request)])?;
    }
    Ok(rules)
}

fn front(rules: &mut Rules) -> Result<(), Error> {
    rules.extend(FRONT.iter().map(|call| (*call, Vec::new())));
    // Threads, but no processes.
    deny(rules, libc::SYS_clone, &[(0, SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD)), 0)])?;
    // No code but what is there, so no library.
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        deny(rules, call, &[has(2, libc::PROT_EXEC)])?;
    }
    deny(rules, libc::SYS_shmat, &[has(2, libc::SHM_EXEC)])?;
    // A pair of datagram sockets could still send to others. The plugin's pairs are streams.
    for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
        deny(rules, libc::SYS_socketpair, &[(1, SeccompCmpOp::MaskedEq(0xf), bits(kind))])?;
    }
    deny(rules, libc::SYS_sendto, &[(4, SeccompCmpOp::Ne, 0)])?;
    let own = own_id();
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        deny(rules, call, &[(0, SeccompCmpOp::Ne, own)])?;
    }
    Ok(())
}

fn worker(rules: &mut Rules, has_network: bool) -> Result<(), Error> {
    rules.extend(WORKER.iter().map(|call| (*call, Vec::new())));
    let network = if has_network { &[libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK][..] } else { &[] };
    let others = network.iter().chain(&[libc::AF_UNIX]).map(|family| (0, SeccompCmpOp::Ne, bits(*family)));
    deny(rules, libc::SYS_socket, &others.collect::<Vec<_>>())?;
    // Whether a process lives may be asked: some modules look for their daemon so.
    let own = own_id();
    deny(rules, libc::SYS_kill, &[(0, SeccompCmpOp::Ne, own), (1, SeccompCmpOp::Ne, 0)])?;
    deny(rules, libc::SYS_tgkill, &[(0, SeccompCmpOp::Ne, own), (2, SeccompCmpOp::Ne, 0)])
}

/// Argument number, comparison, value.
type Condition = (u8, SeccompCmpOp, u64);

/// Denies the call where all of these hold.
fn deny(rules: &mut Rules, call: c_long, conditions: &[Condition]) -> Result<(), Error> {
    // Addresses are wider than all other arguments here.
    let width = |value: &Condition| if value.0 == 4 { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    let condition = |it: &Condition| SeccompCondition::new(it.0, width(it), it.1.clone(), it.2);
    let conditions = conditions.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
    Ok(())
}

fn has(argument: u8, flag: libc::c_int) -> Condition {
    (argument, SeccompCmpOp::MaskedEq(bits(flag)), bits(flag))
}

fn bits(flag: libc::c_int) -> u64 {
    u64::from(flag.cast_unsigned())
}

fn own_id() -> u64 {
    u64::from(std::process::id())
}

const NOBODY: &[c_long] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Other namespaces and file systems.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    // The kernel: parts that many holes were found in, and those that change it.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

const FRONT: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // Sockets of its own are bound before; connections come by accept.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_tkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Landlock does not see these.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_truncate,
];

const WORKER: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_tkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
];
