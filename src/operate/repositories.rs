//! The repositories of the configuration, and the clusters that each knows.

use serde::Serialize;

use super::failures::ShownError;
use super::session::Session;
use crate::config;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::repository::Repository;

/// A repository, as far as it can be opened.
#[derive(Serialize)]
pub struct RepositoryInfo {
    pub name: String,
    /// Its place.
    pub url: String,
    /// Whether archiving waits for it.
    pub required: bool,
    /// Its own name.
    pub uuid: Option<String>,
    /// When it was made.
    pub created: Option<TimestampTz>,
    /// The clusters that it knows.
    pub clusters: Vec<RegisteredCluster>,
    /// Why it cannot be opened.
    pub error: Option<ShownError>,
}

/// A cluster that is registered in it.
#[derive(Serialize)]
pub struct RegisteredCluster {
    pub name: String,
    pub system_identifier: String,
    /// PostgreSQL major.
    pub major: u32,
    /// WAL segment size.
    pub segment_size_bytes: u64,
    /// When it was registered.
    pub first_seen: TimestampTz,
}

/// Looks at each repository. Also returns the errors of those that cannot be opened.
///
/// # Errors
/// Those of the configuration.
pub fn look(session: &Session) -> Result<(Vec<RepositoryInfo>, Vec<Error>)> {
    let settings = session.settings()?;
    let mut shown = Vec::new();
    let mut failed: Vec<Error> = Vec::new();
    for configured in &settings.repositories {
        let (opened, error) = match inspect(session, configured) {
            Ok(opened) => (Some(opened), None),
            Err(e) => {
                let error = ShownError::from(&e);
                failed.push(e);
                (None, Some(error))
            }
        };
        let (uuid, created, clusters) =
            opened.map_or((None, None, Vec::new()), |(u, c, l)| (Some(u), Some(c), l));
        shown.push(RepositoryInfo {
            name: configured.name.clone(),
            url: configured.location.to_string(),
            required: configured.required,
            uuid,
            created,
            clusters,
            error,
        });
    }
    Ok((shown, failed))
}

fn inspect(
    session: &Session,
    configured: &config::Repository,
) -> Result<(String, TimestampTz, Vec<RegisteredCluster>)> {
    let repository: Repository = session.open(configured)?;
    let mut clusters = Vec::new();
    for name in repository.cluster_names()? {
        for r in repository.registrations(&name)? {
            clusters.push(RegisteredCluster {
                name: r.name,
                system_identifier: r.system_identifier.to_string(),
                major: r.major,
                segment_size_bytes: r.segment_size_bytes,
                first_seen: r.first_seen,
            });
        }
    }
    let marker = repository.marker();
    Ok((marker.uuid.clone(), marker.created, clusters))
}
