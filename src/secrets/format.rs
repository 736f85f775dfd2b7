//! The format of a file, by its name and by how it begins.

use super::{ends_with_any, has_any};

/// A format that has a scanner of its own, or rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Assignments for a shell or a container.
    Env,
    /// JSON, also with comments.
    Json,
    /// YAML.
    Yaml,
    /// `host:port:database:user:password`.
    Pgpass,
    /// `"user" "password"`.
    Userlist,
    /// Redis' configuration and its users.
    Redis,
    /// Names and values with white space between them.
    Spaced,
    /// Logins of programs: words with white space between them.
    Netrc,
    /// `user:password`, a line for each.
    Logins,
    /// Rows of cells below a header.
    Table,
    /// Anything else.
    Other,
}

/// The name of a file without its directory, and without what marks a copy.
pub(super) fn base(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let mut base = base.as_str();
    let copies = [
        "~",
        ".bak",
        ".old",
        ".orig",
        ".save",
        ".dpkg-old",
        ".dpkg-dist",
        ".dpkg-new",
        ".rpmsave",
        ".rpmnew",
        ".rpmorig",
    ];
    while let Some(rest) = copies.iter().find_map(|c| base.strip_suffix(c))
        && !rest.is_empty()
    {
        base = rest;
    }
    base.to_owned()
}

/// Whether a file of this name is nothing but a secret: the cookie of a cluster, the list of a dial-in server.
pub(super) fn is_secret(name: &str) -> bool {
    let base = base(name);
    ends_with_any(&base, &[".cookie", ".secret", ".google_authenticator"])
        || matches!(
            base.as_str(),
            "chap-secrets" | "pap-secrets" | "l2tp-secrets"
        )
}

/// Whether a file of this name has a user and a password in each line.
fn is_list_of_logins(base: &str) -> bool {
    let ends = [
        "realm.properties",
        "users.properties",
        ".password",
        ".passwords",
        ".htdigest",
        ".wpa_psk",
        "psk.txt",
    ];
    let is_map = has_any(base, &["sasl", "relay", "smtp"]);
    let is_settings = ends_with_any(
        base,
        &[
            ".conf", ".yml", ".yaml", ".json", ".xml", ".toml", ".ini", ".sh", ".py", ".php",
            ".sql",
        ],
    );
    base == "rsyncd.secrets"
        || base == "pcp.conf"
        || ends.iter().any(|end| base.ends_with(end))
        || has_any(base, &["passwd", "shadow"]) && !is_map && !is_settings
}

impl Format {
    pub(super) fn of(name: &str, text: &str) -> Format {
        let base = base(name);
        let ends = |ends: &[&str]| ends.iter().any(|end| base.ends_with(end));
        let begin = text.trim_start_matches('\u{feff}').trim_start();
        let has_line = |wanted: &str| text.lines().take(50).any(|l| l.starts_with(wanted));
        if base == ".env" || base.starts_with(".env.") || ends(&[".env"]) || base == "environment" {
            Format::Env
        } else if base.contains("pgpass") {
            Format::Pgpass
        } else if matches!(base.as_str(), "userlist.txt" | "users.txt") {
            Format::Userlist
        } else if is_list_of_logins(&base) {
            Format::Logins
        } else if ends(&[".csv", ".tsv"]) {
            Format::Table
        } else if ends(&["netrc", "authinfo"]) {
            Format::Netrc
        } else if ends(&[".json", ".jsonc", ".json5", ".tfstate"])
            || (begin.starts_with('{') && begin.contains('"'))
        {
            Format::Json
        } else if ends(&[".yml", ".yaml"])
            || base == "kubeconfig"
            || begin.starts_with("---\n")
            || has_line("apiVersion:")
        {
            Format::Yaml
        } else if ends(&["users.acl"])
            || has_any(&base, &["redis", "valkey", "sentinel"])
            || base
                .strip_suffix(".conf")
                .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
        {
            Format::Redis
        } else if ends(&[".conf", ".cfg", ".cnf", ".acl", "_config", "rc", ".vcl"]) {
            Format::Spaced
        } else {
            Format::Other
        }
    }
}
