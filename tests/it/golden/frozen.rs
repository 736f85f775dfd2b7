//! The answers of the reading commands for the frozen repositories, in which every time, id and position is fixed.

use std::path::Path;

use super::Scene;
use super::redact::Data;
use crate::common::Program;
use crate::frozen::Frozen;

/// A scene on a fresh copy: what one command writes, verify's events for one, is not seen by other scenes.
pub struct Stage {
    frozen: Frozen,
    scene: Scene,
}

impl Stage {
    pub fn new(name: &str, major: u32, form: &str) -> Stage {
        let frozen = Frozen::new(major, form);
        let scene = Scene::new(name, Data::Frozen, &[(frozen.path(), "[sandbox]")]);
        Stage { frozen, scene }
    }

    pub fn path(&self) -> &Path {
        self.frozen.path()
    }

    /// Writes a file beside the repository, open to its owner alone.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
        self.frozen.sandbox().file(name, content)
    }

    pub fn program(&self) -> Program {
        self.frozen.pitr()
    }

    pub fn say(&mut self, what: &str) {
        self.scene.say(what);
    }

    pub fn pitr(&mut self, args: &[&str]) {
        self.run(&self.frozen.pitr().args(args));
    }

    pub fn run(&mut self, program: &Program) {
        self.scene.run(program);
    }

    /// Takes the key out of the configuration.
    pub fn forget_key(&mut self) {
        let config = self.frozen.path().join("pitr.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let (without, _) = text
            .split_once("\n[repositories.frozen.encryption]")
            .unwrap();
        std::fs::write(config, without).unwrap();
    }

    /// Lets the configuration name a key that is not there.
    pub fn lose_key(&mut self) {
        let lost = self.frozen.path().join("lost.key");
        let section = "[repositories.frozen.encryption]";
        self.add_to_configuration(&format!("\n{section}\nkey_file = \"{}\"\n", lost.display()));
    }

    /// Adds lines to the end of the configuration.
    pub fn add_to_configuration(&mut self, lines: &str) {
        crate::common::append(self.frozen.path().join("pitr.toml"), lines);
    }

    pub fn check(self) {
        self.scene.check();
    }
}

/// Plays each of these command lines on one copy of a plain repository.
fn play(name: &str, major: u32, lines: &[&[&str]]) {
    let mut stage = Stage::new(name, major, "plain");
    for args in lines {
        stage.pitr(args);
    }
    stage.check();
}

#[test]
fn info() {
    play("frozen-info", 18, &[&["info"], &["info", "--json"]]);
}

#[test]
fn plans_that_succeed() {
    play(
        "frozen-plan",
        18,
        &[
            &["plan"],
            &["plan", "--target-time", "2026-11-21T14:30:20.531486Z"],
            &[
                "plan",
                "--target-time",
                "2026-11-21 14:30:25+00",
                "--exclusive",
            ],
            &[
                "plan",
                "--target-time",
                "2026-11-21 09:30:22",
                "--timezone",
                "America/New_York",
                "--target-timeline",
                "1",
            ],
            &["plan", "--target-lsn", "0/F00778"],
            &["plan", "--target-xid", "766"],
            &["plan", "--target-name", "payday"],
            &["plan", "--target-immediate"],
            &["plan", "--target-lsn", "5/0", "--allow-end"],
            &["plan", "--backup", "20261121T143019Z-full"],
        ],
    );
}

#[test]
fn plans_that_are_out_of_reach() {
    play(
        "frozen-plan-unreachable",
        18,
        &[
            &["plan", "--target-time", "2026-11-21 14:30:00Z"],
            &["plan", "--target-time", "2026-11-21 15:00:00Z"],
            &["plan", "--target-lsn", "0/100"],
            &["plan", "--target-lsn", "5/0"],
            &["plan", "--target-xid", "760"],
            &["plan", "--target-xid", "99999"],
            &["plan", "--target-name", "holiday"],
            &["plan", "--target-timeline", "7"],
            &["plan", "--backup", "20200101T000000Z-full"],
            &[
                "plan",
                "--target-name",
                "payday",
                "--backup",
                "20261121T143022Z-full",
            ],
            &["plan", "--target-name", "holiday", "--json"],
        ],
    );
}

#[test]
fn plans_as_json() {
    play(
        "frozen-plan-json",
        18,
        &[
            &["plan", "--json"],
            &[
                "plan",
                "--json",
                "--target-time",
                "2026-11-21T14:30:20.531486Z",
            ],
        ],
    );
}

#[test]
fn what_happened() {
    play(
        "frozen-find",
        18,
        &[
            &["find"],
            &["find", "--since", "2026-11-21 00:00Z", "--min-rows", "10"],
            &["find", "--kind", "delete", "--min-rows", "1", "--json"],
            &["find", "--kind", "vanish"],
            &["find", "--since", "tomorrow"],
        ],
    );
}

#[test]
fn dry_restores() {
    let mut stage = Stage::new("frozen-restore-dry-run", 18, "plain");
    for more in [
        &[][..],
        &["--target-name", "payday"],
        &["--target-xid", "99999"],
        &["--json"],
    ] {
        let to = stage.frozen.path().join("to");
        let restore = stage.frozen.pitr().words("restore --dry-run --to");
        stage.run(&restore.arg(to).args(more));
    }
    stage.check();
}

#[test]
fn wal() {
    play(
        "frozen-wal",
        18,
        &[
            &["wal", "list"],
            &["wal", "list", "--quiet"],
            &["wal", "gaps"],
            &["wal", "conflicts"],
            &[
                "wal",
                "resolve",
                "000000010000000000000009",
                "--keep",
                "e333506c85b31a17",
            ],
            &["wal", "show", "000000010000000000000008"],
            &["wal", "show", "00000002000000000000000F"],
            &["wal", "show", "0000000200000000000000FF"],
        ],
    );
    play(
        "frozen-wal-json",
        18,
        &[
            &["wal", "list", "--json"],
            &["wal", "gaps", "--json"],
            &["wal", "conflicts", "--json"],
            &["wal", "show", "00000002000000000000000F", "--json"],
        ],
    );
}

#[test]
fn timelines() {
    play(
        "frozen-timeline",
        18,
        &[
            &["timeline", "list"],
            &["timeline", "list", "--json"],
            &["timeline", "abandon", "2", "--reason", "a drill"],
            &[
                "timeline",
                "abandon",
                "2",
                "--reason",
                "a drill",
                "--dry-run",
            ],
            &["timeline", "abandon", "7", "--reason", "a drill"],
            &["timeline", "restore", "1", "--reason", "a drill"],
            &[
                "timeline",
                "abandon",
                "2",
                "--reason",
                "a drill",
                "--confirm",
            ],
            &["timeline", "list"],
            &["info"],
            &[
                "timeline",
                "restore",
                "2",
                "--reason",
                "it was none",
                "--confirm",
            ],
            &["timeline", "list"],
        ],
    );
}

#[test]
fn expire() {
    play(
        "frozen-expire",
        18,
        &[
            &["expire", "--dry-run"],
            &["expire", "--dry-run", "--keep", "1"],
            &["expire", "--keep", "1"],
            &["expire", "--dry-run", "--keep", "1", "--json"],
        ],
    );
}

#[test]
fn repositories() {
    play(
        "frozen-repo",
        18,
        &[
            &["repo", "show"],
            &["repo", "show", "--json"],
            &["repo", "claims"],
            &["repo", "claims", "--json"],
        ],
    );
}

#[test]
fn verify() {
    let mut stage = Stage::new("frozen-verify", 18, "plain");
    stage.pitr(&["verify"]);
    stage.pitr(&["verify", "--backup", "20261121T143022Z-full"]);
    // The events that verify writes name the host and the process: their length is not fixed.
    let run = stage.frozen.pitr().words("verify --json").run();
    let mut run = run.success();
    let bytes = &run.json()["clusters"][0]["read_bytes"];
    run.stdout = run.stdout.replace(&bytes.to_string(), "[number]");
    stage.scene.add(&run);
    stage.check();
}

#[test]
fn postgresql_13() {
    play(
        "frozen-13",
        13,
        &[
            &["info"],
            &["plan"],
            &["plan", "--target-name", "payday"],
            &["verify"],
        ],
    );
}
