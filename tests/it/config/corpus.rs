//! How much of planted secrets is recognised, and how many harmless values are taken for secrets.
//!
//! A corpus is a directory of files, and `annotations.jsonl`: for each value its file, its line, itself, and whether it is a secret. That of
//! `testdata/secrets-corpus` was written by people who had not read the recogniser, and the rules were then tuned on it.
//! `PITR_SECRETS_CORPUS=DIR` measures another one; with `PITR_SECRETS_TOTALS=1` it prints nothing but the totals, for a corpus that stays unseen.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pitr::secrets::{Overrides, recognise};
use serde::Deserialize;

/// At least so many in a thousand planted secrets must be recognised.
const RECALL_PERMILLE: usize = 990;
/// At most so many in a thousand harmless values may be taken for secrets.
const FALSE_ALARMS_PERMILLE: usize = 30;

#[derive(Deserialize)]
struct Annotation {
    file: String,
    /// From 1.
    line: usize,
    value: String,
    is_secret: bool,
}

#[derive(Default)]
struct Counts {
    secrets: usize,
    hidden: Vec<String>,
    missed: Vec<String>,
    harmless: usize,
    taken: Vec<String>,
}

impl Counts {
    fn read(&mut self, folder: &Path, file: &str, annotations: &[Annotation]) {
        let content = std::fs::read(folder.join(file)).unwrap();
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        let found = recognise(name, &content, &Overrides::default());
        let starts: Vec<usize> = std::iter::once(0)
            .chain(
                (1..)
                    .zip(&content)
                    .filter(|(_, b)| **b == b'\n')
                    .map(|(at, _)| at),
            )
            .collect();
        for Annotation {
            line,
            value,
            is_secret,
            ..
        } in annotations
        {
            let start = starts[line - 1];
            let end = starts.get(*line).copied().unwrap_or(content.len());
            let windows = content[start..end].windows(value.len()).enumerate();
            let all: Vec<Range<usize>> = windows
                .filter(|(_, window)| *window == value.as_bytes())
                .map(|(at, _)| start + at..start + at + value.len())
                .collect();
            assert!(!all.is_empty(), "an annotation has no place: {file}:{line}");
            // A part of a longer name, such as that of the key, is no place where there is another one.
            let is_whole = |place: &&Range<usize>| {
                let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
                let before = place.start.checked_sub(1).and_then(|n| content.get(n));
                !before.is_some_and(is_name) && !content.get(place.end).is_some_and(is_name)
            };
            let whole: Vec<_> = all.iter().filter(is_whole).cloned().collect();
            let mut places = if whole.is_empty() { all } else { whole }.into_iter();
            let told = format!("{file}:{line}: {value}");
            if *is_secret {
                self.secrets += 1;
                // Every byte of it, in every place.
                let is_hidden = places.all(|place| {
                    let covers = |f: &pitr::secrets::Found| {
                        f.span.start <= place.start && place.end <= f.span.end
                    };
                    found.iter().any(covers)
                });
                match is_hidden {
                    true => self.hidden.push(value.clone()),
                    false => self.missed.push(told),
                }
            } else {
                self.harmless += 1;
                let is_taken = places.all(|place| {
                    let meets = |f: &pitr::secrets::Found| {
                        f.span.start < place.end && place.start < f.span.end
                    };
                    found.iter().any(meets)
                });
                self.taken.extend(is_taken.then_some(told));
            }
        }
    }
}

fn count(folder: &Path) -> Counts {
    let mut files: BTreeMap<String, Vec<Annotation>> = BTreeMap::new();
    let text = std::fs::read_to_string(folder.join("annotations.jsonl")).unwrap();
    for line in text.lines() {
        let annotation: Annotation = serde_json::from_str(line).unwrap();
        let all = files.entry(annotation.file.clone()).or_default();
        all.push(annotation);
    }
    let mut counts = Counts::default();
    for (file, annotations) in &files {
        counts.read(folder, file, annotations);
    }
    counts
}

fn check(folder: &Path) -> Counts {
    let counts = count(folder);
    let (missed, taken) = (&counts.missed, &counts.taken);
    println!(
        "{} of {} secrets are missed: {missed:#?}",
        missed.len(),
        counts.secrets
    );
    println!(
        "{} of {} harmless values are taken: {taken:#?}",
        taken.len(),
        counts.harmless
    );
    check_limits(&counts);
    counts
}

fn check_limits(counts: &Counts) {
    let (missed, taken) = (counts.missed.len(), counts.taken.len());
    assert!(counts.secrets > 0 && counts.harmless > 0);
    assert!(missed * 1000 <= counts.secrets * (1000 - RECALL_PERMILLE));
    assert!(taken * 1000 <= counts.harmless * FALSE_ALARMS_PERMILLE);
}

/// Measures the corpus that a variable names, against the same limits.
fn check_another(folder: &Path) {
    if std::env::var_os("PITR_SECRETS_TOTALS").is_none() {
        check(folder);
        return;
    }
    let counts = count(folder);
    println!(
        "{} of {} secrets are missed, {} of {} harmless values are taken",
        counts.missed.len(),
        counts.secrets,
        counts.taken.len(),
        counts.harmless
    );
    check_limits(&counts);
}

/// The corpus of this repository; another one lies in its `hosts`.
pub fn folder() -> PathBuf {
    let parts = [env!("CARGO_MANIFEST_DIR"), "testdata", "secrets-corpus"];
    parts.iter().collect()
}

/// Planted secrets that are recognised in every place where they stand.
pub fn hidden(folder: &Path) -> Vec<String> {
    let Counts {
        mut hidden, missed, ..
    } = count(folder);
    hidden.retain(|value| !missed.iter().any(|told| told.ends_with(value)));
    hidden
}

#[test]
fn the_corpus_is_recognised() {
    let folder = folder();
    let all = [folder.clone(), folder.join("hosts")].map(|folder| check(&folder));
    let sum = |part: fn(&Counts) -> usize| all.iter().map(part).sum::<usize>();
    assert_eq!((sum(|c| c.secrets), sum(|c| c.harmless)), (750, 3000));
    if let Some(another) = std::env::var_os("PITR_SECRETS_CORPUS") {
        check_another(Path::new(&another));
    }
}

#[test]
fn a_miss_and_a_false_alarm_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.env", "COLOUR=hunter22\nDB_PASSWORD=blue\n");
    let lines = [
        ("hunter22", 1, true),
        ("blue", 2, false),
        ("COLOUR", 1, false),
    ];
    let text: String = lines
        .iter()
        .map(|(value, line, is_secret)| {
            format!(
                "{{\"file\":\"a.env\",\"line\":{line},\"value\":\"{value}\",\"is_secret\":{is_secret}}}\n"
            )
        })
        .collect();
    write("annotations.jsonl", &text);
    let counts = count(folder.path());
    assert_eq!((counts.secrets, counts.missed.len()), (1, 1));
    assert_eq!((counts.harmless, counts.taken.len()), (2, 1));
}
