//! Which registrations of a cluster a verb works on that looks at one after the other.

use super::session::Session;
use crate::err;
use crate::error::Result;
use crate::repo::repository::{Registration, Repository};

/// The registrations of the cluster of this name, else of the only one, oldest first; with `--system-identifier` that one.
///
/// # Errors
/// `Usage` when several clusters could be meant; `NotFound` when there is none of the name, or none with the identifier.
pub fn registrations(
    session: &Session,
    repository: &Repository,
    cluster: Option<&str>,
) -> Result<Vec<Registration>> {
    let names = repository.cluster_names()?;
    let name = match (cluster, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            return Err(err!(
                Usage,
                "the repository holds several clusters, or none, and none is named"
            )
            .hint(format!("Add --cluster NAME. Known: {}", names.join(", "))));
        }
    };
    let mut found = repository.registrations(name)?;
    if found.is_empty() {
        return Err(err!(
            NotFound,
            "cluster \"{name}\" is not in repository \"{}\"",
            repository.store().location()
        )
        .hint(format!("Known there: {}", names.join(", "))));
    }
    let Some(wanted) = session.system_identifier else {
        return Ok(found);
    };
    let known = found.iter();
    let known: Vec<String> = known.map(|r| r.system_identifier.to_string()).collect();
    found.retain(|r| r.system_identifier == wanted);
    if found.is_empty() {
        return Err(err!(
            NotFound,
            "system identifier {wanted} is not registered for cluster \"{name}\" in repository \"{}\"",
            repository.store().location()
        )
        .hint(format!("Registered: {}", known.join(", "))));
    }
    Ok(found)
}
