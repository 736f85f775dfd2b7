//! Secrets of command lines: `-u user:password`, `sshpass -p`, `redis-cli -a`, `mysql -p…`, `echo … | chpasswd`.

use super::values::is_reference;
use super::{Finds, Rule};

/// The part of an argument that is the secret.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    /// Behind the first of these.
    Behind(char),
}

/// Programs, their options, and the secret in the argument. An option that ends in `*` has its argument attached.
const OPTIONS: &[(&str, &str, Part)] = &[
    (
        "curl httpie http https ab etcdctl",
        "-u --user -a -A",
        Part::Behind(':'),
    ),
    ("sshpass", "-p -p*", Part::Whole),
    ("redis-cli valkey-cli", "-a", Part::Whole),
    (
        "mongodump mongorestore mongosh mongo mongoexport cqlsh",
        "-p",
        Part::Whole,
    ),
    (
        "mysql mysqldump mysqladmin mysqlimport mariadb mariadb-dump mariadb-admin mariadb-backup xtrabackup 7z 7za rar",
        "-p*",
        Part::Whole,
    ),
    (
        "ldapsearch ldapadd ldapmodify ldappasswd ldapdelete ldapwhoami ldap_auth ldap_group_acl",
        "-w -w* -s",
        Part::Whole,
    ),
    (
        "mosquitto_pub mosquitto_sub ipmitool sqlcmd bcp zip unzip",
        "-P",
        Part::Whole,
    ),
    (
        "snmpget snmpwalk snmpset snmpgetnext snmpbulkwalk snmptrap check_snmp",
        "-c -A -X",
        Part::Whole,
    ),
    ("openssl", "-pass -passin -passout", Part::Behind(':')),
    ("openssl", "-k", Part::Whole),
    ("smbclient rpcclient net smbget", "-U", Part::Behind('%')),
    ("lftp", "-u", Part::Behind(',')),
    ("useradd usermod login", "-p", Part::Whole),
    (
        "sqlplus expdp impdp rman",
        "sqlplus expdp impdp rman -s -S -L",
        Part::Behind('/'),
    ),
    (
        "rabbitmqctl redis-cli",
        "requirepass masterauth",
        Part::Whole,
    ),
];
/// Programs that read a password from a pipe.
const READERS: &[&str] = &[
    "chpasswd",
    "--stdin",
    "--password-stdin",
    "-S",
    "--passphrase-fd",
    "cryptsetup",
    "smbpasswd",
    "vncpasswd",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>, at: usize, line: &str) {
    command(finds, at, line, 0);
}

fn command(finds: &mut Finds<'_>, at: usize, line: &str, depth: u8) {
    let mut program = "";
    let mut before = "";
    let mut found = Vec::new();
    for (start, word) in words(line) {
        // A command in quotes is one of its own.
        let quoted = word
            .find(['"', '\''])
            .and_then(|n| word.get(n + 1..))
            .unwrap_or_default();
        if depth < 2 && quoted.contains(" -") {
            command(
                finds,
                at + start + word.len() - quoted.len(),
                quoted,
                depth + 1,
            );
        }
        let bare = word.trim_matches(['"', '\'', '[', ']', ',']);
        let base = bare.rsplit(['/', '=', '(', '`']).next().unwrap_or(bare);
        let options = || {
            OPTIONS
                .iter()
                .filter(|(programs, ..)| is_one(programs, program))
        };
        if OPTIONS.iter().any(|(programs, ..)| is_one(programs, base)) && !word.starts_with('-') {
            program = base;
        } else if word == "|" || word == "&&" {
            program = "";
        }
        let attached = options().find(|(_, names, _)| {
            names.split(' ').any(|n| {
                n.strip_suffix('*')
                    .is_some_and(|n| word.starts_with(n) && word.len() > n.len())
            })
        });
        let argument = options().find(|(_, names, _)| names.split(' ').any(|n| n == before));
        let value = match (argument, attached) {
            (Some((.., Part::Whole)), _) => Some(0),
            (Some((.., Part::Behind(c))), _) => bare.find(*c).map(|n| n + 1),
            (None, Some(_)) if !word.starts_with("-p=") => Some(2),
            _ => None,
        };
        if let Some(skip) = value {
            let open = word.len() - word.trim_start_matches(['"', '\'', '[']).len();
            let inner = bare.get(skip..).unwrap_or_default();
            let value = inner.trim_start_matches(['"', '\'']);
            let host = value
                .rfind('@')
                .filter(|_| matches!(argument, Some((.., Part::Behind('/')))));
            let end = at + start + open + bare.len();
            let value_at = end - value.len();
            let end = host.map_or(end, |n| value_at + n);
            let key = if argument.is_some() { before } else { "-p" };
            found.push((value_at..end, key.to_owned()));
        }
        before = bare;
    }
    for (span, key) in found {
        if !is_reference(finds.at(span.clone())) {
            finds.add(span, &key, Rule::Place);
        }
    }
    named(finds, at, line);
    piped(finds, at, line);
}

/// Words of a command, and how far behind them the password stands.
const ARGUMENTS: &[(&str, usize)] = &[
    ("add_user", 2),
    ("change_password", 2),
    ("authenticate_user", 2),
    ("wpa_passphrase", 2),
    ("-bc", 3),
    ("-cb", 3),
    ("-bB", 3),
    ("-Bb", 3),
    ("-nb", 2),
];

fn named(finds: &mut Finds<'_>, at: usize, line: &str) {
    let is_command = ["rabbitmqctl", "wpa_passphrase", "htpasswd"]
        .iter()
        .any(|c| line.contains(c));
    let words = if is_command { words(line) } else { Vec::new() };
    for (i, (_, word)) in words.iter().enumerate() {
        let place = ARGUMENTS.iter().find(|(name, _)| name == word);
        if let Some((start, value)) = place.and_then(|(_, behind)| words.get(i + behind)) {
            let inner = value.trim_matches(['"', '\'']);
            let from = at + start + value.find(inner).unwrap_or_default();
            if !is_reference(inner) {
                finds.add(from..from + inner.len(), word, Rule::Place);
            }
        }
    }
}

fn is_one(programs: &str, base: &str) -> bool {
    let is_ldap = base.ends_with("ldap_auth") || base.ends_with("ldap_group_acl");
    programs
        .split(' ')
        .any(|p| p == base || is_ldap && p.starts_with("ldap_") && base.ends_with(p))
}

/// The words of a line with their offsets; spaces in quotes separate none.
fn words(line: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let (mut start, mut quote) = (0, None);
    for (i, byte) in line.bytes().enumerate() {
        match (quote, byte) {
            // A quote that never closes is a letter.
            (None, b'"' | b'\'') if line.bytes().skip(i + 1).take(200).any(|b| b == byte) => {
                quote = Some(byte);
            }
            (Some(open), _) if open == byte => quote = None,
            (None, b' ' | b'\t') => {
                words.push((start, line.get(start..i).unwrap_or_default()));
                start = i + 1;
            }
            _ => {}
        }
    }
    words.push((start, line.get(start..).unwrap_or_default()));
    words.retain(|(_, word)| !word.is_empty());
    words
}

/// `echo password | program`; of chpasswd `echo user:password`.
fn piped(finds: &mut Finds<'_>, at: usize, line: &str) {
    let Some((command, reader)) = line.split_once(" | ").or_else(|| line.split_once('|')) else {
        return;
    };
    let readers = || {
        reader
            .split([' ', ';'])
            .map(|w| w.rsplit('/').next().unwrap_or(w))
    };
    let Some(reader) = readers().find(|w| READERS.contains(w)) else {
        return;
    };
    let words = words(command);
    let (Some((start, word)), true) = (
        words.last(),
        words.iter().any(|(_, w)| matches!(*w, "echo" | "printf")),
    ) else {
        return;
    };
    let inner = word.trim_matches(['"', '\'']);
    let skip = inner
        .find(':')
        .filter(|_| reader == "chpasswd")
        .map_or(0, |colon| colon + 1);
    let from = at + start + word.find(inner).unwrap_or_default();
    let span = from + skip..from + inner.len();
    if !is_reference(finds.at(span.clone())) {
        finds.add(span, reader, Rule::Place);
    }
}
