//! The location of a repository: its URL, parsed.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::err;
use crate::error::Result;
use crate::text::{percent_decoded, percent_encoded};

const ACCEPTED: &str = "Accepted are file:///absolute/path, s3://bucket/prefix, azure://account/container/prefix, gs://bucket/prefix, sftp://user@host/absolute/path and, on the command line, /absolute/path.";

/// The location of a repository. Prints as its URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A directory of a filesystem: absolute, without `.`, `..` and repeated or trailing slashes.
    File(PathBuf),
    /// A bucket of an object store, and what all keys in it begin with.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Parts of a key with slashes between them; empty where the whole bucket is the repository.
        prefix: String,
    },
    /// A container of Azure Blob Storage or a bucket of Google Cloud Storage, and what all keys in it begin with.
    Blob {
        service: BlobService,
        /// The container or bucket.
        bucket: String,
        /// As that of [`Location::S3`].
        prefix: String,
    },
    /// A directory of an SFTP server.
    Sftp {
        /// The account there; else ssh's choice.
        user: Option<String>,
        /// The server's name or address, or an alias in ssh's configuration; an IPv6 address without brackets.
        host: String,
        /// The server's port; else ssh's choice.
        port: Option<u16>,
        /// Absolute, without `.`, `..` and repeated or trailing slashes.
        path: String,
    },
}

/// An object store that speaks another protocol than S3.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BlobService {
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
    },
    /// Google Cloud Storage.
    Google,
}

impl Location {
    /// The directory, where it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Location::File(path) => Some(path),
            Location::S3 { .. } | Location::Blob { .. } | Location::Sftp { .. } => None,
        }
    }

    /// The kind of thing that keeps the bytes, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Location::File(_) => "filesystem",
            Location::S3 { .. } | Location::Blob { .. } => "store",
            Location::Sftp { .. } => "server",
        }
    }

    /// Whether it is not a directory of this host.
    pub fn is_remote(&self) -> bool {
        self.directory().is_none()
    }

    /// Reads a URL as it stands in a configuration file: `file:///absolute/path`, percent-encoded where needed.
    ///
    /// # Errors
    /// `Config` for everything else, saying what is accepted. The URL is not repeated when it holds a password.
    pub fn from_url(url: &str) -> Result<Location> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let authority = rest.split('/').next().unwrap_or_default();
        // The account of an SFTP server is no secret.
        let is_user = scheme == "sftp"
            && authority
                .rsplit_once('@')
                .is_some_and(|(user, _)| !user.contains([':', '@']));
        let is_secret = authority.contains('@') && !is_user;
        if is_secret || (scheme.is_empty() && url.contains('@')) {
            return Err(
                err!(Config, "the URL of a repository holds a user or a password")
                    .hint("Secrets are not allowed in URLs."),
            );
        }
        if scheme.is_empty() {
            return Err(not_a_url(url));
        }
        match scheme {
            "file" => file(url, rest),
            "s3" => s3(url, rest),
            "sftp" => sftp(url, rest),
            "azure" => azure(url, rest),
            "gs" => google(url, rest),
            "az" | "abfs" | "gcs" => {
                let is = if scheme == "gcs" { "gs" } else { "azure" };
                Err(err!(Config, "\"{scheme}\" is not a kind of repository")
                    .hint(format!("Write {is}://. {ACCEPTED}")))
            }
            _ => Err(err!(
                Config,
                "\"{}\" is not a kind of repository: \"{}\"",
                scheme.escape_debug(),
                url.escape_debug()
            )
            .hint(ACCEPTED)),
        }
    }

    /// Reads what follows `--repository` when it is no name: a URL, or an absolute path taken literally.
    ///
    /// # Errors
    /// As [`Location::from_url`].
    pub fn from_argument(text: &str) -> Result<Location> {
        if text.starts_with('/') {
            return directory(Path::new(text));
        }
        Location::from_url(text)
    }

    /// Whether what follows `--repository` is a location and not a name: names have neither a slash nor a colon.
    pub fn looks_like_one(text: &str) -> bool {
        text.contains(['/', ':'])
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self {
            Location::File(path) => path,
            Location::S3 { bucket, prefix } if prefix.is_empty() => {
                return f.pad(&format!("s3://{bucket}"));
            }
            Location::S3 { bucket, prefix } => return f.pad(&format!("s3://{bucket}/{prefix}")),
            Location::Blob {
                service,
                bucket,
                prefix,
            } => {
                let slash = if prefix.is_empty() { "" } else { "/" };
                return f.pad(&match service {
                    BlobService::Azure { account } => {
                        format!("azure://{account}/{bucket}{slash}{prefix}")
                    }
                    BlobService::Google => format!("gs://{bucket}{slash}{prefix}"),
                });
            }
            Location::Sftp {
                user,
                host,
                port,
                path,
            } => {
                let user = user.as_ref().map_or(String::new(), |u| format!("{u}@"));
                let host = match host.contains(':') {
                    true => format!("[{host}]"),
                    false => host.clone(),
                };
                let port = port.map_or(String::new(), |p| format!(":{p}"));
                return f.pad(&format!("sftp://{user}{host}{port}{path}"));
            }
        };
        let path = percent_encoded(path.as_os_str().as_bytes(), b"/+=,@:");
        f.pad(&format!("file://{path}"))
    }
}

/// An absolute path without `.`, repeated and trailing slashes; `..` is refused, because it cannot be resolved without looking.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let shown = shown.escape_debug();
    if !path.is_absolute() {
        return Err(err!(Config, "path \"{shown}\" is not absolute"));
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(err!(Config, "path \"{shown}\" holds a zero byte"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(err!(Config, "path \"{shown}\" holds \"..\""));
    }
    Ok(path.components().collect())
}

fn file(url: &str, rest: &str) -> Result<Location> {
    let shown = url.escape_debug();
    if !rest.starts_with('/') {
        return Err(err!(
            Config,
            "the path in \"{shown}\" is not absolute: three slashes follow \"file:\""
        )
        .hint(ACCEPTED));
    }
    if rest.contains(['?', '#']) {
        return Err(err!(
            Config,
            "\"{shown}\" holds \"?\" or \"#\": in a path they are written %3F and %23"
        ));
    }
    let bytes = percent_decoded(rest).ok_or_else(|| {
        err!(
            Config,
            "\"%\" in \"{shown}\" is not followed by two hexadecimal digits: in a path it is written %25"
        )
    })?;
    directory(Path::new(&OsString::from_vec(bytes)))
}

/// `bucket/prefix`; the characters are those of object keys, so that none needs an encoding.
fn s3(url: &str, rest: &str) -> Result<Location> {
    let needed = "3 to 63 of a-z, 0-9, \".\" and \"-\"";
    let (bucket, prefix) = in_bucket(url, rest, (63, b".-"), needed)?;
    Ok(Location::S3 { bucket, prefix })
}

/// The bucket, of so many characters and with these besides letters and digits, and the prefix in it.
fn in_bucket(
    url: &str,
    rest: &str,
    (most, more): (usize, &[u8]),
    needed: &str,
) -> Result<(String, String)> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(err!(Config, "\"{}\" names no bucket", url.escape_debug()).hint(ACCEPTED));
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let is_fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
    let is_bucket = (3..=most).contains(&bucket.len())
        && bucket.bytes().all(is_fine)
        && edge(bucket.as_bytes().first())
        && edge(bucket.as_bytes().last())
        && !bucket.contains("..");
    match is_bucket {
        true => Ok((bucket.to_owned(), checked_prefix(url, prefix)?)),
        false => Err(err!(
            Config,
            "\"{}\" is not the name of a bucket: {needed} are needed",
            bucket.escape_debug()
        )),
    }
}

fn checked_prefix(url: &str, prefix: &str) -> Result<String> {
    let prefix = prefix.trim_end_matches('/');
    if !(prefix.is_empty() || prefix.len() <= 512 && prefix.split('/').all(is_part)) {
        return Err(err!(
            Config,
            "the prefix in \"{}\" is not one: parts of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" with single slashes between them are needed",
            url.escape_debug()
        ));
    }
    Ok(prefix.to_owned())
}

/// `account/container/prefix`.
fn azure(url: &str, rest: &str) -> Result<Location> {
    let shown = url.escape_debug();
    let (account, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !((3..=24).contains(&account.len()) && account.bytes().all(is_lower)) {
        return Err(err!(
            Config,
            "\"{}\" is not the name of a storage account: 3 to 24 of a-z and 0-9 are needed",
            account.escape_debug()
        )
        .hint(ACCEPTED));
    }
    if bucket.is_empty() {
        return Err(err!(Config, "\"{shown}\" names no container").hint(ACCEPTED));
    }
    let is_container = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| is_lower(b) || b == b'-')
        && !bucket.starts_with('-')
        && !bucket.ends_with('-')
        && !bucket.contains("--");
    if !is_container {
        return Err(err!(
            Config,
            "\"{}\" is not the name of a container: 3 to 63 of a-z, 0-9 and single \"-\" are needed",
            bucket.escape_debug()
        ));
    }
    Ok(Location::Blob {
        service: BlobService::Azure {
            account: account.to_owned(),
        },
        bucket: bucket.to_owned(),
        prefix: checked_prefix(url, prefix)?,
    })
}

/// `bucket/prefix`.
fn google(url: &str, rest: &str) -> Result<Location> {
    let needed = "a-z, 0-9, \".\", \"_\" and \"-\"";
    let (bucket, prefix) = in_bucket(url, rest, (222, b".-_"), needed)?;
    Ok(Location::Blob {
        service: BlobService::Google,
        bucket,
        prefix,
    })
}

/// Whether a text may stand between the slashes of a prefix or of a path on a server.
pub fn is_part(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && !text.starts_with(crate::durable::TEMPORARY_PREFIX)
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// `user@host:port/absolute/path`. User and host become arguments of ssh: none may look like an option.
fn sftp(url: &str, rest: &str) -> Result<Location> {
    let shown = url.escape_debug();
    let wrong = |what: &str| err!(Config, "{what} in \"{shown}\"").hint(ACCEPTED);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let (host, port) = match address.strip_prefix('[').map(|a| a.split_once(']')) {
        Some(Some((host, port))) => (
            host,
            port.strip_prefix(':')
                .or(Some(port).filter(|p| !p.is_empty())),
        ),
        Some(None) => return Err(wrong("\"]\" is missing")),
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let is_name = |text: &str, more: &[u8]| {
        let is_allowed =
            |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b) || more.contains(&b);
        (1..=255).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(is_allowed)
    };
    let more: &[u8] = if address.starts_with('[') { b":%" } else { b"" };
    if !is_name(host, more) {
        return Err(wrong("there is no name of a host"));
    }
    if user.is_some_and(|user| !is_name(user, b"")) {
        return Err(wrong("there is no name of a user before \"@\""));
    }
    let port = port.map(|text| text.parse().ok().filter(|p| *p != 0));
    let port = match port {
        None => None,
        Some(Some(port)) => Some(port),
        Some(None) => return Err(wrong("there is no port behind \":\"")),
    };
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if parts.is_empty() || path.len() > 512 || !parts.iter().all(|p| is_part(p)) {
        return Err(err!(
            Config,
            "the path in \"{shown}\" is not one: parts of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" with slashes between them are needed"
        )
        .hint("It is absolute on the server; below the root of an account that is confined, too."));
    }
    Ok(Location::Sftp {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
        path: format!("/{}", parts.join("/")),
    })
}

fn directory(path: &Path) -> Result<Location> {
    let path = absolute(path)?;
    if path == Path::new("/") {
        return Err(err!(Config, "the root directory cannot be a repository"));
    }
    Ok(Location::File(path))
}

fn not_a_url(url: &str) -> crate::error::Error {
    let shown = url.escape_debug();
    let error = err!(Config, "\"{shown}\" is not the URL of a repository");
    match url.split_once(':') {
        _ if url.starts_with('/') => error.hint(format!("Did you mean file://{shown} ?")),
        Some((scheme @ ("s3" | "file" | "sftp" | "azure" | "gs"), rest)) => error.hint(format!(
            "Did you mean {scheme}://{}{} ?",
            if scheme == "file" { "/" } else { "" },
            rest.trim_start_matches('/').escape_debug()
        )),
        _ => error.hint(ACCEPTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(p: &str) -> Location {
        Location::File(PathBuf::from(p))
    }

    #[test]
    fn files_are_read_and_normalised() {
        for (url, location) in [
            ("file:///var/backups/pitr", "/var/backups/pitr"),
            ("file:///var//backups/./pitr/", "/var/backups/pitr"),
            ("file:///my%20disk/a%25b%3F", "/my disk/a%b?"),
            ("file:///größe", "/größe"),
        ] {
            assert_eq!(Location::from_url(url).unwrap(), path(location));
        }
        assert_eq!(
            Location::from_argument("/a b%20/").unwrap(),
            path("/a b%20")
        );
        assert_eq!(Location::from_argument("file:///a").unwrap(), path("/a"));
        assert_eq!(path("/a b%").to_string(), "file:///a%20b%25");
    }

    #[test]
    fn buckets_and_prefixes_are_read() {
        for (url, bucket, prefix, printed) in [
            ("s3://bucket", "bucket", "", "s3://bucket"),
            ("s3://bucket/", "bucket", "", "s3://bucket"),
            ("s3://my.b-1/a/b_c/", "my.b-1", "a/b_c", "s3://my.b-1/a/b_c"),
        ] {
            let location = Location::from_url(url).unwrap();
            let expected = Location::S3 {
                bucket: bucket.into(),
                prefix: prefix.into(),
            };
            assert_eq!(location, expected, "{url}");
            assert_eq!(location.to_string(), printed);
        }
        for url in [
            "s3://ab",
            "s3://Bucket",
            "s3://-bucket",
            "s3://a..b",
            "s3://bucket//a",
            "s3://bucket/../a",
            "s3://bucket/a b",
            "s3://bucket/.tmp.x",
            "s3://bucket/%41",
        ] {
            assert!(Location::from_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn containers_and_buckets_of_other_services_are_read() {
        let azure = BlobService::Azure {
            account: "acc1".into(),
        };
        for (url, service, bucket, prefix) in [
            ("azure://acc1/box-1", azure.clone(), "box-1", ""),
            ("azure://acc1/box/a/b_c", azure, "box", "a/b_c"),
            ("gs://my_b.1", BlobService::Google, "my_b.1", ""),
            ("gs://bucket/a", BlobService::Google, "bucket", "a"),
        ] {
            let location = Location::from_url(url).unwrap();
            let expected = Location::Blob {
                service,
                bucket: bucket.into(),
                prefix: prefix.into(),
            };
            assert_eq!(location, expected, "{url}");
            assert_eq!(location.to_string(), url);
            assert!(location.is_remote());
        }
        for url in [
            "azure://acc1/Box",
            "azure://acc1/a--b",
            "azure://acc1/-box",
            "azure://acc1/box/.tmp.x",
            "azure://acc1/box/a b",
            "gs://ab",
            "gs://Bucket",
            "gs://bucket/%41",
            "az://acc1/box",
            "gcs://bucket",
        ] {
            assert!(Location::from_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn servers_are_read_and_never_look_like_options() {
        for (url, user, host, port, path) in [
            ("sftp://host/a", None, "host", None, "/a"),
            (
                "sftp://pitr@backup.example.com:2222//srv/pitr/",
                Some("pitr"),
                "backup.example.com",
                Some(2222),
                "/srv/pitr",
            ),
            ("sftp://[::1]:22/a/b", None, "::1", Some(22), "/a/b"),
            (
                "sftp://u@[fe80::1%eth0]/a",
                Some("u"),
                "fe80::1%eth0",
                None,
                "/a",
            ),
        ] {
            let location = Location::from_url(url).unwrap();
            let expected = Location::Sftp {
                user: user.map(str::to_owned),
                host: host.to_owned(),
                port,
                path: path.to_owned(),
            };
            assert_eq!(location, expected, "{url}");
            assert_eq!(Location::from_url(&location.to_string()).unwrap(), location);
            assert!(location.is_remote());
        }
        for url in [
            "sftp://",
            "sftp://host",
            "sftp://host/",
            "sftp:///a",
            "sftp://-oProxyCommand=x/a",
            "sftp://-l@host/a",
            "sftp://@host/a",
            "sftp://host:0/a",
            "sftp://host:70000/a",
            "sftp://host:/a",
            "sftp://[::1/a",
            "sftp://[::1]x/a",
            "sftp://host/a/../b",
            "sftp://host/a b",
            "sftp://host/~/a",
            "sftp://user:pa55word@host/a",
            "sftp://pa55@word@host/a",
        ] {
            let error = Location::from_url(url).unwrap_err();
            assert!(!format!("{error} {:?}", error.hint_text()).contains("pa55"));
        }
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        for (url, message, hint) in [
            ("s3://", "\"s3://\" names no bucket", ACCEPTED),
            (
                "s3:/bucket",
                "\"s3:/bucket\" is not the URL of a repository",
                "Did you mean s3://bucket ?",
            ),
            (
                "file:/a",
                "\"file:/a\" is not the URL of a repository",
                "Did you mean file:///a ?",
            ),
            (
                "/a",
                "\"/a\" is not the URL of a repository",
                "Did you mean file:///a ?",
            ),
            ("./a", "\"./a\" is not the URL of a repository", ACCEPTED),
            (
                "file://a/b",
                "the path in \"file://a/b\" is not absolute: three slashes follow \"file:\"",
                ACCEPTED,
            ),
            (
                "ftp://a/b",
                "\"ftp\" is not a kind of repository: \"ftp://a/b\"",
                ACCEPTED,
            ),
            (
                "azure://account",
                "\"azure://account\" names no container",
                ACCEPTED,
            ),
            (
                "azure://My-Account/a",
                "\"My-Account\" is not the name of a storage account: 3 to 24 of a-z and 0-9 are needed",
                ACCEPTED,
            ),
            ("gs://", "\"gs://\" names no bucket", ACCEPTED),
            (
                "s3://key:password@bucket",
                "the URL of a repository holds a user or a password",
                "Secrets are not allowed in URLs.",
            ),
        ] {
            let error = Location::from_url(url).unwrap_err();
            assert_eq!(error.to_string().as_str(), message);
            assert_eq!(error.hint_text(), Some(hint));
        }
        for url in [
            "file:///",
            "file:///a/../b",
            "file:///a%",
            "file:///a%0",
            "file:///a%+1",
            "file:///a%00b",
            "file:///a?b",
            "file:///a#b",
            "",
        ] {
            assert!(Location::from_url(url).is_err(), "{url}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(text in "(/[^/\0]{1,12}){1,4}") {
            if let Ok(location) = Location::from_argument(&text) {
                prop_assert_eq!(Location::from_url(&location.to_string()).unwrap(), location);
            }
        }
    }
}
