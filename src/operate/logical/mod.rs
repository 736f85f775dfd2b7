//! Logical dumps of databases: taken, put back, and checked.

pub mod backup;
pub mod check;
mod data;
mod publications;
pub mod restore;
mod scratch;

use std::path::{Path, PathBuf};

use super::search;
use super::session::Session;
use crate::config::{Logical, Settings};
use crate::err;
use crate::error::Result;
use crate::logical::kind::NAME;
use crate::logical::member::Member;
use crate::logical::tool;
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;

/// A backup that is read.
pub struct Stored {
    /// The backup and its repository.
    pub backup: search::Stored,
    /// The facts of its dumps.
    pub member: Member,
}

/// Returns the section of the configuration for a name.
///
/// # Errors
/// `Config` when there is none, with the lines to add.
fn configured<'s>(settings: &'s Settings, name: &str) -> Result<&'s Logical> {
    let found = settings.logical.iter().find(|l| l.name == name);
    found.ok_or_else(|| {
        let cluster = settings.clusters.first().map_or("main", |c| c.name.as_str());
        err!(Config, "no logical backup \"{name}\" is configured").hint(format!(
            "Nothing was stored. Add to the configuration file: [logical.{name}] and below it cluster = \"{cluster}\""
        ))
    })
}

/// Finds the backup: the one that is named, else the newest that no check found damaged, in the first repository that has it. One that is marked for
/// deletion is taken where there is no other.
///
/// # Errors
/// `NotFound`; that of the first repository, when none can be read; `Damaged` when its member cannot be read.
fn find(session: &Session, name: &str, wanted: Option<&BackupId>) -> Result<Stored> {
    let is_whole = |events: &[Recorded]| event::damage(events).is_empty();
    let stays = |events: &[Recorded]| is_whole(events) && !event::is_marked(events);
    let newest = |is_good: &dyn Fn(&[Recorded]) -> bool| {
        search::best(session, (NAME, name), |repository, scope| {
            search::named_or_newest(repository, scope, wanted, is_good)
        })
    };
    let found = match wanted {
        // A mark counts nothing against one that is named.
        Some(_) => newest(&is_whole)?,
        None => match newest(&stays)? {
            None => newest(&is_whole)?,
            found => found,
        },
    };
    let backup = found.ok_or_else(|| {
        search::lacking(&format!("logical backup \"{name}\""), wanted).hint(format!(
            "pitr info shows what there is. Take one with pitr logical backup {name}"
        ))
    })?;
    Ok(Stored {
        member: Member::read(&backup.member()?)?,
        backup,
    })
}

/// The folders in which PostgreSQL's programs are looked for.
fn folders(session: &Session, given: Option<&Path>) -> Vec<PathBuf> {
    tool::folders(given, session.environment.get("PATH"))
}
