//! Secrets in the text of configuration files: where they stand, and what a file looks like without them.
//!
//! Each format has a scanner of its own, and three scanners read every text: assignments in a line, PEM blocks, and tokens by shape and
//! entropy. A value that any of them takes for a secret is one. The work is linear in the length of the text, and no text makes a scanner panic.

mod arguments;
mod assignments;
mod commands;
mod daemons;
mod flow;
mod format;
mod json;
mod lines;
mod names;
mod pem;
mod phrases;
mod positions;
mod prose;
mod redact;
mod references;
mod repeated;
mod sql;
mod table;
mod tokens;
mod values;
mod whole;
mod xml;
mod yaml;

use std::collections::BTreeSet;
use std::ops::Range;

pub use names::matches;
pub use redact::redact;
pub use repeated::{Searched, Values};

use format::Format;
use names::Verdict;

/// A larger file is a secret as a whole.
pub const TEXT_LIMIT_BYTES: usize = 4 << 20;

/// The reason for which something is taken for a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The configuration names the key.
    Configured,
    /// The name of the key.
    Key,
    /// The format has a secret in this place.
    Place,
    /// A private key.
    Pem,
    /// A URL with a password.
    Url,
    /// The shape of the value.
    Shape,
    /// The value is random.
    Entropy,
    /// A line that cannot be understood.
    Line,
    /// A file that is no text, too long, or nothing but a secret.
    File,
    /// The value is a secret elsewhere.
    Repeated,
}

impl Rule {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Configured => "configured",
            Rule::Key => "key",
            Rule::Place => "place",
            Rule::Pem => "pem",
            Rule::Url => "url",
            Rule::Shape => "shape",
            Rule::Entropy => "entropy",
            Rule::Line => "line",
            Rule::File => "file",
            Rule::Repeated => "repeated",
        }
    }
}

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The bytes of the value.
    pub span: Range<usize>,
    /// The key that it is the value of; empty where there is none.
    pub key: String,
    /// Why it is taken for one.
    pub rule: Rule,
}

/// Keys that the configuration judges itself, by patterns in which `*` stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Keys whose values are secrets.
    pub secret: Vec<String>,
    /// Keys whose values are none.
    pub plain: Vec<String>,
    /// Paths of files that are secrets as a whole.
    pub files: Vec<String>,
}

impl Overrides {
    fn judge(&self, key: &str) -> (Verdict, Rule) {
        let key = ending(key);
        let fits = |patterns: &[String]| patterns.iter().any(|p| names::fits(p, key));
        match (fits(&self.secret), fits(&self.plain)) {
            (true, _) => (Verdict::Password, Rule::Configured),
            (_, true) => (Verdict::Plain, Rule::Key),
            _ => (names::judge(key), Rule::Key),
        }
    }

    /// Whether the value of a key is a secret, and by which rule.
    fn rule(&self, key: &str, value: &str) -> Option<Rule> {
        let (verdict, rule) = self.judge(key);
        // The operator has the last word.
        if rule == Rule::Configured {
            return (!value.trim().is_empty()).then_some(rule);
        }
        if rule == Rule::Key && verdict != Verdict::Plain {
            let number = value.trim();
            let is_small = number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit());
            if names::names_object(key, number) || is_small && names::is_qualified(key) {
                return None;
            }
            let is_pin = names::is_pin(key) && values::is_digits(value);
            if is_pin || names::is_login(key) && values::is_encoded_login(value) {
                return Some(rule);
            }
        }
        // A date of birth is a password, too.
        let is_date = verdict == Verdict::Password
            && names::is_password(key)
            && values::is_version_or_time(value.trim())
            && value
                .trim()
                .bytes()
                .all(|b| b.is_ascii_digit() || b == b'.');
        (is_date || values::is_secret(verdict, value)).then_some(rule)
    }
}

/// The end of a key: a longer one costs time for each value that it has.
fn ending(key: &str) -> &str {
    let mut from = key.len().saturating_sub(200);
    while !key.is_char_boundary(from) {
        from += 1;
    }
    key.get(from..).unwrap_or_default()
}

/// The beginning of a text, of at most so many bytes.
fn beginning(text: &str, limit_bytes: usize) -> &str {
    let mut end = limit_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn has_any(text: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| text.contains(part))
}

fn begins_with_any(text: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|one| text.starts_with(one))
}

fn ends_with_any(text: &str, ends: &[&str]) -> bool {
    ends.iter().any(|end| text.ends_with(end))
}

/// Whether it has letters and digits of ASCII alone, and these other bytes.
fn is_made_of(text: &str, others: &[u8]) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

/// The secrets of one text, as its scanners find them.
struct Finds<'t> {
    text: &'t str,
    overrides: &'t Overrides,
    found: Vec<Found>,
    /// The text holds keys in JSON, whose members have names of one or two letters.
    is_jwk: bool,
    /// The file is one of secrets: keys whose names say nothing are.
    is_of_secrets: bool,
}

impl Finds<'_> {
    /// The text in a range; nothing where the range is none.
    fn at(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }

    /// Adds a secret, without the white space around it.
    fn add(&mut self, span: Range<usize>, key: &str, rule: Rule) {
        let value = self.at(span.clone());
        let start = span.start + (value.len() - value.trim_start().len());
        let end = start + value.trim().len();
        if end > start {
            self.found.push(Found {
                span: start..end,
                key: ending(key).to_owned(),
                rule,
            });
        }
    }

    /// Whether the name of a key says that its value is no secret.
    fn is_plain(&self, key: &str) -> bool {
        self.overrides.judge(key).0 == Verdict::Plain
            || self.is_jwk && matches!(key, "n" | "e" | "x" | "y" | "x5t" | "x5c")
    }

    /// Adds the value of a key, if it is a secret. A user before it and a colon are left out.
    fn judge(&mut self, key: &str, span: Range<usize>) -> bool {
        let is_private = self.is_jwk && matches!(key, "d" | "p" | "q" | "dp" | "dq" | "qi" | "k");
        let is_unnamed = self.is_of_secrets && !key.is_empty() && !names::is_about(key);
        let is_unknown = self.overrides.judge(key).0 == Verdict::Unknown;
        let judged = match is_unknown && (is_private || is_unnamed) {
            true => "secret",
            false => key,
        };
        let value = self.at(span.clone());
        let verdict = self.overrides.judge(judged).0;
        if verdict >= Verdict::Strong
            && let Some(text) = references::text_in_template(value)
        {
            self.add(
                span.start + text.start..span.start + text.end,
                key,
                Rule::Key,
            );
            return true;
        }
        let Some(rule) = self.overrides.rule(judged, value) else {
            return false;
        };
        let skip = names::is_login(key)
            .then(|| values::user_before(value))
            .flatten();
        self.add(span.start + skip.unwrap_or_default()..span.end, key, rule);
        true
    }

    /// As [`Self::judge`], of an element of a list. Lists of secrets may have names of them.
    fn judge_element(&mut self, key: &str, span: Range<usize>) -> bool {
        let is_name = names::is_plural(key) && values::is_label_of(self.at(span.clone()));
        !is_name && self.judge(key, span)
    }
}

/// Finds the secrets of a file. They are in order and do not overlap.
pub fn recognise(name: &str, content: &[u8], overrides: &Overrides) -> Vec<Found> {
    let whole = |rule| {
        vec![Found {
            span: 0..content.len(),
            key: String::new(),
            rule,
        }]
    };
    if content.is_empty() {
        return Vec::new();
    }
    let is_own = |one: &String| one.trim_matches('/') == name.trim_matches('/');
    if format::is_secret(name) || overrides.files.iter().any(is_own) {
        return whole(Rule::File);
    }
    let text = match std::str::from_utf8(content) {
        Ok(text) if text.len() <= TEXT_LIMIT_BYTES && !text.contains('\0') => text,
        _ => return whole(Rule::File),
    };
    let format = Format::of(name, text);
    let base = format::base(name);
    let mut finds = Finds {
        text,
        overrides,
        found: Vec::new(),
        is_jwk: text.contains("\"kty\""),
        is_of_secrets: base.starts_with("secrets."),
    };
    pem::scan(&mut finds);
    match format {
        Format::Json => json::scan(&mut finds),
        Format::Yaml => {
            yaml::scan(&mut finds);
            flow::scan(&mut finds);
        }
        Format::Table => table::scan(&mut finds),
        _ => {}
    }
    xml::scan(&mut finds);
    lines::scan(&mut finds, format);
    phrases::scan(&mut finds, &base, format);
    positions::scan(&mut finds, &base);
    daemons::scan(&mut finds, &base);
    sql::scan(&mut finds, &base);
    prose::scan(&mut finds);
    arguments::scan(&mut finds);
    assignments::scan(&mut finds, format);
    tokens::scan(&mut finds);
    // Several words may have places of their own.
    if let Some(line) = whole::line(name, (text, format), overrides)
        && (finds.found.is_empty() || !line.contains(char::is_whitespace))
    {
        let start = text.find(line).unwrap_or_default();
        finds.add(start..start + line.len(), "", Rule::File);
    }
    without_secret_names(text, merged(finds.found))
}

/// Secrets that overlap become one, which has the key and the rule of the first.
fn merged(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by(|a, b| {
        (a.span.start, std::cmp::Reverse(a.span.end), a.rule).cmp(&(
            b.span.start,
            std::cmp::Reverse(b.span.end),
            b.rule,
        ))
    });
    let mut merged: Vec<Found> = Vec::with_capacity(found.len());
    for one in found {
        match merged.last_mut() {
            Some(last) if one.span.start < last.span.end => {
                last.span.end = last.span.end.max(one.span.end);
            }
            _ => merged.push(one),
        }
    }
    merged
}

/// The name of a key is shown, so that no secret may stand in for one.
fn without_secret_names(text: &str, mut found: Vec<Found>) -> Vec<Found> {
    let values: BTreeSet<&str> = found
        .iter()
        .filter_map(|one| text.get(one.span.clone()))
        .collect();
    for one in &mut found {
        if values.contains(one.key.as_str()) {
            one.key.clear();
        }
    }
    found
}

/// Lines of a text with the offsets at which they begin, without their ends.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, line.trim_end_matches(['\n', '\r']))
    })
}

#[cfg(test)]
mod tests;
