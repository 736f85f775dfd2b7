//! Statements of SQL: passwords in texts of any quotes, keys of encryption, and rows that `COPY` brings.

use super::names::Verdict;
use super::values::{closing_quote, is_reference};
use super::{Finds, Rule, begins_with_any, has_any, lines};

/// Functions whose last text is a key.
const ENCRYPT: &[&str] = &[
    "pgp_sym_encrypt",
    "pgp_sym_decrypt",
    "aes_encrypt(",
    "aes_decrypt(",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>, base: &str) {
    let text = finds.text;
    let mut columns: Option<Vec<Option<&str>>> = None;
    let mut is_open = false;
    for (at, line) in lines(text) {
        if std::mem::take(&mut is_open) {
            literal(finds, (at, line), 0);
        }
        if let Some(names) = &columns {
            if line == "\\." {
                columns = None;
            } else {
                row(finds, at, line, names);
            }
            continue;
        }
        let lower = line.to_ascii_lowercase();
        if lower.starts_with("copy ") && lower.contains(" from stdin") {
            columns = Some(copied(finds, line));
        }
        let is_statement = has_any(
            &lower,
            &["password", "identified by", "pgp_sym_", "aes_", "crypt("],
        );
        if is_statement && lower.len() == line.len() {
            is_open = lower.trim_end().ends_with("password");
            passwords(finds, at, line, &lower);
            crypts(finds, at, line, &lower);
            keys(finds, at, line, &lower);
            let is_sql = base.ends_with(".sql")
                || begins_with_any(lower.trim_start(), &["create user", "alter user"]);
            if is_sql {
                unquoted(finds, at, line, &lower);
            }
        }
    }
}

/// The columns that are secret.
fn copied<'t>(finds: &Finds<'_>, line: &'t str) -> Vec<Option<&'t str>> {
    let inner = line
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map_or("", |(inner, _)| inner);
    let names = inner.split(',').map(|name| name.trim().trim_matches('"'));
    names
        .take(200)
        .map(|name| Some(name).filter(|n| finds.overrides.judge(n).0 >= Verdict::Strong))
        .collect()
}

fn row(finds: &mut Finds<'_>, at: usize, line: &str, names: &[Option<&str>]) {
    let mut start = 0;
    for (cell, name) in line.split('\t').zip(names) {
        if let Some(name) = name.filter(|_| cell != "\\N") {
            finds.judge(name, at + start..at + start + cell.len());
        }
        start += cell.len() + 1;
    }
}

/// `PASSWORD 'x'`, `PASSWORD N'x'`, `PASSWORD $$x$$`, `IDENTIFIED BY 'x'`, also where a shell quotes the statement.
fn passwords(finds: &mut Finds<'_>, at: usize, line: &str, lower: &str) {
    for mark in ["password ", "identified by "] {
        for (found, _) in lower.match_indices(mark).take(50) {
            literal(finds, (at, line), found + mark.len());
        }
    }
}

/// A text of SQL that begins there, behind white space.
fn literal(finds: &mut Finds<'_>, (at, line): (usize, &str), start: usize) {
    let rest = line.get(start..).unwrap_or_default();
    let body = rest.trim_start();
    let skip = rest.len() - body.len();
    let open = ["'", "N'", "E'", "$$", "\\'"]
        .into_iter()
        .find(|o| body.starts_with(o));
    let Some(open) = open else { return };
    let inner = body.get(open.len()..).unwrap_or_default();
    let length = match open {
        "$$" | "\\'" => inner.find(open),
        _ => closing_quote(inner, '\''),
    };
    if let Some(length) = length.filter(|n| *n > 0) {
        let from = start + skip + open.len();
        let value = line.get(from..from + length).unwrap_or_default();
        if !is_reference(value) && !value.contains(" = ") {
            finds.add(at + from..at + from + length, "password", Rule::Place);
        }
    }
}

/// The password in `crypt('x', gen_salt('bf'))`.
fn crypts(finds: &mut Finds<'_>, at: usize, line: &str, lower: &str) {
    const MARK: &str = "crypt(";
    for (found, _) in lower.match_indices(MARK).take(50) {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !line.get(..found).is_some_and(|l| l.ends_with(is_word)) {
            literal(finds, (at, line), found + MARK.len());
        }
    }
}

/// `IDENTIFIED BY x`, as Oracle has it.
fn unquoted(finds: &mut Finds<'_>, at: usize, line: &str, lower: &str) {
    let Some(start) = lower
        .find("identified by ")
        .map(|n| n + "identified by ".len())
    else {
        return;
    };
    let rest = line.get(start..).unwrap_or_default();
    let length = rest
        .find(|c: char| c.is_whitespace() || ";,)".contains(c))
        .unwrap_or(rest.len());
    let value = rest.get(..length).unwrap_or_default();
    let is_word = ["values", "password", "random"]
        .iter()
        .any(|w| value.eq_ignore_ascii_case(w));
    if !value.starts_with(['\'', '"', '&', ':']) && !is_word && !is_reference(value) {
        finds.add(at + start..at + start + length, "password", Rule::Place);
    }
}

/// The key in `pgp_sym_encrypt(data, 'key')`.
fn keys(finds: &mut Finds<'_>, at: usize, line: &str, lower: &str) {
    for mark in ENCRYPT {
        let Some(start) = lower.find(mark) else {
            continue;
        };
        let rest = line.get(start..).unwrap_or_default();
        if let Some(open) = rest.find(", '").map(|n| n + 3)
            && let Some(length) = rest
                .get(open..)
                .and_then(|inner| closing_quote(inner, '\''))
        {
            let from = at + start + open;
            finds.judge("secret", from..from + length);
        }
    }
}
