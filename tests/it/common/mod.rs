//! The test harness: real servers of every supported major, the real programs, faults from outside.
//!
//! | file | what it gives |
//! |---|---|
//! | `mod.rs` | [`skip!`](crate::skip), [`require_root!`](crate::require_root), [`per_major!`](crate::per_major), [`majors`], [`number`], [`wait_until`], [`patiently`] |
//! | `user.rs` | who runs servers and programs: never root |
//! | `sandbox.rs` | [`Sandbox`]: a temporary folder that this user can reach |
//! | `postgres.rs` | where PostgreSQL of each major lies; initdb templates |
//! | `cluster.rs` | [`Cluster`]: a server that is always stopped |
//! | `client.rs` | [`Client`]: blocking SQL |
//! | `program.rs` | [`Program`] and [`Run`]: the three binaries, and any other |
//! | `authority.rs` | [`authority::Authority`]: certificates for servers and clients |
//! | `terminal.rs` | [`terminal::Terminal`]: a program on a terminal of its own |
//! | `fault.rs` | errors and kills at chosen system calls, by strace |
//! | `mount.rs` | small and power-cut filesystems; [`require_mounts!`](crate::require_mounts) |
//! | `medium.rs` | what is below a power-cut filesystem: a drive that reorders, tears and lies |
//! | `progress.rs` | [`progress::Progress`]: the histories of a campaign that passed, in a file |
//! | `proxy.rs` | [`proxy::Proxy`]: a network that delays, falls silent, resets and cuts |
//! | `walsender.rs` | [`walsender::Walsender`]: a scripted server for replication |
//! | `moto.rs` | [`moto::Moto`]: moto's S3 with users and policies, and its KMS |
//! | `s3/` | [`s3::S3Server`]: an object store with faults on demand |
//! | `sftp.rs` | [`sftp::SftpServer`]: OpenSSH's server with keys of its own |
//! | `random.rs` | [`random::Random`]: a seeded generator |
//! | `replay.rs` | a server's answers recorded and played back |
//! | `site.rs` | [`Site`]: a cluster's repository and configuration, made by `pitr init` |
//! | `reception.rs` | [`Reception`]: what a receiver needs beside a cluster |
//!
//! Environment: `PITR_TEST_MAJORS` (say `13,17`) limits the majors, `PITR_TEST_KEEP=1` keeps the folders of failed tests,
//! `PITR_TEST_LOG=1` prints the logs of their servers, `PITR_TEST_TMP` moves the folders from `/tmp`, `CI` turns every skip into a failure.

#![allow(
    dead_code,
    unused_imports,
    reason = "a harness serves tests that are yet to come"
)]

pub mod authority;
pub mod blob;
pub mod blob_server;
mod client;
mod cluster;
pub mod fault;
pub mod medium;
pub mod moto;
pub mod mount;
mod postgres;
mod program;
pub mod progress;
pub mod proxy;
pub mod random;
pub mod reception;
pub mod replay;
pub mod s3;
mod sandbox;
pub mod sftp;
mod site;
pub mod terminal;
pub mod user;
pub mod walsender;

pub use client::{Client, Rows, text as text_of};
pub use cluster::{Builder, Cluster, Stop, free_port};
pub use postgres::{Lock, bin, newest_bin};
pub use program::{
    Program, Run, Running, Usage, memory_bytes, path_of, peak_bytes, pitr, pitr_archive,
    pitr_restore,
};
pub use reception::Reception;
pub use sandbox::{Sandbox, copy_all, copy_tree};
pub use site::{Site, Still, append, edit, files_below, keep_state, paths_below, pin};

use std::io::Write as _;
use std::time::{Duration, Instant};

use pitr::archive::fetch::Place;

/// One required repository to fetch from.
pub fn only(repository: pitr::error::Result<pitr::repo::repository::Repository>) -> Vec<Place> {
    vec![Place {
        name: "held".to_owned(),
        is_required: true,
        patience: PATIENCE,
        open: Box::new(|| repository),
    }]
}

/// Every major that pitr supports.
pub const ALL_MAJORS: [u32; 7] = [13, 14, 15, 16, 17, 18, 19];

/// The number in an environment variable, with which a campaign is asked for.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

/// Returns the majors to test: all, or those of `PITR_TEST_MAJORS`.
pub fn majors() -> Vec<u32> {
    let Ok(list) = std::env::var("PITR_TEST_MAJORS") else {
        return ALL_MAJORS.to_vec();
    };
    let chosen: Vec<u32> = list
        .split([',', ' '])
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .ok()
                .filter(|major| ALL_MAJORS.contains(major))
                .unwrap_or_else(|| panic!("PITR_TEST_MAJORS: \"{word}\" is none of {ALL_MAJORS:?}"))
        })
        .collect();
    assert!(!chosen.is_empty(), "PITR_TEST_MAJORS names no major");
    chosen
}

/// Reports a test, or a part of one, that cannot run here. With `CI` set that is a failure.
///
/// Written past the capture of the test runner, which would hide it. Use it through [`skip!`](crate::skip).
pub fn skipped(name: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
    assert!(
        std::env::var_os("CI").is_none(),
        "SKIPPED {name}: {why} (a failure, because CI is set)"
    );
}

/// Ends the test as skipped: `skip!("name", "why")`.
#[macro_export]
macro_rules! skip {
    ($name:expr, $why:expr) => {{
        $crate::common::skipped($name, $why);
        return;
    }};
}

/// Ends the test as skipped unless it runs as root: `require_root!("name")`.
#[macro_export]
macro_rules! require_root {
    ($name:expr) => {
        if !$crate::common::user::is_root() {
            $crate::skip!($name, "needs root");
        }
    };
}

/// Makes one test for each major out of `fn name(major: u32)`: `per_major!(name);` gives `name::v13` to `name::v19`,
/// `per_major!(name, v13 v18);` these two. They run side by side.
#[macro_export]
macro_rules! per_major {
    ($name:ident) => {
        $crate::per_major!($name, v13 v14 v15 v16 v17 v18 v19);
    };
    ($name:ident, $($test:ident)+) => {
        mod $name {
            $($crate::per_major!(@ $name $test);)+
        }
    };
    (@ $name:ident v13) => { $crate::per_major!(@ $name v13 13); };
    (@ $name:ident v14) => { $crate::per_major!(@ $name v14 14); };
    (@ $name:ident v15) => { $crate::per_major!(@ $name v15 15); };
    (@ $name:ident v16) => { $crate::per_major!(@ $name v16 16); };
    (@ $name:ident v17) => { $crate::per_major!(@ $name v17 17); };
    (@ $name:ident v18) => { $crate::per_major!(@ $name v18 18); };
    (@ $name:ident v19) => { $crate::per_major!(@ $name v19 19); };
    (@ $name:ident $test:ident $major:literal) => {
        #[test]
        fn $test() {
            if !$crate::common::majors().contains(&$major) {
                $crate::skip!(concat!(stringify!($name), "::", stringify!($test)), "not in PITR_TEST_MAJORS");
            }
            super::$name($major);
        }
    };
}

/// A text of a server with its positions as servers before 19 print them, whose second half may be shorter than eight digits.
pub fn unpadded(text: &str) -> String {
    let mut parts = text.split('/');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        let zeros = part.bytes().take_while(|b| *b == b'0').count();
        // The directory of a path is a word, of which such digits can only be the end.
        let first = out.trim_end_matches(|c: char| c.is_ascii_hexdigit());
        let is_position = digits == 8
            && first.len() < out.len()
            && !first.ends_with(|c: char| c.is_ascii_alphanumeric() || "_/.".contains(c));
        out.push('/');
        out.push_str(&part[if is_position { zeros.min(7) } else { 0 }..]);
    }
    out
}

/// Asks `done` every 20 ms until it says yes.
///
/// # Panics
/// After [`PATIENCE`], naming `what` was waited for.
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

/// As [`wait_until`], with a patience of its own.
pub fn wait_within(timeout: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !done() {
        assert!(
            Instant::now() < end,
            "waited {timeout:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The members of a list in an answer.
#[track_caller]
pub fn list_of(value: &serde_json::Value) -> &Vec<serde_json::Value> {
    value.as_array().unwrap()
}

/// A text in an answer.
#[track_caller]
pub fn str_of(value: &serde_json::Value) -> &str {
    value.as_str().unwrap()
}

/// Returns the arguments of `pitr expire` that keep one backup, whatever its age, and `more` of them.
pub fn keep_one<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["expire", "--min-age", "0s", "--keep", "1"], more].concat()
}

/// Returns the arguments of `pitr` that delete at once whatever the last backup does not need.
pub fn expire_at_once() -> Vec<&'static str> {
    keep_one(&["--grace", "0s", "--confirm", "--quiet"])
}

/// Runs what tries for `$PITR_FAULT_SECONDS` for one second, and for longer where the machine was too busy to come to what is expected in that
/// time.
pub fn patiently<T>(mut run: impl FnMut(u64) -> T, is_expected: impl Fn(&T) -> bool) -> T {
    for seconds in [1, 5, 25] {
        let done = run(seconds);
        if is_expected(&done) {
            return done;
        }
    }
    run(100)
}

/// Enough for anything that works, on a loaded machine. More than a minute: the archiver that missed its wake-up call looks again after one.
pub const PATIENCE: Duration = Duration::from_secs(180);
