//! measure RESULT PROGRAM ARG...
//!
//! Runs a program and writes its costs into the file RESULT, as JSON: wall and processor seconds, the peak memory of
//! its largest process, bytes that it and its children caused to be written. Processes that a program leaves running
//! are not counted. It is small itself, because the kernel counts the caller's memory as the peak of the program that
//! it starts.

use std::process::{Command, Stdio};
use std::time::Instant;

#[repr(C)]
#[derive(Default)]
struct Usage {
    user: [i64; 2],
    system: [i64; 2],
    max_rss_kib: i64,
    rest: [i64; 13],
}

unsafe extern "C" {
    fn getrusage(who: i32, usage: *mut Usage) -> i32;
}

fn usage_of_children() -> Usage {
    let mut usage = Usage::default();
    // SAFETY: the structure has the layout of `struct rusage` on 64-bit Linux and outlives the call. -1 is RUSAGE_CHILDREN.
    unsafe { getrusage(-1, &mut usage) };
    usage
}

/// Bytes that this process and its ended children caused to be written to disk.
fn written() -> i64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.trim().parse::<i64>().ok()).unwrap_or(0)
    };
    field("write_bytes:") - field("cancelled_write_bytes:")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [result, program, arguments @ ..] = arguments.as_slice() else {
        std::process::exit(2);
    };
    let before = written();
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .status();
    let wall = start.elapsed().as_secs_f64();
    let usage = usage_of_children();
    let seconds = |t: [i64; 2]| t[0] as f64 + t[1] as f64 / 1e6;
    let code = status.map_or(-1, |s| s.code().unwrap_or(-1));
    let json = format!(
        "{{\"status\": {code}, \"wall\": {wall}, \"cpu\": {}, \"rss\": {}, \"written\": {}}}",
        seconds(usage.user) + seconds(usage.system),
        usage.max_rss_kib * 1024,
        written() - before
    );
    if std::fs::write(result, json).is_err() {
        std::process::exit(2);
    }
}
