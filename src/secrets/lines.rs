//! Formats in which a place of the line makes a secret.

use super::commands;
use super::format::Format;
use super::values::is_reference;
use super::{Finds, Rule, is_made_of, lines};

/// Adds what stands in such a place.
pub(super) fn scan(finds: &mut Finds<'_>, format: Format) {
    let text = finds.text;
    let mut quote = None;
    for (at, line) in lines(text) {
        let trimmed = line.trim_start_matches('\u{feff}').trim();
        let is_comment = trimmed.is_empty() || trimmed.starts_with('#');
        match format {
            Format::Pgpass if !is_comment => pgpass(finds, at, line),
            Format::Pgpass if line.matches(':').count() >= 4 => pgpass(finds, at, line),
            Format::Userlist if !is_comment => userlist(finds, at, line),
            Format::Logins if !is_comment => login(finds, at, line),
            Format::Logins if line.matches(':').count() == 2 => login(finds, at, line),
            Format::Redis if !is_comment => redis(finds, at, line),
            Format::Redis if line.contains(" on ") && !line.contains('<') => {
                // A user that is switched off has a password all the same.
                let body = line.trim_start_matches(['#', ' ', '\t']);
                redis(finds, at + line.len() - body.len(), body);
            }
            Format::Env => env(finds, at, line, &mut quote),
            _ => {}
        }
        if let Some(user) = trimmed.strip_prefix("stats auth ") {
            let start = at + line.len() - line.trim_start().len() + "stats auth ".len();
            let colon = user.find(':').map_or(user.len(), |n| n + 1);
            finds.add(start + colon..start + user.len(), "auth", Rule::Place);
        }
        commands::scan(finds, at, line);
    }
    if let Some((_, from)) = quote {
        // The quote never closes: nothing tells which of the lines belong to it.
        finds.add(from..text.len(), "", Rule::Line);
    }
}

/// The last of the fields that colons separate; a colon behind a backslash separates none.
fn pgpass(finds: &mut Finds<'_>, at: usize, line: &str) {
    let mut colons = 0;
    let mut is_escaped = false;
    for (i, byte) in line.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b':' => colons += 1,
            _ => {}
        }
        if byte == b':' && colons == 4 {
            finds.add(at + i + 1..at + line.len(), "password", Rule::Place);
            return;
        }
    }
    finds.add(at..at + line.len(), "", Rule::Line);
}

/// `user:password`, `host:user:password`, `user:password:1000:…`, `user: password,role`, or a name and a password with white space between
/// them.
fn login(finds: &mut Finds<'_>, at: usize, line: &str) {
    let first = line.split_whitespace().next().unwrap_or_default();
    let first = match first.contains(':') {
        true => first,
        false => first.split('=').next().unwrap_or_default(),
    };
    let colons = line.matches(':').count();
    let is_spaced =
        !first.contains(':') || line.len() > first.len() && first.matches(':').count() == 5;
    let field = |n: usize| line.match_indices(':').nth(n).map(|(i, _)| i);
    let (from, to) = match (is_spaced, colons) {
        (true, _) => (line.find(first).unwrap_or_default() + first.len(), None),
        (_, 2) if !first.ends_with(':') => (field(1).unwrap_or_default() + 1, None),
        (_, colons) => (
            field(0).unwrap_or_default() + 1,
            field(1).filter(|_| colons > 2),
        ),
    };
    let value = line.get(from..to.unwrap_or(line.len())).unwrap_or_default();
    let from = from + value.len() - value.trim_start_matches([' ', '\t', '=']).len();
    let value = line.get(from..to.unwrap_or(line.len())).unwrap_or_default();
    // Roles stand behind a comma.
    let roles = value
        .find(',')
        .filter(|n| first.ends_with(':') || first.len() < from && is_spaced && *n > 0);
    let value = value
        .get(..roles.unwrap_or(value.len()))
        .unwrap_or_default();
    let is_locked = value.trim().bytes().all(|b| b"x*!".contains(&b));
    if !is_locked && !is_reference(value) {
        finds.add(at + from..at + from + value.len(), "password", Rule::Place);
    }
}

/// The second text in quotes.
fn userlist(finds: &mut Finds<'_>, at: usize, line: &str) {
    let quotes: Vec<usize> = line.match_indices('"').map(|(i, _)| i).collect();
    match quotes.as_slice() {
        [_, _, from, .., to] if to > from => {
            finds.add(at + from + 1..at + to, "password", Rule::Place);
        }
        _ => finds.add(at..at + line.len(), "", Rule::Line),
    }
}

/// Passwords of `user`, and those of sentinels.
fn redis(finds: &mut Finds<'_>, at: usize, line: &str) {
    let mut words = Vec::new();
    let mut start = 0;
    for word in line.split([' ', '\t']) {
        if !word.is_empty() {
            words.push((at + start, word));
        }
        start += word.len() + 1;
    }
    let is = |n: usize, wanted: &str| {
        words
            .get(n)
            .is_some_and(|(_, w)| w.eq_ignore_ascii_case(wanted))
    };
    if is(0, "user") {
        for (start, word) in words.iter().skip(2) {
            let is_hash = word.starts_with(['#', '!']) && word.len() > 32;
            if word.starts_with(['>', '<']) || is_hash {
                finds.add(start + 1..start + word.len(), "user", Rule::Place);
            }
        }
    }
    let is_pass = is(1, "auth-pass");
    if is(0, "sentinel") && (is_pass || is(1, "sentinel-pass")) {
        let skip = if is_pass { 3 } else { 2 };
        if let (Some((from, _)), Some((last, word))) = (words.get(skip), words.last()) {
            finds.add(*from..last + word.len(), "auth-pass", Rule::Place);
        }
    }
}

/// A line that is neither an assignment nor a comment, and goes on with no value in quotes, is a secret as a whole.
fn env(finds: &mut Finds<'_>, at: usize, line: &str, open: &mut Option<(char, usize)>) {
    if let Some((quote, _)) = open {
        // The line is a part of the value, which the assignments read.
        if line.contains(*quote) {
            *open = None;
        }
        return;
    }
    let trimmed = line.trim_start_matches('\u{feff}').trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return;
    }
    let rest = trimmed.strip_prefix("export ").unwrap_or(trimmed);
    let name = rest
        .find(['=', ':'])
        .map_or(rest, |n| rest.get(..n).unwrap_or_default())
        .trim();
    let is_name = !name.is_empty() && is_made_of(name, b"_.-");
    let is_name = is_name && !name.starts_with(|c: char| c.is_ascii_digit());
    let is_bare = name == rest && name.bytes().any(|b| b.is_ascii_digit());
    if !is_name || is_bare {
        finds.add(at..at + line.len(), "", Rule::Line);
        return;
    }
    let value = rest
        .get(name.len()..)
        .unwrap_or_default()
        .trim_start_matches([' ', '=', ':']);
    let quote = value
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\'' | '`'));
    if let Some(quote) = quote.filter(|q| value.matches(*q).count() == 1) {
        *open = Some((quote, at));
    }
}
