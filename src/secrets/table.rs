//! Tables with a header: the cells of a column whose name says that it is secret.

use super::names::{Verdict, judge};
use super::{Finds, Rule, lines};

/// Columns beyond are not looked at.
const COLUMNS_MAX: usize = 200;

/// Adds the cells of such columns of a text whose first line names at least two of them.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    let mut rows = lines(text.trim_start_matches('\u{feff}'));
    let Some((_, header)) = rows.next() else {
        return;
    };
    let skipped = text.len() - text.trim_start_matches('\u{feff}').len();
    let separator = [';', '\t', '|', ',']
        .into_iter()
        .max_by_key(|separator| header.matches(*separator).count());
    let Some(separator) = separator.filter(|separator| header.contains(*separator)) else {
        return;
    };
    let names: Vec<&str> = cells(header, separator)
        .map(|(from, to)| header.get(from..to).unwrap_or_default())
        .collect();
    if !names.iter().any(|name| judge(name) >= Verdict::Strong) {
        return;
    }
    for (at, row) in rows {
        for (name, (from, to)) in names.iter().zip(cells(row, separator)) {
            let (verdict, rule) = finds.overrides.judge(name);
            let value = row.get(from..to).unwrap_or_default();
            let is_secret = verdict >= Verdict::Strong
                && !super::values::is_reference(value)
                && !["", "-", "n/a"].contains(&value.trim());
            if is_secret {
                let rule = if rule == Rule::Configured {
                    rule
                } else {
                    Rule::Place
                };
                finds.add(skipped + at + from..skipped + at + to, name, rule);
            }
        }
    }
}

/// The ranges of the cells of a row, without their quotes; a doubled quote is one of the value.
fn cells(row: &str, separator: char) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let start = at?;
        let rest = row.get(start..)?;
        let quoted = rest.strip_prefix('"');
        let close = quoted.and_then(|inner| super::values::closing_quote(inner, '"'));
        let (from, to, behind) = match close {
            Some(length) => (start + 1, start + 1 + length, start + length + 2),
            None => {
                let length = rest.find(separator).unwrap_or(rest.len());
                (start, start + length, start + length)
            }
        };
        let next = row.get(behind..).and_then(|rest| rest.find(separator));
        at = next.map(|n| behind + n + 1);
        Some((from, to))
    })
    .take(COLUMNS_MAX)
}
