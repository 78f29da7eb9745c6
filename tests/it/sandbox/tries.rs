//! Tries something in a fork of this process, with a limit or without.
#![allow(
    unsafe_code,
    reason = "a limit holds for good, so it needs a process with one thread; and some calls have no safe name"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

/// Without the limit it can be done; with it, it fails so.
pub fn forbids(limit: impl Fn(), attempt: impl Fn() -> io::Result<()>, error: Errno) {
    assert_eq!(in_a_fork(&attempt), 0, "it cannot be done anyway");
    let found = in_a_fork(|| {
        limit();
        attempt()
    });
    assert_eq!(found, error.raw_os_error(), "with the limit");
}

/// With the limit it can still be done.
pub fn permits(limit: impl Fn(), attempt: impl Fn()) {
    let found = in_a_fork(|| {
        limit();
        attempt();
        Ok(())
    });
    assert_eq!(found, 0);
}

/// A system call by its number. Only for calls whose arguments these cannot do harm to this process's memory.
pub fn call(number: libc::c_long, arguments: [i64; 6]) -> io::Result<()> {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the callers pass no address but null, or that of a page of their own.
    let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    if result == 0 && number == libc::SYS_clone {
        // SAFETY: this is the child that was not to be.
        unsafe { libc::_exit(0) };
    }
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// 0, the number of its error, or -1 if it panicked.
fn in_a_fork(work: impl FnOnce() -> io::Result<()>) -> i32 {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors, and they are nobody else's.
    let (reader, writer) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    // SAFETY: the child uses the allocator, which glibc makes usable after a fork, and no lock that another thread may hold.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        let code = outcome.map_or(-1, |result| result.map_or_else(|error| error.raw_os_error().unwrap_or(-2), |()| 0));
        let _ = File::from(writer).write_all(&code.to_ne_bytes());
        // SAFETY: nothing of the parent's is dropped here.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut code = [0; 4];
    File::from(reader).read_exact(&mut code).unwrap();
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
    i32::from_ne_bytes(code)
}
