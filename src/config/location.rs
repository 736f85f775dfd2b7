//! The location of a repository: its URL, parsed.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::err;
use crate::error::Result;

const ACCEPTED: &str = "Accepted are file:///absolute/path, s3://bucket/prefix and, on the command line, /absolute/path.";

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
}

impl Location {
    /// The directory, where it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Location::File(path) => Some(path),
            Location::S3 { .. } => None,
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
        if authority.contains('@') || (scheme.is_empty() && url.contains('@')) {
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
        };
        let mut url = String::from("file://");
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'/' | b'-' | b'.' | b'_' | b'~' | b'+' | b'=' | b',' | b'@' | b':' => {
                    url.push(char::from(*byte));
                }
                _ if byte.is_ascii_alphanumeric() => url.push(char::from(*byte)),
                _ => url.push_str(&format!("%{byte:02X}")),
            }
        }
        f.pad(&url)
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
    let shown = url.escape_debug();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(err!(Config, "\"{shown}\" names no bucket").hint(ACCEPTED));
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let is_bucket = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && edge(bucket.as_bytes().first())
        && edge(bucket.as_bytes().last())
        && !bucket.contains("..");
    if !is_bucket {
        return Err(err!(
            Config,
            "\"{}\" is not the name of a bucket: 3 to 63 of a-z, 0-9, \".\" and \"-\" are needed",
            bucket.escape_debug()
        ));
    }
    let prefix = prefix.trim_end_matches('/');
    let part_ok = |p: &str| {
        !p.is_empty()
            && p != "."
            && p != ".."
            && !p.starts_with(crate::durable::TEMPORARY_PREFIX)
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if !(prefix.is_empty() || prefix.len() <= 512 && prefix.split('/').all(part_ok)) {
        return Err(err!(
            Config,
            "the prefix in \"{shown}\" is not one: parts of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" with single slashes between them are needed"
        ));
    }
    Ok(Location::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
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
        Some((scheme @ ("s3" | "file"), rest)) => error.hint(format!(
            "Did you mean {scheme}://{}{} ?",
            if scheme == "file" { "/" } else { "" },
            rest.trim_start_matches('/').escape_debug()
        )),
        _ => error.hint(ACCEPTED),
    }
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail.get(2..)?;
    }
    Some(bytes)
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
                "s3://key:password@bucket",
                "the URL of a repository holds a user or a password",
                "Secrets are not allowed in URLs.",
            ),
        ] {
            let error = Location::from_url(url).unwrap_err();
            assert_eq!(
                (error.to_string().as_str(), error.hint_text()),
                (message, Some(hint))
            );
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
