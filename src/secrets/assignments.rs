//! Names and their values within lines, in any format.

use std::ops::Range;

use super::format::Format;
use super::names::Verdict;
use super::{Finds, Rule, lines};

/// A value in quotes goes on over lines, at most so far.
const QUOTED_LIMIT_BYTES: usize = 64 << 10;

/// Adds the values of keys that are secret by their names.
pub(super) fn scan(finds: &mut Finds<'_>, format: Format) {
    let mut skip_to = 0;
    let mut quotes = Quotes::default();
    let mut section = "";
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
    let name = match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
        Some(name) => name.trim_matches(['[', ']']),
        None => line.strip_suffix('{')?.trim_end_matches([' ', '=', ':']),
    };
    let name = name.rsplit('.').next().unwrap_or(name);
    let is_secret = ["secrets", "passwords", "tokens", "credentials"].contains(&name);
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
            if *byte == quote {
                return (i <= QUOTED_LIMIT_BYTES).then_some(from + i);
            }
            i += 1 + usize::from(*byte == b'\\' && quote != b'\'');
        }
        self.absent_from.insert(quote, from);
        None
    }
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
}

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
            && !trimmed.starts_with("* *");
        let mut is_first = true;
        while at < self.line.len() {
            if !is_word(self.byte(at)) {
                at += 1;
                continue;
            }
            let start = at;
            while is_word(self.byte(at)) {
                at += 1;
            }
            let word = self.slice(start..at);
            if matches!(
                word,
                "export"
                    | "set"
                    | "setenv"
                    | "local"
                    | "readonly"
                    | "env"
                    | "-"
                    | "-e"
                    | "ENV"
                    | "ARG"
                    | "define"
                    | "const"
                    | "let"
                    | "var"
            ) || word.trim_start_matches('-').is_empty()
            {
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

    /// Reads the value of the word, if it has one that is secret. Returns where the value ends in the text.
    fn pair(&mut self, word: Range<usize>, is_first: bool, is_comment: bool) -> Option<usize> {
        let name = self
            .slice(word.clone())
            .trim_start_matches('-')
            .trim_end_matches('.');
        let (verdict, _) = self.finds.overrides.judge(name);
        if let Some(end) = self.attribute(&word, name) {
            return Some(end);
        }
        let is_inside = verdict == Verdict::Unknown && is_first && !is_comment;
        let (name, verdict) = match is_inside && !self.section.is_empty() {
            true => (self.section, Verdict::Strong),
            false => (name, verdict),
        };
        if verdict <= Verdict::Unknown {
            return None;
        }
        let opens = word.start.checked_sub(1).map_or(b' ', |i| self.byte(i));
        let mut at = word.end;
        let is_quoted = matches!(opens, b'"' | b'\'' | b'`') && self.byte(at) == opens;
        at += usize::from(is_quoted);
        while matches!(self.byte(at), b']' | b')' | b'}') && at < self.line.len() {
            at += 1;
        }
        let spaced = self.skip_spaces(at);
        let is_flag = self.slice(word.clone()).starts_with("--");
        let (sep, next) = (self.byte(spaced), self.byte(spaced + 1));
        let value = match (sep, next) {
            (b'=', b'>') | (b':', b'=') | (b'?' | b'+', b'=') => spaced + 2,
            (b'=' | b'!', b'=') => spaced + 2,
            // LDIF has values in Base64 behind two colons.
            (b':', b':') if is_first && self.byte(spaced + 2) == b' ' => spaced + 2,
            (b':', b'?') if opens == b'{' => return None,
            (b':', b':' | b'/') if self.format != Format::Env => return None,
            (b'=' | b':', _) => spaced + 1,
            (b',', _) if is_quoted && self.is_define => spaced + 1,
            (b'>', _) if opens == b'<' => {
                let inner = self.slice(spaced + 1..self.line.len());
                if let Some(data) = inner.strip_prefix("<![CDATA[") {
                    let start = self.line.len() - data.len();
                    let length = data.find("]]>").unwrap_or(data.len());
                    return self.take(name, start..start + length);
                }
                let end = self.slice(spaced + 1..self.line.len()).find('<');
                let end = end.map_or(self.line.len(), |n| spaced + 1 + n);
                return self.take(name, spaced + 1..end);
            }
            _ if spaced > at
                && !is_comment
                && self.takes_spaces(name, verdict, is_first, is_flag, spaced) =>
            {
                spaced
            }
            _ => return None,
        };
        let value = self.skip_spaces(value);
        if matches!(opens, b'"' | b'\'') && !is_quoted {
            // The quotes are around name and value.
            let rest = self.slice(value..self.line.len());
            if let Some(length) = rest.find(char::from(opens)) {
                return self.take(name, value..value + length);
            }
        }
        let is_remark = is_comment
            && value > spaced + 1
            && verdict == Verdict::Password
            && sep == b':'
            && !self.is_conninfo();
        if is_remark && !matches!(self.byte(value), b'"' | b'\'') {
            return self.take(name, value..self.line.len());
        }
        if verdict >= Verdict::Strong
            && self.format != Format::Json
            && matches!(self.byte(value), b'[' | b'{')
        {
            self.elements(name, value);
        }
        self.value(name, value, is_first && opens != b'<')
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
        let rest = self.slice(value..self.line.len()).trim_end();
        if is_flag {
            return !rest.starts_with('-');
        }
        let is_login =
            name.eq_ignore_ascii_case("password") || name.eq_ignore_ascii_case("insecure-password");
        let words = self.line.trim_start();
        let is_login_line = ["machine ", "default ", "login ", "user ", "password "]
            .iter()
            .any(|w| words.starts_with(w));
        let is_single = !rest.trim_end_matches(';').contains(char::is_whitespace)
            || rest.starts_with(['"', '\'']);
        match self.format {
            Format::Netrc => true,
            Format::Spaced | Format::Redis => {
                (is_first && is_single)
                    || (is_login && is_login_line)
                    || name.eq_ignore_ascii_case("authorization")
            }
            Format::Other => {
                (is_first
                    && is_single
                    && rest.len() >= 6
                    && rest.bytes().any(|b| !b.is_ascii_alphabetic()))
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
        if rest.starts_with("${{")
            && let Some(end) = rest.find("}}")
        {
            return self.take(name, at..at + end + 2);
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
            let more = text
                .find(|c: char| c.is_whitespace() || ",;)}]>\"'&".contains(c))
                .unwrap_or(text.len());
            let is_glued = secret && more > 0 && !text.starts_with('<');
            if is_glued && let Some(last) = self.finds.found.last_mut() {
                last.span.end = behind + more;
            }
            return secret.then_some(if is_glued { behind + more } else { end + 1 });
        }
        let is_flow =
            matches!(quote, b'{' | b'[' | b'|' | b'>') && !matches!(self.format, Format::Env);
        if is_flow && !rest.starts_with("{{") && (rest.len() <= 3 || quote != b'|' && quote != b'>')
        {
            return None;
        }
        let mut end = at;
        let is_whole = is_line
            && !matches!(self.format, Format::Yaml | Format::Json | Format::Netrc)
            && !self.is_conninfo();
        if is_whole {
            end = line_end;
            // The end of a directive, and of a comment in another language.
            let value = self.slice(at..end).trim_end();
            let value = match self.format {
                Format::Spaced | Format::Other => value.trim_end_matches([';', ',']),
                _ => value,
            };
            return self.take(name, at..at + value.len());
        }
        while end < line_end {
            let byte = self.byte(end);
            if byte == b'\\' {
                end += 2;
            } else if byte.is_ascii_whitespace()
                || self.is_end(at, end) && !(byte == b'}' && self.slice(at..end).contains("${"))
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
            end += usize::from(self.slice(at..end).contains("${"));
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
            let is_unknown = self.finds.overrides.judge(own).0 == Verdict::Unknown;
            if is_unknown && (is_quoted || close == ']') {
                let from = start + value + begin;
                self.take(name, from..from + inner.len());
            }
            start += element.len() + 1;
        }
    }

    /// Whether an unquoted value that began at an offset ends before this byte.
    fn is_end(&self, from: usize, at: usize) -> bool {
        let is_nested = self.opening < from;
        match self.byte(at) {
            b'"' | b'\'' | b'<' => true,
            b'&' => self.query < from,
            b',' if !is_nested => {
                // Options of a mount: the next name and its value.
                let rest = super::beginning(self.slice(at + 1..self.line.len()), 40);
                let name = rest.split('=').next().unwrap_or_default();
                let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                !name.is_empty() && name.len() < rest.len() && name.bytes().all(is_name)
            }
            b',' | b')' | b'}' | b']' | b'>' => is_nested,
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

    /// Whether the line holds settings of a connection: `host=… password=…`.
    fn is_conninfo(&self) -> bool {
        ["host=", "dbname=", "user=", "port="]
            .iter()
            .any(|k| self.line.contains(k))
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

    /// `name="password" value="…"`, `key="password">…<`.
    fn attribute(&mut self, word: &Range<usize>, name: &str) -> Option<usize> {
        let is_attribute = matches!(name, "name" | "key" | "id") && self.byte(word.end) == b'=';
        let quote = self.byte(word.end + 1);
        // Further ahead it is another element.
        let limit = (word.end + 4096).min(self.line.len());
        let limit = word.end
            + super::beginning(self.slice(word.end..self.line.len()), limit - word.end).len();
        if !is_attribute || !matches!(quote, b'"' | b'\'') {
            return None;
        }
        let start = word.end + 2;
        let length = self.slice(start..limit).find(char::from(quote))?;
        let key = self.slice(start..start + length);
        let (verdict, _) = self.finds.overrides.judge(key);
        if verdict <= Verdict::Unknown {
            return None;
        }
        let behind = start + length + 1;
        let rest = self.slice(behind..limit);
        let rest = rest.split("key=").next().unwrap_or_default();
        let value = ["value=\"", "value='"]
            .iter()
            .find_map(|v| rest.find(v).map(|n| n + v.len()));
        let (from, close) = match value {
            Some(n) => (behind + n, self.byte(behind + n - 1)),
            None => (behind + rest.find('>')? + 1, b'<'),
        };
        let length = self.slice(from..self.line.len()).find(char::from(close))?;
        self.take(key, from..from + length)
    }
}

/// Adds secrets of command lines: `-u user:password`, `sshpass -p`, `redis-cli -a`, `mysql -p…`.
pub(super) fn commands(finds: &mut Finds<'_>, at: usize, line: &str) {
    let mut program = "";
    let mut before = "";
    let mut offset = 0;
    let mut found = Vec::new();
    for word in line.split(' ') {
        let start = at + offset;
        offset += word.len() + 1;
        let bare = word.trim_matches(['"', '\'']);
        let base = bare.rsplit('/').next().unwrap_or(bare);
        if matches!(
            base,
            "curl"
                | "wget"
                | "sshpass"
                | "redis-cli"
                | "valkey-cli"
                | "mysql"
                | "mysqldump"
                | "mariadb"
                | "mariadb-dump"
                | "mongodump"
                | "ldapsearch"
                | "http"
                | "mysqladmin"
        ) {
            program = base;
        }
        let is_mysql = program.starts_with("mysql") || program.starts_with("mariadb");
        let value = match (program, before) {
            ("curl", "-u" | "--user") => bare.find(':').map(|n| n + 1),
            ("sshpass", "-p")
            | ("redis-cli" | "valkey-cli", "-a")
            | ("mongodump", "-p")
            | ("ldapsearch", "-w") => Some(0),
            ("sshpass" | "ldapsearch", _)
                if word.starts_with("-p") && word.len() > 2
                    || program == "ldapsearch" && word.starts_with("-w") && word.len() > 2 =>
            {
                Some(2)
            }
            _ if is_mysql
                && word.starts_with("-p")
                && !word.starts_with("-p=")
                && word.len() > 2 =>
            {
                Some(2)
            }
            _ => None,
        };
        if let Some(skip) = value {
            let quote = usize::from(word.starts_with(['"', '\'']));
            let end = start + quote + bare.len();
            let text = finds.at(start + quote + skip..end);
            let inner = text.trim_start_matches(['"', '\'']);
            let span = end - inner.len()..end;
            found.push((span, before.to_owned()));
        }
        if !word.is_empty() {
            before = word;
        }
    }
    for (span, key) in found {
        let key = if key.starts_with('-') {
            key
        } else {
            "-p".to_owned()
        };
        if !super::values::is_reference(finds.at(span.clone())) {
            finds.add(span, &key, Rule::Place);
        }
    }
}
