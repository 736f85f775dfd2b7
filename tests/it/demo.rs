//! `make demo`, with the programs under test in place of release builds.

use std::process::{Command, Stdio};

use crate::common::{newest_bin, path_of};

#[test]
fn the_demo_ends_with_the_rows_that_were_dropped_and_every_confirmed_commit() {
    // What it needs of PostgreSQL is there before it asks for it.
    newest_bin(17, "psql");
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo"))
        .env("PITR_DEMO_PROGRAMS", path_of("pitr").parent().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let back = text.split("== 7.").nth(1).unwrap_or_default();
    assert!(
        back.contains("20003 | 100005066.60") && back.contains("20002 | orders of"),
        "{text}"
    );
    assert!(
        text.contains("recovery stopping before commit of transaction"),
        "{text}"
    );
    let outcome = text.split("== 12.").nth(1).unwrap_or_default();
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
    assert!(!text.contains('\u{1b}'), "no colour in a file");
}
