//! The store itself on the server of these tests.

use std::time::Duration;

use pitr::config::S3Settings;
use pitr::store::Key;
use pitr::store::s3::S3Store;

use super::{BUCKET, KEY, S3Server};
use crate::common::Sandbox;

/// A store for one test, and what it needs.
pub struct Place {
    pub server: S3Server,
    pub sandbox: Sandbox,
}

impl Place {
    /// An empty one.
    pub fn new() -> Place {
        Place {
            server: S3Server::start(),
            sandbox: Sandbox::new("s3"),
        }
    }

    /// How it is reached with the credentials of `key`.
    pub fn settings(&self, key: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(self.server.endpoint()),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.server.credentials(&self.sandbox, key)),
            ..S3Settings::default()
        }
    }

    /// The store, with other settings.
    pub fn open(&self, change: impl FnOnce(&mut S3Settings)) -> S3Store {
        let mut settings = self.settings(KEY);
        change(&mut settings);
        S3Store::open(BUCKET, "a/b", &settings, 7).unwrap()
    }

    /// The store as it is.
    pub fn store(&self) -> S3Store {
        self.open(|_| {})
    }

    /// Gives up soon.
    pub fn hasty(&self) -> S3Store {
        self.open(|s| s.retry_budget = Duration::from_millis(300))
    }

    /// Tries nothing twice.
    pub fn once(&self) -> S3Store {
        self.open(|s| s.retry_budget = Duration::ZERO)
    }
}

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Larger than one request takes: of two parts.
pub fn large() -> Vec<u8> {
    (0..9_000_000_u32).map(|n| (n / 7 % 251) as u8).collect()
}
