//! Limits of what a command reads from repositories and writes to them.
//!
//! Backups, restores, drills, clones (also those of `find`), mounts, queries, `verify`, `repo sync` and `repo compact` keep them. Everything else is exempt: it moves
//! WAL, or next to nothing, or somebody waits for one table (`rescue`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use chrono::{Local, Timelike};

use super::human;
use crate::config::{self, Hours, Size};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::locked;
use crate::store::pace::{Pace, When};

/// The directory, below the caches, of the file by which processes share a limit.
const DIRECTORY: &str = "rate";

/// A limit that the operator gives with the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxRate {
    /// At most so many bytes a second from and to each repository, besides the limit of the configuration.
    BytesPerSecond(u64),
    /// No limit, not even that of the configuration.
    Unlimited,
}

impl FromStr for MaxRate {
    type Err = Error;

    fn from_str(text: &str) -> Result<MaxRate> {
        if text == "none" {
            return Ok(MaxRate::Unlimited);
        }
        match text.parse::<Size>()? {
            Size(0) => {
                Err(err!(Usage, "a limit of 0 lets nothing pass").hint("Write none for no limit."))
            }
            Size(bytes) => Ok(MaxRate::BytesPerSecond(bytes)),
        }
    }
}

/// The limits that hold, by the location of the repository, once it was opened.
pub struct Pacing {
    asked: Option<MaxRate>,
    known: Mutex<BTreeMap<String, Arc<Pace>>>,
}

impl Default for Pacing {
    /// Limits nothing.
    fn default() -> Pacing {
        Pacing::limited(Some(MaxRate::Unlimited))
    }
}

/// A limit as the configuration has it.
struct Limit {
    /// The place that it limits, for messages.
    whose: String,
    /// The name under which processes share it.
    location: String,
    bytes_per_s: Option<u64>,
    hours: Option<Hours>,
}

/// Whether the host's clock shows one of these hours, in the host's time zone.
fn at(hours: Hours, host: &Host) -> When {
    let clock = Arc::clone(&host.clock);
    Arc::new(move || {
        let micros = clock().unix_micros().unwrap_or_default();
        let local =
            chrono::DateTime::from_timestamp_micros(micros).map(|t| t.with_timezone(&Local));
        // A moment that no calendar has is no reason to hurry.
        let minute = local.and_then(|t| u16::try_from(t.hour() * 60 + t.minute()).ok());
        minute.is_none_or(|minute| hours.contains(minute))
    })
}

impl Pacing {
    /// The limits of the configuration, and what the operator asked for.
    pub fn limited(asked: Option<MaxRate>) -> Pacing {
        Pacing {
            asked,
            known: Mutex::default(),
        }
    }

    /// The pace of a repository: one for the process, however often the repository is opened. `directory` is that of caches.
    ///
    /// # Errors
    /// Those of `directory`.
    pub fn of(
        &self,
        repository: &config::Repository,
        host: &Host,
        directory: impl FnOnce() -> Result<Option<PathBuf>>,
    ) -> Result<Arc<Pace>> {
        let limit = Limit {
            whose: format!("repository \"{}\"", repository.name),
            location: repository.location.to_string(),
            bytes_per_s: repository.max_rate_bytes_per_s,
            hours: repository.max_rate_hours.clone(),
        };
        self.limited_to(limit, host, directory)
    }

    /// The pace of a bucket that files come from, or go to.
    ///
    /// # Errors
    /// Those of `directory`.
    pub fn of_source(
        &self,
        files: &config::Files,
        location: &str,
        host: &Host,
        directory: impl FnOnce() -> Result<Option<PathBuf>>,
    ) -> Result<Arc<Pace>> {
        let limit = Limit {
            whose: format!("bucket \"{location}\""),
            location: format!("{location} of {}", files.name),
            bytes_per_s: files.max_rate_bytes_per_s,
            hours: files.max_rate_hours.clone(),
        };
        self.limited_to(limit, host, directory)
    }

    fn limited_to(
        &self,
        limit: Limit,
        host: &Host,
        directory: impl FnOnce() -> Result<Option<PathBuf>>,
    ) -> Result<Arc<Pace>> {
        let mut pace = Pace::new(&host.stop);
        let Limit {
            whose,
            location,
            bytes_per_s,
            hours,
        } = limit;
        let mut known = locked(&self.known);
        if let Some(pace) = known.get(&location) {
            return Ok(Arc::clone(pace));
        }
        let (own, configured) = match self.asked {
            Some(MaxRate::Unlimited) => (None, None),
            Some(MaxRate::BytesPerSecond(rate)) => (Some(rate), bytes_per_s),
            None => (None, bytes_per_s),
        };
        if let Some(rate) = own {
            pace = pace.own(rate);
        }
        if let Some(rate) = configured {
            let shown = hours.as_ref().map(|hours| format!(" from {hours}"));
            host.progress.note(&format!(
                "{whose}: at most {} a second{}, shared with the other backups, restores and checks of this account (max_rate)",
                human::size(rate),
                shown.unwrap_or_default()
            ));
            let directory = directory()?.map(|caches| caches.join(DIRECTORY));
            let progress = Arc::clone(&host.progress);
            let when = hours.map(|hours| at(hours, host));
            pace = pace.shared((rate, when), (directory.as_deref(), &location), progress);
        }
        let pace = Arc::new(pace);
        known.insert(location, Arc::clone(&pace));
        Ok(pace)
    }
}
