//! The subject of a report: a cluster, or other content.

use serde_json::{Map, Value, json};

use super::registered::registrations;
use super::session::Session;
use crate::error::Result;
use crate::repo::repository::{Registration, Repository};
use crate::repo::scope::Scope;

/// A cluster, or other content.
pub enum Of {
    /// A cluster.
    Cluster(Registration),
    /// An aux scope.
    Scope(Scope),
}

impl Of {
    /// Its name for people.
    pub fn title(&self) -> String {
        match self {
            Of::Cluster(r) => format!("cluster {} ({})", r.name, r.system_identifier),
            Of::Scope(scope) => scope.prefix(),
        }
    }

    /// The cluster's name, for the next command line.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Of::Cluster(r) => Some(&r.name),
            Of::Scope(_) => None,
        }
    }

    /// Puts its name in front of what JSON says of it.
    pub fn named(&self, value: Value) -> Value {
        let name = match self {
            Of::Cluster(r) => json!({
                "cluster": r.name,
                "system_identifier": r.system_identifier.to_string(),
            }),
            Of::Scope(scope) => json!({ "scope": scope.prefix() }),
        };
        let mut all = Map::new();
        for part in [name, value] {
            if let Value::Object(members) = part {
                all.extend(members);
            }
        }
        Value::Object(all)
    }
}

/// Reports as JSON has them: those of clusters under `clusters`, and those of other content, where there is some, under `scopes`.
pub fn split<T>(
    done: &[T],
    of: impl Fn(&T) -> &Of,
    shown: impl Fn(&T) -> Value,
) -> Map<String, Value> {
    let is_cluster = |one: &&T| matches!(of(one), Of::Cluster(_));
    let (clusters, scopes): (Vec<&T>, Vec<&T>) = done.iter().partition(is_cluster);
    let all = |found: Vec<&T>| Value::Array(found.into_iter().map(&shown).collect());
    let has_scopes = !scopes.is_empty();
    let mut members = Map::new();
    members.insert("clusters".into(), all(clusters));
    if has_scopes {
        members.insert("scopes".into(), all(scopes));
    }
    members
}

/// The aux scopes that a command works on that looks at everything: none where a cluster is named.
///
/// # Errors
/// Errors of the store.
pub fn scopes(session: &Session, repository: &Repository) -> Result<Vec<Scope>> {
    match looks_at_all(session) {
        true => repository.aux_scopes(),
        false => Ok(Vec::new()),
    }
}

/// Whether no cluster is named.
pub fn looks_at_all(session: &Session) -> bool {
    session.flags.cluster.is_none() && session.system_identifier.is_none()
}

/// The registrations that a command works on; none where other content is all that the repository holds.
///
/// # Errors
/// Those of [`registrations`].
pub fn registrations_beside(
    scopes: &[Scope],
    session: &Session,
    repository: &Repository,
    cluster: Option<&str>,
) -> Result<Vec<Registration>> {
    match !scopes.is_empty() && repository.cluster_names()?.is_empty() {
        true => Ok(Vec::new()),
        false => registrations(session, repository, cluster),
    }
}
