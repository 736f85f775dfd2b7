//! YAML, line by line: keys with their values, blocks of text, lists, and pairs of `name` and `value`.

use std::ops::Range;

use super::json::{is_generic, is_naming};
use super::names::{Verdict, has_secret_key, is_about, is_group, is_plural};
use super::values::is_label_of;
use super::{Finds, Rule, is_made_of, lines};

/// Deeper keys belong to the last one that is kept.
const DEPTH: usize = 200;

/// A key that has lines below it.
struct Above<'t> {
    indent: usize,
    key: &'t str,
    /// The text of a sibling "name" or "key".
    name: &'t str,
}

/// A value that goes on over lines.
struct Open<'t> {
    indent: usize,
    key: &'t str,
    start: usize,
    end: usize,
}

/// A value whose name has not come yet.
struct Waiting {
    indent: usize,
    /// Empty until the value has ended.
    span: Range<usize>,
}

struct Scanner<'s, 't> {
    finds: &'s mut Finds<'t>,
    above: Vec<Above<'t>>,
    open: Option<Open<'t>>,
    waiting: Option<Waiting>,
    /// The document is a Secret of Kubernetes.
    is_secret: bool,
}

/// Adds the values of secret keys.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let text = finds.text;
    let kinds = secret_documents(text);
    let mut scanner = Scanner {
        finds,
        above: Vec::new(),
        open: None,
        waiting: None,
        is_secret: false,
    };
    let mut document = 0;
    for (at, line) in lines(text) {
        if line == "---" || line.starts_with("--- ") {
            document += 1;
            scanner.close();
            scanner.above.clear();
        }
        scanner.is_secret = kinds.get(document).copied().unwrap_or(false);
        scanner.line(at, line);
    }
    scanner.close();
}

/// Which documents are Secrets of Kubernetes.
fn secret_documents(text: &str) -> Vec<bool> {
    let mut kinds = vec![false];
    for (_, line) in lines(text) {
        if line == "---" || line.starts_with("--- ") {
            kinds.push(false);
        } else if let Some(kind) = line.trim_start().strip_prefix("kind:")
            && matches!(
                kind.trim().trim_matches(['"', '\'']),
                "Secret" | "SealedSecret"
            )
            && let Some(last) = kinds.last_mut()
        {
            *last = true;
        }
    }
    kinds
}

impl<'t> Scanner<'_, 't> {
    /// Ends the value that goes on over lines.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.judge(open.key, open.start..open.end, open.indent);
        }
    }

    fn line(&mut self, at: usize, line: &'t str) {
        let trimmed = line.trim_start();
        let mut indent = line.len() - trimmed.len();
        if trimmed.is_empty() {
            return;
        }
        if let Some(open) = &mut self.open {
            if indent > open.indent {
                open.end = at + line.len();
                return;
            }
            self.close();
        }
        if trimmed.starts_with('#') {
            return;
        }
        // The mapping of an element may begin on the next line.
        if trimmed == "-" || trimmed.starts_with("- #") {
            self.above.retain(|above| above.indent <= indent);
            self.waiting = None;
            return;
        }
        let mut rest = trimmed;
        while let Some(item) = rest.strip_prefix("- ") {
            // A new element of a list is a new mapping.
            self.waiting = None;
            self.above.retain(|above| {
                above.indent < indent || above.indent == indent && !above.key.is_empty()
            });
            self.above.retain(|above| above.indent <= indent);
            let item = item.trim_start();
            indent += rest.len() - item.len();
            rest = item;
        }
        let is_item = rest.len() != trimmed.len();
        let value_at = at + line.len() - rest.len();
        let Some((key, value)) = split(rest) else {
            // A plain element of a list, or the rest of a value.
            if is_item
                || rest.starts_with('-')
                || self.above.last().is_some_and(|a| a.indent < indent)
            {
                let parent = self.parent(indent);
                let plain = rest.split_once(" #").map_or(rest, |(plain, _)| plain);
                if let Some((name, value)) = variable(unquoted(plain)) {
                    let start = value_at + plain.rfind(value).unwrap_or_default();
                    self.finds.judge(name, start..start + value.len());
                } else if !(is_plural(parent) && is_label_of(unquoted(plain))) {
                    self.scalar(parent, value_at, rest, indent);
                }
            }
            return;
        };
        self.above
            .retain(|above| above.indent < indent || above.indent == indent && !is_item);
        let name = match self.above.last() {
            Some(last) if last.indent == indent => last.name,
            _ => "",
        };
        self.above.retain(|above| above.indent < indent);
        let is_name = is_naming(key, unquoted(value));
        let name = if is_name { unquoted(value) } else { name };
        self.waiting.take_if(|waiting| waiting.indent > indent);
        if is_name && let Some(waiting) = self.waiting.take_if(|w| w.indent == indent) {
            self.finds.judge(name, waiting.span);
        }
        let meaning = match self.finds.overrides.judge(key).0 {
            Verdict::Weak if key == "key" && has_secret_key(self.parent(indent)) => "secret_key",
            Verdict::Unknown if is_generic(key) && !name.is_empty() => name,
            Verdict::Unknown
                if is_generic(key) || !is_about(key) && is_group(self.parent(indent)) =>
            {
                self.parent(indent)
            }
            _ => key,
        };
        if self.above.len() < DEPTH {
            self.above.push(Above { indent, key, name });
        }
        let value_start = value_at + rest.len() - value.len();
        if is_generic(key) && name.is_empty() {
            let span = value_start..value_start;
            self.waiting = Some(Waiting { indent, span });
        }
        self.scalar(meaning, value_start, value, indent);
    }

    /// The key that the lines of this indent are below.
    fn parent(&self, indent: usize) -> &'t str {
        let above = self.above.iter().rev().find(|above| above.indent < indent);
        above.map_or("", |above| above.key)
    }

    fn scalar(&mut self, key: &'t str, at: usize, value: &'t str, indent: usize) {
        // An anchor stands before its value.
        if let Some(anchor) = value.trim_start().strip_prefix('&')
            && let Some((_, behind)) = anchor.split_once(' ')
            && !behind.trim().is_empty()
        {
            let start = at + value.len() - behind.len();
            return self.scalar(key, start, behind, indent);
        }
        let trimmed = value.trim();
        let is_tagged = trimmed.starts_with('!') && !trimmed.contains(' ');
        if trimmed.is_empty()
            || trimmed.starts_with('#')
            || is_tagged
            || trimmed.starts_with(['&', '*', '{', '['])
        {
            return;
        }
        let is_block = trimmed.starts_with(['|', '>']) && trimmed.len() <= 4;
        if is_block {
            let end = at + value.len();
            self.open = Some(Open {
                indent,
                key,
                start: end,
                end,
            });
            return;
        }
        if let Some(quote) = trimmed.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let start = at + value.len() - value.trim_start().len() + 1;
            let inner = value.trim_start().get(1..).unwrap_or_default();
            match closing(inner, quote) {
                Some(length) => self.judge(key, start..start + length, indent),
                None => {
                    let end = at + value.len();
                    self.open = Some(Open {
                        indent,
                        key,
                        start,
                        end,
                    });
                }
            }
            return;
        }
        let plain = value
            .find(" #")
            .and_then(|n| value.get(..n))
            .unwrap_or(value);
        // Lines that are further in may go on with it.
        self.open = Some(Open {
            indent,
            key,
            start: at,
            end: at + plain.len(),
        });
    }

    fn judge(&mut self, key: &str, span: Range<usize>, indent: usize) {
        if let Some(waiting) = &mut self.waiting
            && waiting.indent == indent
            && waiting.span.is_empty()
        {
            waiting.span = span.clone();
        }
        let is_data = self.is_secret
            && indent > 0
            && self.above.iter().any(|above| {
                above.indent < indent
                    && matches!(above.key, "data" | "stringData" | "encryptedData")
            });
        let is_setting = super::names::judge(key) <= Verdict::Unknown
            && super::values::is_encoded_setting(self.finds.at(span.clone()));
        let is_data = is_data && !is_harmless_name(key) && !is_setting;
        if is_data {
            self.finds.add(span, key, Rule::Place);
        } else {
            self.finds.judge(key, span);
        }
    }
}

/// Whether a key of a Secret says that its value is none.
pub(super) fn is_harmless_name(key: &str) -> bool {
    let last = key
        .rsplit(['_', '-', '.'])
        .next()
        .unwrap_or(key)
        .to_ascii_lowercase();
    let names = [
        "host",
        "hostname",
        "user",
        "username",
        "level",
        "region",
        "port",
        "crt",
        "id",
        "dbname",
        "database",
        "db",
        "schema",
        "sslmode",
        "endpoint",
        "bucket",
        "name",
        "namespace",
        "scheme",
        "env",
        "type",
        "mode",
    ];
    names.contains(&last.as_str()) && super::names::judge(key) <= Verdict::Unknown
}

/// Name and value of `NAME=value`.
fn variable(text: &str) -> Option<(&str, &str)> {
    let is_name = |name: &str| is_made_of(name, b"_");
    text.split_once('=')
        .filter(|(name, value)| is_name(name) && !value.is_empty())
}

fn unquoted(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}

/// The length of what is in quotes.
pub(super) fn closing(text: &str, quote: char) -> Option<usize> {
    if quote == '\'' {
        return super::values::closing_quote(text, quote);
    }
    let mut is_escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some(i),
            _ => {}
        }
    }
    None
}

/// Key and value of a line; the value begins behind the colon.
fn split(rest: &str) -> Option<(&str, &str)> {
    if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let inner = rest.get(1..)?;
        let length = closing(inner, quote)?;
        let value = inner.get(length + 1..)?.trim_start().strip_prefix(':')?;
        return Some((inner.get(..length)?, value));
    }
    let colon = rest.match_indices(':').map(|(i, _)| i).find(|i| {
        rest.get(i + 1..)
            .is_some_and(|v| v.is_empty() || v.starts_with([' ', '\t']))
    })?;
    let key = rest.get(..colon)?;
    let is_key = !key.contains(['{', '[', '"', '=']) && key.len() <= 200;
    is_key.then_some((key.trim(), rest.get(colon + 1..)?))
}
