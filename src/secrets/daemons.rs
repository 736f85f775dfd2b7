//! Secrets by their place in the files of single daemons: mail servers, log servers, terminals, monitoring, scripts of `expect`.

use super::names::Verdict;
use super::phrases::{Word, add, words};
use super::values::is_reference;
use super::{Finds, Rule, has_any, is_made_of, lines};

/// Communities of SNMP, also where the directive is switched off.
const COMMUNITIES: &[&str] = &[
    "rocommunity",
    "rwcommunity",
    "rocommunity6",
    "rwcommunity6",
    "trapcommunity",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>, base: &str) {
    let text = finds.text;
    let is_dialogue = text.contains("spawn ");
    let mut asked = 0;
    for (at, line) in lines(text) {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        switched_off(finds, at, line);
        slashes(finds, at, line);
        modules(finds, at, line);
        passwd(finds, at, line);
        headers(finds, at, line);
        if trimmed.starts_with('#') {
            continue;
        }
        let words = words(at, line);
        by_words(finds, &words);
        by_file(finds, base, &words);
        nagios(finds, at, line);
        if is_dialogue {
            asked = if line.contains("assword") || line.contains("assphrase") {
                3
            } else {
                asked - i32::from(asked > 0)
            };
            if asked > 0 {
                answer(finds, at, line);
            }
        }
    }
}

/// `# rwcommunity private 10.0.0.5`: what a comment switched off is in use elsewhere.
fn switched_off(finds: &mut Finds<'_>, at: usize, line: &str) {
    let body = line.trim_start_matches(['#', ' ', '\t']);
    if body.len() == line.len() {
        return;
    }
    if let [name, value, ..] = words(at + line.len() - body.len(), body).as_slice()
        && name.is(COMMUNITIES)
    {
        add(finds, value, 0, name.text);
    }
}

/// `hide mysql_servers = host/database/user/password`, and `client_send = ^user^password` of Exim.
fn slashes(finds: &mut Finds<'_>, at: usize, line: &str) {
    let Some((name, value)) = line.split_once('=') else {
        return;
    };
    let name = name.trim();
    let is_servers = name.ends_with("_servers")
        && has_any(name, &["mysql", "pgsql", "oracle", "redis", "ibase"]);
    let separator = match name {
        _ if is_servers && value.matches('/').count() >= 3 => '/',
        "client_send" if value.contains('^') => '^',
        _ => return,
    };
    let mut start = line.len() - value.len();
    for server in value.split(" : ") {
        let from = server.rfind(separator).map_or(server.len(), |n| n + 1);
        let password = server.get(from..).unwrap_or_default();
        if !is_reference(password) {
            finds.add(
                at + start + from..at + start + server.len(),
                "password",
                Rule::Place,
            );
        }
        start += server.len() + 3;
    }
}

/// `:ommysql:host,database,user,password` of rsyslog.
fn modules(finds: &mut Finds<'_>, at: usize, line: &str) {
    for mark in [":ommysql:", ":ompgsql:"] {
        let Some(start) = line.find(mark).map(|n| n + mark.len()) else {
            continue;
        };
        let rest = line.get(start..).unwrap_or_default();
        if let Some((comma, _)) = rest.match_indices(',').nth(2) {
            let password = rest.get(comma + 1..).unwrap_or_default();
            let length = password.find([';', ' ']).unwrap_or(password.len());
            let from = at + start + comma + 1;
            finds.add(from..from + length, "password", Rule::Place);
        }
    }
}

/// `name:password:1000:1000:…`, the fields of `/etc/passwd`, with a password in the second one.
fn passwd(finds: &mut Finds<'_>, at: usize, line: &str) {
    let mut fields = line.splitn(7, ':');
    let (Some(name), Some(password), Some(uid), Some(gid)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_name = !name.is_empty() && is_made_of(name, b"_-.@");
    let is_locked = password.bytes().all(|b| b"x*!".contains(&b));
    let has_more = fields.count() >= 2;
    if is_name && is_number(uid) && is_number(gid) && has_more && !is_locked && !is_number(name) {
        let start = at + name.len() + 1;
        finds.add(start..start + password.len(), "password", Rule::Place);
    }
}

/// A condition on a header: `hdr(X-Api-Key) -m str x`.
fn headers(finds: &mut Finds<'_>, at: usize, line: &str) {
    for (open, _) in line.match_indices("hdr(").take(10) {
        let rest = line.get(open + 4..).unwrap_or_default();
        let Some((name, behind)) = rest.split_once(')') else {
            continue;
        };
        let name = name.split(',').next().unwrap_or_default();
        let start = line.len() - behind.len();
        let mut values = words(at + start, behind)
            .into_iter()
            .skip_while(|w| w.text.starts_with('-') || w.is(&["str", "eq", "beg", "sub"]));
        if finds.overrides.judge(name).0 >= Verdict::Strong
            && let Some(value) = values.next().filter(|w| !w.text.starts_with('}'))
        {
            add(finds, &value, 0, name);
        }
    }
}

fn by_words(finds: &mut Finds<'_>, words: &[Word<'_>]) {
    // Terminals of TACACS+: `login = cleartext x`.
    for triple in words.windows(3) {
        if let [sign, kind, value] = triple
            && sign.text == "="
            && kind.is(&["cleartext", "clear"])
        {
            add(finds, value, 0, kind.text);
        }
    }
    // Keys of a gateway: `: RSA file "passphrase"`.
    if let [.., colon, kind, _, value] = words
        && (colon.text == ":" || colon.text.ends_with(':'))
        && kind.is(&["RSA", "ECDSA", "BLISS", "PKCS8", "P12"])
        && value.is_quoted
    {
        add(finds, value, 0, kind.text);
    }
    // A boot loader: `password name x`.
    if let [name, user, value] = words
        && name.text == "password"
        && !user.is_quoted
        && is_made_of(user.text, b"_")
        && !user.is(&[
            "required",
            "sufficient",
            "requisite",
            "optional",
            "include",
            "encryption",
        ])
    {
        add(finds, value, 0, "password");
    }
    // A community of SNMP on a router.
    if let [menu, .., last] = words
        && menu.text == "/snmp"
        && let Some(name) = last.text.strip_prefix("name=")
    {
        let end = last.at + last.text.len();
        finds.add(end - name.len()..end, "community", Rule::Place);
    }
}

/// Files in which a word has its place.
fn by_file(finds: &mut Finds<'_>, base: &str, words: &[Word<'_>]) {
    let [first, second, third] = words else {
        return;
    };
    let is_mount = first.text.starts_with('/') || first.text.contains("://");
    let is_ring = base == "authkeys"
        && first.text.bytes().all(|b| b.is_ascii_digit())
        && second.is(&["sha1", "md5", "crc", "sha256", "sha512"]);
    if base == "secrets" && is_mount || is_ring {
        add(finds, third, 0, "password");
    }
}

/// `$USER5$=x`: a macro of a monitoring server, which holds a path or a password.
fn nagios(finds: &mut Finds<'_>, at: usize, line: &str) {
    if let Some(rest) = line.strip_prefix("$USER")
        && let Some((number, value)) = rest.split_once("$=")
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
    {
        let start = at + line.len() - value.len();
        finds.judge("key", start..start + value.len());
    }
}

/// Adds what a script of `expect` sends when it was asked for a password.
fn answer(finds: &mut Finds<'_>, at: usize, line: &str) {
    let Some(start) = line.find("send ").map(|n| n + 5) else {
        return;
    };
    let rest = line.get(start..).unwrap_or_default();
    let Some(open) = rest.find('"').map(|n| n + 1) else {
        return;
    };
    let inner = rest.get(open..).unwrap_or_default();
    let length = inner.find('"').unwrap_or(inner.len());
    let value = inner.get(..length).unwrap_or_default();
    let value = value.split(['\\']).next().unwrap_or_default();
    if !is_reference(value) && !matches!(value, "yes" | "no" | "exit") {
        let from = at + start + open;
        finds.add(from..from + value.len(), "password", Rule::Place);
    }
}
