//! All that users read: command lines with their outputs and exit statuses, in `snapshots/`, one file for each scene.
//!
//! A difference fails. `make golden` accepts it, and the reviewer reads it in the diff. `redact.rs` replaces what no two runs share.

mod bad_input;
mod encrypted;
mod frozen;
mod guide;
mod help;
mod live;
mod live_content;
mod live_damage;
mod live_lives;
mod live_repositories;
mod redact;

use std::path::Path;

use crate::common::{Program, Run, bin, path_of};
use redact::{Data, Redactor};

/// Commands in order, with what they printed.
struct Scene {
    name: String,
    redactor: Redactor,
    text: String,
}

impl Scene {
    /// A scene in these places, each with the name that stands for it.
    fn new(name: &str, data: Data, places: &[(&Path, &str)]) -> Scene {
        let places = places.iter();
        let mut literals: Vec<(String, String)> = places
            .map(|(path, name)| (path.display().to_string(), (*name).to_owned()))
            .collect();
        let programs = path_of("pitr");
        let folder = programs.parent().expect("it lies in a folder");
        literals.push((folder.display().to_string(), "[programs]".into()));
        literals.push((env!("CARGO_PKG_VERSION").into(), "[version]".into()));
        let tool = bin(17, "pg_ctl").and_then(|path| path.canonicalize().ok());
        if let Some(folder) = tool.as_deref().and_then(Path::parent) {
            literals.push((folder.display().to_string(), "[postgresql]".into()));
        }
        Scene {
            name: name.to_owned(),
            redactor: Redactor::new(data, &literals),
            text: String::new(),
        }
    }

    /// Says what happened between two commands.
    fn say(&mut self, what: &str) {
        self.text.push_str(&format!("# {what}\n\n"));
    }

    /// Runs a program and writes down all that it said.
    fn run(&mut self, program: &Program) -> Run {
        let run = program.clone().env("COLUMNS", "100").run();
        self.add(&run);
        run
    }

    /// Runs a program and writes down its output without lines that say this, and what is indented below them.
    fn run_without(&mut self, program: &Program, parts: &[&str]) -> Run {
        let mut run = program.clone().env("COLUMNS", "100").run();
        run.stdout = without(&run.stdout, parts);
        run.stderr = without(&run.stderr, parts);
        self.add_output(&run);
        // It counts what is left out, too.
        self.text += "--- exit status not compared\n\n";
        run
    }

    /// Writes down a run.
    fn add(&mut self, run: &Run) {
        self.add_output(run);
        self.text += &format!("--- exit status {}\n\n", run.code());
    }

    fn add_output(&mut self, run: &Run) {
        let line = shown(&run.line);
        self.text += &format!("$ {}\n", self.redactor.text(&line).trim_end());
        self.text += &self.redactor.text(&run.stdout);
        if !run.stderr.is_empty() {
            self.text += "--- stderr\n";
            self.text += &self.redactor.text(&run.stderr);
        }
    }

    /// Compares everything with what is stored under the scene's name.
    fn check(self) {
        insta::with_settings!(
            {snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true},
            { insta::assert_snapshot!(self.name, self.text) }
        );
    }
}

fn without(text: &str, parts: &[&str]) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut kept = String::new();
    let mut cut_at = None;
    for line in text.lines() {
        if parts.iter().any(|part| line.contains(part)) {
            cut_at = Some(indent(line));
        } else if cut_at.is_none_or(|at| indent(line) <= at) {
            cut_at = None;
            kept += &format!("{line}\n");
        }
    }
    kept
}

/// The command line as one would type it: the program's name alone, without the configuration, which is that of the scene.
fn shown(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or(program);
    let mut shown = vec![name];
    while let Some(word) = words.next() {
        if word == "--config" {
            let file = words.next().unwrap_or_default();
            if !file.ends_with("/pitr.toml") {
                shown.extend([word, file]);
            }
            continue;
        }
        shown.push(word);
    }
    shown.join(" ")
}

/// A scene that is no longer played leaves no snapshot.
#[test]
fn every_snapshot_belongs_to_a_scene() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden");
    let files = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    };
    let sources = files(&folder).into_iter().filter(|p| p.is_file());
    let sources: String = sources
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let commands = help::names();
    for path in files(&folder.join("snapshots")) {
        let file = path.file_name().unwrap().to_str().unwrap();
        let Some(name) = file.strip_suffix(".snap") else {
            assert!(file.ends_with(".snap.new"), "{file}");
            continue;
        };
        let is_played =
            commands.iter().any(|c| c == name) || sources.contains(&format!("\"{name}\""));
        assert!(is_played, "no scene is called {name}: remove {file}");
    }
}
