//! Tokens by shape and entropy, and passwords in URLs, in any text.

use std::ops::Range;

use super::assignments::scheme_length;
use super::names::Verdict;
use super::values::{
    has_shape, hash_in, hash_length, is_algorithm, is_public_data, is_random, is_reference,
};
use super::{Finds, Rule, begins_with_any, ends_with_any, has_any, is_made_of, lines, pem};

/// Text before a token that makes it a digest or a public key.
const DIGESTS: &[&str] = &[
    "sha1:",
    "sha256:",
    "sha384:",
    "sha512:",
    "sha1-",
    "sha256-",
    "sha384-",
    "sha512-",
    "md5:",
    "blake3:",
    "ssh-rsa ",
    "ssh-ed25519 ",
    "ssh-dss ",
    "nistp256 ",
    "nistp384 ",
    "nistp521 ",
    "age1",
    "pk_live_",
    "pk_test_",
    "SHA256:",
    "base64,",
    "openssh.com ",
    "SCRAM-SHA-",
    "commit ",
    "rev=",
    "h1:",
    "zh:",
    "sha256.",
    "sha512.",
    "sha224.",
    "sha1.",
    "|1|",
    "ref=",
];
/// Records of DNS and anchors of trust, which hold public keys and digests.
const RECORDS: &[&str] = &[
    "DNSKEY",
    "CDNSKEY",
    "TLSA",
    "SMIMEA",
    "SSHFP",
    "OPENPGPKEY",
    "IPSECKEY",
    "RRSIG",
    "NSEC3",
    "static-key",
    "static-ds",
    "initial-key",
    "initial-ds",
];
/// Beginnings of lines that name peers by their digests.
const PEERS: &[&str] = &["sentinel known-", "sentinel myid "];
/// Words before a secret in a header.
const SCHEMES: &[&str] = &["Bearer ", "bearer ", "Basic ", "basic "];

/// Adds what looks like a secret by itself.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let mut in_public = false;
    // A file of a zone is published as a whole.
    let begins = |line: &str| begins_with_any(line, &["$ORIGIN ", "$TTL "]);
    let is_zone = lines(finds.text).any(|(_, line)| begins(line));
    let mut found = Vec::new();
    for (at, line) in lines(finds.text) {
        if let Some(begins) = pem::public_border(line) {
            in_public = begins;
            continue;
        }
        let is_pem_line = line.len() <= 80 && !line.contains([' ', '=', ':'].as_slice())
            || line
                .trim()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        if in_public && is_pem_line {
            continue;
        }
        urls(line, at, &mut found);
        queries(line, at, &mut found);
        webhooks(line, at, &mut found);
        stored(line, at, &mut found);
        logins(line, at, &mut found);
        bots(line, at, &mut found);
        if is_sum(line) || line.starts_with("|1|") || is_zone || is_record(line) {
            continue;
        }
        schemes(line, at, &mut found);
        spans(line, at, finds, &mut found);
    }
    for (span, key, rule) in found {
        finds.add(span, &key, rule);
    }
}

type Spans = Vec<(Range<usize>, String, Rule)>;

/// Passwords between `://user:` and `@`.
fn urls(line: &str, at: usize, found: &mut Spans) {
    let ends = |c: char| c.is_whitespace() || "\"'<>`|".contains(c);
    // JSON may write slashes with an escape.
    let marks = ["://", ":\\/\\/"].into_iter().flat_map(|mark| {
        let found = line.match_indices(mark);
        found.map(move |(n, _)| (n, n + mark.len()))
    });
    let mut marks: Vec<(usize, usize)> = marks.collect();
    marks.sort_unstable();
    for (n, (_, start)) in marks.iter().enumerate() {
        // One URL behind another in one token is read by itself.
        let end = marks.get(n + 1).map_or(line.len(), |next| next.0);
        let rest = line.get(*start..end).unwrap_or_default();
        let rest = rest.split(ends).next().unwrap_or_default();
        let Some((user, _)) = rest.rsplit_once('@') else {
            continue;
        };
        let (name, password) = match user.split_once(':') {
            Some((name, password)) => (name.len() + 1, password),
            None if user.len() >= 16 && !user.contains('/') => (0, user),
            None => continue,
        };
        let port = password.split(['/', '\\']).next().unwrap_or_default();
        let is_port =
            password.contains('/') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if is_port
            || user.get(..name).is_some_and(|n| n.contains('/'))
            || password.is_empty()
            || is_reference(password)
        {
            continue;
        }
        let begin = at + start + name;
        found.push((begin..begin + password.len(), String::new(), Rule::Url));
    }
}

/// The password in the query of a URL: `?u=name&p=password`.
fn queries(line: &str, at: usize, found: &mut Spans) {
    for user in ["u=", "user=", "username="] {
        let Some(start) = ["?", "&"]
            .iter()
            .find_map(|c| line.find(&format!("{c}{user}")))
        else {
            continue;
        };
        let rest = line.get(start..).unwrap_or_default();
        if let Some(mark) = rest.find("&p=") {
            let from = start + mark + 3;
            let value = line.get(from..).unwrap_or_default();
            let length = value
                .find(|c: char| c.is_whitespace() || "\"'&<>`".contains(c))
                .unwrap_or(value.len());
            if !is_reference(value.get(..length).unwrap_or_default()) {
                found.push((at + from..at + from + length, "p".to_owned(), Rule::Url));
            }
        }
    }
}

/// Tokens behind `Bearer` and `Basic`.
fn schemes(line: &str, at: usize, found: &mut Spans) {
    for scheme in SCHEMES {
        for (mark, _) in line.match_indices(scheme) {
            let start = mark + scheme.len();
            let rest = line.get(start..).unwrap_or_default();
            let length = rest
                .find(|c: char| c.is_whitespace() || "\"';,".contains(c))
                .unwrap_or(rest.len());
            let token = rest.get(..length).unwrap_or_default();
            let is_token = token.len() >= 8
                && token
                    .bytes()
                    .any(|b| b.is_ascii_digit() || b.is_ascii_uppercase() || b == b'=');
            if is_token && !is_reference(token) {
                let begin = at + start;
                found.push((
                    begin..begin + length,
                    "Authorization".to_owned(),
                    Rule::Shape,
                ));
            }
        }
    }
}

/// Stored passwords behind a scheme: `{SSHA}…`, `{PLAIN}…`. A colon or white space ends it.
fn stored(line: &str, at: usize, found: &mut Spans) {
    for (open, _) in line.match_indices('{').take(100) {
        let rest = line.get(open..).unwrap_or_default();
        let scheme = scheme_length(rest);
        let value = rest.get(scheme..).unwrap_or_default();
        let length = value
            .find(|c: char| c.is_whitespace() || ":\"'<>,;".contains(c))
            .unwrap_or(value.len());
        if scheme > 0 && length > 0 {
            let start = at + open + scheme;
            found.push((start..start + length, String::new(), Rule::Shape));
        }
    }
}

/// Logins without a scheme: `user:password@host:port`, and `user/password@host` of Oracle.
fn logins(line: &str, at: usize, found: &mut Spans) {
    let ends = |c: char| c.is_whitespace() || "\"'<>`|,;()=".contains(c);
    for (sign, _) in line.match_indices('@').take(50) {
        let ahead = line.get(..sign).unwrap_or_default();
        let start = ahead.rfind(ends).map_or(0, |n| {
            n + ahead
                .get(n..)
                .and_then(|c| c.chars().next())
                .map_or(1, char::len_utf8)
        });
        let mut login = ahead.get(start..).unwrap_or_default();
        if let Some(thin) = login.find("oracle:thin:").map(|n| n + "oracle:thin:".len()) {
            login = login.get(thin..).unwrap_or_default();
        } else if login.contains("://") {
            continue;
        }
        let host = line.get(sign + 1..).unwrap_or_default();
        let host = host.split(ends).next().unwrap_or_default();
        let is_thin =
            login.len() < ahead.len() - start || is_oracle(ahead.get(..start).unwrap_or_default());
        let Some(separator) = login.find(if is_thin { '/' } else { ':' }) else {
            continue;
        };
        let (user, password) = login.split_at(separator);
        let password = password.get(1..).unwrap_or_default();
        let is_user = !user.is_empty() && is_made_of(user, b"_-.");
        let is_address = is_thin || is_address(host) && !SCHEMES_OF_NAMES.contains(&user);
        if is_user && is_address && password.len() >= 3 && !is_reference(password) {
            let begin = at + sign - password.len();
            found.push((begin..at + sign, String::new(), Rule::Url));
        }
    }
}

/// Whether the key before a login is one of Oracle's, which has a slash for a colon.
fn is_oracle(before: &str) -> bool {
    let key = super::ending(before).trim_end_matches([' ', '=', '"', '\'']);
    let key = key.to_ascii_lowercase();
    ends_with_any(
        &key,
        &[
            "userid",
            "oracle_connect",
            "oracle_login",
            "connect_string",
            "sqlplus_login",
            "ora_login",
            "connect",
        ],
    ) && key.len() < before.len()
}

/// Schemes before a name with a host, where a password does not stand.
const SCHEMES_OF_NAMES: &[&str] = &[
    "mailto", "sip", "sips", "xmpp", "acct", "ssh", "scp", "user", "image", "docker", "npm", "sftp",
];

/// Whether it is a host with a port, or with a path behind.
fn is_address(host: &str) -> bool {
    let name = host.split(['/', ':']).next().unwrap_or_default();
    let rest = host.get(name.len()..).unwrap_or_default();
    let digits = rest.strip_prefix(':').map_or(0, |port| {
        port.bytes().take_while(u8::is_ascii_digit).count()
    });
    let is_host = !name.is_empty() && is_made_of(name, b"-.");
    is_host && (2..=5).contains(&digits)
}

/// Tokens of bots of Telegram: a number, a colon, and the secret.
fn bots(line: &str, at: usize, found: &mut Spans) {
    for (colon, _) in line.match_indices(':').take(100) {
        let ahead = line.get(..colon).unwrap_or_default();
        let digits = ahead.bytes().rev().take_while(u8::is_ascii_digit).count();
        let rest = line.get(colon + 1..).unwrap_or_default();
        let length = rest
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || b"_-".contains(b))
            .count();
        if (8..=10).contains(&digits) && length == 35 {
            let start = at + colon + 1;
            found.push((start..start + length, String::new(), Rule::Shape));
        }
    }
}

/// The last part of the address of a webhook.
fn webhooks(line: &str, at: usize, found: &mut Spans) {
    for mark in ["hooks.slack.com/", "/api/webhooks/", "webhook.office.com/"] {
        for (start, _) in line.match_indices(mark) {
            let rest = line.get(start + mark.len()..).unwrap_or_default();
            let rest = super::beginning(rest, 512);
            let rest = rest.split(|c: char| c.is_whitespace() || "\"'<>`,;)".contains(c));
            let rest = rest.into_iter().next().unwrap_or_default();
            let last = rest.rfind('/').map_or(0, |n| n + 1);
            let begin = start + mark.len();
            if rest.len() - last >= 8 && !is_reference(rest.get(last..).unwrap_or_default()) {
                found.push((
                    at + begin + last..at + begin + rest.len(),
                    String::new(),
                    Rule::Url,
                ));
            }
        }
    }
}

/// Whether a line is a record of public keys, or names peers.
fn is_record(line: &str) -> bool {
    let words = || line.split_ascii_whitespace();
    words().any(|word| RECORDS.contains(&word))
        || words()
            .zip(words().skip(1))
            .any(|pair| matches!(pair, ("IN", "DS" | "CDS" | "TXT" | "CERT")))
        || PEERS.iter().any(|peer| line.starts_with(peer))
}

/// Whether a line is a checksum and the name of a file.
fn is_sum(line: &str) -> bool {
    let Some((sum, name)) = line.split_once(' ') else {
        return false;
    };
    let name = name.trim_start_matches([' ', '*']);
    [32, 40, 56, 64, 96, 128].contains(&sum.len())
        && sum.bytes().all(|b| b.is_ascii_hexdigit())
        && !name.is_empty()
        && !name.contains(char::is_whitespace)
}

/// Whether it is a version with the commit it was built from: `1+232f1b8a…`.
fn is_build(token: &str) -> bool {
    token.split_once('+').is_some_and(|(version, commit)| {
        version.len() <= 4 && version.bytes().all(|b| b.is_ascii_digit()) && is_commit(commit)
    })
}

/// Whether it is the fingerprint of a key of GnuPG, on a line that speaks of one.
fn is_certified(token: &str, line: &str) -> bool {
    let is_fingerprint = is_commit(token) && !token.bytes().any(|b| b.is_ascii_lowercase());
    is_fingerprint && {
        let line = super::beginning(line, 400).to_ascii_lowercase();
        has_any(
            &line,
            &[
                "gpg",
                "fingerprint",
                "keyserver",
                "recipient",
                "recv-key",
                "encrypt-to",
                "signed-by",
                "local-user",
            ],
        )
    }
}

/// Whether it is Base64 of a URL without a password, or of a sentence.
fn is_readable(token: &str) -> bool {
    let text = super::beginning(token, 4096);
    super::values::decoded(text).is_some_and(|text| {
        let words = text.split_whitespace();
        let is_prose = |word: &str| {
            word.chars()
                .all(|c| c.is_alphabetic() || ".,!?-'".contains(c))
                && super::names::judge(word) <= Verdict::Unknown
        };
        let is_url = text.contains("://")
            && !text.contains(['@', '?', '='])
            && text.split_whitespace().count() == 1;
        is_url || words.clone().count() >= 4 && words.clone().all(is_prose)
    })
}

fn is_commit(token: &str) -> bool {
    token.len() == 40 && token.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the key before a value is one of checksums: `checksum/config: `.
fn is_checksum(before: &str) -> bool {
    let before = super::ending(before);
    let key = before.trim_end_matches([' ', '"', '\'', ':', '=']);
    let start = key.rfind([' ', '{', ',', '"', '\t']).map_or(0, |n| n + 1);
    let key = key.get(start..).unwrap_or_default();
    key.len() < before.len() && key.starts_with("checksum/")
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=_-.$:{}".contains(&byte)
}

/// Tokens of a line. Each is looked at with the key before it.
fn spans(line: &str, at: usize, finds: &Finds<'_>, found: &mut Spans) {
    let bytes = line.as_bytes();
    let mut start = 0;
    let mut key: Range<usize> = 0..0;
    let mut is_plain = false;
    while start < bytes.len() {
        let length = bytes.get(start..).map_or(0, |rest| {
            rest.iter().take_while(|b| is_token_byte(**b)).count()
        });
        if length == 0 {
            start += 1;
            continue;
        }
        let end = start + length;
        let whole = line.get(start..end).unwrap_or_default();
        let opened = whole.len() - whole.trim_start_matches('{').len();
        let inner = whole.get(opened..).unwrap_or_default();
        // The last name of `stack:name:` is the key.
        let last = inner.trim_end_matches([':', '=']);
        let last_at = last.rfind(':').map_or(0, |colon| colon + 1);
        let last = last.get(last_at..).unwrap_or_default();
        let is_open = inner.ends_with(':') && is_name(last);
        if is_open {
            key = start + opened + last_at..start + opened + last_at + last.len();
            is_plain = finds.is_plain(last);
        } else if let Some((name, _)) = inner
            .split_once(['=', ':'])
            .filter(|(name, _)| is_name(name))
        {
            let between = line.get(key.end..start).unwrap_or_default();
            let is_value = between.bytes().all(|b| b" \t\"':=".contains(&b));
            let is_unknown = finds.overrides.judge(name).0 == Verdict::Unknown;
            if !(is_plain && is_value && is_unknown) {
                key = start + opened..start + opened + name.len();
                is_plain = finds.is_plain(name);
            }
        } else if is_name(whole) {
            let behind = line.get(end..).unwrap_or_default();
            let behind = behind.trim_start_matches(['"', '\'', ' ', '\t']);
            let is_key = behind.starts_with(['=', ':']);
            key = if is_key { start..end } else { 0..0 };
            is_plain = finds.is_plain(whole);
        }
        let before = line.get(..start).unwrap_or_default();
        let shown = || line.get(key.clone()).unwrap_or_default().to_owned();
        if let Some(hash) = has_shape(whole).then_some(0).or_else(|| hash_in(whole)) {
            let length = hash_length(whole.get(hash..).unwrap_or_default());
            found.push((
                at + start + hash..at + start + hash + length,
                shown(),
                Rule::Shape,
            ));
        } else {
            for part in parts(whole) {
                let token = whole.get(part.clone()).unwrap_or_default();
                let token_at = at + start + part.start;
                let ahead = whole.get(..part.start).unwrap_or_default();
                if has_shape(token) {
                    found.push((token_at..token_at + token.len(), shown(), Rule::Shape));
                    continue;
                }
                let is_digest = |text: &str| DIGESTS.iter().any(|d| text.ends_with(d));
                let is_public = DIGESTS.iter().any(|d| token.starts_with(d))
                    || is_digest(ahead)
                    || (ahead.is_empty() && is_digest(before));
                let is_public = is_public
                    || is_public_data(token)
                    || is_commit(token) && (ahead.is_empty() && before.ends_with('@'))
                    || is_build(token)
                    || is_certified(token, line)
                    || is_readable(token)
                    || is_checksum(before);
                // Two digits behind a percent sign are a letter.
                let skip = if ahead.is_empty() && before.ends_with('%') {
                    2
                } else {
                    0
                };
                let is_token = is_random(token.get(skip..).unwrap_or_default());
                if !is_plain && !is_public && is_token && !is_algorithm(token) {
                    found.push((token_at..token_at + token.len(), shown(), Rule::Entropy));
                }
            }
        }
        start = end;
    }
}

/// Whether a token can be the name of a key.
fn is_name(token: &str) -> bool {
    token.len() <= 80
        && token.bytes().any(|b| b.is_ascii_alphabetic())
        && is_made_of(token, b"_-.")
        && !is_random(token)
        && !has_shape(token)
}

/// The parts of a token between what separates names and values.
fn parts(token: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let bytes = token.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        // An equals sign at the end is padding.
        let is_padding = *byte == b'='
            && bytes
                .get(i + 1)
                .is_none_or(|b| *b == b'=' || !b.is_ascii_alphanumeric());
        if b":$.{}".contains(byte) || (*byte == b'=' && !is_padding) {
            parts.push(start..i);
            start = i + 1;
        }
    }
    parts.push(start..token.len());
    // A path is looked at part by part; a random token with slashes as a whole, too.
    let mut all = Vec::new();
    let is_url = token.contains("://");
    for part in parts {
        let text = token.get(part.clone()).unwrap_or_default();
        if !is_url {
            all.push(part.clone());
        }
        if is_url || text.contains('/') && !is_random(text) {
            let mut at = part.start;
            for piece in text.split('/') {
                all.push(at..at + piece.len());
                at += piece.len() + 1;
            }
        }
    }
    all
}
