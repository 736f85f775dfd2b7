//! Secrets of command lines: `-u user:password`, `sshpass -p`, `redis-cli -a`, `mysql -p…`, `echo … | chpasswd`.

use super::names::Verdict;
use super::values::is_reference;
use super::{Finds, Rule, has_any, is_made_of};

/// One argument of a command, without its quotes.
pub(super) struct Argument<'t> {
    pub at: usize,
    pub text: &'t str,
}

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
        "curl httpie http https xh ab etcdctl wrk jenkins-cli.jar check_http check_curl",
        "-u --user -a -A -U --proxy-user -auth --auth",
        Part::Behind(':'),
    ),
    (
        "skopeo podman buildah crane regctl oras",
        "--creds --src-creds --dest-creds",
        Part::Behind(':'),
    ),
    (
        "check_mysql check_pgsql check_mysql_health check_mssql check_postgres",
        "-p",
        Part::Whole,
    ),
    ("sendemail sendEmail", "-xp", Part::Whole),
    ("swaks", "-ap", Part::Whole),
    ("slappasswd", "-s", Part::Whole),
    ("kadmin kadmin.local", "-w", Part::Whole),
    ("dotnet nuget", "-k -ApiKey", Part::Whole),
    (
        "xfreerdp xfreerdp3 wfreerdp cmdkey",
        "/p:* /pass:*",
        Part::Whole,
    ),
    ("vncdo vncdotool rdesktop", "-p", Part::Whole),
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
        "snmpget snmpwalk snmpset snmpgetnext snmpbulkwalk snmptrap check_snmp trapsess snmpbulkget snmptable",
        "-c -A -X -C",
        Part::Whole,
    ),
    ("openssl", "-pass -passin -passout", Part::Behind(':')),
    ("openssl", "-k", Part::Whole),
    ("ssh-keygen", "-N -P", Part::Whole),
    ("smbclient rpcclient net smbget", "-U", Part::Behind('%')),
    ("lftp open", "-u", Part::Behind(',')),
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
/// Programs that log in with `-p` behind the word "login".
const LOGINS: &[&str] = &[
    "docker", "podman", "nerdctl", "buildah", "oc", "helm", "az", "cf", "crane", "oras", "registry",
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
    "kinit",
];

/// Adds them.
pub(super) fn scan(finds: &mut Finds<'_>, at: usize, line: &str) {
    command(finds, at, line, 0);
}

/// Adds the secrets of arguments that stand in a list.
pub(super) fn arguments(finds: &mut Finds<'_>, arguments: &[Argument<'_>]) {
    let words = arguments.iter().map(|one| (one.at, one.text)).collect();
    of_words(finds, 0, words, 2);
}

fn command(finds: &mut Finds<'_>, at: usize, line: &str, depth: u8) {
    of_words(finds, at, words(line), depth);
    named(finds, at, line);
    configured(finds, at, line);
    piped(finds, at, line);
    handed(finds, at, line);
}

/// The value behind an option of any program, whose name says what it is: `-password x`, `--requirepass x`.
fn of_option(finds: &mut Finds<'_>, option: &str, at: usize, value: &str) {
    let name = option.trim_start_matches('-');
    let is_option = option.starts_with('-') && name.len() > 1 && is_made_of(name, b"-_.");
    if is_option
        && !value.starts_with(['-', '|', '>', '<', '&'])
        && finds.overrides.judge(name).0 >= Verdict::Strong
    {
        finds.judge(name, at..at + value.len());
    }
}

fn of_words(finds: &mut Finds<'_>, at: usize, words: Vec<(usize, &str)>, depth: u8) {
    let mut program = "";
    let mut before = "";
    let mut has_login = false;
    let mut found = Vec::new();
    let is_comment = words
        .first()
        .is_some_and(|(_, w)| w.starts_with(['#', ';', '*']));
    for (start, word) in words {
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
        let is_program =
            OPTIONS.iter().any(|(programs, ..)| is_one(programs, base)) || LOGINS.contains(&base);
        if is_program && !word.starts_with('-') && !(has_login && base == "registry") {
            program = base;
        } else if word == "|" || word == "&&" {
            program = "";
        }
        let attached = options().find_map(|(_, names, _)| {
            names.split(' ').find_map(|n| {
                n.strip_suffix('*')
                    .filter(|n| bare.starts_with(n) && bare.len() > n.len())
                    .map(str::len)
            })
        });
        has_login |= bare == "login";
        let argument = options().find(|(_, names, _)| names.split(' ').any(|n| n == before));
        if argument.is_none() && !is_comment && at + start > 0 {
            let open = word.find(bare).unwrap_or_default();
            of_option(finds, before, at + start + open, bare.trim_end_matches(';'));
        }
        let is_login = has_login && before == "-p" && !bare.starts_with('-');
        let value = match (argument, attached) {
            (None, None) if is_login && LOGINS.contains(&program) => Some(0),
            (Some((.., Part::Whole)), _) => Some(0),
            (Some((.., Part::Behind(c))), _) => bare.find(*c).map(|n| n + 1),
            (None, Some(skip)) if !word.starts_with("-p=") => Some(skip),
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
        let is_elsewhere = key.starts_with("-pass") && {
            let ahead = finds.text.get(..span.start).unwrap_or_default();
            ahead.ends_with("env:") || ahead.ends_with("file:") || ahead.ends_with("fd:")
        };
        if !is_reference(finds.at(span.clone())) && !is_elsewhere {
            finds.add(span, &key, Rule::Place);
        }
    }
}

/// A word that a command has in it, another one, and how far behind that the password stands.
const ARGUMENTS: &[(&str, &str, usize)] = &[
    ("rabbitmqctl", "add_user", 2),
    ("rabbitmqctl", "change_password", 2),
    ("rabbitmqctl", "authenticate_user", 2),
    ("wpa_passphrase", "wpa_passphrase", 2),
    ("htpasswd", "-bc", 3),
    ("htpasswd", "-cb", 3),
    ("htpasswd", "-bB", 3),
    ("htpasswd", "-Bb", 3),
    ("htpasswd", "-nb", 2),
    ("ejabberdctl", "register", 3),
    ("ejabberdctl", "change_password", 3),
    ("prosodyctl", "register", 3),
    ("vault login", "login", 1),
    ("vault operator unseal", "unseal", 1),
    ("net user ", "user", 2),
    ("cargo login", "login", 1),
    ("mc alias set", "set", 4),
    ("mc config host add", "add", 4),
];

fn named(finds: &mut Finds<'_>, at: usize, line: &str) {
    let places = || {
        ARGUMENTS
            .iter()
            .filter(|(command, ..)| line.contains(command))
    };
    if places().next().is_none() && !line.contains("_passwd -b") && !line.contains("htpasswd ") {
        return;
    }
    let words = words(line);
    for (i, (_, word)) in words.iter().enumerate() {
        let place = places().find(|(_, name, _)| name == word);
        if let Some(value) = place.and_then(|(.., behind)| words.get(i + behind)) {
            add_word(finds, at, *value, word);
        }
    }
    // The last word of `htpasswd -b -c file user password`.
    let is_file = |program: &str| program.ends_with("htpasswd") || program.ends_with("_passwd");
    if words.iter().any(|(_, w)| is_file(w)) && words.iter().any(|(_, w)| *w == "-b") {
        let last = words
            .iter()
            .skip_while(|(_, w)| !is_file(w))
            .take_while(|(_, w)| !w.starts_with(['|', '&', '>', '#']))
            .last();
        if let Some(last) = last {
            add_word(finds, at, *last, "-b");
        }
    }
}

/// Adds a word without its quotes.
fn add_word(finds: &mut Finds<'_>, at: usize, (start, word): (usize, &str), key: &str) {
    let inner = word.trim_matches(['"', '\'', ';']);
    let from = at + start + word.find(inner).unwrap_or_default();
    if !is_reference(inner) && !inner.starts_with('-') {
        finds.add(from..from + inner.len(), key, Rule::Place);
    }
}

/// Commands that set a value by its name: `npm config set _authToken x`, `nmcli … password x`, `net use \\\\host password`.
fn configured(finds: &mut Finds<'_>, at: usize, line: &str) {
    let is_set = has_any(
        line,
        &["config set ", "configure set ", "racadm set ", "setx "],
    );
    let is_wifi = line.contains("nmcli ");
    let is_basic = line.contains(" http-basic.");
    let is_net = line.contains("net use ");
    if !(is_set || is_wifi || is_basic || is_net) {
        return;
    }
    let words = words(line);
    for (i, (_, word)) in words.iter().enumerate() {
        let next = |n: usize| words.get(i + n).copied();
        let before = i
            .checked_sub(1)
            .and_then(|n| words.get(n))
            .map_or("", |(_, w)| *w);
        let is_named =
            is_set && matches!(before, "set" | "setx") || is_wifi && !word.starts_with('-');
        let value = match word {
            _ if word.starts_with("http-basic.") => next(2),
            _ if is_net && word.starts_with("\\\\") => {
                next(1).filter(|(_, w)| !w.starts_with(['/', '*']))
            }
            _ if is_named && finds.overrides.judge(word).0 >= Verdict::Strong => next(1),
            _ => None,
        };
        if let Some(value) = value {
            add_word(finds, at, value, word);
        }
    }
}

/// A text that the shell hands to a program: `chpasswd <<< "user:password"`.
fn handed(finds: &mut Finds<'_>, at: usize, line: &str) {
    let Some((command, text)) = line.split_once("<<<") else {
        return;
    };
    let programs = || {
        command
            .split_whitespace()
            .map(|w| w.rsplit('/').next().unwrap_or(w))
    };
    let is_read = programs().any(|w| w == "read");
    let variable = programs()
        .next_back()
        .filter(|name| is_read && finds.overrides.judge(name).0 >= Verdict::Strong);
    let reader = programs().find(|w| READERS.contains(w));
    let Some(reader) = reader.or(variable) else {
        return;
    };
    let from = line.len() - text.len();
    if let Some((start, word)) = words(text).first().copied() {
        read_by(finds, reader, at + from + start, word);
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
            // Arguments in quotes may have nothing but commas between them.
            (None, b',') if i > 0 && matches!(line.as_bytes().get(i - 1), Some(b'"' | b'\'')) => {
                words.push((start, line.get(start..i).unwrap_or_default()));
                start = i + 1;
            }
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

/// `echo password > file`, where the name of the file says what is in it.
fn written(finds: &mut Finds<'_>, at: usize, line: &str) {
    let Some((command, file)) = line.split_once('>') else {
        return;
    };
    let file = file
        .trim_start_matches('>')
        .trim()
        .trim_matches(['"', '\'']);
    let base = file.rsplit('/').next().unwrap_or_default();
    let name = base
        .split('.')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    let is_file =
        !base.is_empty() && !base.contains([' ', '"', '$']) && !file.starts_with(['=', '&']);
    let words = words(command);
    let is_echo = words.iter().any(|(_, w)| matches!(*w, "echo" | "printf"));
    if let Some(last) = words
        .last()
        .filter(|_| is_echo && is_file && words.len() > 1)
        && finds.overrides.judge(name).0 >= Verdict::Strong
        && !last.1.contains(['=', ':', ' '])
    {
        add_word(finds, at, *last, name);
    }
}

/// `echo password | program`; of chpasswd `echo user:password`.
fn piped(finds: &mut Finds<'_>, at: usize, line: &str) {
    written(finds, at, line);
    let Some((command, reader)) = line.split_once(" | ").or_else(|| line.split_once('|')) else {
        return;
    };
    let readers = || {
        reader
            .split([' ', ';', '"', '\'', ']'])
            .map(|w| w.rsplit('/').next().unwrap_or(w))
    };
    let reader = readers().find(|w| READERS.contains(w));
    let stored = reader.or_else(|| line.contains(" secret create ").then_some("secret"));
    let Some(reader) = stored else {
        return;
    };
    let words = words(command);
    let (Some((start, word)), true) = (
        words.last(),
        words
            .iter()
            .any(|(_, w)| matches!(w.trim_matches(['"', '\'']), "echo" | "printf")),
    ) else {
        return;
    };
    read_by(finds, reader, at + start, word);
}

/// Adds the word that a program reads: `chpasswd` the password behind the user.
fn read_by(finds: &mut Finds<'_>, reader: &str, at: usize, word: &str) {
    let inner = word.trim_matches(['"', '\'']);
    let skip = inner
        .find(':')
        .filter(|_| reader == "chpasswd")
        .map_or(0, |colon| colon + 1);
    let from = at + word.find(inner).unwrap_or_default();
    let span = from + skip..from + inner.len();
    if !is_reference(finds.at(span.clone())) {
        finds.add(span, reader, Rule::Place);
    }
}
