//! The configuration of a repository in an object store, besides its location.

use std::path::PathBuf;
use std::time::Duration;

use super::{Tier, TierBy};
use crate::err;
use crate::error::Result;

/// Settings of a repository whose URL begins with `s3://`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Settings {
    /// The region that requests are signed for; else that of the environment or profile.
    pub region: Option<String>,
    /// The server, where it is not Amazon's; else that of the environment or profile.
    pub endpoint: Option<String>,
    /// The bucket stands in the path instead of the host's name.
    pub path_style: bool,
    /// Certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Plain HTTP is allowed also to another machine.
    pub allow_http: bool,
    /// The profile of the credentials and settings.
    pub profile: Option<String>,
    /// A credentials file instead of `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// Storage classes by kind of object.
    pub storage_class: StorageClasses,
    /// Classes that content moves to as it ages.
    pub tiers: Vec<Tier>,
    /// The way in which it moves.
    pub tier_by: TierBy,
    /// How the store encrypts what it keeps.
    pub sse: Option<Sse>,
    /// The key of `aws:kms`.
    pub sse_kms_key_id: Option<String>,
    /// How long each object is locked.
    pub object_lock: Option<ObjectLock>,
    /// How long nothing may come or go before an attempt of a request is given up.
    pub stall_timeout: Duration,
    /// How long a request is tried, without the time in which bytes come or go.
    pub retry_budget: Duration,
    /// The store may overwrite: looked at before each write, and read again after it.
    pub unsafe_overwrite: bool,
}

impl Default for S3Settings {
    fn default() -> S3Settings {
        S3Settings {
            region: None,
            endpoint: None,
            path_style: false,
            ca_file: None,
            allow_http: false,
            profile: None,
            credentials_file: None,
            storage_class: StorageClasses::default(),
            tiers: Vec::new(),
            tier_by: TierBy::default(),
            sse: None,
            sse_kms_key_id: None,
            object_lock: None,
            // Bytes in buffers of the system are not seen to go: 2 MiB at 100 KiB a second.
            stall_timeout: Duration::from_secs(20),
            // Below the 46 seconds in which all requests of one pitr-archive must be over: the message gives the cause,
            // not that it took too long.
            retry_budget: Duration::from_secs(40),
            unsafe_overwrite: false,
        }
    }
}

/// Storage classes by kind of object; none is the bucket's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct StorageClasses {
    /// Everything below `wal/` and `conflicts/`.
    pub wal: Option<String>,
    /// Packs and layers.
    pub packs: Option<String>,
    /// Everything else: roots, events, registrations.
    pub manifests: Option<String>,
}

/// Encryption by the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sse {
    /// `AES256`, with the store's own key.
    S3,
    /// `aws:kms`.
    Kms,
}

/// Retention that is set when an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectLock {
    /// The users who may lift it.
    pub mode: LockMode,
    /// How long it lasts.
    pub period: Duration,
}

/// The users who may lift a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Users who have the right to lift locks.
    Governance,
    /// Nobody.
    Compliance,
}

/// A storage class whose objects can be read at once.
///
/// # Errors
/// `Config` for the classes of which objects must be thawed first: what is written is read back, and a restore cannot wait for hours.
pub(super) fn storage_class(name: &str) -> Result<String> {
    const ACCEPTED: [&str; 6] = [
        "STANDARD",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER_IR",
        "REDUCED_REDUNDANCY",
    ];
    if ACCEPTED.contains(&name) {
        return Ok(name.to_owned());
    }
    let error = err!(
        Config,
        "\"{}\" is not a storage class that can be used",
        name.escape_debug()
    );
    Err(match name {
        "GLACIER" | "DEEP_ARCHIVE" => error.hint("Its objects cannot be read before they are restored, and what pitr writes it reads back. Use GLACIER_IR."),
        _ => error.hint(format!("Accepted are {}.", ACCEPTED.join(", "))),
    })
}

/// A server's URL: scheme, host and perhaps a port.
///
/// # Errors
/// `Config` when it is none, when it holds a user or a password, or is plain HTTP to another machine and that is not allowed.
pub fn endpoint(url: &str, allow_http: bool) -> Result<String> {
    let shown = url.escape_debug().to_string();
    if url.contains('@') {
        return Err(err!(Config, "the endpoint holds a user or a password")
            .hint("Secrets are not allowed in URLs."));
    }
    let wrong = || {
        err!(Config, "\"{shown}\" is not the URL of a server")
            .hint("Write https://host or https://host:port.")
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let host = rest.trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(is_plain) {
        return Err(wrong());
    }
    match scheme {
        "https" => {}
        "http" if allow_http || is_loopback(host) => {}
        "http" => {
            return Err(err!(Config, "\"{shown}\" is plain HTTP to another machine").hint(
                "Everybody on the way could read and change what is sent. Use https://, or set allow_http = true where the network is trusted.",
            ));
        }
        _ => return Err(wrong()),
    }
    Ok(format!("{scheme}://{host}"))
}

/// Whether a host, perhaps with a port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_unless_it_is_allowed() {
        for (url, allow, expected) in [
            (
                "http://127.0.0.1:9000",
                false,
                Some("http://127.0.0.1:9000"),
            ),
            (
                "http://localhost:9000/",
                false,
                Some("http://localhost:9000"),
            ),
            ("http://[::1]:9000", false, Some("http://[::1]:9000")),
            ("http://minio:9000", false, None),
            ("http://minio:9000", true, Some("http://minio:9000")),
            ("http://127.0.0.1.example.com", false, None),
            (
                "https://s3.example.com",
                false,
                Some("https://s3.example.com"),
            ),
            ("https://key:secret@host", false, None),
            ("https://host/path", false, None),
            ("ftp://host", true, None),
            ("host:9000", true, None),
            ("https://", true, None),
        ] {
            assert_eq!(endpoint(url, allow).ok().as_deref(), expected, "{url}");
        }
        let error = endpoint("https://key:secret@host", false).unwrap_err();
        assert!(!format!("{error} {:?}", error.hint_text()).contains("secret"));
    }

    #[test]
    fn classes_that_must_be_thawed_are_refused() {
        assert_eq!(storage_class("STANDARD_IA").unwrap(), "STANDARD_IA");
        for class in ["GLACIER", "DEEP_ARCHIVE", "standard", ""] {
            assert!(storage_class(class).is_err(), "{class}");
        }
    }
}
