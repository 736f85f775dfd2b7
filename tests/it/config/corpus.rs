//! How many planted secrets are recognised, and how many harmless values are taken for secrets.
//!
//! A corpus is a directory of files `NAME`; beside each lie `NAME.secrets` and `NAME.harmless` with a value on each line.

use std::path::{Path, PathBuf};

use pitr::secrets::{Overrides, recognise};

/// At least so many of a thousand planted secrets must be recognised.
const RECALL_PERMILLE: usize = 990;
/// At most so many of a thousand harmless values may be taken for secrets.
const FALSE_ALARMS_PERMILLE: usize = 30;

#[derive(Default)]
struct Counts {
    secrets: usize,
    missed: Vec<String>,
    harmless: usize,
    taken: Vec<String>,
}

impl Counts {
    fn read(&mut self, file: &Path) {
        let content = std::fs::read(file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let found = recognise(name, &content, &Overrides::default());
        let values = |end: &str| {
            let list = PathBuf::from(format!("{}.{end}", file.display()));
            let text = std::fs::read_to_string(list).unwrap_or_default();
            text.lines()
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let places = |value: &str| -> Vec<usize> {
            let value = value.as_bytes();
            let all = content.windows(value.len()).enumerate();
            all.filter(|(_, window)| *window == value)
                .map(|(at, _)| at)
                .collect()
        };
        for value in values("secrets") {
            let at = places(&value);
            assert!(!at.is_empty(), "{name} has no {value:?}");
            self.secrets += 1;
            // Every byte of it, in every place.
            let is_hidden = |at: &usize| {
                found
                    .iter()
                    .any(|f| f.span.start <= *at && at + value.len() <= f.span.end)
            };
            if !at.iter().all(is_hidden) {
                self.missed.push(format!("{name}: {value}"));
            }
        }
        for value in values("harmless") {
            let at = places(&value);
            assert!(!at.is_empty(), "{name} has no {value:?}");
            self.harmless += 1;
            let is_taken = |at: &usize| {
                found
                    .iter()
                    .any(|f| f.span.start < at + value.len() && *at < f.span.end)
            };
            if at.iter().all(is_taken) {
                self.taken.push(format!("{name}: {value}"));
            }
        }
    }
}

fn is_list(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "secrets" || e == "harmless")
}

fn count(folder: &Path) -> Counts {
    let mut counts = Counts::default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    for file in files.iter().filter(|file| file.is_file() && !is_list(file)) {
        counts.read(file);
    }
    counts
}

fn report(folder: &Path) -> Counts {
    let counts = count(folder);
    eprintln!(
        "{}: {} of {} secrets missed, {} of {} harmless values taken",
        folder.display(),
        counts.missed.len(),
        counts.secrets,
        counts.taken.len(),
        counts.harmless
    );
    for line in counts
        .missed
        .iter()
        .map(|m| format!("missed {m}"))
        .chain(counts.taken.iter().map(|t| format!("taken {t}")))
    {
        eprintln!("{line}");
    }
    counts
}

fn check(folder: &Path) {
    let counts = report(folder);
    assert!(
        counts.secrets > 0 && counts.harmless > 0,
        "{} is empty",
        folder.display()
    );
    let hit = counts.secrets - counts.missed.len();
    assert!(
        hit * 1000 >= counts.secrets * RECALL_PERMILLE,
        "missed: {:#?}",
        counts.missed
    );
    assert!(
        counts.taken.len() * 1000 <= counts.harmless * FALSE_ALARMS_PERMILLE,
        "taken: {:#?}",
        counts.taken
    );
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
}

#[test]
fn the_small_corpus_is_recognised() {
    check(&testdata("secrets-small"));
}

#[test]
fn the_corpus_is_recognised() {
    let folder = testdata("secrets-corpus");
    // It comes with its own commit; from then on it counts.
    if folder.exists() {
        check(&folder);
    }
}

#[test]
fn a_miss_and_a_false_alarm_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.env", "COLOUR=hunter22\nDB_PASSWORD=blue\n");
    write("a.env.secrets", "hunter22\n");
    write("a.env.harmless", "blue\nCOLOUR\n");
    let counts = report(folder.path());
    assert_eq!(
        (
            counts.secrets,
            counts.missed.len(),
            counts.harmless,
            counts.taken.len()
        ),
        (1, 1, 2, 1)
    );
}
