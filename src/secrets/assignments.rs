//! Names and their values within lines, in any format.

use std::ops::Range;

use super::format::Format;
use super::json::is_generic;
use super::names::{self, Verdict, is_about, is_group};
use super::values::is_reference;
use super::{Finds, begins_with_any, has_any, is_made_of, lines};

/// A value in quotes goes on over lines, at most so far.
const QUOTED_LIMIT_BYTES: usize = 64 << 10;
/// A value in braces goes on within its line, at most so far.
const BRACES_LIMIT_BYTES: usize = 4 << 10;
/// A quote around a name and its value is looked for so far, where others stand behind backslashes.
const AROUND_LIMIT_BYTES: usize = 16 << 10;

/// Options behind words tell that these are a command.
const OPTIONS: &[&str] = &[" -"];
/// Arguments that tell the same of words where a command is expected.
const ARGUMENTS: &[&str] = &[" -", "://", "%p", "%f"];

/// Adds the values of keys that are secret by their names.
pub(super) fn scan(finds: &mut Finds<'_>, format: Format) {
    let mut skip_to = 0;
    let mut quotes = Quotes::default();
    let mut section = if finds.is_of_secrets { "secrets" } else { "" };
    let is_jaas = finds.text.contains("LoginModule");
    for (at, line) in lines(finds.text) {
        if at + line.len() <= skip_to && skip_to > at {
            continue;
        }
        section = section_of(line).unwrap_or(section);
        let mut scanner = Scanner {
            section,
            opening: line.find(['{', '[', '(', '<']).unwrap_or(line.len()),
            query: line.find('?').unwrap_or(line.len()),
            finds,
            format,
            at,
            line,
            quotes: &mut quotes,
            is_define: line.contains("define("),
            is_conninfo: has_any(line, &["host=", "dbname=", "user=", "port="]),
            is_jaas,
        };
        skip_to = skip_to.max(scanner.line(skip_to.saturating_sub(at)));
    }
}

/// The section or block that a line begins, if its name says that all of it is secret; nothing where it begins another.
fn section_of(line: &str) -> Option<&str> {
    let line = line.trim();
    if line == "}" {
        return Some("");
    }
    // A variable of Terraform has a default.
    if let Some(variable) = line
        .strip_prefix("variable \"")
        .and_then(|v| v.split('"').next())
    {
        return Some(variable)
            .filter(|v| names::judge(v) >= Verdict::Strong)
            .or(Some(""));
    }
    let name = match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
        Some(users @ ("users" | "admins")) => return Some(users),
        Some(name) => name.trim_matches(['[', ']']),
        None if line.starts_with("</") => "",
        None if line.starts_with('<') && line.ends_with('>') => {
            line.trim_matches(['<', '>']).split(' ').next()?
        }
        None => line.strip_suffix('{')?.trim_end_matches([' ', '=', ':']),
    };
    let name = name.rsplit('.').next().unwrap_or(name);
    let is_secret = is_group(name) || name == "Pass" || names::judge(name) >= Verdict::Strong;
    Some(if is_secret { name } else { "" })
}

/// Quotes of which none closes any more: looked for once.
#[derive(Default)]
struct Quotes {
    absent_from: std::collections::BTreeMap<u8, usize>,
}

impl Quotes {
    /// The end of what is in quotes that open before `from`; the closing quote is there.
    fn close(&mut self, text: &str, from: usize, quote: u8) -> Option<usize> {
        let absent = self.absent_from.get(&quote);
        if absent.is_some_and(|absent| from >= *absent) {
            return None;
        }
        let bytes = text.as_bytes().get(from..)?;
        let mut i = 0;
        while let Some(byte) = bytes.get(i) {
            // Two in a row are one of the value, but for an empty value.
            if *byte == quote && quote == b'\'' && i > 0 && bytes.get(i + 1) == Some(&quote) {
                i += 2;
                continue;
            }
            if *byte == quote
                && quote == b'\''
                && i > 0
                && bytes.get(i - 1) == Some(&b'\\')
                && is_odd(bytes, i + 1)
            {
                i += 1;
                continue;
            }
            if *byte == quote {
                return (i <= QUOTED_LIMIT_BYTES).then_some(from + i);
            }
            i += 1 + usize::from(*byte == b'\\' && quote != b'\'');
        }
        self.absent_from.insert(quote, from);
        None
    }
}

/// Whether so many quotes follow on the line that one of them must close: the one behind a backslash closes nothing.
fn is_odd(bytes: &[u8], from: usize) -> bool {
    let rest = bytes.get(from..).unwrap_or_default();
    let line = rest.iter().take_while(|b| **b != b'\n').take(4096);
    let mut before = 0;
    let quotes = line.filter(|b| {
        let counts = **b == b'\'' && before != b'\\';
        before = **b;
        counts
    });
    quotes.count() % 2 == 1
}

struct Scanner<'s, 't> {
    finds: &'s mut Finds<'t>,
    format: Format,
    at: usize,
    line: &'t str,
    quotes: &'s mut Quotes,
    /// The section or block of secrets that the line is in.
    section: &'t str,
    /// The offset of the first bracket.
    opening: usize,
    /// The offset of the first question mark.
    query: usize,
    /// The line defines constants: `define('NAME', 'value')`.
    is_define: bool,
    /// The line holds settings of a connection: `host=… password=…`.
    is_conninfo: bool,
    /// The file has users of Java's modules: `user_name="password"`.
    is_jaas: bool,
}

/// Words before a name that are none.
const BEFORE_NAMES: &[&str] = &[
    "export", "set", "setenv", "local", "readonly", "env", "-", "-e", "ENV", "ARG", "option",
    "define", "const", "let", "var",
];

/// Controls of PAM, behind the type "password".
const PAM: &[&str] = &[
    "required ",
    "requisite ",
    "sufficient ",
    "optional ",
    "include ",
    "substack ",
    "[",
];

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte) || !byte.is_ascii()
}

impl<'t> Scanner<'_, 't> {
    fn byte(&self, at: usize) -> u8 {
        self.line.as_bytes().get(at).copied().unwrap_or(b'\n')
    }

    fn skip_spaces(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), b' ' | b'\t') {
            at += 1;
        }
        at
    }

    fn slice(&self, span: Range<usize>) -> &'t str {
        self.line.get(span).unwrap_or_default()
    }

    /// Reads one line from an offset on. Returns where in the text the next one may begin.
    fn line(&mut self, from: usize) -> usize {
        let mut at = from;
        let mut end_of_value = 0;
        let trimmed = self.line.trim_start();
        let is_comment = ["#", ";", "//", "-- ", "<!--", "* "]
            .iter()
            .any(|c| trimmed.starts_with(c))
            && !trimmed.starts_with("* *")
            && !trimmed.starts_with("#define ");
        let mut is_first = true;
        while at < self.line.len() {
            if !is_word(self.byte(at)) {
                at = self.behind_lookup(at).unwrap_or(at + 1);
                continue;
            }
            let start = at;
            while is_word(self.byte(at)) {
                at += 1;
            }
            let word = self.slice(start..at);
            if BEFORE_NAMES.contains(&word) || word.trim_start_matches('-').is_empty() {
                continue;
            }
            if let Some(end) = self.pair(start..at, is_first && !is_comment, is_comment) {
                let end_in_line = end.saturating_sub(self.at);
                end_of_value = end;
                at = end_in_line.max(at);
            }
            is_first = false;
        }
        end_of_value
    }

    /// The end of a template or variable that begins here, and names what it looks up: its own words are no keys.
    fn behind_lookup(&self, at: usize) -> Option<usize> {
        let rest = super::beginning(self.slice(at..self.line.len()), 400);
        let (end, close) = match self.byte(at) {
            b'{' if rest.starts_with("{{") => (rest.find("}}")?, 2),
            b'$' if rest.starts_with("${") => (rest.find('}')?, 1),
            _ => return None,
        };
        let whole = rest.get(..end + close)?;
        let is_lookup = has_any(whole, &["lookup(", "query(", "hashi_vault"]);
        let is_named = whole.starts_with("${") && super::references::is_named_elsewhere(whole);
        (is_named || is_lookup && !whole.contains("default(")).then_some(at + end + close)
    }

    /// Reads the value of the word, if it has one that is secret. Returns where the value ends in the text.
    fn pair(&mut self, word: Range<usize>, is_first: bool, is_comment: bool) -> Option<usize> {
        let name = self
            .slice(word.clone())
            .trim_start_matches('-')
            .trim_end_matches('.');
        let (name, verdict) = match self.finds.overrides.judge(name).0 {
            Verdict::Unknown if self.is_jaas && name.starts_with("user_") => {
                ("password", Verdict::Password)
            }
            verdict => (name, verdict),
        };
        let is_beside = matches!(self.section, "users" | "admins") || is_group(self.section);
        let is_hash = self.section == "Pass" && (verdict == Verdict::Unknown || name == "Hash");
        let is_default = !self.section.is_empty() && is_generic(name);
        let is_inside = (verdict == Verdict::Unknown && (is_beside || is_default) || is_hash)
            && is_first
            && !is_comment
            && !is_about(name);
        // Users with their passwords, and roles behind a comma. A setting of users has a longer name.
        if is_inside && matches!(self.section, "users" | "admins") {
            let rest = self.slice(word.end..self.line.len());
            let value = rest
                .trim_start()
                .strip_prefix('=')
                .filter(|_| !name.contains('_'))?;
            let is_hash =
                begins_with_any(value.trim_start(), &["-pbkdf2-", "-pbkdf2:", "-hashed-"]);
            let roles = value.find(',').filter(|_| !is_hash);
            let length = roles.unwrap_or(value.len());
            let start = self.line.len() - value.len();
            return self.take("password", start..start + length);
        }
        let (name, verdict) = match is_inside && !self.section.is_empty() {
            true => (self.section, Verdict::Strong),
            false => (name, verdict),
        };
        if let Some(value) = self.slice(word.end..self.line.len()).strip_prefix('=')
            && matches!(name, "login" | "user" | "userpwd" | "auth" | "proxyauth")
        {
            let value = value
                .split(|c: char| c.is_whitespace() || "\"'<>&".contains(c))
                .next()
                .unwrap_or_default();
            let skip = super::values::user_before(value);
            let skip = skip.filter(|n| {
                value
                    .get(*n..)
                    .is_some_and(|p| !p.bytes().all(|b| b.is_ascii_digit()))
            });
            if let Some(skip) = skip {
                return self.take("password", word.end + 1 + skip..word.end + 1 + value.len());
            }
        }
        if verdict <= Verdict::Unknown {
            return None;
        }
        let opens = word.start.checked_sub(1).map_or(b' ', |i| self.byte(i));
        // A class of a regular expression is no part of a name.
        if opens == b'\\' && name.starts_with('s') {
            return None;
        }
        let mut at = word.end;
        let is_quoted = matches!(opens, b'"' | b'\'' | b'`') && self.byte(at) == opens;
        at += usize::from(is_quoted);
        // JSON within JSON has its quotes behind backslashes.
        let slashes = self
            .slice(at..self.line.len())
            .bytes()
            .take_while(|b| *b == b'\\')
            .count();
        let is_nested =
            !is_quoted && slashes > 0 && opens == b'"' && self.byte(at + slashes) == b'"';
        let is_quoted = is_quoted || is_nested;
        at += if is_nested { slashes + 1 } else { 0 };
        at += usize::from(opens == b'$' && self.byte(at) == b'$');
        while matches!(self.byte(at), b']' | b')' | b'}') && at < self.line.len() {
            at += 1;
        }
        let spaced = self.skip_spaces(at);
        let is_flag = self.slice(word.clone()).starts_with("--");
        let (sep, next) = (self.byte(spaced), self.byte(spaced + 1));
        // A part of a token that colons join, the host of a URL, and a part of the name of a checksum.
        let is_part = opens == b':' && sep == b':' && !matches!(next, b' ' | b'\n');
        let is_host = self.slice(0..word.start).ends_with("//") && sep == b':';
        if is_part || is_host || self.slice(0..word.start).ends_with("checksum/") {
            return None;
        }
        let value = match (sep, next) {
            (b'=', b'>') | (b':', b'=') | (b'?' | b'+', b'=') => spaced + 2,
            // A comparison; a value may begin with the sign, too.
            (b'=' | b'!', b'=')
                if sep == b'!' || matches!(self.byte(spaced + 2), b' ' | b'"' | b'\'') =>
            {
                spaced + 2
            }
            // LDIF has values in Base64 behind two colons.
            (b':', b':') if is_first && self.byte(spaced + 2) == b' ' => spaced + 2,
            (b':', b'?') if opens == b'{' => return None,
            (b':', b'-') if opens == b'{' && self.byte(spaced + 2) == b'}' => return None,
            (b':', b':' | b'/') if self.format != Format::Env => return None,
            (b'=' | b':', _) => spaced + 1,
            // A call that sets it.
            (b'(', b'"' | b'\'')
                if spaced == at && verdict >= Verdict::Strong && !is_getter(name) =>
            {
                spaced + 1
            }
            // A pair in Erlang, and an option among arguments in quotes.
            (b',', _) if opens == b'{' && self.erlang(spaced + 1).is_some() => {
                self.erlang(spaced + 1).unwrap_or(spaced + 1)
            }
            // A keyword of Clojure.
            _ if opens == b':' && spaced > at && sep == b'"' && verdict >= Verdict::Strong => {
                spaced
            }
            (b',', _)
                if is_quoted && self.is_define
                    || self.is_argument(&word, is_quoted, spaced + 1) =>
            {
                spaced + 1
            }
            _ if spaced > at
                && !is_comment
                && opens != b'<'
                && self.takes_spaces(name, verdict, is_first, is_flag, spaced) =>
            {
                spaced
            }
            _ => return None,
        };
        let value = self.skip_spaces(value);
        let rest = super::beginning(self.slice(value..self.line.len()), 200);
        let length = rest
            .find(|c: char| c.is_whitespace() || "\"';,".contains(c))
            .unwrap_or(rest.len());
        if super::references::is_stored(rest.get(..length).unwrap_or_default()) {
            return Some(self.at + value + length);
        }
        if matches!(opens, b'"' | b'\'') && !is_quoted {
            // The quotes are around name and value.
            let rest = self.slice(value..self.line.len());
            let near = super::beginning(rest, AROUND_LIMIT_BYTES);
            if let Some(length) = unescaped(near, opens).or_else(|| rest.find(char::from(opens))) {
                let whole = self.slice(value..value + length);
                let before = self.slice(0..word.start.saturating_sub(1));
                let length = match leads_to_command(before) {
                    true => self.before_command(name, value, whole, ARGUMENTS),
                    // Any other value reaches to the closing quote, whatever it looks like.
                    false => length,
                };
                return self.take(name, value..value + length);
            }
        }
        let is_remark = is_comment
            && value > spaced + 1
            && verdict == Verdict::Password
            && sep == b':'
            && !self.is_conninfo;
        if is_remark && !matches!(self.byte(value), b'"' | b'\'') {
            return self.take(name, value..self.line.len());
        }
        if verdict >= Verdict::Strong
            && self.byte(value) == b'['
            && let Some(length) = byte_list(self.slice(value..self.line.len()))
        {
            let start = self.at + value;
            self.finds
                .add(start..start + length, name, super::Rule::Key);
            return Some(start + length);
        }
        // A user and a password.
        if names::is_login(name) && self.byte(value) == b'[' {
            self.login(value);
        }
        if verdict >= Verdict::Strong
            && !is_inside
            && self.format != Format::Json
            && matches!(self.byte(value), b'[' | b'{')
        {
            self.elements(name, value);
        }
        self.value(name, value, is_first && opens != b'<')
    }

    /// Whether the word is the first argument of a call, and a text is the second: `put("name", "value")`, `Set($name, q{value})`.
    fn is_argument(&self, word: &Range<usize>, is_quoted: bool, value: usize) -> bool {
        let before = self.slice(0..word.start);
        let before = before
            .strip_suffix(['"', '\'', '$', ':'])
            .unwrap_or(before)
            .trim_end();
        let is_first = before.ends_with('(')
            && !before.ends_with("lookup(")
            && (is_quoted || self.slice(0..word.start).ends_with(['$', ':']));
        let rest = self.slice(self.skip_spaces(value)..self.line.len());
        is_first && (rest.starts_with(['"', '\'']) || literal(rest).is_some())
    }

    /// Finds where the text of a pair of Erlang begins: `{name, "text"}`, `{name, <<"text">>}`.
    fn erlang(&self, comma: usize) -> Option<usize> {
        let at = self.skip_spaces(comma);
        let rest = self.slice(at..self.line.len());
        let skip = if rest.starts_with("<<\"") { 2 } else { 0 };
        rest.get(skip..)?.starts_with('"').then_some(at + skip)
    }

    /// Whether white space separates this name from its value.
    fn takes_spaces(
        &self,
        name: &str,
        verdict: Verdict,
        is_first: bool,
        is_flag: bool,
        value: usize,
    ) -> bool {
        if verdict < Verdict::Strong || value >= self.line.len() {
            return false;
        }
        let rest = self.slice(value..self.line.len());
        // A line of PAM.
        if PAM.iter().any(|control| rest.starts_with(control)) {
            return false;
        }
        if is_flag {
            return !rest.starts_with('-');
        }
        let is_login = ["password", "insecure-password", "pass"]
            .iter()
            .any(|login| name.eq_ignore_ascii_case(login));
        let words = self.line.trim_start();
        let is_login_line = begins_with_any(
            words,
            &[
                "machine ",
                "default ",
                "login ",
                "user ",
                "password ",
                "poll ",
            ],
        );
        // All of the line is looked at for its first word alone.
        let is_single = || {
            let rest = rest.trim_end();
            !rest.trim_end_matches(';').contains(char::is_whitespace)
                || rest.starts_with(['"', '\''])
        };
        let is_no_word = || {
            let rest = rest.trim_end();
            rest.len() >= 6 && rest.bytes().any(|b| !b.is_ascii_alphabetic())
        };
        match self.format {
            Format::Netrc => true,
            Format::Spaced | Format::Redis => {
                (is_first && is_single())
                    || (is_login && is_login_line)
                    || name.eq_ignore_ascii_case("authorization")
            }
            Format::Other => {
                (is_first && is_single() && (name.contains(['.', '_', '-']) || is_no_word()))
                    || (is_login && is_login_line)
            }
            Format::Env
            | Format::Json
            | Format::Yaml
            | Format::Pgpass
            | Format::Userlist
            | Format::Logins
            | Format::Table => false,
        }
    }

    fn value(&mut self, name: &str, at: usize, is_line: bool) -> Option<usize> {
        let line_end = self.line.len();
        let rest = self.slice(at..line_end);
        for quote in ["\"\"\"", "'''", "''", "\\'", "\\\""] {
            if let Some(inner) = rest
                .strip_prefix(quote)
                .filter(|inner| !inner.is_empty() || quote.len() == 3)
            {
                if let Some(length) = inner.find(quote) {
                    return self.take(name, at + quote.len()..at + quote.len() + length);
                }
                if quote.len() == 3 {
                    return self.block(name, at + 3, quote);
                }
            }
        }
        if let Some((skip, length)) = literal(rest) {
            return self.take(name, at + skip..at + skip + length);
        }
        if rest.starts_with("${{")
            && let Some(end) = super::beginning(rest, BRACES_LIMIT_BYTES).find("}}")
        {
            return self.take(name, at..at + end + 2);
        }
        // A call that reads the value from elsewhere has nothing to hide, and no names.
        let call = super::beginning(rest, 200);
        if let Some(length) = call.find([')', ']']).map(|n| n + 1)
            && call.get(..length).is_some_and(super::values::is_call)
        {
            // A text that stands in for it is there.
            let behind = self.slice(at + length..line_end);
            let other = ["?:", "||", "??", "or ", "//", "{"]
                .iter()
                .find_map(|sign| behind.trim_start().strip_prefix(sign))
                .map(str::trim_start)
                .filter(|other| other.starts_with(['"', '\'']));
            if let Some(other) = other {
                return self.value(name, line_end - other.len(), is_line);
            }
            return Some(self.at + at + length);
        }
        // A tag of YAML names what is elsewhere, and a call makes something of its text.
        if let Some(name) = ["!secret ", "!env ", "!ENV ", "!env_var "]
            .iter()
            .find_map(|tag| rest.strip_prefix(tag))
        {
            let length = name.find([' ', ',', '}']).unwrap_or(name.len());
            return Some(self.at + line_end - name.len() + length);
        }
        if let Some((skip, length)) = text_of_call(rest) {
            return self.take(name, at + skip..at + skip + length);
        }
        let quote = self.byte(at);
        if matches!(quote, b'"' | b'\'' | b'`') && at < line_end {
            let from = self.at + at + 1;
            let close = self.quotes.close(self.finds.text, from, quote);
            let in_line = close.filter(|end| *end < self.at + line_end);
            let is_multi =
                is_line && matches!(self.format, Format::Env | Format::Other | Format::Spaced);
            let end = match (in_line, close) {
                (Some(end), _) => end,
                (None, Some(end)) if is_multi => end,
                _ => self.at + line_end,
            };
            let secret = self.finds.judge(name, from..end);
            // Behind the quotes other dialects read on: "x"y.
            let behind = end + 1;
            let text = self.finds.text.get(behind..).unwrap_or_default();
            let before = self.slice(0..at);
            let is_free = |q: char| at < 4096 && before.matches(q).count().is_multiple_of(2);
            let more = glued(text, &|| is_free('"') && is_free('\''));
            let is_glued = secret && more > 0 && !text.starts_with('<');
            if is_glued && let Some(last) = self.finds.found.last_mut() {
                last.span.end = behind + more;
            }
            return secret.then_some(if is_glued { behind + more } else { end + 1 });
        }
        // A value of a connection may be in braces.
        if let Some(inner) = rest.strip_prefix('{')
            && self.slice(0..at).ends_with('=')
            && let Some(length) = super::beginning(inner, BRACES_LIMIT_BYTES).find('}')
            && inner
                .get(length + 1..)
                .is_some_and(|b| b.is_empty() || b.starts_with([';', '"', '\'']))
            && !inner
                .get(..length)
                .unwrap_or_default()
                .contains(['=', ':', '"', '{', '$'])
        {
            return self.take(name, at..at + length + 2);
        }
        // The value is on the next line.
        let is_continued = |tail: &str| tail.trim_start().is_empty();
        if rest.strip_prefix('\\').is_some_and(is_continued) {
            let next = self.at + line_end;
            let text = self.finds.text.get(next..).unwrap_or_default();
            let line = text.trim_start_matches(['\r', '\n']);
            let start = next + text.len() - line.len();
            let line = line.lines().next().unwrap_or_default();
            let end = start + line.trim_end_matches('\\').len();
            return self.finds.judge(name, start..end).then_some(end);
        }
        // A word in braces is one of Tcl.
        let is_tcl = self.line.trim_start().starts_with("set ") && quote == b'{';
        if is_tcl && let Some(length) = super::beginning(rest, BRACES_LIMIT_BYTES).find('}') {
            return self.take(name, at + 1..at + length);
        }
        let is_flow = matches!(quote, b'{' | b'[' | b'|' | b'>')
            && !matches!(self.format, Format::Env)
            && scheme_length(rest) == 0;
        if is_flow && !rest.starts_with("{{") && (rest.len() <= 3 || quote != b'|' && quote != b'>')
        {
            return None;
        }
        let mut end = at;
        let is_whole = is_line
            && !matches!(self.format, Format::Yaml | Format::Json | Format::Netrc)
            && !self.is_conninfo;
        let group = group_length(rest);
        if is_whole && rest.as_bytes().get(group) == Some(&b' ') && group > 0 {
            return self.take(name, at..at + group);
        }
        if is_whole {
            end = line_end;
            // The end of a directive, and of a comment in another language.
            let mut value = self.slice(at..end).trim_end();
            if begins_with_any(self.line, &["ENV ", "ARG "]) {
                value = value.split(' ').next().unwrap_or_default();
                return self.take(name, at..at + value.len());
            }
            let value = match self.format {
                Format::Spaced | Format::Other => value.trim_end_matches([';', ',']),
                _ => value,
            };
            let command = self.before_command(name, at, value, OPTIONS);
            if command < value.len() {
                return self.take(name, at..at + command);
            }
            let taken = self.take(name, at..at + value.len());
            // A directive ends with the sign, but the value of an ini file has it.
            let whole = self.at + self.slice(0..end).trim_end().len();
            let is_ini = self.slice(0..at).trim_end().ends_with('=');
            if is_ini
                && taken.is_some()
                && let Some(last) = self.finds.found.last_mut()
            {
                last.span.end = whole;
            }
            return taken;
        }
        while end < line_end {
            let byte = self.byte(end);
            let group = group_length(self.slice(end..line_end));
            if group > 0 {
                end += group;
            } else if byte == b'\\' {
                while self.byte(end) == b'\\' && end < line_end {
                    end += 1;
                }
                end += 1;
            } else if byte.is_ascii_whitespace()
                || self.is_end(at, end) && !(byte == b'}' && self.has_variable(at..end))
            {
                break;
            } else {
                end += 1;
            }
        }
        let mut end = end.min(line_end);
        while !self.line.is_char_boundary(end) {
            end += 1;
        }
        if self.byte(end) == b'}' {
            end += usize::from(self.has_variable(at..end));
        }
        // A scheme is not the secret yet.
        if matches!(
            self.slice(at..end),
            "Bearer" | "Basic" | "Token" | "token" | "bearer" | "Digest" | "ApiKey"
        ) {
            let more = self.slice(end..line_end);
            let length = more.trim_end_matches(['"', '\'', ';', ' ']).len();
            return self.take(name, end..end + length);
        }
        self.take(name, at..end)
    }

    /// The second of two elements: `auth: [user, password]`.
    fn login(&mut self, at: usize) {
        let rest = super::beginning(self.slice(at + 1..self.line.len()), 400);
        let Some(inner) = rest.find(']').and_then(|end| rest.get(..end)) else {
            return;
        };
        if let Some((user, password)) = inner.split_once(',')
            && !password.contains(',')
            && !user.trim().is_empty()
        {
            let value = password.trim_matches([' ', '"', '\'']);
            let start = at + 1 + user.len() + 1 + password.find(value).unwrap_or_default();
            if !is_reference(value) && !super::values::is_label(value) {
                self.take("password", start..start + value.len());
            }
        }
    }

    /// The length of a value of the shell, where other variables or a command follow: `PGPASSWORD=x psql -h host`.
    /// One of `signs` tells that words are a command.
    fn before_command(&self, name: &str, at: usize, value: &str, signs: &[&str]) -> usize {
        let is_variable = name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let is_shell = is_variable
            && self.format != Format::Env
            && self.slice(0..at).ends_with(&format!("{name}="));
        let is_shell = is_shell && !value.starts_with(['$', '`', '"', '\'']);
        let Some((first, rest)) = value.split_once(' ').filter(|_| is_shell) else {
            return value.len();
        };
        let word = rest.split(' ').next().unwrap_or_default();
        let next = word.split_once('=').map_or("", |(name, _)| name);
        let is_next = !next.is_empty()
            && next
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let is_command = !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b"_-/.0123456789".contains(&b))
            && signs.iter().any(|sign| has_sign(rest, sign));
        if is_next || is_command {
            first.len()
        } else {
            value.len()
        }
    }

    /// Whether a variable in braces opens there.
    fn has_variable(&self, span: Range<usize>) -> bool {
        ["${", "%{", "#{"]
            .iter()
            .any(|v| self.slice(span.clone()).contains(v))
    }

    /// Takes the elements of a list or a map on one line.
    fn elements(&mut self, name: &str, at: usize) {
        let rest = super::beginning(self.slice(at + 1..self.line.len()), 4096);
        let close = if self.byte(at) == b'[' { ']' } else { '}' };
        let Some(end) = rest.find(close) else {
            return;
        };
        if rest.starts_with(['{', '%']) {
            return;
        }
        let mut start = at + 1;
        for element in rest.get(..end).unwrap_or_default().split(',') {
            let value = match close {
                ']' => 0,
                _ => element.find(['=', ':']).map_or(element.len(), |n| n + 1),
            };
            let text = element.get(value..).unwrap_or_default();
            let own = element.get(..value).unwrap_or_default();
            let own = own.trim_matches([' ', '"', '\'', '=', ':']);
            let begin = text.len() - text.trim_start_matches([' ', '"', '\'']).len();
            let inner = text.trim_matches([' ', '"', '\'']);
            let is_quoted = text.trim_start().starts_with(['"', '\'']);
            let is_unknown =
                self.finds.overrides.judge(own).0 == Verdict::Unknown && !is_about(own);
            if is_unknown && (is_quoted || close == ']') {
                let from = start + value + begin;
                let span = self.at + from..self.at + from + inner.len();
                match close {
                    ']' => self.finds.judge_element(name, span),
                    _ => self.finds.judge(name, span),
                };
            }
            start += element.len() + 1;
        }
    }

    /// Whether an unquoted value that began at an offset ends before this byte.
    fn is_end(&self, from: usize, at: usize) -> bool {
        let is_nested = self.opening < from;
        match self.byte(at) {
            b'"' | b'\'' | b'<' => true,
            b',' if self.format == Format::Json && at + 1 == self.line.trim_end().len() => true,
            b',' if !is_nested => {
                // Options of a mount: the next name and its value.
                let rest = super::beginning(self.slice(at + 1..self.line.len()), 40);
                let name = rest.split('=').next().unwrap_or_default();
                let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                !name.is_empty() && name.len() < rest.len() && name.bytes().all(is_name)
            }
            b',' | b')' | b'}' | b']' | b'>' => is_nested,
            b'&' => {
                let rest = super::beginning(self.slice(at + 1..self.line.len()), 40);
                let next = rest.strip_prefix("amp;").map(|next| next.split_once('='));
                let is_name = |name: &str| is_made_of(name, b"_-.");
                let is_next = next.is_none_or(|next| next.is_some_and(|(name, _)| is_name(name)));
                self.query < from && is_next
            }
            b';' if ends_entity(self.slice(from..at)) => false,
            b';' => {
                let rest = super::beginning(self.slice(at + 1..self.line.len()), 80).trim_start();
                let name = rest.split(['=', ';', '"', '\'']).next().unwrap_or_default();
                let is_name = |b: u8| b.is_ascii_alphanumeric() || b" _-".contains(&b);
                rest.is_empty()
                    || rest.starts_with(['"', '\'', ';', '}', ')'])
                    || name.len() < rest.len() && name.bytes().all(is_name)
                    || self.slice(at + 1..at + 2) == " "
            }
            _ => false,
        }
    }

    /// A value in three quotes, over lines.
    fn block(&mut self, name: &str, from: usize, quote: &str) -> Option<usize> {
        let from = self.at + from;
        let text = self.finds.text.get(from..)?;
        let mut limit = text.len().min(QUOTED_LIMIT_BYTES);
        while !text.is_char_boundary(limit) {
            limit -= 1;
        }
        let length = text
            .get(..limit)?
            .find(quote)
            .unwrap_or(self.line.len().saturating_sub(from - self.at));
        self.finds
            .judge(name, from..from + length)
            .then_some(from + length)
    }

    fn take(&mut self, name: &str, span: Range<usize>) -> Option<usize> {
        let span = self.at + span.start..self.at + span.end;
        self.finds.judge(name, span.clone()).then_some(span.end)
    }
}

/// Whether a command follows a text, in quotes: `archive_command = `, `command: `, `ExecStart=`, `sh -c `.
fn leads_to_command(before: &str) -> bool {
    let words = before.trim_end_matches([' ', '\t', ',', '"', '\'']);
    let word = words.rsplit([' ', '\t', ',', '"', '\'', '[']).next();
    if matches!(word, Some("-c" | "-lc")) {
        return true;
    }
    let before = before.trim_end();
    let Some(name) = before.strip_suffix(['=', ':']) else {
        return false;
    };
    let name = name.trim_end().trim_end_matches(['"', '\'']);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = name
        .rsplit(|c: char| !is_name(c))
        .next()
        .unwrap_or_default();
    let is_unit = before.ends_with('=') && name.starts_with("Exec");
    name == "command" || name.ends_with("_command") || is_unit
}

/// Whether a text has a sign of a command: a dash is one where it begins an option.
fn has_sign(text: &str, sign: &str) -> bool {
    let begins_option = |at: usize| {
        let next = text.as_bytes().get(at + sign.len());
        next.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let mut found = text.match_indices(sign);
    found.any(|(at, _)| !sign.ends_with('-') || begins_option(at))
}

/// Finds the texts among the arguments of a call: `Sensitive('x')`; of one that reads a name, the last: `getenv("NAME", "x")`.
fn text_of_call(rest: &str) -> Option<(usize, usize)> {
    let rest = super::beginning(rest, 400);
    let open = rest.find('(')?;
    let callee = rest.get(..open)?;
    let is_callee = !callee.is_empty()
        && is_made_of(callee, b"_.:")
        && !callee.starts_with(|c: char| c.is_ascii_digit());
    let inner = rest.get(open + 1..)?;
    let inner = inner.get(..inner.find(')')?)?;
    let close = inner.trim_end();
    let quote = close
        .chars()
        .next_back()
        .filter(|c| is_callee && matches!(c, '"' | '\''))?;
    let text = close.strip_suffix(quote)?;
    let last = text.rfind(quote)? + 1;
    let from = match is_getter(callee) {
        true => last,
        false => text.find(quote)? + 1,
    };
    let before = text.get(..last - 1)?.trim_end();
    let is_argument = before.is_empty() || before.ends_with([',', '=', '(']);
    (is_argument && text.len() > from).then_some((open + 1 + from, text.len() - from))
}

/// The offset of a quote that no backslash precedes.
fn unescaped(text: &str, quote: u8) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == quote && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

/// The length of a variable or command that a text begins with, where white space is in it: `${NAME:?there is none}`, `$(cat file)`.
fn group_length(rest: &str) -> usize {
    let (open, close) = match rest.as_bytes() {
        [b'$', b'{', ..] => ('{', '}'),
        [b'$', b'(', ..] => ('(', ')'),
        _ => return 0,
    };
    let rest = super::beginning(rest, 400);
    let mut depth = 0;
    let end = rest.char_indices().find(|(_, c)| {
        depth += i32::from(*c == open) - i32::from(*c == close);
        *c == close && depth == 0
    });
    let end = end.map_or(0, |(at, _)| at + 1);
    let group = rest.get(..end).unwrap_or_default();
    let is_spaced = group.contains(' ') && is_reference(group);
    if is_spaced { end } else { 0 }
}

/// The length of the scheme in braces before a stored password: `{SSHA}`.
pub(super) fn scheme_length(text: &str) -> usize {
    let Some(name) = super::beginning(text, 24)
        .strip_prefix('{')
        .and_then(|rest| rest.split_once('}'))
        .map(|(name, _)| name)
    else {
        return 0;
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let upper = name.to_ascii_uppercase();
    let is_known = has_any(
        &upper,
        &[
            "CRYPT", "SHA", "MD5", "MD4", "PLAIN", "CLEAR", "ARGON", "PBKDF", "NTLM", "LANMAN",
            "SCRAM", "RPA", "OTP", "SKEY", "BCRYPT", "NOOP", "SMD",
        ],
    );
    if is_known && name.bytes().all(is_name) {
        name.len() + 2
    } else {
        0
    }
}

/// The length of a list of eight or more numbers of a byte each.
fn byte_list(rest: &str) -> Option<usize> {
    let inner = super::beginning(rest, 1024).strip_prefix('[')?;
    let end = inner.find(']')?;
    let numbers = inner.get(..end)?.split(',').map(str::trim);
    let is_byte = |n: &str| {
        let hex = n.strip_prefix("0x").or_else(|| n.strip_prefix("0X"));
        hex.map_or_else(
            || n.parse::<u8>().is_ok(),
            |h| u8::from_str_radix(h, 16).is_ok(),
        )
    };
    (numbers.clone().count() >= 8 && numbers.clone().all(is_byte)).then_some(end + 2)
}

/// The beginning of the text of a literal, and its length: `q{a}` of Perl and Ruby, `[[a]]` of Lua, `r"a"`, `E'a'`, `&quot;a&quot;`.
fn literal(rest: &str) -> Option<(usize, usize)> {
    let rest = super::beginning(rest, 4096);
    if let Some(inner) = rest.strip_prefix("&quot;") {
        return Some((6, inner.find("&quot;")?));
    }
    if let Some(inner) = rest.strip_prefix("[[") {
        return Some((2, inner.rfind("]]")?));
    }
    let mut chars = rest.chars();
    let word = rest
        .bytes()
        .take_while(|b| b.is_ascii_alphabetic() || *b == b'%')
        .count();
    let open = chars.nth(word)?;
    let prefix = rest.get(..word)?;
    let inner = rest.get(word + open.len_utf8()..)?;
    let close = match (prefix, open) {
        ("q" | "qq" | "%q" | "%Q", '{') => '}',
        ("q" | "qq" | "%q" | "%Q", '(') => ')',
        ("q" | "qq" | "%q" | "%Q", '[') => ']',
        ("q" | "qq" | "%q" | "%Q", '|' | '!' | '/') => open,
        ("r" | "b" | "u" | "f" | "br" | "rb" | "E" | "N" | "U" | "R", '"' | '\'') => open,
        _ => return None,
    };
    let mut depth = 0;
    let is_end = |c: char| {
        depth += i32::from(c == open && open != close);
        depth -= i32::from(c == close);
        depth < 0
    };
    Some((word + open.len_utf8(), inner.find(is_end)?))
}

/// Whether a function reads what its argument names.
fn is_getter(name: &str) -> bool {
    let name = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    begins_with_any(
        &name,
        &[
            "get", "read", "load", "fetch", "lookup", "from", "has", "is", "find", "env",
            "require", "del", "unset", "exists", "hash", "verify", "validate", "check",
        ],
    ) || ["credentials", "secret", "secrets"].contains(&name.as_str())
}

/// Whether a text ends as `&amp` does.
fn ends_entity(text: &str) -> bool {
    // No name is as long as what is looked at.
    let text = super::ending(text);
    let name = text.rsplit('&').next().unwrap_or_default();
    name.len() < text.len()
        && matches!(
            name.trim_start_matches(['#', 'x']),
            "amp" | "quot" | "apos" | "lt" | "gt"
        )
        || name
            .strip_prefix('#')
            .is_some_and(|n| n.len() < 7 && is_made_of(n, b""))
}

/// The length of what a shell reads on behind quotes: `'it'"'"'s'`.
fn glued(text: &str, may_open: &dyn Fn() -> bool) -> usize {
    let mut at = 0;
    while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
        if c.is_whitespace() || ",;)}]>&|".contains(c) {
            break;
        }
        at += c.len_utf8();
        if matches!(c, '"' | '\'') {
            let inner = super::beginning(text.get(at..).unwrap_or_default(), 4096);
            let inner = inner.lines().next().unwrap_or_default();
            match inner.find(c).filter(|_| may_open()) {
                Some(length) => at += length + 1,
                None => return at - 1,
            }
        }
    }
    at
}
