//! A session: what every use case works with, apart from its own arguments.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::access;
use super::archive_command::shell_word;
use super::away::{Away, PATIENCE_ALONE, PATIENCE_BESIDE};
use super::pacing::Pacing;
use super::readers;
use super::unproven;
use crate::behalf;
use crate::config::{self, Environment, Flags, Settings};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::repo::lives::Followed;
use crate::repo::repository::Repository;
use crate::store::pace::Pace;
use crate::{durable, err, fault};

/// The host, the choice of configuration, cluster and repository, and what is known of repositories so far.
pub struct Session {
    /// Clock, random numbers, the wish to stop; notes and warnings go to its progress.
    pub host: Host,
    /// Variables and working directory.
    pub environment: Environment,
    /// Configuration file, cluster and repository, where the operator names them.
    pub flags: Flags,
    /// The system identifier that the operator names.
    pub system_identifier: Option<u64>,
    /// The segments of a forked timeline that are read.
    pub followed: Followed,
    /// Repositories that did not answer.
    pub away: Away,
    /// The limits of what is read from repositories and written to them.
    pub pacing: Pacing,
}

impl Session {
    /// The same session on one cluster.
    pub fn on_cluster(&self, name: &str) -> Session {
        let mut own = self.again();
        own.flags.cluster = Some(name.to_owned());
        own
    }

    /// A session of the same host and configuration, which knows nothing of what this one met.
    pub fn again(&self) -> Session {
        Session {
            host: self.host.clone(),
            environment: self.environment.clone(),
            flags: self.flags.clone(),
            system_identifier: None,
            followed: self.followed,
            away: Away::default(),
            pacing: Pacing::limited(None),
        }
    }

    /// Finds and reads the configuration.
    ///
    /// # Errors
    /// Those of [`Settings::load`].
    pub fn settings(&self) -> Result<Settings> {
        Settings::load(&self.flags, &self.environment)
    }

    /// As [`Session::settings`], for what works on every repository.
    ///
    /// # Errors
    /// `Config` without one; those of [`Settings::load`].
    pub fn settings_with_repositories(&self) -> Result<Settings> {
        let settings = self.settings()?;
        match settings.repositories.is_empty() {
            true => Err(err!(Config, "no repository is configured")),
            false => Ok(settings),
        }
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// `NoRepository` when it is not there or not mounted, and what the store says.
    pub fn open(&self, repository: &config::Repository) -> Result<Repository> {
        let path = repository.location.directory().map(Path::to_owned);
        let pace = self.pace(repository)?;
        let opened = self.away.open(repository, &self.host, pace);
        opened.map_err(|e| access::explain(e, path.as_slice()))
    }

    /// As [`Session::open`], for what only looks: a directory that hangs is given up, sooner where another of `settings` can be asked instead.
    ///
    /// # Errors
    /// As [`Session::open`]; `Unreachable` where it hangs.
    pub fn open_or_give_up(
        &self,
        repository: &config::Repository,
        settings: &Settings,
    ) -> Result<Repository> {
        let patience = match settings.repositories.len() {
            0 | 1 => PATIENCE_ALONE,
            _ => fault::silence(PATIENCE_BESIDE),
        };
        self.require_answer(repository, patience)?;
        self.open(repository)
    }

    /// See [`Away::require_answer`].
    ///
    /// # Errors
    /// Those of [`Away::require_answer`].
    pub fn require_answer(
        &self,
        repository: &config::Repository,
        patience: Duration,
    ) -> Result<()> {
        let nonce = self.host.random();
        self.away.require_answer(repository, nonce, patience)
    }

    /// Opens a repository that a backup goes into, and warns where nobody can open what is stored there.
    ///
    /// # Errors
    /// As [`Session::open`]; `Key` where the repository is encrypted, and no key to write with is configured.
    pub fn open_for_backup(&self, configured: &config::Repository) -> Result<Repository> {
        let repository = self.open(configured)?;
        unproven::require_key(configured, &repository)?;
        // The backup meets an error of the store by itself.
        if let Ok(Some(0)) = readers::working(&repository) {
            self.warn(&format!(
                "nobody can open what is stored in repository \"{}\": it has no keys of any recipient. pitr init --key-set FILE gives back those of writer.key",
                configured.name
            ));
        }
        Ok(repository)
    }

    fn pace(&self, repository: &config::Repository) -> Result<Arc<Pace>> {
        self.pacing
            .of(repository, &self.host, || self.shared_cache())
    }

    /// The pace of a bucket that files come from, or go to.
    ///
    /// # Errors
    /// Those of the configuration.
    pub fn pace_of_source(&self, files: &config::Files, location: &str) -> Result<Arc<Pace>> {
        self.pacing
            .of_source(files, location, &self.host, || self.shared_cache())
    }

    /// The first directory of caches that a cluster names, so that it is the same whatever the environment of each process.
    fn shared_cache(&self) -> Result<Option<PathBuf>> {
        let mut clusters = self.settings()?.clusters.into_iter();
        let configured = clusters.find_map(|cluster| cluster.cache_dir);
        Ok(configured.or_else(|| self.environment.cache_dir()))
    }

    /// The error with a next step, where access was denied.
    pub fn explained(&self, error: Error) -> Error {
        if error.hint_text().is_some() {
            return error;
        }
        let repositories = self.settings().map(|s| s.repositories).unwrap_or_default();
        let places = repositories.iter().filter_map(|r| r.location.directory());
        let places = places.map(Path::to_owned);
        access::explain(error, &places.collect::<Vec<_>>())
    }

    /// The flags of this session as options of the next command line, each with a space before it; `cluster` where it must be named.
    pub fn options(&self, cluster: Option<&str>) -> String {
        let config = self.flags.config.as_ref().map(|c| c.to_string_lossy());
        let words = [
            ("config", config.as_deref()),
            ("repository", self.flags.repository.as_deref()),
            ("cluster", cluster),
        ];
        words
            .iter()
            .filter_map(|(name, value)| Some((name, (*value)?)))
            .map(|(name, value)| format!(" --{name} {}", shell_word(value)))
            .collect()
    }

    /// Reports a decision or a wait.
    pub fn note(&self, message: &str) {
        self.host.progress.note(message);
    }

    /// Reports what went less well than it should.
    pub fn warn(&self, message: &str) {
        self.host.progress.warn(message);
    }

    /// Replaces a file of state, as [`behalf::of`] does.
    ///
    /// # Errors
    /// Those of the system.
    pub fn keep(&self, path: &Path, content: &[u8]) -> Result<()> {
        let nonce = self.host.random();
        behalf::of(path, || durable::replace(path, content, nonce))
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
    }

    /// Replaces a file of state by a value in JSON, as [`Self::keep`] does; `what` names the value.
    ///
    /// # Errors
    /// Those of [`Self::keep`].
    pub fn keep_json(&self, path: &Path, what: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(value)
            .map_err(|e| err!(Internal, "{what} cannot be written").source(e))?;
        self.keep(path, &text)
    }
}
