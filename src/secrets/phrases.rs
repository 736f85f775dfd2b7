//! Secrets by the words before them on a line: directives, statements of SQL, and lists of users.

use super::format::Format;
use super::names::Verdict;
use super::values::{closing_quote, is_reference};
use super::{Finds, Rule, ends_with_any, has_any, is_made_of, lines};

/// A word of a line, without its quotes.
pub(super) struct Word<'t> {
    pub at: usize,
    pub text: &'t str,
    pub is_quoted: bool,
}

impl Word<'_> {
    pub fn is(&self, wanted: &[&str]) -> bool {
        wanted.iter().any(|w| self.text.eq_ignore_ascii_case(w))
    }
}

/// Directives whose second word is a name, and whose third is its value.
const SETTERS: &[&str] = &[
    "php_admin_value",
    "php_value",
    "SetEnv",
    "fastcgi_param",
    "uwsgi_param",
    "scgi_param",
    "proxy_set_header",
    "grpc_set_header",
    "RequestHeader",
];
/// Algorithms before a passphrase of SNMP.
const SNMP: &str =
    "md5 sha sha-224 sha-256 sha-384 sha-512 des aes aes128 aes-128 aes192 aes-192 aes256 aes-256";

/// Cuts a line into words and texts in quotes.
pub(super) fn words(at: usize, line: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut from = 0;
    while let Some(rest) = line.get(from..) {
        let trimmed = rest.trim_start();
        let start = from + rest.len() - trimmed.len();
        let Some(first) = trimmed.chars().next() else {
            break;
        };
        let inner = trimmed.get(1..).filter(|_| matches!(first, '"' | '\''));
        let quoted = inner.and_then(|inner| Some((inner, closing_quote(inner, first)?)));
        let (begin, length, skip) = match quoted {
            Some((_, length)) => (start + 1, length, length + 2),
            None => {
                let length = trimmed.find(char::is_whitespace).unwrap_or(trimmed.len());
                (start, length, length)
            }
        };
        words.push(Word {
            at: at + begin,
            text: line.get(begin..begin + length).unwrap_or_default(),
            is_quoted: quoted.is_some(),
        });
        from = start + skip;
    }
    words
}

/// Adds what stands behind such words.
pub(super) fn scan(finds: &mut Finds<'_>, base: &str, format: Format) {
    let text = finds.text;
    let is_map = has_any(base, &["sasl", "relay", "smtp"]) && base.contains("pass");
    let mut users: Option<usize> = None;
    let mut insertion = Insertion::default();
    for (at, line) in lines(text) {
        let body = line.trim_start_matches(|c: char| c.is_whitespace() || "#;".contains(c));
        let body = body
            .strip_prefix("--")
            .filter(|b| b.starts_with(' '))
            .unwrap_or(body);
        let indent = line.len() - line.trim_start().len();
        let is_comment = body.len() + indent != line.len();
        let words = words(at + line.len() - body.len(), body);
        if words.is_empty() {
            continue;
        }
        if users.is_some_and(|above| indent <= above) {
            users = None;
        }
        if users.is_some() {
            user_and_password(finds, &words);
        }
        if body.trim_end() == "chpasswd:" {
            users = Some(indent);
        }
        directive(finds, &words);
        anywhere(finds, &words);
        if !is_comment {
            named(finds, &words);
        }
        connects(finds, at, line);
        insertion.line(finds, at, line);
        if is_map
            || words
                .first()
                .is_some_and(|w| w.text.starts_with('[') && w.text.contains("]:"))
        {
            map_entry(finds, &words);
        }
        if is_comment && matches!(format, Format::Spaced | Format::Redis) {
            switched_off(finds, &words);
        }
        go_dsn(finds, at, line);
    }
    two_lines(finds, base);
}

/// Adds what a word holds behind its first bytes, unless it only leads to a secret.
pub(super) fn add(finds: &mut Finds<'_>, word: &Word<'_>, skip: usize, key: &str) {
    let value = word.text.get(skip..).unwrap_or_default();
    let value = match word.is_quoted {
        true => value,
        false => value.trim_end_matches([';', '"', '\'']),
    };
    if !is_reference(value) {
        let start = word.at + skip;
        finds.add(start..start + value.len(), key, Rule::Place);
    }
}

/// `user:password` of a list of users.
fn user_and_password(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    let last = match words {
        [one] => one,
        [dash, one] if dash.text == "-" => one,
        _ => return,
    };
    if let Some(colon) = last.text.find(':') {
        add(finds, last, colon + 1, "password");
    }
}

/// `host user:password` of a mail server.
fn map_entry(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    if let [_, login] = words
        && let Some(colon) = login.text.find(':')
    {
        add(finds, login, colon + 1, "password");
    }
}

/// A directive in a comment: a name and a value, and nothing else.
fn switched_off(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    if let [name, value] = words
        && finds.overrides.judge(name.text).0 == Verdict::Password
        && !name.text.ends_with([':', '.', ','])
    {
        finds.judge(name.text, value.at..value.at + value.text.len());
    }
}

/// Directives by their first word.
fn directive(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    let (Some(first), Some(second)) = (words.first(), words.get(1)) else {
        return;
    };
    let third = words.get(2);
    let is_mailbox = first.text.len() <= 10 && first.text.bytes().all(|b| b.is_ascii_digit());
    if first.is(&["createUser"]) {
        for pair in words.windows(2) {
            if let [kind, value] = pair
                && SNMP.split(' ').any(|a| kind.text.eq_ignore_ascii_case(a))
            {
                add(finds, value, 0, "createUser");
            }
        }
    } else if first.is(&["rootpw", "bootpw"]) {
        let value = words.iter().skip(1).find(|w| !w.text.starts_with("--"));
        value.into_iter().for_each(|w| add(finds, w, 0, "rootpw"));
    } else if first.is(&["register"]) || first.text.starts_with("Target[") {
        // The login at a server, and the community before a host.
        let login = words.last().map_or("", |w| w.text);
        if let (Some(colon), Some(host), Some(word)) =
            (login.find(':'), login.rfind('@'), words.last())
            && colon < host
        {
            finds.add(word.at + colon + 1..word.at + host, first.text, Rule::Place);
        }
    } else if first.is(&["allow"]) {
        // A user of a page: `allow name:password`.
        if let Some((user, password)) = second.text.split_once(':')
            && user.starts_with(|c: char| c.is_ascii_alphabetic())
            && is_made_of(user, b"_")
            && !password.is_empty()
            && !password.contains([':', '/'])
            && !password.bytes().all(|b| b.is_ascii_digit())
        {
            add(finds, second, user.len() + 1, "password");
        }
    } else if first.is(&["secure_link_md5"]) {
        // The last word of the text is the secret.
        let from = second.text.rfind(' ').map_or(0, |n| n + 1);
        add(finds, second, from, first.text);
    } else if first.is(&["option"]) && second.text == "key" {
        third.into_iter().for_each(|w| {
            finds.judge("psk", w.at..w.at + w.text.len());
        });
    } else if first.is(SETTERS) {
        let skip = usize::from(second.is(&["set", "append", "add", "setifempty"]));
        if let (Some(name), Some(value)) = (words.get(1 + skip), words.get(2 + skip)) {
            let length = if value.is_quoted {
                value.text
            } else {
                value.text.trim_end_matches(';')
            };
            finds.judge(name.text, value.at..value.at + length.len());
        }
    } else if is_mailbox
        && second.text == "=>"
        && let Some(box_) = third
    {
        // A mailbox of a telephone system: number => PIN,name,address.
        if let Some((pin, _)) = box_.text.split_once(',') {
            finds.add(box_.at..box_.at + pin.len(), first.text, Rule::Place);
        }
    } else if let [_, name, kind, value, .., last] | [_, name, kind, value @ last] = words
        && name.text.contains('/')
        && kind.is(&["password"])
    {
        // A preset answer of an installer: owner, question, type, value.
        finds.add(value.at..last.at + last.text.len(), name.text, Rule::Place);
    }
}

/// Words that count anywhere in a line.
fn anywhere(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    let mut program = "";
    let mut identified = 0;
    for (i, pair) in words.windows(2).enumerate() {
        let [word, value] = pair else { continue };
        let before = i
            .checked_sub(1)
            .and_then(|n| words.get(n))
            .map_or("", |w| w.text);
        if word.is(&["curl"]) {
            program = word.text;
        }
        identified = if word.is(&["identified"]) {
            5
        } else {
            identified - i32::from(identified > 0)
        };
        let is_sql = word.is(&["password"]) || identified > 0 && word.is(&["by", "as", "password"]);
        let is_quote = value.is_quoted || value.text.starts_with('\'');
        let is_word = |c: char| c == '(' || c == ',';
        let is_option = word.text.trim_start_matches(is_word).to_ascii_lowercase();
        let is_option = ["password", "pass", "passwd", "passphrase"].contains(&is_option.as_str());
        if (is_sql || is_option) && is_quote {
            add(finds, value, 0, "password");
        } else if word.is(&["psk", "xauth", "eap", "ntlm", "pin"]) && before.ends_with(':') {
            add(finds, value, 0, word.text);
        } else if word.text == ">" {
            program = "";
        }
        let attached = value
            .text
            .strip_prefix("-u")
            .or_else(|| value.text.strip_prefix("--user="));
        if program == "curl"
            && let Some(login) = attached
            && let Some(colon) = login.find(':')
        {
            add(
                finds,
                value,
                value.text.len() - login.len() + colon + 1,
                "-u",
            );
        }
    }
    echoed(finds, words);
}

/// `secret "text";` of any name that says so.
fn named(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    let is_block = words.iter().any(|word| word.text == "{");
    for (i, pair) in words.windows(2).enumerate() {
        let [name, value] = pair else { continue };
        let next = words.get(i + 2);
        let is_last = !value.text.starts_with(['{', '}', '=', ':'])
            && next.is_some_and(|next| next.text.starts_with('}'));
        let text = value.text.trim_end_matches(';');
        let quoted = text
            .strip_prefix('"')
            .and_then(|t| t.strip_suffix('"'))
            .filter(|_| !value.is_quoted);
        let is_name = is_made_of(name.text, b"_-.");
        if !name.is_quoted && is_name && finds.overrides.judge(name.text).0 >= Verdict::Strong {
            if value.is_quoted {
                finds.judge(name.text, value.at..value.at + value.text.len());
            } else if let Some(quoted) = quoted {
                finds.judge(name.text, value.at + 1..value.at + 1 + quoted.len());
            } else if is_block && (value.text.len() > text.len() || is_last) {
                finds.judge(name.text, value.at..value.at + text.len());
            }
        }
    }
}

/// Columns of an insertion in SQL that are secret, and their texts in rows of values.
#[derive(Default)]
struct Insertion<'t> {
    columns: Vec<(usize, &'t str)>,
}

impl<'t> Insertion<'t> {
    fn line(&mut self, finds: &mut Finds<'t>, at: usize, line: &'t str) {
        let lower = line.to_ascii_lowercase();
        let mut from = 0;
        if let Some(start) = lower
            .find("insert into ")
            .and_then(|n| Some(n + lower.get(n..)?.find('(')?))
        {
            let end = lower
                .get(start..)
                .and_then(|rest| rest.find(')'))
                .map_or(line.len(), |n| start + n);
            let names = line
                .get(start + 1..end)
                .unwrap_or_default()
                .split(',')
                .map(|c| c.trim_matches([' ', '"', '`']))
                .enumerate()
                .take(200);
            self.columns = names
                .filter(|(_, name)| finds.overrides.judge(name).0 >= Verdict::Strong)
                .collect();
            from = end;
        }
        while let Some(open) = line
            .get(from..)
            .filter(|_| !self.columns.is_empty())
            .and_then(|rest| rest.find('('))
        {
            from += open + 1;
            from = self.row(finds, at, line, from);
        }
        if line.trim_end().ends_with(';') {
            self.columns.clear();
        }
    }

    /// Adds the secrets of one row. Returns where it ends.
    fn row(&self, finds: &mut Finds<'t>, at: usize, line: &str, mut from: usize) -> usize {
        for column in 0.. {
            let rest = line.get(from..).unwrap_or_default();
            let value = rest.trim_start();
            let start = from + rest.len() - value.len();
            let text = value
                .strip_prefix('\'')
                .and_then(|inner| closing_quote(inner, '\''));
            if let (Some(length), Some((_, name))) =
                (text, self.columns.iter().find(|(n, _)| *n == column))
            {
                finds.judge(name, at + start + 1..at + start + 1 + length);
            }
            let behind = start + text.map_or(0, |length| length + 2);
            let Some(end) = line.get(behind..).and_then(|rest| rest.find([',', ')'])) else {
                return line.len();
            };
            from = behind + end + 1;
            if line.as_bytes().get(behind + end) == Some(&b')') {
                break;
            }
        }
        from
    }
}

/// The third argument of a call that connects: `new PDO('pgsql:…', 'user', 'password')`.
fn connects(finds: &mut Finds<'_>, at: usize, line: &str) {
    for mark in ["PDO(", "connect(", "getConnection("] {
        let Some(start) = line.find(mark).map(|n| n + mark.len()) else {
            continue;
        };
        let mut from = start;
        for (n, argument) in line
            .get(start..)
            .unwrap_or_default()
            .split(',')
            .enumerate()
            .take(3)
        {
            let inner = argument.trim_start();
            let begin = from + argument.len() - inner.len() + 1;
            let quote = inner.chars().next().filter(|c| matches!(c, '"' | '\''));
            let length = quote.and_then(|q| inner.get(1..)?.find(q));
            if let Some(length) = length.filter(|_| n == 2) {
                finds.add(at + begin..at + begin + length, "password", Rule::Place);
            }
            from += argument.len() + 1;
        }
    }
}

/// A command that prints a passphrase.
fn echoed(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    let Some(name) = words.first() else { return };
    let lower = name.text.to_ascii_lowercase();
    let is_command = ends_with_any(&lower, &["command", "cmd"]);
    let is_pass = has_any(&lower, &["pass", "secret", "token"]);
    let line = words.last().filter(|_| is_command && is_pass);
    for end in ["echo ", "printf "] {
        if let Some(last) = line
            && let Some(text) = finds.text.get(name.at..last.at + last.text.len())
            && let Some(found) = text.find(end)
        {
            let value = text.get(found + end.len()..).unwrap_or_default();
            let trimmed =
                value.trim_start_matches(|c: char| c.is_whitespace() || "\"'\\-n".contains(c));
            let start = name.at + text.len() - trimmed.len();
            finds.add(start..start + trimmed.len(), name.text, Rule::Place);
        }
    }
}

/// `user:password@tcp(host)` in Go.
fn go_dsn(finds: &mut Finds<'_>, at: usize, line: &str) {
    for mark in ["@tcp(", "@unix("] {
        let Some(end) = line.find(mark) else { continue };
        let ahead = line.get(..end).unwrap_or_default();
        let start = ahead
            .rfind(|c: char| c.is_whitespace() || "\"'=".contains(c))
            .map_or(0, |n| n + 1);
        let login = ahead.get(start..).unwrap_or_default();
        if let Some(colon) = login.find(':') {
            finds.add(at + start + colon + 1..at + end, "password", Rule::Url);
        }
    }
}

/// A file of a name and a password, each on a line of its own.
fn two_lines(finds: &mut Finds<'_>, base: &str) {
    let is_login = has_any(base, &["auth", "pass", "login", "cred"]);
    let mut rows =
        lines(finds.text).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let rows = (rows.next(), rows.next(), rows.next());
    if let (Some((_, user)), Some((at, password)), None) = rows
        && is_login
        && [user, password]
            .iter()
            .all(|l| !l.trim().contains([' ', '=', ':', '\t']))
    {
        finds.add(at..at + password.len(), "password", Rule::Place);
    }
}
