//! `--help` of every command: the tree is walked by the commands that each help lists.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::Scene;
use super::redact::Data;
use crate::common::{Program, Sandbox, pitr, pitr_archive, pitr_restore};

/// Every command of `pitr`, each as its words, the shorter before the longer.
fn commands() -> &'static [Vec<String>] {
    static FOUND: OnceLock<Vec<Vec<String>>> = OnceLock::new();
    FOUND.get_or_init(walk)
}

fn walk() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while let Some(command) = found.get(at).cloned() {
        let help = pitr().args(&command).arg("--help").succeed();
        let listed = help.stdout.lines().skip_while(|l| *l != "Commands:");
        for line in listed.skip(1).take_while(|line| line.starts_with("  ")) {
            // The continuation of a long line is indented further.
            let name = line[2..].split(' ').next().unwrap_or_default();
            if !name.is_empty() {
                found.push([&command[..], &[name.to_owned()]].concat());
            }
        }
        at += 1;
    }
    found
}

fn name(command: &[String]) -> String {
    format!(
        "help-{}",
        [&["pitr".to_owned()], command].concat().join("-")
    )
}

/// The names of the scenes of this module.
pub fn names() -> Vec<String> {
    commands().iter().map(|command| name(command)).collect()
}

fn check(name: &str, programs: &[Program]) {
    let mut scene = Scene::new(name, Data::Frozen, &[]);
    for program in programs {
        scene.run(program);
    }
    scene.check();
}

#[test]
fn the_help_of_every_command() {
    let commands = commands();
    assert!(commands.len() > 30, "{commands:?}");
    for command in commands {
        check(&name(command), &[pitr().args(command).arg("--help")]);
    }
}

#[test]
fn short_help_and_version() {
    check(
        "help-short",
        &[
            pitr().arg("-h"),
            pitr().words("plan -h"),
            pitr().arg("--version"),
            pitr().words("help wal push"),
            pitr().words("help backups"),
            pitr().arg("wal"),
            pitr_archive().arg("--version"),
            pitr_restore().arg("--version"),
        ],
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let sandbox = Sandbox::new("man");
    let pages = sandbox.dir("pages");
    pitr().arg("man").arg(&pages).succeed();
    for command in commands() {
        let name = [&["pitr".to_owned()], &command[..]].concat();
        let page = std::fs::read_to_string(pages.join(format!("{}.1", name.join("-"))));
        assert!(page.unwrap().contains(".SH NAME"), "{command:?}");
    }
    for program in ["pitr-archive", "pitr-restore-command"] {
        assert!(pages.join(format!("{program}.1")).exists());
    }
}

#[test]
fn a_page_of_the_documentation_is_printed_as_it_is() {
    for (page, file) in [
        ("targets", "targets.md"),
        ("statuses", "exit-status.md"),
        ("configuration", "configuration.md"),
    ] {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let printed = pitr().args(["help", page]).succeed();
        assert_eq!(
            printed.stdout,
            std::fs::read_to_string(docs.join(file)).unwrap()
        );
    }
}

#[test]
fn completions_are_a_script_of_the_shell() {
    let script = pitr().words("completions bash").succeed().stdout;
    let is_word = |c: char| c.is_alphanumeric() || c == '-';
    let mut words = script.split(|c| !is_word(c));
    assert!(script.contains("backfill") && words.all(|word| word != "serve"));
    // As one argument it would be too long.
    let sandbox = Sandbox::new("completions");
    let file = sandbox.file("pitr.bash", &script);
    let checked = Command::new("bash").arg("-n").arg(file).status();
    assert!(checked.unwrap().success());
}

#[test]
fn the_help_of_the_two_small_programs() {
    check(
        "help-pitr-archive",
        &[pitr_archive().arg("--help"), pitr_archive()],
    );
    check(
        "help-pitr-restore-command",
        &[pitr_restore().arg("--help"), pitr_restore()],
    );
}
