//! JSON, also with comments and commas too many: strings and numbers with their keys.

use std::ops::Range;

use super::names::{Verdict, has_secret_key, is_about, is_group};
use super::values::is_encoded_setting;
use super::yaml::is_harmless_name;
use super::{Finds, Rule, has_any};

/// Deeper levels have the key of this one.
const DEPTH: usize = 200;
/// Keys of which the one above tells more.
const GENERIC: &[&str] = &[
    "value",
    "data",
    "default",
    "content",
    "current",
    "plain",
    "plaintext",
    "stringvalue",
    "raw",
    "inline_string",
    "inline_bytes",
];

/// Whether the text of a key is the name of the value beside it; a kind is one where it says that the value is secret.
pub(super) fn is_naming(key: &str, text: &str) -> bool {
    let names = [
        "name",
        "key",
        "parameterkey",
        "parametername",
        "optionname",
        "variable",
        "propertyname",
    ];
    names.iter().any(|n| key.eq_ignore_ascii_case(n))
        || key.eq_ignore_ascii_case("type") && super::names::judge(text) >= Verdict::Strong
}

/// Whether a key tells nothing by itself.
pub(super) fn is_generic(key: &str) -> bool {
    let pairs = [
        "parametervalue",
        "optionvalue",
        "variablevalue",
        "propertyvalue",
    ];
    GENERIC
        .iter()
        .chain(&pairs)
        .any(|g| key.eq_ignore_ascii_case(g))
}

#[derive(Default)]
struct Level<'t> {
    is_array: bool,
    /// The key of the value that comes next.
    key: &'t str,
    /// The text of a sibling "name" or "key".
    name: &'t str,
    /// A value whose name has not come yet.
    waiting: Option<Range<usize>>,
}

/// Adds the values of secret keys.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    let bytes = text.as_bytes();
    let is_secret = has_any(text, &["\"kind\":\"Secret\"", "\"kind\": \"Secret\""]);
    let mut levels: Vec<Level<'_>> = vec![Level::default()];
    // Levels that were not kept.
    let mut more = 0_usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                match levels.len() < DEPTH {
                    true => levels.push(Level {
                        is_array: *byte == b'[',
                        ..Level::default()
                    }),
                    false => more += 1,
                }
                at += 1;
            }
            b'}' | b']' => {
                match more {
                    0 if levels.len() > 1 => {
                        levels.pop();
                    }
                    0 => {}
                    _ => more -= 1,
                }
                at += 1;
            }
            b'"' => {
                let end = string_end(bytes, at + 1);
                let content = text.get(at + 1..end).unwrap_or_default();
                let after = skip_spaces(bytes, end + 1);
                let is_key = bytes.get(after) == Some(&b':');
                if is_key && let Some(level) = levels.last_mut() {
                    level.key = content;
                    at = after + 1;
                    continue;
                }
                value(finds, is_secret, &mut levels, at + 1..end);
                at = end + 1;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = line_end(bytes, at),
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => at += 1,
            _ => {
                let rest = bytes.get(at..).unwrap_or_default();
                let length = rest
                    .iter()
                    .take_while(|b| !b" \t\r\n,:{}[]\"".contains(b))
                    .count()
                    .max(1);
                value(finds, is_secret, &mut levels, at..at + length);
                at += length;
            }
        }
    }
}

fn skip_spaces(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|b| **b != b'\n').count()
}

/// The closing quote, or the end of the text.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn value<'t>(finds: &mut Finds<'t>, is_secret: bool, levels: &mut [Level<'t>], span: Range<usize>) {
    let text = finds.text.get(span.clone()).unwrap_or_default();
    // An array's elements belong to the key above it.
    let own = levels.iter().rev().find(|level| !level.is_array);
    let (own_key, own_name) = own.map_or(("", ""), |level| (level.key, level.name));
    let above = levels
        .iter()
        .rev()
        .filter(|level| !level.is_array)
        .nth(1)
        .map_or("", |level| level.key);
    let (own_verdict, _) = finds.overrides.judge(own_key);
    if let Some(level) = levels.last_mut().filter(|level| !level.is_array) {
        if is_naming(level.key, text) {
            level.name = text;
            if let Some(waiting) = level.waiting.take() {
                finds.judge(text, waiting);
            }
        } else if is_generic(level.key) && own_verdict == Verdict::Unknown {
            level.waiting = level.name.is_empty().then(|| span.clone());
        }
    }
    // A Secret of Kubernetes.
    let is_setting = super::names::judge(own_key) <= Verdict::Unknown && is_encoded_setting(text);
    let is_data = is_secret && matches!(above, "data" | "stringData");
    if is_data && !is_harmless_name(own_key) && !is_setting {
        return finds.add(span, own_key, Rule::Place);
    }
    let key = match own_verdict {
        Verdict::Unknown if is_generic(own_key) && !own_name.is_empty() => own_name,
        Verdict::Unknown if is_generic(own_key) || is_group(above) && !is_about(own_key) => above,
        _ => own_key,
    };
    let is_key = own_verdict == Verdict::Weak
        && own_key.eq_ignore_ascii_case("key")
        && has_secret_key(above);
    finds.judge(if is_key { "secret_key" } else { key }, span);
}
