//! `pitr demo` and `make demo`, with the programs under test in place of release builds.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::terminal::Terminal;
use crate::common::{Program, Sandbox, bin, newest_bin, path_of, pitr, wait_until};
use crate::per_major;

/// `pitr demo` with the server of a major, which puts its folder into `scratch`.
fn demo(major: u32, scratch: &Sandbox) -> Program {
    let folder = bin(major, "initdb").unwrap();
    pitr()
        .arg("demo")
        .arg("--bin")
        .arg(folder.parent().unwrap())
        .env("TMPDIR", scratch.path())
}

/// The folders that a demonstration made, and did not remove.
fn left(scratch: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(scratch).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_own = |path: &std::path::PathBuf| path.to_string_lossy().contains("pitr-demo-");
    paths.filter(is_own).collect()
}

fn the_demonstration_brings_every_row_back_and_leaves_nothing(major: u32) {
    let scratch = Sandbox::new("d");
    let run = demo(major, &scratch).succeed();
    let back = run.stdout.split("== 7.").nth(1).unwrap_or_default();
    assert!(
        back.contains("20003 | 100005066.60") && back.contains("20002 | orders of"),
        "{run}"
    );
    for command in [
        "$ pitr init ",
        "$ pitr backup ",
        "$ pitr plan ",
        "$ pitr restore ",
        "drop table orders;",
    ] {
        assert!(run.stdout.contains(command), "{command}: {run}");
    }
    assert!(!run.stdout.contains('\u{1b}'), "no colour in a file");
    assert_eq!(left(scratch.path()).len(), 0);
}
per_major!(the_demonstration_brings_every_row_back_and_leaves_nothing);

#[test]
fn what_is_kept_of_the_demonstration_can_be_looked_at() {
    let scratch = Sandbox::new("d");
    let run = demo(17, &scratch).arg("--keep").succeed();
    // Every user who reaches their socket is a superuser of its servers.
    let folders = std::fs::read_dir(scratch.path())
        .unwrap()
        .map(|e| e.unwrap());
    for folder in folders {
        let mode = std::os::unix::fs::MetadataExt::mode(&folder.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o700, "{:?}", folder.path());
    }
    let [folder] = &left(scratch.path())[..] else {
        panic!("one folder: {run}")
    };
    run.expect_stdout(&format!("rm -r {}", folder.display()));
    assert!(!folder.join("data/postmaster.pid").exists());
    pitr()
        .words("info --config")
        .arg(folder.join("pitr.toml"))
        .run()
        .expect_stdout("PostgreSQL 17");
}

#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let scratch = Sandbox::new("d");
        let mut running = demo(17, &scratch).spawn();
        running.until("its server runs", || {
            let folders = left(scratch.path());
            folders
                .iter()
                .any(|f| f.join("data/postmaster.pid").exists())
        });
        running.signal(signal);
        assert_eq!(running.wait().code(), 130);
        assert_eq!(left(scratch.path()).len(), 0);
    }
}

/// Whoever is impatient presses it again, and it reaches everything that the terminal has in its foreground.
#[test]
fn ctrl_c_on_a_terminal_leaves_nothing_however_often_it_comes() {
    // While the server is made and started, while a command runs, and while all of it is brought to its end.
    for moment in [
        "== A private",
        "$ pitr init",
        "$ pitr backup",
        "$ pitr restore",
    ] {
        let scratch = Sandbox::new("d");
        let mut terminal = Terminal::start(&demo(17, &scratch));
        terminal.expect(moment);
        let folder = left(scratch.path()).remove(0);
        for _ in 0..4 {
            terminal.interrupt();
            std::thread::sleep(Duration::from_millis(30));
        }
        let (status, shown) = terminal.end();
        assert_eq!(status, Some(130), "{moment}: {shown}");
        assert!(shown.contains("interrupted"), "{moment}: {shown}");
        assert_eq!(left(scratch.path()).len(), 0, "{moment}: {shown}");
        let own = folder.to_str().unwrap();
        // An archive_command that ran meanwhile outlives its server by a moment.
        wait_until("every process has ended", || {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let lines = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
            lines
                .filter(|l| String::from_utf8_lossy(l).contains(own))
                .count()
                == 0
        });
        assert_eq!(left(scratch.path()).len(), 0, "{moment}: {shown}");
    }
}

#[test]
fn a_host_without_a_server_hears_how_to_get_one() {
    let scratch = Sandbox::new("d");
    pitr()
        .words("demo --bin")
        .arg(scratch.path())
        .exits(2)
        .expect_stderr("has no initdb, pg_ctl and postgres")
        .expect_stderr("--bin DIR");
}

#[test]
fn make_demo_ends_with_the_rows_that_were_dropped_and_every_confirmed_commit() {
    // The demo's programs of PostgreSQL are there before it asks for them.
    newest_bin(17, "psql");
    let can_mount = crate::clone::can_mount();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo"))
        .env("PITR_DEMO_PROGRAMS", path_of("pitr").parent().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let first = text.split("Second act").next().unwrap_or_default();
    assert!(first.contains("20003 | 100005066.60"), "{text}");
    if can_mount {
        let third = text.rsplit("Third act").next().unwrap_or_default();
        assert!(third.contains("50001 | 50001"), "{text}");
    } else {
        crate::common::skipped("the third act of the demonstration", "needs /dev/fuse");
    }
    let outcome = text.rsplit("== 7.").next().unwrap_or_default();
    let outcome = outcome.split("Third act").next().unwrap_or_default();
    let row = outcome.lines().find(|line| line.ends_with("|    0"));
    let counts: Vec<u32> = row
        .unwrap_or_default()
        .split('|')
        .filter_map(|field| field.trim().parse().ok())
        .collect();
    assert!(
        matches!(counts[..], [confirmed, restored, 0] if confirmed >= 300 && restored == confirmed),
        "{text}"
    );
}
