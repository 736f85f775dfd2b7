//! The password file: `host:port:database:user:password`, with `*` for any and `\` before `:` and `\`.
//!
//! PostgreSQL: src/interfaces/libpq/fe-connect.c, passwordFromFile.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::Secret;

/// The most bytes of a password file that are read.
const PASSFILE_SIZE_MAX: u64 = 1 << 20;

/// The connection that a line has to fit.
pub(super) struct Wanted<'a> {
    pub host: &'a str,
    pub port: u16,
    pub dbname: &'a str,
    pub user: &'a str,
}

/// The result of reading the password file.
pub(super) enum Found {
    Password(Secret),
    /// No file, or no line that fits.
    Nothing,
    /// The file was passed over; why.
    Skipped(String),
}

/// Looks the password up; the first line that fits decides.
///
/// A file that its group or others may read is passed over, as libpq does.
pub(super) fn look_up(path: &Path, wanted: &Wanted) -> Found {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Found::Nothing;
    };
    let name = path.display();
    if !metadata.is_file() {
        return Found::Skipped(format!("password file \"{name}\" is not a plain file"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Found::Skipped(format!(
            "password file \"{name}\" has group or world access; permissions should be u=rw (0600) or less"
        ));
    }
    if metadata.len() > PASSFILE_SIZE_MAX {
        return Found::Skipped(format!("password file \"{name}\" is longer than 1 MiB"));
    }
    match std::fs::read(path) {
        Ok(bytes) => search(&String::from_utf8_lossy(&bytes), wanted),
        Err(error) => Found::Skipped(format!("could not read password file \"{name}\": {error}")),
    }
}

fn search(text: &str, wanted: &Wanted) -> Found {
    let port = wanted.port.to_string();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut rest = line;
        let mut fits = true;
        for value in [wanted.host, &port, wanted.dbname, wanted.user] {
            let Some((field, after)) = field(rest) else {
                fits = false;
                break;
            };
            let any = rest.starts_with("*:");
            fits &= any || field == value;
            rest = after;
        }
        if fits {
            let password = field(rest).map_or_else(|| unescape(rest), |(password, _)| password);
            return if password.is_empty() {
                Found::Nothing
            } else {
                Found::Password(Secret::new(password))
            };
        }
    }
    Found::Nothing
}

/// Splits off the text before the next colon that is not escaped.
fn field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => {
                let (before, after) = text.split_at_checked(at)?;
                return Some((unescape(before), after.strip_prefix(':')?));
            }
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn password(text: &str, host: &str, user: &str) -> Option<String> {
        match search(
            text,
            &Wanted {
                host,
                port: 5432,
                dbname: "replication",
                user,
            },
        ) {
            Found::Password(password) => Some(password.expose().to_owned()),
            _ => None,
        }
    }

    #[test]
    fn first_fitting_line_decides() {
        let text = "# comment\nshort:line\ndb1:5433:*:ann:wrong\ndb1:5432:replication:ann:first\n*:*:*:ann:second\n";
        assert_eq!(password(text, "db1", "ann").as_deref(), Some("first"));
        assert_eq!(password(text, "db2", "ann").as_deref(), Some("second"));
        assert_eq!(password(text, "db1", "bob"), None);
    }

    #[test]
    fn escapes_and_ends_are_libpqs() {
        assert_eq!(
            password("fe80\\:\\:1:*:*:a\\\\b:p\\:w\\\\", "fe80::1", "a\\b").as_deref(),
            Some("p:w\\")
        );
        assert_eq!(
            password("db1:*:*:ann:before:after", "db1", "ann").as_deref(),
            Some("before")
        );
        assert_eq!(
            password("db1:*:*:ann:with space \r\n", "db1", "ann").as_deref(),
            Some("with space ")
        );
        assert_eq!(password("db1:*:*:*x:p", "db1", "ann"), None);
        assert_eq!(password("db1:*:*:ann:", "db1", "ann"), None);
    }

    #[test]
    fn file_that_others_may_read_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".pgpass");
        let wanted = Wanted {
            host: "h",
            port: 1,
            dbname: "d",
            user: "u",
        };
        assert!(matches!(look_up(&path, &wanted), Found::Nothing));
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            matches!(look_up(&path, &wanted), Found::Skipped(why) if why.contains("0600") && !why.contains("secret"))
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(look_up(&path, &wanted), Found::Password(_)));
    }
}
