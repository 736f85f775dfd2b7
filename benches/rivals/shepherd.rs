//! shepherd PROGRAM ARG...
//!
//! Runs a program and takes over whatever it leaves running behind it, until the last of them has ended: so the processor time of all of
//! them is found below one process, with those that have ended in the fields `cutime` and `cstime` of its `/proc/PID/stat`.

use std::process::{Command, ExitCode};

unsafe extern "C" {
    fn prctl(option: i32, value: u64, _3: u64, _4: u64, _5: u64) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
}

const PR_SET_CHILD_SUBREAPER: i32 = 36;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, arguments @ ..] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    // SAFETY: takes numbers only.
    if unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return ExitCode::FAILURE;
    }
    if let Err(error) = Command::new(program).args(arguments).spawn() {
        eprintln!("shepherd: {program}: {error}");
        return ExitCode::FAILURE;
    }
    // SAFETY: the status is not asked for. It fails when no child is left.
    while unsafe { waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
    ExitCode::SUCCESS
}
