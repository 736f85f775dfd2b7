//! The configuration of a repository on an SFTP server, besides its location.

use std::path::PathBuf;
use std::time::Duration;

use super::S3Settings;

/// Settings of a repository whose URL begins with `sftp://`. The rest is up to the system's ssh, and to its own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SftpSettings {
    /// The only key that is offered; else those of the agent and ssh's usual ones.
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase of that key.
    pub passphrase_file: Option<PathBuf>,
    /// The only file of host keys that is believed; else ssh's usual ones.
    pub known_hosts_file: Option<PathBuf>,
    /// How long nothing may come or go before a connection is given up.
    pub stall_timeout: Duration,
    /// How long a request is tried, without the time in which bytes come or go.
    pub retry_budget: Duration,
}

impl Default for SftpSettings {
    fn default() -> SftpSettings {
        let S3Settings {
            stall_timeout,
            retry_budget,
            ..
        } = S3Settings::default();
        SftpSettings {
            key_file: None,
            passphrase_file: None,
            known_hosts_file: None,
            stall_timeout,
            retry_budget,
        }
    }
}
