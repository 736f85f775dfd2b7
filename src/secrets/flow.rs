//! Mappings of YAML in braces: pairs of `name` and `value`, in any order, also over lines.

use std::ops::Range;

use super::json::{is_generic, is_naming};
use super::names::Verdict;
use super::yaml::closing;
use super::{Finds, lines};

/// Deeper levels end the mapping.
const DEPTH: usize = 200;

#[derive(Default)]
struct Level<'t> {
    is_list: bool,
    /// The key of the value that comes next.
    key: Option<&'t str>,
    /// The text of a sibling "name" or "key".
    name: &'t str,
    /// A value whose name has not come yet.
    waiting: Option<Range<usize>>,
}

/// Adds the values of secret names.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let mut levels = Vec::new();
    for (at, line) in lines(finds.text) {
        let trimmed = line.trim_start();
        // A mapping without an end does not reach into what comes next.
        if trimmed.is_empty() || trimmed.starts_with("- ") || line.starts_with("---") {
            levels.clear();
        }
        if scan_line(finds, (at, line), &mut levels).is_none() {
            levels.clear();
        }
    }
}

/// Reads a line; nothing where what is open cannot be read on.
fn scan_line<'t>(
    finds: &mut Finds<'t>,
    (at, line): (usize, &'t str),
    levels: &mut Vec<Level<'t>>,
) -> Option<()> {
    let mut from = 0;
    while let Some(rest) = line.get(from..).filter(|rest| !rest.is_empty()) {
        if levels.is_empty() {
            let brace = from + rest.find('{')?;
            let before = line.get(..brace)?.trim_end();
            if before.is_empty() || before.ends_with([':', '-', '[', ',', '{']) {
                levels.push(Level::default());
            }
            from = brace + 1;
            continue;
        }
        let first = rest.chars().next()?;
        match first {
            '{' | '[' if levels.len() >= DEPTH => return None,
            '{' | '[' => levels.push(Level {
                is_list: first == '[',
                ..Level::default()
            }),
            '}' | ']' => drop(levels.pop()),
            ',' => levels.last_mut()?.key = None,
            '#' => return Some(()),
            ':' | ' ' | '\t' => {}
            quote @ ('"' | '\'') => {
                let length = closing(rest.get(1..)?, quote)?;
                let span = from + 1..from + 1 + length;
                from = span.end + 1;
                scalar(finds, (at, line), levels, (span, from))?;
                continue;
            }
            _ => {
                let span = from..from + plain(rest);
                from = span.end;
                scalar(finds, (at, line), levels, (span, from))?;
                continue;
            }
        }
        from += first.len_utf8();
    }
    Some(())
}

/// The length of a scalar without quotes.
fn plain(rest: &str) -> usize {
    let ends = |(i, c): &(usize, char)| {
        let next = rest.get(i + 1..).and_then(|behind| behind.chars().next());
        match c {
            ',' | '{' | '}' | '[' | ']' => true,
            ':' => next.is_none_or(|next| next.is_whitespace() || next == ','),
            ' ' => next == Some('#'),
            _ => false,
        }
    };
    let end = rest.char_indices().skip(1).find(ends);
    end.map_or(rest.len(), |(i, _)| i)
}

/// Takes up a key or a value that ends at `end`.
fn scalar<'t>(
    finds: &mut Finds<'t>,
    (at, line): (usize, &'t str),
    levels: &mut [Level<'t>],
    (span, end): (Range<usize>, usize),
) -> Option<()> {
    let text = line.get(span.clone())?.trim();
    let level = levels.last_mut()?;
    if level.is_list {
        return Some(());
    }
    let Some(key) = level.key.take() else {
        let is_key = line.get(end..)?.trim_start().starts_with(':');
        level.key = is_key.then_some(text);
        return Some(());
    };
    let span = at + span.start..at + span.end;
    if is_naming(key, text) {
        level.name = text;
        if let Some(waiting) = level.waiting.take() {
            finds.judge(text, waiting);
        }
    } else if is_generic(key) && finds.overrides.judge(key).0 == Verdict::Unknown {
        match level.name.is_empty() {
            true => level.waiting = Some(span),
            false => drop(finds.judge(level.name, span)),
        }
    }
    Some(())
}
