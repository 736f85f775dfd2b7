//! Starting a program that outlives this one: PostgreSQL's commands inherit the server's descriptors, and a worker must not keep them.
//!
//! Every worker that is started here also gets the allocator's setting by its environment (`ALLOCATOR`).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};

/// The setting for the C library's allocator, unless the environment has another one. Objects on their way to a store
/// are held whole by several threads in turn. A large block is mapped, and given back when it is freed. But the first
/// that is freed raises the size from which glibc maps (mallopt(3), `M_MMAP_THRESHOLD`). From then on each thread's
/// heap keeps the space of its largest object. A size that is set stays as it is: a worker that holds eight objects at
/// once peaks at 118 MiB, and at 152 without.
const ALLOCATOR: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576");

/// Starts `program` and does not wait for it. Its standard input is `held`, an open file that lives as long as it does (and a lock on it
/// with it); its other standard streams lead nowhere, its working directory is the root, and it inherits no further descriptor. Its
/// environment is that of the caller, and `ALLOCATOR`.
///
/// It begins in the session of the caller: [`own_session`] is the first thing it has to do. One that may run other programs goes on with
/// [`held`].
///
/// # Errors
/// Errors of the system.
pub fn start(program: &Path, arguments: &[OsString], held: File) -> io::Result<()> {
    keep_from_children()?;
    let (variable, setting) = ALLOCATOR;
    let setting = std::env::var_os(variable).unwrap_or_else(|| setting.into());
    let child = Command::new(program)
        .args(arguments)
        .env(variable, setting)
        .current_dir("/")
        .stdin(Stdio::from(held))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Not waited for: whoever starts a worker ends soon, and then it belongs to init.
    drop(child);
    Ok(())
}

/// Leaves the session and process group of whoever started this program: no signal that is meant for those gets here.
pub fn own_session() {
    // It fails where this is the leader of a group, and so has what it is for.
    let _ = rustix::process::setsid();
}

/// Takes what [`start`] has given this program on standard input, and puts `/dev/null` there: a program that it runs in turn (for credentials, say)
/// would have it, too, and could keep a lock longer than the worker lives. A lock is held at every moment.
///
/// # Errors
/// Errors of the system.
pub fn held() -> io::Result<OwnedFd> {
    let held = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(held)
}

/// Marks every descriptor from 3 on as not to be inherited.
fn keep_from_children() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|n| *n > 2) {
            close_on_exec(number);
        }
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "descriptors that were inherited are known by number only"
)]
fn close_on_exec(number: RawFd) {
    use rustix::io::FdFlags;
    // SAFETY: the borrow ends with this call, which changes a flag and neither reads, writes nor closes; of a number that is not, or
    // no longer, an open descriptor it is an error, which means nothing here.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
}
