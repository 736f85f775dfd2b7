//! Sentences that tell a password, and tables of Markdown.

use super::names::Verdict;
use super::{Finds, Rule, lines};

/// Words that are told.
const TOLD: &[&str] = &[
    "password",
    "passwort",
    "passphrase",
    "kennwort",
    "passwd",
    "pin",
    "token",
    "secret",
    "pw",
    "key",
];
/// Words between them and what they are.
const VERBS: &[&str] = &[
    "is", "ist", "was", "war", "lautet", "lautete", "of", "to", "=", ":",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    let mut columns: Vec<Option<&str>> = Vec::new();
    let mut above: &str = "";
    for (at, line) in lines(text) {
        let trimmed = line.trim_start();
        if !trimmed.starts_with('|') {
            columns.clear();
        } else if is_rule(trimmed) {
            columns = header(finds, above);
        } else if !columns.is_empty() {
            cells(finds, at + line.len() - trimmed.len(), trimmed, &columns);
        }
        above = trimmed;
        told(finds, at, line);
    }
}

/// Whether it is the line below the header: `|---|:--|`.
fn is_rule(line: &str) -> bool {
    line.contains("--") && line.bytes().all(|b| b"|-: ".contains(&b))
}

fn header<'t>(finds: &Finds<'_>, line: &'t str) -> Vec<Option<&'t str>> {
    let names = line.split('|').skip(1).map(str::trim).take(50);
    names
        .map(|name| {
            let name = name.trim_matches(['*', '`']);
            Some(name).filter(|n| finds.overrides.judge(n).0 >= Verdict::Strong)
        })
        .collect()
}

fn cells(finds: &mut Finds<'_>, at: usize, line: &str, columns: &[Option<&str>]) {
    let mut start = 1;
    for (cell, name) in line.split('|').skip(1).zip(columns) {
        let inner = cell.trim().trim_matches(['`', '*']);
        let from = start + cell.find(inner).unwrap_or_default();
        if let Some(name) = name.filter(|_| !matches!(inner, "" | "-" | "–" | "n/a")) {
            finds.judge(name, at + from..at + from + inner.len());
        }
        start += cell.len() + 1;
    }
}

/// `the password is x1`, ``password `x` ``.
fn told(finds: &mut Finds<'_>, at: usize, line: &str) {
    let mut before: [&str; 2] = ["", ""];
    let mut start = 0;
    for word in line.split(' ') {
        let name = |word: &str| {
            let word = word
                .trim_matches(|c: char| !c.is_alphanumeric())
                .to_lowercase();
            TOLD.contains(&word.as_str())
        };
        let [second, first] = before;
        let is_verb = VERBS.contains(&first) && name(second);
        let inner = word.trim_start_matches(['(', '"', '\'']);
        let begin = start + word.len() - inner.len();
        let quoted = inner
            .strip_prefix('`')
            .and_then(|rest| rest.split_once('`'));
        let is_quoted_name = is_verb || name(first) && !first.ends_with(['`', '.', ',']);
        if let Some((value, _)) = quoted {
            let is_value = value.len() >= 3 && value.bytes().all(|b| b.is_ascii_graphic());
            let is_name = finds.overrides.judge(value).0 > Verdict::Unknown
                || value.starts_with(['-', '/', '$']);
            if is_quoted_name && is_value && !is_name {
                finds.judge("password", at + begin + 1..at + begin + 1 + value.len());
            }
        } else if is_verb && !matches!(first, "of" | "to" | "=" | ":") {
            let value = inner.trim_end_matches(['.', ',', ')', '"', '\'', ';', '!', '?']);
            let has_sign = value.bytes().any(|b| b.is_ascii_digit());
            if value.len() >= 5 && has_sign {
                finds.add(
                    at + begin..at + begin + value.len(),
                    "password",
                    Rule::Place,
                );
            }
        }
        if !word.is_empty() {
            before = [first, word];
        }
        start += word.len() + 1;
    }
}
