//! Tables with a header: the cells of a column whose name says that it is secret.

use super::names::Verdict;
use super::{Finds, Rule, lines};

/// Columns beyond are not looked at.
const COLUMNS_MAX: usize = 200;

/// Adds the cells of such columns. The first line names them.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let body = finds.text.trim_start_matches('\u{feff}');
    let skipped = finds.text.len() - body.len();
    let mut rows = lines(body);
    let Some((_, header)) = rows.next() else {
        return;
    };
    let separator = [';', '\t', '|', ',']
        .into_iter()
        .max_by_key(|separator| header.matches(*separator).count());
    let Some(separator) = separator.filter(|separator| header.contains(*separator)) else {
        return;
    };
    // Each column has its name, and its rule where it is secret.
    let columns: Vec<(&str, Option<Rule>)> = cells(header, separator)
        .map(|(from, to)| {
            let name = header.get(from..to).unwrap_or_default();
            let rule = match finds.overrides.judge(name) {
                (verdict, _) if verdict < Verdict::Strong && !name.eq_ignore_ascii_case("pin") => {
                    None
                }
                (_, Rule::Configured) => Some(Rule::Configured),
                _ => Some(Rule::Place),
            };
            (name, rule)
        })
        .collect();
    if columns.iter().all(|(_, rule)| rule.is_none()) {
        return;
    }
    for (at, row) in rows {
        for ((name, rule), (from, to)) in columns.iter().zip(cells(row, separator)) {
            let Some(rule) = rule else { continue };
            let value = row.get(from..to).unwrap_or_default();
            if !super::values::is_reference(value) && !["-", "n/a"].contains(&value.trim()) {
                finds.add(skipped + at + from..skipped + at + to, name, *rule);
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
