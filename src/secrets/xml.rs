//! Elements and attributes, in XML and in files that have parts of it: a name stands in a tag, in an attribute, or in the element before.

use std::ops::Range;

use super::Finds;
use super::json::is_generic;
use super::names::Verdict;

/// Deeper elements belong to the last one that is kept.
const DEPTH: usize = 100;
/// A longer tag is none.
const TAG_BYTES: usize = 4 << 10;
/// Attributes with the name of a value, and with the value.
const NAMES: &[&str] = &["name", "key", "id", "property", "param"];
const VALUES: &[&str] = &["value", "val", "content", "default"];

struct Element<'t> {
    name: &'t str,
    /// The name that an attribute gives.
    named: &'t str,
    /// The text of the last `<name>` or `<key>` in it.
    label: &'t str,
    text_from: usize,
    /// No other element is in it.
    is_leaf: bool,
}

/// Adds the values of secret names.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    if !text.contains("</") && !text.contains("/>") {
        return;
    }
    let mut open: Vec<Element<'_>> = Vec::new();
    let mut at = 0;
    let mut ends_data = true;
    while let Some(next) = text.get(at..).and_then(|rest| rest.find('<')) {
        let start = at + next;
        at = start + 1;
        let rest = text.get(at..).unwrap_or_default();
        if let Some(data) = rest.strip_prefix("![CDATA[") {
            // None ends here, so no later one does.
            let end = if ends_data { data.find("]]>") } else { None };
            ends_data = end.is_some();
            at += end.unwrap_or(0);
            continue;
        }
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') {
            continue;
        }
        let Some(end) = tag_end(text, at) else {
            continue;
        };
        let tag = text.get(at..end).unwrap_or_default();
        if let Some(name) = tag.strip_prefix('/') {
            if let Some(n) = open.iter().rposition(|element| element.name == name.trim()) {
                if open.get(n).is_some_and(|element| element.is_leaf) {
                    leaf(finds, &mut open, start);
                }
                open.truncate(n);
            }
        } else {
            let name = tag
                .split(|c: char| c.is_whitespace() || c == '/')
                .next()
                .unwrap_or_default();
            let named = attributes(
                finds,
                at + name.len(),
                tag.get(name.len()..).unwrap_or_default(),
            );
            if let Some(above) = open.last_mut() {
                above.is_leaf = false;
            }
            if !tag.ends_with('/') && open.len() < DEPTH {
                open.push(Element {
                    name,
                    named,
                    label: "",
                    text_from: end + 1,
                    is_leaf: true,
                });
            }
        }
        at = end + 1;
    }
}

/// The `>` that ends the tag; those in quotes end none.
fn tag_end(text: &str, from: usize) -> Option<usize> {
    let mut quote = None;
    for (i, byte) in text
        .as_bytes()
        .get(from..)?
        .iter()
        .enumerate()
        .take(TAG_BYTES)
    {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(*byte),
            (None, b'>') => return Some(from + i),
            (None, b'<') => return None,
            (Some(open), close) if open == *close => quote = None,
            _ => {}
        }
    }
    None
}

/// Adds those that are secret, and returns the name that one of them gives.
fn attributes<'t>(finds: &mut Finds<'t>, at: usize, tag: &'t str) -> &'t str {
    let mut all: Vec<(&str, Range<usize>)> = Vec::new();
    let mut from = 0;
    while let Some(sign) = tag
        .get(from..)
        .and_then(|rest| rest.find('='))
        .map(|n| from + n)
    {
        let name = tag.get(from..sign).unwrap_or_default().trim_end();
        let name = name.rsplit(char::is_whitespace).next().unwrap_or_default();
        let rest = tag.get(sign + 1..).unwrap_or_default();
        let value = rest.trim_start();
        let start = sign + 1 + rest.len() - value.len();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let length = quote.and_then(|q| value.get(1..)?.find(q));
        let Some(length) = length else {
            from = sign + 1;
            continue;
        };
        all.push((name, start + 1..start + 1 + length));
        from = start + length + 2;
    }
    let find = |names: &[&str]| {
        let is = |name: &str| names.iter().any(|n| name.eq_ignore_ascii_case(n));
        all.iter()
            .find(|(name, _)| is(name))
            .map(|(_, span)| span.clone())
    };
    for (name, span) in &all {
        finds.judge(name, at + span.start..at + span.end);
    }
    let named = find(NAMES)
        .and_then(|span| tag.get(span))
        .unwrap_or_default();
    if let Some(span) = find(VALUES) {
        finds.judge(named, at + span.start..at + span.end);
    }
    named
}

/// Judges the text of an element that has no other ones in it.
fn leaf<'t>(finds: &mut Finds<'t>, open: &mut [Element<'t>], end: usize) {
    let Some((element, above)) = open.split_last_mut() else {
        return;
    };
    let text = finds.text.get(element.text_from..end).unwrap_or_default();
    let mut value = text.trim();
    value = value
        .strip_prefix("<![CDATA[")
        .map_or(value, |data| data.trim_end_matches("]]>"));
    let Some(from) = text.find(value).map(|n| element.text_from + n) else {
        return;
    };
    let local = element.name.rsplit(':').next().unwrap_or_default();
    let lower = local.to_ascii_lowercase();
    let above = above.last_mut();
    if lower == "key" || lower == "name" || lower.ends_with("-name") {
        if let Some(above) = above {
            above.label = value;
        }
        return;
    }
    let is_value = is_generic(local) || lower == "string" || lower.ends_with("-value");
    let judged = |key: &str| finds.overrides.judge(key).0 > Verdict::Unknown;
    let key = match above {
        _ if judged(element.named) => element.named,
        Some(above) if is_value && !above.label.is_empty() => above.label,
        Some(above) if is_value && judged(above.named) => above.named,
        Some(above) if is_value => above.name,
        _ => local,
    };
    // Two lines are a user and a password; more of them are settings.
    let settings = value.lines().filter(|line| line.contains('=')).count();
    if settings > 1 {
        return;
    }
    let is_pair = key.to_ascii_lowercase().contains("user") && value.lines().count() == 2;
    let skip = value.find('\n').filter(|_| is_pair).unwrap_or(0);
    let key = if is_pair { "password" } else { key };
    finds.judge(key, from + skip..from + value.len());
}
