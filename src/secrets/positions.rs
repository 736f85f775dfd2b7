//! Secrets by their position among words: directives of daemons, and the configuration of network devices.

use super::names::{Verdict, is_about};
use super::phrases::{self, Word, words};
use super::{Finds, lines};

/// Directives, and which of their words is the secret; the last one where it is 0.
const PLACES: &[(&str, usize)] = &[
    ("rocommunity", 1),
    ("rwcommunity", 1),
    ("rocommunity6", 1),
    ("rwcommunity6", 1),
    ("trapcommunity", 1),
    ("authcommunity", 2),
    ("com2sec", 0),
    ("com2sec6", 0),
    ("trapsink", 2),
    ("trap2sink", 2),
    ("informsink", 2),
    ("cachemgr_passwd", 1),
    ("MONITOR", 4),
    ("CERTIDENT", 2),
];
/// Words between the name of a secret and the secret: how it is written.
const MARKERS: &str = "0 5 6 7 8 9 enc encrypted plain plaintext plain-text cleartext clear hex ascii ascii-text md5 sha sha1 sha256 hmac-sha-256 hidden secret password text";
/// Beginnings of lines of network devices.
const DEVICE: &[&str] = &[
    "hostname ",
    "interface ",
    "snmp-server ",
    "config ",
    "set system",
    "router ",
    "line vty",
    "enable secret",
    "enable password",
    "IPSec ",
    "aaa ",
    "ip route ",
    "crypto ",
    "neighbor ",
    "set interfaces",
    "set security",
    "set snmp",
    "set vpn",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>, base: &str) {
    let text = finds.text;
    let is_device = lines(text)
        .filter(|(_, line)| DEVICE.iter().any(|d| line.starts_with(d)))
        .nth(1)
        .is_some();
    let is_keys = base.ends_with(".keys") || base == "users.oath";
    for (at, line) in lines(text) {
        let words = words(at, line);
        let Some(first) = words.first() else { continue };
        let place = PLACES
            .iter()
            .find(|(name, _)| first.text.eq_ignore_ascii_case(name));
        if let Some((_, index)) = place.filter(|_| words.len() > 1) {
            let index = if *index == 0 { words.len() - 1 } else { *index };
            add(finds, words.get(index), first.text);
        }
        // A key of NTP: its number, its algorithm, and the key.
        if is_keys && first.text.bytes().all(|b| b.is_ascii_digit()) {
            add(finds, words.get(2), "key");
        }
        if !line.contains(" = ") && !first.text.starts_with(['#', '/', '!']) {
            marked(finds, &words, is_device);
        }
    }
}

/// `password 7 0822455D`, `neighbor 10.0.0.1 password x`, `key-string x`.
fn marked(finds: &mut Finds<'_>, words: &[Word<'_>], is_device: bool) {
    let is_marker = |word: &Word<'_>| !word.is_quoted && MARKERS.split(' ').any(|m| word.is(&[m]));
    for (i, name) in words.iter().enumerate() {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if name.is_quoted || !name.text.bytes().all(is_name) {
            continue;
        }
        let verdict = finds.overrides.judge(name.text).0;
        let is_key = name.text.ends_with("key") || name.is(&["key-string", "keystring"]);
        if verdict < Verdict::Strong && !is_key {
            continue;
        }
        let behind = words.get(i + 1..).unwrap_or_default();
        let number = usize::from(
            behind
                .first()
                .is_some_and(|w| w.text.len() <= 5 && w.text.bytes().all(|b| b.is_ascii_digit()))
                && behind.len() > 1,
        );
        let markers = behind
            .iter()
            .skip(number)
            .take(3)
            .take_while(|word| is_marker(word))
            .count();
        let value = behind.get(number + markers);
        let level = number == 1
            && behind
                .first()
                .is_some_and(|w| w.text.len() == 1 && is_marker(w));
        let is_marked = level || markers > 0;
        let is_plain = is_device
            && (verdict >= Verdict::Strong || is_key && i == 0 && behind.len() == 1 && number == 0);
        if let Some(value) = value
            && (is_marked && (is_device || level || behind.len() == number + markers + 1)
                || is_plain)
            && !is_about(value.text)
            && (verdict >= Verdict::Strong || !value.text.bytes().all(|b| b.is_ascii_digit()))
            && !value.is(STOP)
        {
            add(finds, Some(value), name.text);
            return;
        }
    }
}

/// Words behind a name that make it no secret.
const STOP: &[&str] = &[
    "chain",
    "generate",
    "encryption",
    "required",
    "prompt",
    "config-key",
    "disable",
    "enable",
    "local",
    "group",
    "=",
    "=>",
    ":=",
    "{",
    "recovery",
    "policy",
    "timeout",
    "min-length",
];

fn add(finds: &mut Finds<'_>, word: Option<&Word<'_>>, key: &str) {
    if let Some(word) = word {
        phrases::add(finds, word, 0, key);
    }
}
