//! Arguments of commands that stand in lists: `["program", "--password", "x"]`, and items on lines of their own.

use std::ops::Range;

use super::commands::{self, Argument};
use super::{Finds, lines};

/// A longer list is cut.
const ITEMS_MAX: usize = 400;

/// Adds what stands behind an option, in lists whose items are lines.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    let mut items: Vec<Argument<'_>> = Vec::new();
    for (at, line) in lines(text) {
        match item(line) {
            Some(span) if items.len() < ITEMS_MAX => items.push(Argument {
                at: at + span.start,
                text: line.get(span).unwrap_or_default(),
            }),
            _ => close(finds, &mut items),
        }
    }
    close(finds, &mut items);
}

fn close(finds: &mut Finds<'_>, items: &mut Vec<Argument<'_>>) {
    if items.iter().any(|item| item.text.starts_with('-')) {
        commands::arguments(finds, items);
    }
    items.clear();
}

/// The text of a line that is one item of a list: `- x`, `"x",`, `<argument>x</argument>`.
fn item(line: &str) -> Option<Range<usize>> {
    let trimmed = line.trim();
    let begin = line.len() - line.trim_start().len();
    let (inner, marked) = match trimmed.strip_prefix("- ") {
        Some(rest) => (rest.trim(), true),
        None => (trimmed.trim_end_matches(','), false),
    };
    let from = begin + trimmed.find(inner).unwrap_or_default();
    if let Some(tagged) = inner.strip_prefix('<') {
        let (tag, rest) = tagged.split_once('>')?;
        let (value, _) = rest.split_once("</")?;
        let start = from + 2 + tag.len();
        return (!value.is_empty() && !value.contains('<')).then_some(start..start + value.len());
    }
    let quote = inner.chars().next().filter(|c| matches!(c, '"' | '\''));
    if let Some(quote) = quote {
        let value = inner.get(1..)?.strip_suffix(quote)?;
        return (!value.is_empty() && !value.contains(quote))
            .then_some(from + 1..from + 1 + value.len());
    }
    let is_plain = !inner.is_empty() && !inner.contains(": ") && !inner.ends_with(':');
    (marked && is_plain).then_some(from..from + inner.len())
}
